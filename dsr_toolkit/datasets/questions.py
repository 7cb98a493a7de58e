"""Questions about videos in their published files: DSR-Train, chat lists of Qwen's training code, lines of JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .lines import parsed, read_lines

LETTERS = "ABCDEFGH"


class Questions(Sequence):
    """
    Rows "video", "question", "answer" (and "type") for DSR's collator, each made when it is asked for, so that a faulty
    one hides no other. Videos are not opened.

    Args:
        path: DSR-Train's JSON, `{video: [{"Type", "Question", "A", "B", …, "Correct"}, …]}`, whose questions become the
            published text (`Question`, "Options:", one line per option) and answer with a letter; or a list of
            `{"video", "conversations": [{"from": "human" or "gpt", "value"}]}`, as Qwen's training code and DSR's own
            converter write it; or lines of JSON (`.jsonl`), each a row as the collator takes it.
        media: folder of the videos; default: `videos` beside the file if there is one, else the file's own folder.
    """

    def __init__(self, path: str | Path, media: str | Path | None = None):
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"There is no file {str(path)!r}.")
        self.folder = Path(media) if media is not None else path.parent / "videos"
        if media is None and not self.folder.is_dir():
            self.folder = path.parent
        self.make: Callable[..., dict]
        self.entries: list[tuple]
        if path.suffix == ".jsonl":
            self.make, self.entries = _found, [(row,) for row in read_lines(path)]
            return
        content = parsed(path.read_text(encoding="utf-8-sig"), path.name)
        if isinstance(content, dict):
            wrong = [name for name, entries in content.items() if not isinstance(entries, list)]
            if wrong:
                raise ValueError(
                    f"{path.name}: {wrong[0]!r} must have a list of questions, got {content[wrong[0]]!r:.60}"
                )
            self.make = _of_choice
            self.entries = [(entry, name) for name, entries in content.items() for entry in entries]
        elif isinstance(content, list):
            self.make, self.entries = _of_chat, [(entry,) for entry in content]
        else:
            found = type(content).__name__
            raise ValueError(f"{path.name} holds a {found}; a dictionary (DSR-Train) or a list is expected.")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index):
        entry, *given = self.entries[index]
        if not isinstance(entry, dict):
            raise ValueError(f"a row must be an object of JSON, got {entry!r:.60}")
        return self.make(dict(entry), *given, self.folder)


def multiple_choice(question: str, options: dict[str, str]) -> str:
    """The published text of a question with its options."""
    return "\n".join([question, "Options:", *(f"{letter} {option}" for letter, option in options.items())])


def _video(name: str, folder: Path) -> str:
    """The file of a video whose name may lack its suffix."""
    path = folder / name
    if path.suffix or path.exists():
        return str(path)
    found = sorted(folder.glob(f"{name}.*"))
    return str(found[0] if found else path.with_suffix(".mp4"))


def _of_choice(entry: dict, name: str, folder: Path) -> dict:
    options = {letter: entry[letter] for letter in LETTERS if entry.get(letter) is not None}
    row = {"video": _video(name, folder), "question": None, "answer": entry.get("Correct"), "type": entry.get("Type")}
    if isinstance(entry.get("Question"), str) and options:
        row["question"] = multiple_choice(entry["Question"], options)
    if row["answer"] not in list(options):  # told by a check, not guessed here
        row["answer"] = None
    return row


def _of_chat(entry: dict, folder: Path) -> dict:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = []
    turns = entry.get("conversations")
    if not isinstance(turns, list):
        raise ValueError(f"field 'conversations' must be a list of turns, got {turns!r:.60}")
    for turn in turns:
        text, role = (turn.get(name) if isinstance(turn, dict) else None for name in ("value", "from"))
        if not (isinstance(text, str) and isinstance(role, str)):
            raise ValueError(
                f"field 'conversations' must hold turns with the texts 'from' and 'value', got {turn!r:.60}"
            )
        content = [{"type": "text", "text": text.replace("<video>", "").replace("<image>", "").strip("\n")}]
        media = [{"type": kind} for kind in ("image", "video") for _ in range(text.count(f"<{kind}>"))]
        messages.append({"role": roles.get(role, role), "content": media + content})
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
