"""Answers as rows of a table and files of a folder: what `results.parquet` and `items/` hold, by task."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field
from urllib.parse import quote

from .source import writable


@dataclass
class Answered:
    """
    What came of an item.

    Args:
        row: of the table. files: content by name, for the item's folder.
    """

    row: dict
    files: dict[str, bytes] = field(default_factory=dict)


def schema_of(task: str):
    """Of the table of a task. A list has an entry per question, phrase, frame or candidate; null where it failed."""
    import pyarrow as pa

    text, texts, numbers = pa.string(), pa.list_(pa.string()), pa.list_(pa.float64())
    tokens = pa.list_(pa.int32())
    matrix = pa.list_(numbers)
    phrase = {
        "phrase": text, "score": pa.float64(), "box": numbers, "area": pa.int64(), "start": pa.int32(),
        "end": pa.int32(), "rle": pa.struct({"size": pa.list_(pa.int32()), "counts": pa.list_(pa.int32())}),
    }  # fmt: skip
    frame = {
        "index": pa.int32(), "width": pa.int32(), "height": pa.int32(), "camera_to_world": matrix,
        "intrinsics": matrix,
    }  # fmt: skip
    candidate = {"code": text, "message": text, "notes": texts, "chamfer": pa.float64()}
    asked = {"questions": texts, "answers": texts, "tokens": pa.list_(tokens), "finished": pa.list_(pa.bool_())}
    fields = {
        "ask": {**asked, "frames": pa.list_(pa.int32())},
        "reconstruct": {"frames": pa.list_(pa.struct(frame)), "points": pa.int64()},
        "segment": {"question": text, "answer": text, "tokens": tokens, "phrases": pa.list_(pa.struct(phrase))},
        "cad": {
            "programs": texts, "tokens": pa.list_(tokens), "finished": pa.list_(pa.bool_()), "best": pa.int32(),
            "candidates": pa.list_(pa.struct(candidate)), "volume": pa.float64(), "message": text,
        },
        "scene": {**asked, "shape": pa.list_(pa.int32()), "mean_norm": pa.float64(), "attention": _shares(pa)},
    }[task]  # fmt: skip
    common = {
        "error_code": text, "error": text, "seconds": pa.float64(), "model": text, "revision": text, "folder": text,
        "files": texts,
    }  # fmt: skip
    return pa.schema({"id": text} | fields | common)


def _shares(pa):
    return pa.list_(pa.struct({"camera": pa.string(), "share": pa.float64()}))


def answered(task: str, name: str, pairs: list, error, seconds: float, model: str, revision: str) -> Answered:
    """
    Row and files of an item.

    Args:
        pairs: (request, its answer or None) of each request of the item.
        error: code and message of the first that failed, or None.
    """
    row, files = MAKERS[task](pairs) if pairs else ({}, {})
    code, message = error or (None, None)
    row = {"id": name, **row, "error_code": code, "error": message, "seconds": round(seconds, 4)}
    row |= {"model": model, "revision": revision, "folder": folder_of(name) if files else None}
    return Answered(_written(row | {"files": sorted(files)}), files)


def folder_of(name: str) -> str:
    """A name of a folder for an id, one to one: what is unusual in names of files is written out; long ones are cut."""
    written = quote(name, safe=" ()+,=@")
    if written.startswith((".", " ")) or written.endswith((".", " ")):
        written = "".join(f"%{ord(mark):02X}" if mark in ". " else mark for mark in written)
    if len(written) > 120:
        written = f"{written[:100]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"items/{written}"


def _asked(pairs: list) -> dict:
    """Lists with an entry per question."""
    answers = [answer or {} for _, answer in pairs]
    return {
        "questions": [request["inputs"].get("question") for request, _ in pairs],
        "answers": [answer.get("answer") for answer in answers],
        "tokens": [answer.get("tokens_written", answer.get("tokens")) for answer in answers],
        "finished": [answer.get("finished") for answer in answers],
    }


def _ask(pairs: list):
    row, files = _asked(pairs), {}
    row["frames"] = next((answer["frames"] for _, answer in pairs if answer and "frames" in answer), None)
    for number, (_, answer) in enumerate(pairs, 1):
        for frame, picture in enumerate((answer or {}).get("attention", ())):
            name = f"attention-{frame}.png" if len(pairs) == 1 else f"question-{number}-attention-{frame}.png"
            files[name] = base64.b64decode(picture)
    return row, files


def _reconstruct(pairs: list):
    ((_, answer),) = pairs
    if answer is None:
        return {}, {}
    files, frames = {}, []
    for number, frame in enumerate(answer["frames"]):
        maps = {name: value for name, value in frame.items() if isinstance(value, str)}
        frames.append({name: value for name, value in frame.items() if name not in maps})
        files |= {f"{name}-{number}.npy": base64.b64decode(value) for name, value in maps.items()}
    if "glb" in answer:
        files["scene.glb"] = base64.b64decode(answer["glb"])
    return {"frames": frames, "points": answer["points"]}, files


def _segment(pairs: list):
    ((request, answer),) = pairs
    row = {"question": request["inputs"].get("question")}
    if answer is None:
        return row, {}
    files, phrases = {}, []
    for number, entry in enumerate(answer["phrases"]):
        mask = base64.b64decode(entry["mask"]) if "mask" in entry else mask_png(entry["rle"])
        files[f"mask-{number}.png"] = mask
        phrases.append({name: value for name, value in entry.items() if name != "mask"})
    return row | {"answer": answer.get("answer"), "tokens": answer.get("tokens"), "phrases": phrases}, files


def mask_png(rle: dict) -> bytes:
    """A picture of a mask that is given by its run lengths (COCO's, column by column)."""
    import numpy as np
    from PIL import Image

    counts = rle["counts"]
    mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rle["size"], order="F")
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def _cad(pairs: list):
    ((_, answer),) = pairs
    if answer is None:
        return {}, {}
    row = {name: answer[name] for name in ("programs", "tokens", "finished")}
    files = {f"program-{number}.py": program.encode() for number, program in enumerate(answer["programs"])}
    outcome = answer.get("execution")
    if outcome is not None:
        row |= {name: outcome.get(name) for name in ("best", "candidates", "volume", "message")}
        named = {"step": "solid.step", "stl": "solid.stl", "picture": "solid.png"}
        files |= {file: base64.b64decode(outcome[name]) for name, file in named.items() if outcome.get(name)}
    return row, files


def _scene(pairs: list):
    row, answer = _asked(pairs), next((answer for _, answer in pairs if answer), None)
    if all(question is None for question in row["questions"]):
        row = {}
    if answer is None:
        return row, {}
    shares = [{"camera": name, "share": share} for name, share in answer["attention"].items()]
    row |= {"shape": answer["shape"], "mean_norm": answer["mean_norm"], "attention": shares}
    named = {"picture": "attention.png", "tokens": "tokens.npy"}
    return row, {file: base64.b64decode(answer[name]) for name, file in named.items() if name in answer}


MAKERS = {"ask": _ask, "reconstruct": _reconstruct, "segment": _segment, "cad": _cad, "scene": _scene}


def table_bytes(task: str, rows: list[dict]) -> bytes:
    """A parquet file of some rows."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.Table.from_pylist(rows, schema=schema_of(task))
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def _written(value):
    """A value whose texts every file takes."""
    if isinstance(value, dict):
        return {name: _written(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(one) for one in value]
    return writable(value) if isinstance(value, str) else value
