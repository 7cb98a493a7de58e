"""Clips of the space world as files of the published data sets: DSR-Train, RefCOCO, and folders of posed images."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..world import new_folder
from .questions import LETTERS


def write_dsr_train(samples: Iterable, folder: str | Path) -> Path:
    """
    `train.json` as DSR-Train publishes it, `{video: [{"Type", "Question", "A", "B", …, "Correct"}, …]}`, and
    `videos/VIDEO.mp4`. Questions have as many letters as they have options, two to four.

    Args:
        samples: `SpaceSample`s with one view. folder: must not exist, or be empty.
    """
    folder = new_folder(folder)
    (folder / "videos").mkdir()
    rows = {}
    for sample in samples:
        name = _name(sample)
        write_video(sample, folder / "videos" / f"{name}.mp4")
        rows[name] = [
            {
                "Type": question.type,
                "Question": question.text,
                **dict(zip(LETTERS, question.options)),
                "Correct": question.letter,
            }
            for question in sample.questions
        ]
    (folder / "train.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return folder


def write_video(sample, path: str | Path) -> Path:
    """The frames as H.264, at the rate at which they were taken."""
    import av

    path = Path(path)
    height, width = sample.images.shape[-3:-1]
    if sample.images.ndim != 4 or height % 2 or width % 2:
        raise ValueError(f"H.264 needs one view of even sides, got images of shape {list(sample.images.shape)}.")
    with av.open(str(path), "w") as container:
        rate = Fraction(sample.fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in sample.images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_refcoco(samples: Iterable, folder: str | Path, split: str = "train") -> Path:
    """
    `instances.json` and `refs(unc).p` as RefCOCO publishes them, and `images/`: the middle frame of each sample, with
    every phrase of every thing in it.

    Args:
        samples: `SpaceSample`s with one view. folder: must not exist, or be empty. split: of all of them.
    """
    folder = new_folder(folder)
    (folder / "images").mkdir()
    images, annotations, refs, sentence = [], [], [], 0
    for image_id, sample in enumerate(samples):
        frame = len(sample.images) // 2
        file = f"{_name(sample)}.png"
        Image.fromarray(sample.images[frame]).save(folder / "images" / file)
        height, width = sample.instances.shape[-2:]
        images.append({"id": image_id, "file_name": file, "height": height, "width": width})
        by_thing: dict[int, list] = {}
        for phrase in sample.phrases(frame):
            by_thing.setdefault(phrase.thing, []).append(phrase)
        for thing, named in by_thing.items():
            mask = named[0].mask
            rows, columns = np.nonzero(mask)
            box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            annotation = {"id": len(annotations), "image_id": image_id, "category_id": 1, "iscrowd": 0}
            annotation |= {"segmentation": run_lengths(mask), "area": int(mask.sum()), "bbox": box}
            sentences = []
            for phrase in named:
                tokens = phrase.text.split()
                sentences.append({"sent_id": sentence, "raw": phrase.text, "sent": phrase.text, "tokens": tokens})
                sentence += 1
            refs.append(
                {"ref_id": len(refs), "ann_id": annotation["id"], "image_id": image_id, "category_id": 1,
                 "split": split, "file_name": file, "sentences": sentences,
                 "sent_ids": [entry["sent_id"] for entry in sentences]}
            )  # fmt: skip
            annotations.append(annotation)
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances) + "\n", encoding="utf-8")
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return folder


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed runs of a mask `[H, W]`: lengths of zeros and ones by turns, down the columns, zeros
    first."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff([0, *changes, mask.size])
    return {"counts": [int(count) for count in counts], "size": list(mask.shape)}


def write_multiview(sample, folder: str | Path) -> Path:
    """
    `time_00/view0.png` …, and in each folder `geometry.npz` with `depth` `[V, H, W]`, `intrinsics` `[V, 3, 3]`,
    `extrinsics` `[V, 3, 4]` (camera-from-world) and `dynamic_mask` `[V, H, W]`.
    """
    folder = new_folder(folder)
    if sample.images.ndim != 5:
        raise ValueError(f"`sample` must have several views, got images of shape {list(sample.images.shape)}.")
    for time in range(len(sample.images)):
        place = folder / f"time_{time:02d}"
        place.mkdir()
        for view, image in enumerate(sample.images[time]):
            Image.fromarray(image).save(place / f"view{view}.png")
        np.savez_compressed(
            place / "geometry.npz",
            depth=sample.depth[time],
            intrinsics=sample.intrinsics[time],
            extrinsics=np.linalg.inv(sample.poses[time])[:, :3],
            dynamic_mask=sample.dynamic[time],
        )
    return folder


def write_posed_images(sample, folder: str | Path) -> Path:
    """`0.png` … and `condition.npz` with `poses` (camera-to-world), `intrinsics` and `depths`, as π³'s examples have
    them."""
    folder = new_folder(folder)
    if sample.images.ndim != 4:
        raise ValueError(f"`sample` must have one view, got images of shape {list(sample.images.shape)}.")
    for number, image in enumerate(sample.images):
        Image.fromarray(image).save(folder / f"{number}.png")
    np.savez_compressed(folder / "condition.npz", poses=sample.poses, intrinsics=sample.intrinsics, depths=sample.depth)
    return folder


def _name(sample) -> str:
    return f"space_{sample.seed}_{sample.index:06d}"
