"""A video whose features are kept is not opened again, and nothing that is learnt changes."""

import json
import pickle

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from dsr_toolkit.cli import main
from dsr_toolkit.tiny import hub_folder
from dsr_toolkit.training.feature_cache import FeatureCache
from dsr_toolkit.training.journal import read_log
from dsr_toolkit.worlds.space import SpaceWorld
from dsr_toolkit.worlds.space.export import write_video
from modeling_dsr import processing_dsr


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two clips of other sizes; about the first there are two questions."""
    folder = tmp_path_factory.mktemp("videos")
    sizes = ((56, 84), (84, 56))
    files = [
        str(write_video(SpaceWorld(7, 4, *size)[number], folder / f"{number}.mp4")) for number, size in enumerate(sizes)
    ]
    return [
        {"video": files[0], "question": ["What moves?", "Where?"], "answer": ["a ball", "to the left of it"]},
        {"video": files[1], "question": "What is it?", "answer": "a box"},
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_a_known_video_is_not_opened_and_teaches_the_same(packed, rows, tmp_path, monkeypatch):
    folder = hub_folder("dsr")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").freeze("published").train()
    collate = AutoProcessor.from_pretrained(folder).training_collator(packed=packed)

    def gradients(batch) -> tuple[float, dict]:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    loss, expected = gradients(collate(rows))
    cache = FeatureCache(tmp_path)
    cache.attach(model)
    known = pickle.loads(pickle.dumps(cache.collator(collate)))
    from_hub = type("DSRCollator", (type(collate),), {})(collate.processor)  # its code loaded with a processor
    assert type(cache.collator(from_hub)) is type(known)
    opened, choose = [], processing_dsr.choose_video_frames
    monkeypatch.setattr(processing_dsr, "choose_video_frames", lambda *given: opened.append(1) or choose(*given))
    losses = []
    for epoch in range(3):
        batch = known(rows if epoch < 2 else rows[1:])
        with cache.reading(batch):
            assert ("pixel_values_videos" in batch) is (epoch == 0)
            found, moved = gradients(batch)
        losses.append(found)
        if epoch < 2:
            assert moved.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(moved[name], value, atol=1e-5, rtol=1e-3, msg=lambda text: f"{name}: {text}")
    assert len(opened) == 2
    assert losses[0] == pytest.approx(loss, rel=1e-5) and losses[1] == losses[0]  # to the last bit
    for file in tmp_path.glob("*/*.safetensors"):
        file.unlink()
    assert "pixel_values_videos" in known(rows)  # what was deleted for want of room is computed again


def test_dsr_train_opens_each_video_once(rows, tmp_path, monkeypatch):
    opened, choose = [], processing_dsr.choose_video_frames
    monkeypatch.setattr(processing_dsr, "choose_video_frames", lambda *given: opened.append(1) or choose(*given))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logs = []
    for name, settings in (("cached", [f"feature_cache={tmp_path / 'features'}"]), ("plain", [])):
        settings += ["max_steps=4", "use_cpu=true", "gradient_accumulation_steps=1", "logging_steps=1"]
        settings += ["learning_rate=1e-3"]
        words = ["train", "dsr", "--data", str(tmp_path / "rows.jsonl"), "--model", str(hub_folder("dsr"))]
        words += [word for setting in settings for word in ("--set", setting)]
        assert main([*words, "-o", str(tmp_path / name)]) == 0
        logs.append([entry["loss"] for entry in read_log(tmp_path / name / "train") if "loss" in entry])
        assert len(opened) == (2 if name == "cached" else 2 + 4)
    assert logs[0] == pytest.approx(logs[1], rel=1e-3) and len(logs[0]) == 4


def test_another_number_of_frames_is_another_video(rows, tmp_path):
    processor = AutoProcessor.from_pretrained(hub_folder("dsr"))
    cache = FeatureCache(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(hub_folder("dsr")).freeze("published")
    cache.attach(model)
    keys = [
        cache.collator(processor.training_collator(**options), precision).key(rows[0]["video"], options)
        for options, precision in (({}, ""), ({"num_frames": 2}, ""), ({}, "bf16"), ({"num_frames": 4}, ""))
    ]
    assert len(set(keys)) == 4
