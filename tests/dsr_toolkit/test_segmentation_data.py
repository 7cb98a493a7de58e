"""Readers of referring expressions and narratives on small sets in the published layouts, and their metrics."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dsr_toolkit.datasets.rows import SegmentationRows
from dsr_toolkit.datasets.segmentation import collate, load_plain_pickle, read_png, read_refcoco, read_refcoco_dataset
from dsr_toolkit.evaluation.segmentation_metrics import SegmentationMetrics, average_recall, masks_from_logits

SQUARE = [2, 2, 12, 2, 12, 10, 2, 10]  # polygon: x 2…12, y 2…10


@pytest.fixture
def refcoco(tmp_path):
    """Two images; the first has two referents of the validation split."""
    pytest.importorskip("pycocotools")
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 80, "bbox": [2, 2, 10, 8],
         "segmentation": [SQUARE]},
        {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": [14, 2, 4, 4],
         "segmentation": [[14, 2, 18, 2, 18, 6, 14, 6]]},
        {"id": 3, "image_id": 8, "category_id": 1, "iscrowd": 0, "area": 80, "bbox": [2, 2, 10, 8],
         "segmentation": [SQUARE]},
    ]  # fmt: skip
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 16, "width": 20} for number in (7, 8)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    refs = [
        {"image_id": image, "ann_id": number, "split": split, "sentences": [{"raw": words}, {"raw": "other " + words}]}
        for number, image, split, words in (
            (1, 7, "val", "Left Dog "),
            (2, 7, "val", "small dog"),
            (3, 8, "train", "a dog"),
        )
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs))
    for number in (7, 8):
        Image.new("RGB", (20, 16), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
    return tmp_path


def test_referents_of_an_image_share_a_caption(refcoco):
    (sample,) = read_refcoco(refcoco, refcoco, "val")
    assert sample.phrases == ["left dog", "small dog"]
    assert sample.pieces == [[("left dog", 0), (".", -1), ("small dog", 1), (".", -1)]]
    assert (
        sample.masks.shape == (2, 16, 20)
        and sample.masks[0, 5, 5]
        and not sample.masks[0, 5, 15]
        and sample.masks[1, 4, 15]
    )


def test_rows_of_a_training_are_read_when_asked_for(refcoco, capsys):
    (refcoco / "8.jpg").unlink()  # of the other split
    rows = SegmentationRows(refcoco, images=refcoco, split="val")
    assert len(rows) == 1 and rows[0]["pieces"][0][0] == ("left dog", 0)
    assert capsys.readouterr().out == ""
    (refcoco / "7.jpg").unlink()
    assert len(SegmentationRows(refcoco, images=refcoco, split="val")) == 1
    with pytest.raises((OSError, ValueError), match="7.jpg"):
        rows[0]


def test_referents_can_stand_alone_and_expressions_be_drawn(refcoco):
    assert [s.phrases for s in read_refcoco(refcoco, refcoco, "val", concat=False)] == [["left dog"], ["small dog"]]
    drawn = {tuple(next(iter(read_refcoco(refcoco, refcoco, "val", seed=seed))).phrases) for seed in range(8)}
    assert len(drawn) > 1
    with pytest.raises(ValueError, match="there are \\['train', 'val'\\]"):
        next(read_refcoco(refcoco, refcoco, "testA"))
    with pytest.raises(ValueError, match="holds no referring expressions"):
        next(read_refcoco(refcoco / "nowhere", refcoco))


class Attack:
    def __reduce__(self):
        return (os.system, ("true",))


def test_pickles_that_would_run_code_are_refused(tmp_path):
    (tmp_path / "bad.p").write_bytes(pickle.dumps([Attack()]))
    with pytest.raises(ValueError, match="would run"):
        load_plain_pickle(tmp_path / "bad.p")


def test_tables_of_datasets():
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("pycocotools")
    picture = Image.new("RGB", (20, 16))
    columns = {"image": [picture], "answer": [["Left dog", "dog"]], "segmentation": [[float(v) for v in SQUARE]]}
    (sample,) = read_refcoco_dataset(datasets.Dataset.from_dict(columns))
    assert sample.phrases == ["left dog"] and 60 < int(sample.masks.sum()) < 100 and sample.masks.shape == (1, 16, 20)
    with pytest.raises(ValueError, match="segmentation"):
        next(read_refcoco_dataset(datasets.Dataset.from_dict({"image": [picture], "answer": [["dog"]]})))


@pytest.fixture
def narratives(tmp_path):
    ids = np.zeros((16, 20), np.int64)
    ids[:8], ids[8:, :10], ids[8:, 10:] = 5, 300, 70000
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "9.png")
    Image.new("RGB", (20, 16)).save(tmp_path / "9.jpg")
    segments = [
        {"utterance": "In this picture", "segment_ids": [], "plural": False},
        {"utterance": "two dogs", "segment_ids": ["300", "70000"], "plural": True},
        {"utterance": "the sky", "segment_ids": ["5"], "plural": False},
    ]
    empty = [{"utterance": "nothing", "segment_ids": [], "plural": False}]
    panoptic = {
        "images": [{"id": 9, "file_name": "9.jpg"}],
        "annotations": [
            {
                "image_id": 9,
                "file_name": "9.png",
                "segments_info": [
                    {"id": 5, "category_id": 2},
                    {"id": 300, "category_id": 1},
                    {"id": 70000, "category_id": 1},
                ],
            }
        ],
        "categories": [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}],
    }
    (tmp_path / "png.json").write_text(
        json.dumps([{"image_id": "9", "segments": segments}, {"image_id": "9", "segments": empty}])
    )
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    return tmp_path


def test_narratives_ground_unions_of_segments(narratives):
    folder = narratives
    (sample,) = read_png(folder / "png.json", folder / "panoptic.json", folder, folder)
    assert sample.pieces == [[("In this picture", -1), ("two dogs", 0), ("the sky", 1)]]
    assert sample.plural == [True, False] and sample.thing == [True, False]
    assert (
        sample.masks[0, 8:].all() and not sample.masks[0, :8].any() and torch.equal(sample.masks[1], ~sample.masks[0])
    )


def test_samples_train_the_model(narratives, tmp_path_factory):
    from dsr_toolkit.loading import load
    from dsr_toolkit.tiny import build

    model, processor = load(
        str(build("frozen_qwen_sam", tmp_path_factory.mktemp("tiny"))), "frozen_qwen_sam", device="cpu"
    )
    samples = list(read_png(narratives / "png.json", narratives / "panoptic.json", narratives, narratives))
    batch = collate(samples * 2, processor, "Describe this image.")
    output = model.train()(**batch)
    output.loss.backward()
    assert torch.isfinite(output.loss) and model.mask_head.classifier.weight.grad.abs().max() > 0
    assert {name for name in ("loss_mask", "loss_dice", "sam_loss_mask", "sam_loss_dice") if output[name] is not None}


def test_ciou_and_giou():
    wanted = torch.zeros(2, 4, 4, dtype=torch.bool)
    wanted[0, :2], wanted[1, 0, 0] = True, True
    found = torch.zeros_like(wanted)
    found[0, :1] = True
    metrics = SegmentationMetrics()
    metrics.add(found[:1], wanted[:1])
    metrics.add(found[1:], wanted[1:])
    result = metrics.compute()
    assert result["ciou"] == pytest.approx(100 * 4 / 9) and result["giou"] == pytest.approx(25.0)
    assert result["accuracy@0.5"] == 0 and result["pixel_accuracy"] == pytest.approx(100 * 27 / 32)
    with pytest.raises(ValueError, match="No mask"):
        SegmentationMetrics().compute()


def test_average_recall_is_the_area_under_the_recall_curve():
    ious = torch.tensor([0.0, 0.25, 0.5, 1.0])
    # A mask of IoU x is found for all thresholds up to x.
    assert average_recall(ious) == pytest.approx(ious.mean().item(), abs=2e-5)
    steps = [sum(1 for iou in ious if iou >= k * 1e-5) / 4 for k in range(0, 100000, 10)]
    assert average_recall(ious) == pytest.approx(sum(steps) * 1e-4, abs=1e-4)


def test_average_recall_by_kind_of_phrase():
    wanted = torch.ones(3, 2, 2, dtype=torch.bool)
    found = wanted.clone()
    found[1, 0] = False
    metrics = SegmentationMetrics()
    metrics.add(found, wanted, plural=[False, True, False], thing=[False, False, True])
    result = metrics.compute()
    assert result["average_recall_plural"] == pytest.approx(0.5, abs=2e-5)
    assert result["average_recall_thing"] == pytest.approx(0.75, abs=2e-5)  # plural phrases count as things
    assert result["average_recall_stuff"] == pytest.approx(1.0, abs=2e-5)


def test_logits_are_resized_as_probabilities():
    logits = torch.tensor([[[8.0, -1.0]]])
    assert masks_from_logits(logits, (1, 4))[0, 0].tolist() == [True, True, False, False]
