"""Phrases of the space world name one thing each, and its files are read by the readers of published data."""

import json

import numpy as np
import pytest
from PIL import Image

from dsr_toolkit.datasets.geometry import find_sequences
from dsr_toolkit.datasets.segmentation import read_refcoco
from dsr_toolkit.worlds import contact_sheet, make_world
from dsr_toolkit.worlds.space.export import (
    run_lengths,
    write_dsr_train,
    write_multiview,
    write_posed_images,
    write_refcoco,
)
from modeling_dsr.frames import read_frames


@pytest.fixture(scope="module")
def samples():
    world = make_world("space", 17, difficulty="hard", questions=2)
    return [world[index] for index in range(4)]


def meant(sample, frame, text):
    """Things that a phrase can mean, read from its words and the depth of their pixels."""
    relations = ("behind", "in front of", "to the left of", "to the right of")
    relation = next((r for r in relations if f" {r} the " in text), "")
    noun, second = text.split(f" {relation} the ") if relation else (text, "")
    words = noun.removeprefix("the ").split()
    named = [i for i, name in enumerate(sample.names) if all(w == "thing" or w in name.split() for w in words)]
    if not relation:
        return named
    other = sample.names.index(second)

    def place(thing):
        """Column in the picture and depth."""
        mask = sample.instances[frame] == thing + 1
        return np.nonzero(mask)[1].mean(), sample.depth[frame][mask].mean()

    here = place(other)
    test = {
        "behind": lambda p: p[1] > here[1],
        "in front of": lambda p: p[1] < here[1],
        "to the left of": lambda p: p[0] < here[0],
        "to the right of": lambda p: p[0] > here[0],
    }[relation]
    return [i for i in named if i != other and (sample.instances[frame] == i + 1).any() and test(place(i))]


def test_each_phrase_means_one_thing(samples):
    kinds = set()
    for sample in samples:
        for phrase in sample.phrases(3):
            kinds.add(phrase.kind)
            assert np.array_equal(phrase.mask, sample.instances[3] == phrase.thing + 1) and phrase.mask.any()
            if phrase.kind == "nearest":
                depths = [sample.depth[3][sample.instances[3] == i + 1] for i in range(len(sample.names))]
                nearest = [depth.min() if depth.size else np.inf for depth in depths]
                assert int(np.argmin(nearest)) == phrase.thing
            else:
                assert meant(sample, 3, phrase.text) == [phrase.thing]
            if phrase.kind == "relation":
                start, _, name = phrase.text.rpartition(" the ")
                assert phrase.it == f"{start} it" and sample.names[phrase.antecedent] == name
    assert kinds == {"name", "shape", "colour", "relation", "nearest"}


def test_dsr_train_files(samples, tmp_path):
    folder = write_dsr_train(samples[:2], tmp_path / "dsr")
    rows = json.loads((folder / "train.json").read_text())
    assert list(rows) == ["space_17_000000", "space_17_000001"]
    for (name, questions), sample in zip(rows.items(), samples):
        frames = [frame for frame in read_frames(folder / "videos" / f"{name}.mp4", interval=1)]
        assert len(frames) == len(sample.images)
        error = np.abs(np.stack([np.asarray(frame.image) for frame in frames]).astype(int) - sample.images)
        assert error.mean() < 4  # lossy
        assert np.allclose([frame.time for frame in frames], sample.times, atol=0.01)
        for row, question in zip(questions, sample.questions, strict=True):
            assert row["Type"] == question.type and row["Question"] == question.text
            assert row[row["Correct"]] == question.options[question.answer]
    with pytest.raises(ValueError, match="not an empty folder"):
        write_dsr_train(samples[:1], folder)


def test_refcoco_files(samples, tmp_path):
    pytest.importorskip("pycocotools")
    folder = write_refcoco(samples[:2], tmp_path / "refs")
    read = list(read_refcoco(folder, folder / "images", split="train"))
    assert len(read) == 2
    for found, sample in zip(read, samples):
        named = {phrase.text: phrase.mask for phrase in sample.phrases(4)}
        assert np.array_equal(np.asarray(found.image), sample.images[4])
        for text, mask in zip(found.phrases, found.masks.numpy(), strict=True):
            assert np.array_equal(named[text], mask)


def test_runs_of_a_mask():
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    assert run_lengths(mask) == {"counts": [0, 2, 1, 1, 2], "size": [2, 3]}
    assert run_lengths(~mask)["counts"] == [2, 1, 1, 2]


def test_folders_of_posed_images(samples, tmp_path):
    several = make_world("space", 17, frames=2, height=28, width=42, views=3)[0]
    (first, second) = find_sequences(write_multiview(several, tmp_path / "many"))
    (single,) = find_sequences(write_posed_images(samples[0], tmp_path / "one"))
    for found, images, poses, depth, cameras in (
        (second, several.images[1], several.poses[1], several.depth[1], several.intrinsics[1]),
        (single, samples[0].images, samples[0].poses, samples[0].depth, samples[0].intrinsics),
    ):
        assert np.allclose(found.poses, poses) and np.allclose(found.intrinsics, cameras)
        for number, path in enumerate(found.images):
            assert np.array_equal(np.asarray(Image.open(path)), images[number])
            assert np.array_equal(found.depth(number), depth[number])
    assert first.layout == "multiview" and single.layout == "room"


def test_contact_sheet(samples):
    page = contact_sheet("space", samples[0])
    assert page.mode == "RGB" and page.width > 900 and np.asarray(page).std() > 30
    several = contact_sheet("space", make_world("space", 1, frames=2, height=28, width=28, views=2)[0])
    assert several.height > 900
