"""Rows for training from files: for each architecture the published formats, read by a path alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..console import say
from .geometry import LARGEST_GAP, find_sequences, gaps
from .nuscenes import NuScenes
from .programs import Programs
from .questions import Questions
from .segmentation import Narratives, ReferringExpressions


def rows(seed: int, kind: str, path: str, **options):
    """
    Rows of `path` for the collator of an architecture.

    Args:
        seed: of a stage's data; files do not need it. kind: the model type. options: of the reader, see `READERS`.
    """
    if kind not in READERS:
        raise ValueError(f"Files are read for {', '.join(READERS)}, not for {kind!r}.")
    return READERS[kind](path, **options)


class GeometryRows:
    """
    Windows of sequences with depth and cameras: "images", "depths", "intrinsics", "poses".

    TUM's and Bonn's images come without a depth image or a pose here and there: windows with such an image are left
    out, which is told.

    Args:
        path: a folder as [`find_sequences`] reads it. frames: images of a row; stride: between its images; step:
            between the first images of two rows, default a whole window. intrinsics: (fx, fy, cx, cy) in pixels, of
            sequences that are published without (TUM, Bonn).
    """

    def __init__(
        self,
        path,
        frames: int = 4,
        stride: int = 1,
        step: int | None = None,
        layout: str | None = None,
        intrinsics: Sequence[float] | None = None,
    ):
        if intrinsics is not None and (isinstance(intrinsics, str) or len(intrinsics) != 4):
            raise ValueError(f"`intrinsics` must be four numbers, fx, fy, cx, cy, got {intrinsics!r}.")
        self.windows = []
        reach, left_out = (frames - 1) * stride, 0
        for sequence in find_sequences(path, layout):
            if sequence.intrinsics is None and intrinsics is not None:
                fx, fy, cx, cy = intrinsics
                sequence.intrinsics = np.tile([[fx, 0.0, cx], [0.0, fy, cy], [0, 0, 1]], (len(sequence.images), 1, 1))
            lacking = [name for name in ("depth", "intrinsics", "poses") if getattr(sequence, name) is None]
            if lacking:
                raise ValueError(
                    f"Sequence {sequence.name} has no {' and no '.join(lacking)}; training needs them all. The "
                    "reader's option `intrinsics` says those of a whole folder."
                )
            count = len(sequence.images)
            if sequence.layout == "multiview":
                self.windows.append((sequence, list(range(count))))
            starts = range(0, count - reach, step or reach + stride)
            if sequence.layout != "multiview":
                windows = [list(range(start, start + reach + 1, stride)) for start in starts]
                whole = complete(sequence)
                self.windows += [(sequence, chosen) for chosen in windows if whole[chosen].all()]
                left_out += sum(not whole[chosen].all() for chosen in windows)
        if not self.windows:
            lack = f"; {left_out} windows have an image without depth or pose" if left_out else ""
            raise ValueError(f"{path} has no sequence of {reach + 1} images or more{lack}.")
        if left_out:
            say(
                f"{path}: {left_out} of {left_out + len(self.windows)} windows are left out, since an image of theirs "
                f"has no depth or pose within {LARGEST_GAP} s."
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        sequence, chosen = self.windows[index]
        times = np.asarray(sequence.pose_times, float)
        nearest = [int(np.abs(times - sequence.times[i]).argmin()) for i in chosen]
        return {
            "images": [str(sequence.images[i]) for i in chosen],
            "depths": np.stack([sequence.depth(i) for i in chosen]),
            "intrinsics": sequence.intrinsics[chosen],
            "poses": sequence.poses[nearest],
        }


def complete(sequence) -> np.ndarray:
    """Bool `[N]`: which images of a sequence have a depth and a pose of their moment."""
    found = np.ones(len(sequence.images), bool) if sequence.has_depth is None else sequence.has_depth
    if sequence.layout in ("tum", "bonn"):  # others have a pose for each image, and numbers for times
        found = found & (gaps(sequence.times, sequence.pose_times) <= LARGEST_GAP)
    return found


class NuScenesRows:
    """
    Questions about nuScenes' samples, and their map elements: "images", "cam_intrinsics", "cam_extrinsics", "question",
    "answer", "map".

    Args:
        path: nuScenes' folder. In its version's folder (or beside it) `questions.json`, rows of `sample_token`,
            `question`, `answer`, and `map_elements.json`, rows of `sample_token`, `label`, `points` (metres, LiDAR
            frame); one of them at least.
        calibrated: give the cameras' calibration.
        learn: "questions", "map", or "both" in every row (the prompts then begin alike); default: questions, if there
            are some.
    """

    def __init__(self, path, version: str | None = None, calibrated: bool = True, learn: str | None = None):
        import json

        self.reader, self.calibrated = NuScenes(path, version), calibrated

        def table(name: str) -> list[dict]:
            found = next((p for p in (self.reader.tables / name, Path(path) / name) if p.is_file()), None)
            return [] if found is None else json.loads(found.read_text(encoding="utf-8-sig"))

        questions, elements = table("questions.json"), table("map_elements.json")
        if not questions and not elements:
            raise ValueError(f"{path} has neither questions.json nor map_elements.json, so nothing is to be learnt.")
        learn = learn or ("questions" if questions else "map")
        if learn not in ("questions", "map", "both") or (learn != "map" and not questions):
            raise ValueError(f'`learn` must be "questions", "map" or "both", of what {path} has; got {learn!r}.')
        questions, elements = (questions if learn != "map" else []), (elements if learn != "questions" else [])
        _need("questions.json", questions, ("sample_token",))
        _need("map_elements.json", elements, ("sample_token", "label", "points"))
        self.maps = {}
        for element in elements:
            line = {"label": element["label"], "points": element["points"]}
            self.maps.setdefault(element["sample_token"], []).append(line)
        self.entries = [(q["sample_token"], q.get("question"), q.get("answer")) for q in questions]
        self.entries = self.entries or [(token, None, None) for token in self.maps]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        token, question, answer = self.entries[index]
        sample = self.reader.read(token)
        row = {"images": {name: str(file) for name, file in sample["images"].items()}}
        if self.calibrated:
            row |= {name: sample[name] for name in ("cam_intrinsics", "cam_extrinsics")}
        if question is not None:
            row |= {"question": question, "answer": answer}
        if self.maps:
            row["map"] = self.maps.get(token, [])
        return row


def _need(file: str, entries: list, fields: tuple[str, ...]) -> None:
    """Every entry has these fields, or a ValueError says which has not."""
    for number, entry in enumerate(entries):
        missing = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise ValueError(f"{file}, row {number} lacks {', '.join(missing)}; it is {entry!r:.60}.")


class SegmentationRows(Sequence):
    """
    "image", "pieces" and "masks": referring expressions of a folder with `instances.json` and `refs(…).p` (`images`
    beside them by default), or, of a `png_coco_….json`, Panoptic Narrative Grounding. Images and masks are read when
    asked for.
    """

    def __init__(self, path, images=None, split: str = "train", panoptic=None, segmentations=None):
        path = Path(path)
        self.samples: Sequence
        if path.is_file():
            if None in (panoptic, segmentations, images):
                raise ValueError("Panoptic Narrative Grounding needs `panoptic`, `segmentations` and `images`, too.")
            self.samples = Narratives(path, panoptic, segmentations, images)
        else:
            self.samples = ReferringExpressions(path, path / "images" if images is None else images, split)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        return {"image": sample.image, "pieces": sample.pieces, "masks": sample.masks}


READERS = {
    "dsr": Questions,
    "pi3": GeometryRows,
    "page4d": GeometryRows,
    "cadrille": Programs,
    "cad_recode": Programs,
    "frozen_qwen_sam": SegmentationRows,
    "scene_qformer": NuScenesRows,
}
