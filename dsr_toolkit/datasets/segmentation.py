"""Training and evaluation samples of RefCOCO, RefCOCO+, RefCOCOg and Panoptic Narrative Grounding.

Every reader yields `SegmentationSample`s, whose `pieces` and `masks` go to `FrozenQwenSAMProcessor` and, as labels, to
`FrozenQwenSAMModel`.
"""

import io
import json
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_dsr.image_reader import read_image

from ..extras import needs

REFERRING_FILES = ("refs(unc).p", "refs(umd).p", "refs(google).p")


@dataclass
class SegmentationSample:
    """
    Attributes:
        image: RGB. phrases: one per mask. masks: bool `[n, H, W]` at the size of the image.
        pieces: captions for the processor, each a list of (text, mask number or -1).
        plural, thing: per mask, of Panoptic Narrative Grounding; None elsewhere.
    """

    image: Image.Image
    phrases: list[str]
    masks: torch.Tensor
    pieces: list[list[tuple[str, int]]]
    plural: list[bool] | None = None
    thing: list[bool] | None = None


def _coco():
    needs("segment", "Reading COCO's masks", "pycocotools")
    from pycocotools import coco, mask

    return coco, mask


class _PlainUnpickler(pickle.Unpickler):
    """The published referring expressions are a pickle of lists, dictionaries, strings and numbers: nothing else is
    built."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def load_plain_pickle(path: str | Path):
    try:
        return _PlainUnpickler(io.BytesIO(Path(path).read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a plain pickle of lists and dictionaries ({error}).") from error


class ReferringExpressions(Sequence):
    """
    Referring expressions in their published files, `instances.json` and `refs(unc).p` or `refs(umd).p`: samples that
    are read when asked for, with the first expression of each referent.

    Args:
        folder: of one of the three sets. images: of COCO train2014.
        split: "train", "val", "test", "testA", "testB".
        concat: all referents of an image in one sample and one caption; False: one sample per referent.
    """

    def __init__(self, folder: str | Path, images: str | Path, split: str = "val", concat: bool = True):
        folder, self.images = Path(folder), Path(images)
        coco_module, _ = _coco()
        self.groups = _referents(folder, split, concat)
        with redirect_stdout(sys.stderr):  # what it says of its progress is no result of a command
            self.coco = coco_module.COCO(str(folder / "instances.json"))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index):
        return self.sample(index)

    def sample(self, index: int, choose: np.random.Generator | None = None) -> SegmentationSample:
        """Sample number `index`, with expressions that `choose` draws."""
        members = self.groups[index]
        info = self.coco.loadImgs(members[0]["image_id"])[0]
        image = read_image(self.images / info["file_name"])
        sentences = [ref["sentences"] for ref in members]
        phrases = [(s[choose.integers(len(s)) if choose else 0])["raw"].lower().strip() for s in sentences]
        annotations = self.coco.loadAnns([ref["ann_id"] for ref in members])
        return _referring_sample(image, phrases, [self.coco.annToMask(annotation) for annotation in annotations])


def _referents(folder: Path, split: str, concat: bool) -> list[list[dict]]:
    """The expressions of a split, those of one sample together."""
    refs_file = next((folder / name for name in REFERRING_FILES if (folder / name).is_file()), None)
    if refs_file is None or not (folder / "instances.json").is_file():
        raise ValueError(
            f"{folder} holds no referring expressions: expected instances.json and one of {REFERRING_FILES}."
        )
    references = [ref for ref in load_plain_pickle(refs_file) if ref["split"] == split]
    if not references:
        splits = sorted({ref["split"] for ref in load_plain_pickle(refs_file)})
        raise ValueError(f"`split` {split!r} has no expressions in {refs_file}; there are {splits}.")
    groups: dict = {}
    for number, ref in enumerate(references):
        groups.setdefault(ref["image_id"] if concat else number, []).append(ref)
    return list(groups.values())


def read_refcoco(
    folder: str | Path, images: str | Path, split: str = "val", concat: bool = True, seed: int | None = None
) -> Iterator[SegmentationSample]:
    """
    [`ReferringExpressions`] one after another.

    Args:
        seed: take a random expression per referent, as in training; None: the first, as in evaluation.
    """
    samples = ReferringExpressions(folder, images, split, concat)
    choose = None if seed is None else np.random.default_rng(seed)
    for index in range(len(samples)):
        yield samples.sample(index, choose)


def read_refcoco_dataset(rows) -> Iterator[SegmentationSample]:
    """
    Referring expressions as a table of `datasets`, one referent per row.

    Args:
        rows: a `datasets.Dataset` (`datasets.load_dataset(...)`) with the columns `image`, `answer` (expressions) and
            `segmentation` (one polygon `[x0, y0, x1, y1, …]`, or a list of them).
    """
    _, mask_module = _coco()
    missing = {"image", "answer", "segmentation"} - set(rows.column_names)
    if missing:
        raise ValueError(f"The table lacks the columns {sorted(missing)}; it has {rows.column_names}.")
    for row in rows:
        image, polygons = row["image"].convert("RGB"), row["segmentation"]
        polygons = [polygons] if polygons and not isinstance(polygons[0], (list, tuple)) else polygons
        runs = mask_module.merge(mask_module.frPyObjects(polygons, image.height, image.width))
        answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        yield _referring_sample(image, [answers[0].lower().strip()], [mask_module.decode(runs)])


def _referring_sample(image, phrases, masks) -> SegmentationSample:
    """As published, every expression is followed by a full stop that belongs to none."""
    pieces = [piece for number, phrase in enumerate(phrases) for piece in ((phrase, number), (".", -1))]
    return SegmentationSample(image, phrases, torch.from_numpy(np.stack(masks)).bool(), [pieces])


class Narratives(Sequence):
    """
    Panoptic Narrative Grounding in its published files: samples that are read when asked for.

    Args:
        narratives: `png_coco_….json`. panoptic: `panoptic_….json` of COCO. segmentations: folder of its PNG files.
        images: folder of the pictures.

    Narratives without any grounded segment are left out.
    """

    def __init__(self, narratives: str | Path, panoptic: str | Path, segmentations: str | Path, images: str | Path):
        told, truth = (json.loads(Path(path).read_text(encoding="utf-8-sig")) for path in (narratives, panoptic))
        self.annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
        self.files = {image["id"]: image["file_name"] for image in truth["images"]}
        self.is_thing = {category["id"]: bool(category["isthing"]) for category in truth["categories"]}
        self.segmentations, self.images = Path(segmentations), Path(images)
        self.narratives = [one for one in told if any(segment["segment_ids"] for segment in one["segments"])]

    def __len__(self) -> int:
        return len(self.narratives)

    def __getitem__(self, index):
        narrative = self.narratives[index]
        image_id = int(narrative["image_id"])
        if image_id not in self.annotations:
            raise ValueError(
                f"Narrative of image {image_id}: the panoptic annotations do not have it. Do both files belong "
                "together?"
            )
        annotation = self.annotations[image_id]
        colours = np.asarray(Image.open(self.segmentations / annotation["file_name"]).convert("RGB")).astype(np.int64)
        ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        category = {info["id"]: info["category_id"] for info in annotation["segments_info"]}
        masks, pieces, phrases, plural, thing = [], [], [], [], []
        for segment in narrative["segments"]:
            members = [int(number) for number in segment["segment_ids"]]
            pieces.append((segment["utterance"], len(masks) if members else -1))
            if members:
                masks.append(np.isin(ids, members))
                phrases.append(segment["utterance"])
                plural.append(bool(segment["plural"]))
                thing.append(self.is_thing[category[members[0]]])
        image = read_image(self.images / self.files[image_id])
        return SegmentationSample(image, phrases, torch.from_numpy(np.stack(masks)), [pieces], plural, thing)


def read_png(
    narratives: str | Path, panoptic: str | Path, segmentations: str | Path, images: str | Path
) -> Iterator[SegmentationSample]:
    """[`Narratives`] one after another."""
    yield from Narratives(narratives, panoptic, segmentations, images)


def collate(samples: list[SegmentationSample], processor, instruction: str | None = None) -> dict:
    """The model's inputs and labels of several samples: a collator for `Trainer` (`remove_unused_columns=False`)."""
    inputs = processor(
        images=[sample.image for sample in samples],
        text=None if instruction is None else [instruction] * len(samples),
        pieces=[sample.pieces for sample in samples],
    )
    return {**inputs, "labels": [sample.masks for sample in samples]}
