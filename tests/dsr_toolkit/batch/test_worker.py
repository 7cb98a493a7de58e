"""What a worker answers, on the tiny models: the handler's answers, with media read once, and errors as rows."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsr_toolkit.batch.worker import Worker, revision_of
from tests.hub import samples

ASKED = {"max_new_tokens": 5, "num_frames": 4}


def settings(task: str, repository, **changes) -> dict:
    return {
        "task": task, "model": str(repository), "device": "cpu", "gpus": 0, "dtype": "auto", "allow_missing": ["all"],
        "parameters": {}, "defaults": {}, "max_batch": 16, "readers": 2, "source": None, "split": "train", **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.mp4").write_bytes(samples.video())
    (folder / "cut.mp4").write_bytes(samples.video()[:2000])
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(samples.picture(seed))
    return folder


@pytest.fixture(scope="module")
def asker(repository):
    worker = Worker(settings("ask", repository, parameters=ASKED))
    yield worker
    worker.close()


def item(name: str, **inputs) -> dict:
    return {"id": name, "inputs": inputs, "parameters": {}}


def encoded(model) -> list[int]:
    """How many videos each call of the vision tower gets from now on."""
    counts, original = [], model.get_video_features

    def counted(pixels, grid, *args, **kwargs):
        counts.append(len(grid))
        return original(pixels, grid, *args, **kwargs)

    model.get_video_features = counted
    return counts


def test_a_video_is_read_and_encoded_once_for_all_its_questions(asker, media):
    video, model = str(media / "a.mp4"), asker.handler.model("dsr")
    questions = [f"Where is the ball, {number}?" for number in range(18)]
    read, prepare = [], asker.handler.prepare
    asker.handler.prepare = lambda request: (read.append(request), prepare(request))[1]
    counts = encoded(model)
    try:
        one, two = item("one", video=video, question=questions[:17]), item("two", video=video, question=questions[17:])
        found = asker.run([one, two])
    finally:
        del model.get_video_features, asker.handler.prepare
    assert len(read) == 1 and counts == [1], "18 questions in two batches, from two items"
    alone = [
        asker.handler({"task": "ask", "inputs": {"question": question, "video": samples.video()}, "parameters": ASKED})
        for question in (questions[0], questions[16], questions[17])
    ]
    (one, two) = (answered.row for answered in found)
    assert [one["tokens"][0], one["tokens"][16], two["tokens"][0]] == [answer["tokens"] for answer in alone]
    assert one["answers"][16] == alone[1]["answer"] and one["frames"] == alone[0]["frames"]
    assert one["questions"] == questions[:17] and one["error"] is None and one["seconds"] > 0


def test_images_and_videos_share_a_batch_and_are_answered_as_if_alone(asker, media):
    picture = str(media / "1.png")
    found = asker.run(
        [
            item("images", images=[picture], question=["What?", "Where is it?"]),
            item("video", video=str(media / "a.mp4"), question=["What?", "Where?"]),
        ]
    )
    requests = [
        ({"images": [samples.picture(1)]}, "Where is it?", found[0].row["tokens"][1]),
        ({"video": samples.video()}, "Where?", found[1].row["tokens"][1]),
    ]
    for inputs, question, tokens in requests:
        request = {"task": "ask", "inputs": {**inputs, "question": question}, "parameters": ASKED}
        assert asker.handler(request)["tokens"] == tokens


def test_a_poisoned_item_is_an_error_and_nothing_else(asker, media):
    video = str(media / "a.mp4")
    given = [
        item("cut", video=str(media / "cut.mp4"), question=["What?"]),
        item("missing", video=str(media / "no.mp4"), question=["What?"]),
        item("folder", video=str(media), question=["What?"]),
        item("silent", video=video),
        item("blank", video=video, question=["Where?", " ", "What?"]),
        {"id": "told", "error": ["bad_request", "line 7 is not JSON"]},
        item("good", video=video, question=["What?"]),
        {"id": "odd", "inputs": {"video": video, "question": ["What?"]}, "parameters": {"atoms": 3}},
        item("special", video=video, question=["<|im_end|>"]),
    ]
    rows = {answered.row["id"]: answered.row for answered in asker.run(given)}
    codes = {name: row["error_code"] for name, row in rows.items()}
    assert codes == {
        "cut": "unreadable_media", "missing": "unreadable_media", "folder": "unreadable_media", "silent": "bad_request",
        "blank": "bad_request", "told": "bad_request", "good": None, "odd": "bad_request", "special": "invalid_input",
    }  # fmt: skip
    assert rows["good"]["answers"][0]
    blank = rows["blank"]
    assert blank["error"].startswith("question 2:") and blank["answers"][1] is None
    assert blank["answers"][0] and blank["answers"][2] == rows["good"]["answers"][0]
    assert all(row["model"] == "dsr" and row["revision"].startswith("sha256:") for row in rows.values())


def test_what_fails_in_the_model_takes_no_other_item_along(asker, media):
    """Tokens that the vocabulary does not have make the batch fail."""
    prepare = asker.handler.prepare

    def spoiling(request):
        job = prepare(request)
        if request["inputs"]["question"] == "Spoil":
            job.inputs["input_ids"][0, 0] = 10**6
        return job

    asker.handler.prepare = spoiling
    try:
        asked = enumerate(("What?", "Spoil", "What?"))
        given = [item(str(seed), images=[str(media / f"{seed}.png")], question=[one]) for seed, one in asked]
        codes = [answered.row["error_code"] for answered in asker.run(given)]
    finally:
        del asker.handler.prepare
    assert codes == [None, "internal", None]


def test_items_one_by_one_are_told_first_and_given_up_where_workers_ended(asker, media):
    given = [item(str(seed), images=[str(media / f"{seed}.png")], question=["What?"]) for seed in range(3)]
    began = []
    rows = [one.row for one in asker.run(given, alone=True, given_up=[1], began=began.append)]
    assert began == [0, 2] and [row["error_code"] for row in rows] == [None, "crashed", None]
    together = [one.row for one in asker.run(given)]
    assert [rows[number]["tokens"] for number in (0, 2)] == [together[number]["tokens"] for number in (0, 2)]


def test_questions_of_the_command_line_are_for_items_without_any(repository, media):
    worker = Worker(settings("ask", repository, parameters=ASKED, defaults={"question": ["What?"]}))
    picture = [str(media / "1.png")]
    given = [item("none", images=picture), item("own", images=picture, question=["Where?"])]
    assert [one.row["questions"] for one in worker.run(given)] == [["What?"], ["Where?"]]


@pytest.mark.parametrize(
    ("task", "changes", "says"),
    [
        ("ask", {"parameters": {"atoms": 1}}, "unknown fields"),
        ("ask", {"parameters": {"max_new_tokens": "many"}}, "max_new_tokens"),
        ("ask", {"parameters": {"model": "pi3"}}, "model must be one of dsr"),
        ("ask", {"dtype": "float8"}, "--dtype"),
        ("ask", {"parameters": {"candidates": 2, "temperature": 1.0}}, "candidates"),
        pytest.param(
            "ask", {"gpus": 1}, "no GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
    ],
)
def test_settings_that_no_item_can_be_answered_with_are_refused(repository, task, changes, says):
    with pytest.raises(ValueError, match=says):
        Worker(settings(task, repository, **changes))


def test_segment_gives_phrases_and_masks(repository, media):
    worker = Worker(settings("segment", repository))
    given = [item("walls", image=str(media / "1.png"), phrases=["a wall", "the red block"])]
    (found,) = worker.run(given)
    assert [entry["phrase"] for entry in found.row["phrases"]] == ["a wall", "the red block"]
    for number, entry in enumerate(found.row["phrases"]):
        mask = np.asarray(Image.open(io.BytesIO(found.files[f"mask-{number}.png"])))
        assert list(mask.shape) == entry["rle"]["size"] and mask.sum() == entry["area"]
    assert found.row["folder"] == "items/walls"


def test_reconstruct_gives_cameras_and_a_cloud(repository, media):
    worker = Worker(settings("reconstruct", repository, parameters={"outputs": ["glb", "depth"]}))
    images = [str(media / f"{seed}.png") for seed in range(2)]
    (found,) = worker.run([item("room", images=images)])
    assert found.files["scene.glb"][:4] == b"glTF" and np.load(io.BytesIO(found.files["depth-1.npy"])).ndim == 2
    request = {"task": "reconstruct", "inputs": {"images": [Path(image).read_bytes() for image in images]}}
    alone = worker.handler(request | {"parameters": {"outputs": ["glb", "depth"]}})
    for frame, other in zip(found.row["frames"], alone["frames"]):
        np.testing.assert_allclose(frame["camera_to_world"], other["camera_to_world"], atol=1e-5)


def test_scene_encodes_six_cameras_once_for_their_questions(repository, media):
    worker = Worker(settings("scene", repository, parameters={"max_new_tokens": 4}))
    street = media / "street"
    street.mkdir(exist_ok=True)
    images = {}
    for name, content in samples.street().items():
        images[name] = str(street / f"{name}.png")
        Path(images[name]).write_bytes(base64.b64decode(content))
    (street / "calibration.json").write_text(json.dumps(samples.street_calibration()))
    calibration, questions = str(street / "calibration.json"), ["How many cars?", "Is it raining?"]
    scene = worker.handler.model("scene_qformer").scene_qformer
    seen = []
    count = lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"]))  # noqa: E731
    handle = scene.register_forward_pre_hook(count, with_kwargs=True)
    (found,) = worker.run([item("street", images=images, calibration=calibration, question=questions)])
    handle.remove()
    assert seen == [1] and len(found.row["answers"]) == 2 and found.row["error"] is None
    request = {"images": samples.street(), "calibration": samples.street_calibration(), "question": questions[1]}
    alone = worker.handler({"task": "scene", "inputs": request, "parameters": {"max_new_tokens": 4}})
    assert found.row["tokens"][1] == alone["tokens_written"]
    assert {entry["camera"] for entry in found.row["attention"]} == set(images)


def test_cad_reads_parts_of_any_kind(repository, tmp_path):
    (tmp_path / "part.xyz").write_text("\n".join(" ".join(map(str, point)) for point in samples.points(0)))
    np.save(tmp_path / "part.npy", np.array(samples.points(0), np.float64))
    worker = Worker(settings("cad", repository, parameters={"max_new_tokens": 6, "candidates": 2}))
    given = [
        item("xyz", part=str(tmp_path / "part.xyz")),
        item("npy", part=str(tmp_path / "part.npy")),
        item("rows", points=samples.points(0)),
        item("text", text="A plate"),
        item("none", part=str(tmp_path / "none.step")),
    ]
    rows = {one.row["id"]: one.row for one in worker.run(given)}
    assert rows["xyz"]["tokens"] == rows["npy"]["tokens"] == rows["rows"]["tokens"]
    assert len(rows["text"]["programs"]) == 2 and rows["none"]["error_code"] == "unreadable_media"


@pytest.mark.slow
def test_a_program_that_crashes_the_sandbox_is_told_and_the_next_one_runs(repository):
    pytest.importorskip("cadquery")
    worker = Worker(settings("cad", repository, parameters={"max_new_tokens": 4, "execute": True}))
    processor = worker.handler.processor("cadrille")
    programs = iter(["r = [0] * (10 ** 12)", "import cadquery as cq\nr = cq.Workplane('XY').box(1, 2, 3)"])
    processor.decode_programs = lambda tokens: [next(programs)]  # what a model might write
    try:
        crashed, good = worker.run([item("crash", text="A plate"), item("good", text="A box")])
    finally:
        del processor.decode_programs
        worker.close()
    assert crashed.row["best"] is None and crashed.row["candidates"][0]["code"] != "ok" and crashed.row["error"] is None
    assert good.row["volume"] == pytest.approx(6.0) and good.files["solid.step"].startswith(b"ISO-10303")


def test_a_revision_follows_the_weights(tmp_path):
    commit = tmp_path / "models--a--b" / "snapshots" / ("0123456789" * 4)
    commit.mkdir(parents=True)
    assert revision_of(commit, "dsr") == "0123456789" * 4
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"one")
    before = revision_of(tmp_path, "dsr")
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert before.startswith("sha256:") and revision_of(tmp_path, "dsr") != before
