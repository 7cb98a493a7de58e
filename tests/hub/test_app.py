"""The Space in headless Chromium, tab by tab: from an upload to a result that was computed from it."""

import base64
import importlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub import space_examples
from tests.hub import samples

pytest.importorskip("gradio", reason="needs the [serve] extra")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAIT = 120_000  # milliseconds, for a model that has to be loaded first
PROGRAM = "import cadquery as cq\nr = cq.Workplane().box(40, 30, 8)"


@pytest.fixture(scope="module")
def address(repository, tmp_path_factory):
    """The Space of the tiny repository, from its own folder, in a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio")),
    }  # fmt: skip
    command = [sys.executable, str(repository / "app.py"), "--port", str(port)]
    log = tmp_path_factory.mktemp("space") / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    for _ in range(3000):  # libraries take their time where others work, too
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(30)


@pytest.fixture
def space(page, address):
    page.goto(address)
    page.wait_for_selector("#ask-run", timeout=60_000)
    return page


@pytest.fixture
def picture(tmp_path) -> str:
    """A file that is none of the examples."""
    (tmp_path / "picture.png").write_bytes(samples.picture(5, (96, 64)))
    return str(tmp_path / "picture.png")


def choose(space, tab: str) -> None:
    space.get_by_role("tab", name=tab, exact=True).click()


def write(space, selector: str, text: str) -> None:
    """Into a field, until it stays: a page that is still being made writes its own text once more."""
    for _ in range(20):
        space.fill(selector, text)
        space.keyboard.press("Tab")
        kept = []
        for _ in range(3):
            space.wait_for_timeout(500)
            kept.append(space.input_value(selector) == text)
        if all(kept):
            return
    raise AssertionError(f"{selector} does not take {text!r}")


def size_of(space, selector: str) -> list[int]:
    """Of an image on the page, once the browser has decoded it."""
    space.wait_for_function("s => document.querySelector(s)?.naturalWidth > 0", arg=selector, timeout=WAIT)
    return space.evaluate(
        "s => { const i = document.querySelector(s); return [i.naturalWidth, i.naturalHeight] }", selector
    )


def screenshot(space, name: str) -> None:
    """Kept where the environment asks for it, to be looked at."""
    if folder := os.environ.get("DSR_SCREENSHOTS"):
        space.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_ask_about_a_picture(space, picture):
    space.set_input_files("#ask-images input[type=file]", picture)
    space.wait_for_selector("#ask-images >> text=picture")
    answers = []
    for question in ("What is left of the box, seen from the camera?", "Does it come nearer?"):
        write(space, "#ask-question textarea", question)
        space.click("#ask-run")
        before = answers[-1] if answers else ""
        space.wait_for_function(
            "t => document.querySelector('#ask-answer textarea').value != t", arg=before, timeout=WAIT
        )
        answers.append(space.input_value("#ask-answer textarea"))
    assert all(answers)


def test_images_stand_for_the_video_and_the_video_for_images(space, picture, tmp_path):
    """What is uploaded last is asked about, and seen to be."""
    space.wait_for_selector("#ask-video video")
    space.set_input_files("#ask-images input[type=file]", picture)
    space.wait_for_selector("#ask-video video", state="detached", timeout=WAIT)
    (tmp_path / "clip.mp4").write_bytes(samples.video())
    space.set_input_files("#ask-video input[type=file]", str(tmp_path / "clip.mp4"))
    space.wait_for_selector("#ask-images >> text=picture", state="detached", timeout=WAIT)
    assert space.locator("#ask-video video").count() == 1


def test_every_tab_is_to_be_seen_on_a_phone(space):
    space.set_viewport_size({"width": 360, "height": 740})
    for tab in ("Ask", "Reconstruct", "Segment", "CAD", "Scene"):
        choose(space, tab)
        space.wait_for_selector(f"#{tab.lower()}-run")
        left = space.get_by_role("tab", name=tab, exact=True).bounding_box()
        assert left["x"] >= 0 and left["x"] + left["width"] <= 360
    screenshot(space, "phone")


def test_ask_about_a_video(space, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(samples.video())
    space.locator("#ask-video button[aria-label='Clear']").click()
    space.set_input_files("#ask-video input[type=file]", str(tmp_path / "clip.mp4"))
    space.wait_for_selector("#ask-video video")
    space.click("#ask-run")
    assert size_of(space, "#ask-looked img")[0] > 0
    assert space.input_value("#ask-answer textarea")
    screenshot(space, "ask")


def test_ask_about_the_example(space):
    space.click("#ask-run")
    space.wait_for_selector("#ask-looked img", timeout=WAIT)
    space.wait_for_function("document.querySelectorAll('#ask-looked img').length >= 8")
    assert space.input_value("#ask-answer textarea")


def test_reconstruct(space, picture):
    choose(space, "Reconstruct")
    space.locator("#reconstruct-images button[aria-label='Clear']").click()
    space.set_input_files("#reconstruct-images input[type=file]", picture)
    space.wait_for_selector("#reconstruct-images >> text=picture")
    space.click("#reconstruct-run")
    space.wait_for_selector("text=/Reading the files|is at work|Drawing/")  # progress is told
    assert size_of(space, "#reconstruct-depth img") == [96, 64]
    space.wait_for_selector("#reconstruct-scene canvas", timeout=WAIT)
    space.wait_for_selector("#reconstruct-cameras >> text=camera_to_world")
    time.sleep(2)  # the viewer draws
    drawn = space.locator("#reconstruct-scene canvas").screenshot()
    assert len(drawn) > 1000, "the viewer shows an empty scene"
    screenshot(space, "reconstruct")


def test_segment_shows_the_mask_of_the_phrase_that_is_clicked(space, picture):
    choose(space, "Segment")
    space.locator(
        "#segment-image button[aria-label='Remove Image'], #segment-image button[aria-label='Clear']"
    ).first.click()
    space.set_input_files("#segment-image input[type=file]", picture)
    space.wait_for_selector("#segment-image img")
    write(space, "#segment-question textarea", "What is in the picture?")
    write(space, "#segment-phrases textarea", "")
    space.click("#segment-run")
    space.wait_for_selector("#segment-note >> text=No phrase", timeout=WAIT)  # random weights list no noun phrases
    words = [
        word for word in space.inner_text("#segment-answer .textfield").split() if word.isalpha() and len(word) > 3
    ]
    chosen = [word for word in dict.fromkeys(words) if sum(word in other for other in words) == 1][:2]
    write(space, "#segment-phrases textarea", ", ".join(chosen))
    space.click("#segment-run")
    space.wait_for_selector("#segment-answer .token.highlighted", timeout=WAIT)
    both = space.get_attribute("#segment-overlay img", "src")
    for word in chosen:
        space.locator("#segment-answer .token.highlighted", has_text=word).first.click()
        space.wait_for_selector(f"#segment-note strong >> text={word}", timeout=WAIT)
        assert size_of(space, "#segment-overlay img") == [96, 64]
    assert space.get_attribute("#segment-overlay img", "src") != both
    screenshot(space, "segment")


def test_cad(space, tmp_path):
    choose(space, "CAD")
    space.locator("#cad-part button[aria-label='Clear']").click()
    (tmp_path / "cloud.npy").write_bytes(base64.b64decode(_npy_of_points()))
    space.set_input_files("#cad-part input[type=file]", str(tmp_path / "cloud.npy"))
    space.wait_for_selector("#cad-part >> text=cloud")
    example = space.inner_text("#cad-program .cm-content")
    space.click("#cad-run")
    space.wait_for_selector("#cad-note p", timeout=WAIT)
    assert space.inner_text("#cad-program .cm-content") != example
    note = space.inner_text("#cad-note")
    if "not run here" in note:
        pytest.skip(note)
    space.click("#cad-program .cm-content")
    space.keyboard.press("Control+a")
    space.keyboard.insert_text(PROGRAM)
    space.click("#cad-execute")
    assert size_of(space, "#cad-picture img") == [384, 384]
    space.wait_for_selector("#cad-solid canvas")
    with space.expect_download() as download:
        space.locator("#cad-step a").first.click()
    assert Path(download.value.path()).read_bytes().startswith(b"ISO-10303-21")
    screenshot(space, "cad")


def test_scene(space, tmp_path):
    choose(space, "Scene")
    picture = str(tmp_path / "front.png")  # of the size that the example's calibration is for
    Path(picture).write_bytes(samples.picture(5, (112, 64)))
    # The example has a question of its own; without one the answer tells what was looked at.
    space.wait_for_function("document.querySelector('#scene-question textarea').value.length > 0")
    write(space, "#scene-question textarea", "")
    space.click("#scene-run")
    width, height = size_of(space, "#scene-picture img")
    before = space.input_value("#scene-answer textarea")
    assert "scene tokens" in before
    space.locator(
        "#scene-CAM_FRONT button[aria-label='Remove Image'], #scene-CAM_FRONT button[aria-label='Clear']"
    ).first.click()
    space.set_input_files("#scene-CAM_FRONT input[type=file]", picture)
    space.wait_for_selector("#scene-CAM_FRONT img")
    # The example's calibration is not that of somebody else's images.
    space.wait_for_selector("#scene-calibration table", state="detached", timeout=WAIT)
    write(space, "#scene-question textarea", "How many cars are there?")
    space.click("#scene-run")
    space.wait_for_selector("#scene-problem >> text=calibration.json", timeout=WAIT)
    assert space.input_value("#scene-answer textarea") == before  # beside the answer, not over it
    (tmp_path / "calibration.json").write_bytes((space_examples.FOLDER / "calibration.json").read_bytes())
    space.set_input_files("#scene-calibration input[type=file]", str(tmp_path / "calibration.json"))
    space.wait_for_selector("#scene-calibration >> text=calibration")
    space.click("#scene-run")
    answered = "t => document.querySelector('#scene-answer textarea').value != t"
    space.wait_for_function(answered, arg=before, timeout=WAIT)
    assert width > height and space.input_value("#scene-answer textarea")
    screenshot(space, "scene")


def test_errors_are_told(space, tmp_path):
    (tmp_path / "picture.png").write_bytes(samples.picture()[:-40])
    space.set_input_files("#ask-images input[type=file]", str(tmp_path / "picture.png"))
    space.wait_for_selector("#ask-images >> text=picture")
    space.click("#ask-run")
    space.wait_for_selector("#ask-problem >> text=Image 1 cannot be read as an image", timeout=WAIT)
    space.locator("#ask-images button[aria-label='Clear']").first.click()
    space.click("#ask-run")
    space.wait_for_selector("#ask-problem >> text=Give a video or images", timeout=WAIT)
    assert "Image 1" not in space.inner_text("#ask-problem")


def _npy_of_points() -> str:
    import io

    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.array(samples.points()))
    return samples.encoded(stream.getvalue())


def test_text_of_others_is_shown_as_it_is():
    words = importlib.import_module("hub.space_words")
    assert words.as_code("`x` <b>") == "`` `x` <b> ``" and words.as_code("a ``` b") == "```` a ``` b ````"


def test_problems_are_told_in_the_words_of_the_page():
    words = importlib.import_module("hub.space_words")
    said = {
        "`inputs.images[0]` cannot be read as an image.": "Image 1 cannot be read as an image.",
        "`inputs.question` is missing or empty.": "The question is missing or empty.",
        "`inputs.calibration.CAM_BACK.intrinsics` is missing": "Intrinsics in calibration.json of CAM_BACK is missing",
        "`parameters.max_new_tokens` must be at most 5": "The longest answer must be at most 5",
        "`inputs` must hold one of video, images; got none of them.": "Give a video or images: one of them, not both.",
    }
    assert {message: words.of_page("ask", message) for message in said} == said


def test_files_of_answers_are_removed(tmp_path):
    words = importlib.import_module("hub.space_words")
    for name, age in (("old", 100), ("new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.stl").write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    words.remove_old(tmp_path, 50)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
