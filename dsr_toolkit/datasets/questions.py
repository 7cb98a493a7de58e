"""Questions about videos in their published files: DSR-Train, chat lists of Qwen's training code, lines of JSON."""

import json
from pathlib import Path

LETTERS = "ABCDEFGH"


def read_questions(path: str | Path, media: str | Path | None = None) -> list[dict]:
    """
    Rows "video", "question", "answer" (and "type") for DSR's collator. Videos are not opened.

    Args:
        path: DSR-Train's JSON, `{video: [{"Type", "Question", "A", "B", …, "Correct"}, …]}`, whose questions become the
            published text (`Question`, "Options:", one line per option) and answer with a letter; or a list of
            `{"video", "conversations": [{"from": "human" or "gpt", "value"}]}`, as Qwen's training code and DSR's own
            converter write it; or lines of JSON (`.jsonl`), each a row as the collator takes it.
        media: folder of the videos; default: `videos` beside the file if there is one, else the file's own folder.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    folder = Path(media) if media is not None else path.parent / "videos"
    if media is None and not folder.is_dir():
        folder = path.parent
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        rows = [_loaded(line, f"line {number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [_found(row, folder) for row in rows]
    content = _loaded(text, path.name)
    if isinstance(content, dict):
        return [_of_choice(name, entry, folder) for name, entries in content.items() for entry in entries]
    if isinstance(content, list):
        return [_of_chat(entry, folder) for entry in content]
    raise ValueError(f"{path.name} holds a {type(content).__name__}; a dictionary (DSR-Train) or a list is expected.")


def multiple_choice(question: str, options: dict[str, str]) -> str:
    """The published text of a question with its options."""
    return "\n".join([question, "Options:", *(f"{letter} {option}" for letter, option in options.items())])


def _loaded(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}.") from error


def _video(name: str, folder: Path) -> str:
    """The file of a video whose name may lack its suffix."""
    path = folder / name
    if path.suffix or path.exists():
        return str(path)
    found = sorted(folder.glob(f"{name}.*"))
    return str(found[0] if found else path.with_suffix(".mp4"))


def _of_choice(name: str, entry: dict, folder: Path) -> dict:
    options = {letter: entry[letter] for letter in LETTERS if entry.get(letter) is not None}
    row = {"video": _video(name, folder), "question": None, "answer": entry.get("Correct"), "type": entry.get("Type")}
    if entry.get("Question") and options:
        row["question"] = multiple_choice(entry["Question"], options)
    if row["answer"] not in options:  # told by a check, not guessed here
        row["answer"] = None
    return row


def _of_chat(entry: dict, folder: Path) -> dict:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = []
    for turn in entry.get("conversations", []):
        text = turn["value"]
        content = [{"type": "text", "text": text.replace("<video>", "").replace("<image>", "").strip("\n")}]
        media = [{"type": kind} for kind in ("image", "video") for _ in range(text.count(f"<{kind}>"))]
        messages.append({"role": roles.get(turn["from"], turn["from"]), "content": media + content})
    return _found({"messages": messages, **{k: entry[k] for k in ("video", "image") if entry.get(k)}}, folder)


def _found(row: dict, folder: Path) -> dict:
    """Paths of a row's media, relative ones in `folder`."""
    for kind in ("video", "image"):
        for name in (kind, f"{kind}s"):
            value = row.get(name)
            if isinstance(value, str):
                row[name] = _video(value, folder)
            elif isinstance(value, list):
                row[name] = [_video(one, folder) if isinstance(one, str) else one for one in value]
    return row
