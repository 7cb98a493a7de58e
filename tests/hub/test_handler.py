"""The endpoint on tiny models of every kind: answers, batches, limits, broken requests, isolation."""

import base64
import http.server
import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from dsr_toolkit.serving import handler_module
from dsr_toolkit.tiny import build
from tests.hub import samples
from tests.hub.compare import different


@pytest.fixture(scope="module")
def endpoint(repository):
    endpoint = handler_module().EndpointHandler(str(repository))
    yield endpoint
    endpoint.close()


def refused(endpoint, request) -> Exception:
    with pytest.raises(handler_module().RequestError) as caught:
        endpoint(request)
    return caught.value


# ---- answers -----------------------------------------------------------------------------


def test_every_model_of_the_folder_is_found_and_none_is_loaded(repository):
    endpoint = handler_module().EndpointHandler(str(repository))
    assert endpoint.models == {
        "dsr": "dsr", "pi3": "pi3", "page4d": "page4d", "frozen_qwen_sam": "frozen_qwen_sam", "cadrille": "cadrille",
        "cad_recode": "cad_recode", "scene_qformer": "scene_qformer",
    }  # fmt: skip
    assert not endpoint.loaded and not endpoint._processors


def test_a_folder_without_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        handler_module().EndpointHandler(str(tmp_path))


@pytest.mark.parametrize("kind", samples.GOOD)
def test_answers_are_json_and_the_same_every_time(endpoint, kind):
    request = samples.GOOD[kind]()
    first = json.dumps(endpoint(json.loads(json.dumps(request))))
    assert first == json.dumps(endpoint(request))


def test_ask_answers_as_the_model_itself_does(endpoint, repository):
    request = samples.ask(1)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True).eval()
    image = Image.open(io.BytesIO(base64.b64decode(request["inputs"]["images"][0])))
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request["inputs"]["question"]}]}
    inputs = processor(
        text=[processor.apply_chat_template([turn], add_generation_prompt=True)], images=[image], return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert endpoint(request)["tokens"] == [token for token in ids if token not in model.generation_config.eos_token_id]


def test_ask_shows_where_it_looked(endpoint):
    answer = endpoint(samples.ask(0, attention=True))
    pictures = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in answer["attention"]]
    assert len(pictures) == len(answer["frames"]) == 4
    assert max(np.asarray(picture).max() for picture in pictures) == 255


def test_reconstruct_returns_what_was_asked_for(endpoint):
    answer = endpoint(samples.reconstruct(outputs=["glb", "depth", "points", "mask", "confidence"], max_points=50))
    assert answer["model"] == "pi3" and len(answer["frames"]) == 2
    frame = answer["frames"][0]
    arrays = {
        name: np.load(io.BytesIO(base64.b64decode(frame[name]))) for name in ("depth", "points", "mask", "confidence")
    }
    assert arrays["depth"].shape == (frame["height"], frame["width"]) == (56, 72)
    assert arrays["points"].shape == (56, 72, 3) and arrays["mask"].dtype == bool
    np.testing.assert_allclose(frame["camera_to_world"], np.eye(4), atol=1e-5)  # the first camera is the world
    assert base64.b64decode(answer["glb"])[:4] == b"glTF"


def test_reconstruct_takes_synchronised_views(tmp_path):
    folder = build("page4d_multiview", tmp_path)
    alone = handler_module().EndpointHandler(str(folder))
    request = samples.reconstruct(model="page4d", outputs=["depth"], views=2)
    request["inputs"]["images"] = [samples.encoded(samples.picture(seed)) for seed in range(4)]
    answer = alone(request)
    processor = alone.processor("page4d")
    inputs = processor([Image.open(io.BytesIO(samples.picture(seed))) for seed in range(4)])
    with torch.no_grad():
        outputs = alone.model("page4d")(inputs["pixel_values"].unflatten(1, (2, 2)))
    (scene,) = processor.post_process_geometry(outputs, inputs["original_sizes"], inputs["image_boxes"])
    found = np.load(io.BytesIO(base64.b64decode(answer["frames"][3]["depth"])))
    assert len(answer["frames"]) == 4
    np.testing.assert_allclose(found, scene.depth[3], rtol=1e-4)
    answer = alone(request | {"parameters": request["parameters"] | {"views": None}})
    assert np.abs(np.load(io.BytesIO(base64.b64decode(answer["frames"][3]["depth"]))) - found).max() > 1e-3
    request["inputs"]["images"].pop()
    assert refused(alone, request).code == "invalid_input"


def test_glb_files_hold_the_points(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    points, colours = np.float32([[0, 1, 2], [3, 4, 5]]), np.uint8([[255, 0, 188], [0, 74, 255]])
    scene = trimesh.load(io.BytesIO(handler_module().files_out.points_glb(points, colours)), file_type="glb")
    (cloud,) = scene.dump() if hasattr(scene, "dump") else [scene]
    np.testing.assert_allclose(cloud.vertices, points * (1, -1, -1))
    # Linear light, as glTF asks: half the light of white is 188 in sRGB, and 74 shows as 74.
    np.testing.assert_array_equal(cloud.colors[:, :3], [[255, 0, 128], [0, 17, 255]])


def test_segment_marks_phrases(endpoint):
    answer = endpoint(samples.segment(1, mask_format="png"))
    assert [entry["phrase"] for entry in answer["phrases"]] == ["the red block", "a wall"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["phrases"][0]["mask"]))))
    assert mask.shape == (56, 72) and mask.astype(bool).sum() == answer["phrases"][0]["area"]


def test_segment_marks_words_of_its_answer(endpoint):
    request = samples.segment_answer()
    word = endpoint(request)["answer"].split()[0]
    request["inputs"]["phrases"] = [word]
    answer = endpoint(request)
    (entry,) = answer["phrases"]
    assert answer["answer"][entry["start"] : entry["end"]] == word


def test_cad_takes_a_mesh_as_stl_and_as_numbers(endpoint):
    corners = np.float32([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    triangles = np.zeros(4, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]))
    triangles["corners"] = corners[faces]
    stl = samples.encoded(bytes(80) + np.uint32(4).tobytes() + triangles.tobytes())
    parameters = {"max_new_tokens": 5}
    given = {"mesh": {"vertices": corners.tolist(), "faces": faces.tolist()}}
    answers = [
        endpoint({"task": "cad", "inputs": inputs, "parameters": parameters}) for inputs in ({"stl": stl}, given)
    ]
    assert answers[0]["tokens"] == answers[1]["tokens"]


def test_points_come_as_npy_too(endpoint):
    request = samples.cad_recode()
    stream = io.BytesIO()
    np.save(stream, np.array(request["inputs"]["points"]))
    again = {**request, "inputs": {"points": samples.encoded(stream.getvalue())}}
    assert endpoint(request) == endpoint(again)


def test_candidates_are_one_greedy_program_and_samples(endpoint):
    alone, several = endpoint(samples.cad()), endpoint(samples.cad(candidates=4))
    assert several["tokens"][0] == alone["tokens"][0]
    assert len({tuple(tokens) for tokens in several["tokens"]}) == 4


def test_files_come_as_bytes_and_data_urls_too(endpoint):
    request = samples.ask(1)
    (image,) = request["inputs"]["images"]
    for other in (base64.b64decode(image), f"data:image/png;base64,{image}", image[:40] + "\n" + image[40:]):
        assert endpoint({**request, "inputs": {**request["inputs"], "images": [other]}}) == endpoint(request)


def test_a_seed_decides_what_is_sampled(endpoint):
    requests = [
        {**samples.ask(1, 8), "parameters": {"temperature": 1.5, "seed": seed, "max_new_tokens": 8}}
        for seed in (1, 1, 2)
    ]
    answers = [endpoint(request)["tokens"] for request in requests]
    assert answers[0] == answers[1] != answers[2]


def test_samples_follow_the_distribution():
    """Gumbel noise on logits draws from their softmax; top-p leaves the tail out."""
    handler = handler_module().generation
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)

    def draw(**options):
        rows = [handler.Sampling(1, seed=(number, 0), **options) for number in range(4000)]
        return handler.SampleRows(rows)(None, scores)

    shares = torch.bincount(draw(temperature=1.0).argmax(-1), minlength=4) / 4000
    torch.testing.assert_close(shares, scores[0].softmax(-1), atol=0.03, rtol=0)
    assert set(draw(temperature=1.0, top_p=0.7).argmax(-1).tolist()) == {0, 1}
    assert set(draw(temperature=0.0).argmax(-1).tolist()) == {0}


# ---- batches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["ask", "reconstruct", "page4d", "segment", "segment_answer", "cad", "cad_recode", "scene"]
)
def test_a_batch_answers_as_lone_requests_do(endpoint, kind):
    step = 3 if kind == "cad" else 2 if kind == "scene" else 1  # of one kind of input
    wanted = {"scene": {"outputs": ["tokens"]}, "reconstruct": {"outputs": ["depth", "points"]}}.get(kind, {})
    requests = [
        samples.GOOD[kind](seed, **wanted) for seed in range(0, (2 if kind == "reconstruct" else 3) * step, step)
    ]
    if kind in ("ask", "cad_recode"):
        requests[1]["parameters"] |= {"temperature": 1.2, **({"candidates": 3} if kind == "cad_recode" else {})}
        requests[2]["parameters"] |= {"max_new_tokens": 4}
    jobs = [endpoint.prepare(request) for request in requests]
    assert len({job.key for job in jobs}) == 1
    for job, result, request in zip(jobs, endpoint.run(jobs), requests):
        assert different(endpoint.finish(job, result), endpoint(request)) == []


def test_a_grounded_answer_without_its_phrases_fails_alone(endpoint):
    """In one batch with others, and with the noun phrases that the model lists."""
    requests = [samples.segment_answer(seed, max_new_tokens=6 + seed) for seed in range(3)]
    word = endpoint(requests[0])["answer"].split()[0]
    requests[0]["inputs"]["phrases"], requests[1]["inputs"]["phrases"] = [word], ["an elephant"]
    jobs = [endpoint.prepare(request) for request in requests]
    assert len({job.key for job in jobs}) == 1
    first, second, third = endpoint.run(jobs)
    assert different(endpoint.finish(jobs[0], first), endpoint(requests[0])) == []
    assert different(endpoint.finish(jobs[2], third), endpoint(requests[2])) == []
    with pytest.raises(handler_module().RequestError, match="elephant"):
        endpoint.finish(jobs[1], second)


def picture_message(*texts: str) -> list[dict]:
    picture = {"type": "image", "image": samples.encoded(samples.picture(1, (68, 60)))}
    return [{"role": "user", "content": [picture, *({"type": "text", "text": text} for text in texts)]}]


def test_a_conversation_of_one_turn_is_a_question(endpoint):
    request = samples.ask(1)
    talk = {"task": "ask", "inputs": {"messages": picture_message(request["inputs"]["question"])}}
    assert endpoint({**talk, "parameters": request["parameters"]}) == endpoint(request)


@pytest.mark.parametrize(
    "inputs, code",
    [
        ({"messages": []}, "bad_request"), ({"messages": ["Hello"]}, "bad_request"),
        ({"messages": [{"role": "robot", "content": "Hello"}]}, "bad_request"),
        ({"messages": [{"role": "user", "content": 5}]}, "bad_request"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "bad_request"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "bad_request"),
        ({"messages": picture_message("Hi?"), "question": "What?"}, "bad_request"),
        ({"messages": picture_message()}, "bad_request"),
        ({"messages": [{"role": "user", "content": "a"}] * 65}, "too_large"),
        ({"messages": [{"role": "user", "content": "a" * 3000}] * 2}, "too_large"),
        ({"messages": [{"role": "user", "content": "<|im_start|>"}]}, "invalid_input"),
    ],
)  # fmt: skip
def test_broken_conversations_are_refused(endpoint, inputs, code):
    assert refused(endpoint, {"task": "ask", "inputs": inputs}).code == code


def test_an_answer_ends_before_a_text(endpoint):
    whole = endpoint(samples.ask(1))["answer"]
    stop = whole[3:5]
    answer = endpoint(samples.ask(1, stop=["never said", stop]))
    assert answer["answer"] == whole[: whole.index(stop)].rstrip() and answer["finished"]
    assert len(answer["tokens"]) < 6
    assert refused(endpoint, samples.ask(1, stop=[""])).code == "bad_request"
    assert refused(endpoint, samples.ask(1, stop=["a"] * 5)).code == "too_large"


def test_several_answers_are_those_of_their_seeds(endpoint):
    answers = endpoint(samples.ask(1, candidates=3, temperature=1.5))["answers"]
    assert len({answer["answer"] for answer in answers}) == 3
    assert answers[0]["tokens"] == endpoint(samples.ask(1, temperature=1.5))["tokens"]
    assert refused(endpoint, samples.ask(1, candidates=3)).code == "bad_request"


def test_a_widget_is_answered_as_a_pipeline_answers(endpoint):
    """`inputs` alone: a text, a picture in three forms, both, or a conversation; no task."""
    options = {"max_new_tokens": 6}
    picture, text = samples.picture(1, (68, 60)), samples.ask(1)["inputs"]["question"]
    both = endpoint({"inputs": {"image": samples.encoded(picture), "text": text}, "parameters": options})
    assert both == [{"generated_text": endpoint(samples.ask(1))["answer"]}]
    assert endpoint({"inputs": picture_message(text), "parameters": options}) == both
    described = endpoint({"inputs": {"image": picture, "text": "Describe this image."}, "parameters": options})
    for form in (picture, samples.encoded(picture), f"data:image/png;base64,{samples.encoded(picture)}",
                 Image.open(io.BytesIO(picture))):  # fmt: skip
        assert endpoint({"inputs": form, "parameters": options}) == described
    (answer,) = endpoint({"inputs": text, "parameters": options})
    talk = {"task": "ask", "inputs": {"messages": [{"role": "user", "content": text}]}, "parameters": options}
    assert answer["generated_text"] == endpoint(talk)["answer"]


@pytest.mark.parametrize(
    "request_, code",
    [
        ({"inputs": ""}, "bad_request"), ({"inputs": "a" * 5000}, "too_large"), ({"inputs": 5}, "bad_request"),
        ({"inputs": samples.encoded(samples.png_header(40000, 40000) + bytes(64))}, "too_large"),
        ({"inputs": "Hi?", "parameters": {"max_new_tokens": 10**6}}, "too_large"),
        ({"inputs": "Hi?", "parameters": {"beams": 2}}, "bad_request"), ({"inputs": "Hi?", "more": 1}, "bad_request"),
        ({"inputs": {"image": "https://example.com/cat.png", "text": "?"}}, "bad_request"),
    ],
)  # fmt: skip
def test_a_widget_has_the_same_limits(endpoint, request_, code):
    assert refused(endpoint, request_).code == code


def test_short_answers_do_not_wait_for_long_ones(endpoint):
    keys = [endpoint.prepare(samples.ask(1, tokens)).key for tokens in (8, 16, 512)]
    assert keys[0] == keys[1] != keys[2]


def test_prompts_that_the_model_lengthens_are_cut_off(endpoint):
    """One placeholder of -200 per scene, as LLaVA's tokenizers make them, in place of one per scene token."""
    request = samples.scene(1)
    expected, job = endpoint(request), endpoint.prepare(request)
    config, ids = endpoint.model("scene_qformer").config, job.inputs["input_ids"][0]
    places = (ids == config.image_token_id).nonzero()[:, 0]
    short = torch.cat([ids[: places[0]], torch.tensor([config.image_token_index]), ids[places[-1] + 1 :]])
    assert len(places) == config.num_queries and len(short) == len(ids) - len(places) + 1
    job.inputs |= {"input_ids": short[None], "attention_mask": torch.ones_like(short)[None]}
    assert endpoint.finish(job, endpoint.run([job])[0])["tokens_written"] == expected["tokens_written"]


def test_scenes_are_asked_through_a_template_that_takes_text_alone(endpoint, monkeypatch):
    """As of many language models: it adds strings, and a list of parts would end in an error of the server."""
    template = "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}{% endfor %}"
    processor = endpoint.processor("scene_qformer")
    monkeypatch.setattr(processor, "chat_template", template)
    job = endpoint.prepare(samples.scene(1))
    shown = processor.tokenizer.decode(job.inputs["input_ids"][0])
    assert shown.startswith("USER: <image>") and shown.endswith("How many cars are there? (1) ASSISTANT:")
    assert isinstance(endpoint.finish(job, endpoint.run([job])[0])["answer"], str)


def test_models_in_subfolders_have_their_own_generation_settings(endpoint, repository):
    for name in ("scene_qformer", "cadrille", "cad_recode"):
        stored = json.loads((repository / name / "generation_config.json").read_text())
        stored.pop("transformers_version")
        assert stored.items() <= endpoint.model(name).generation_config.to_dict().items()


def test_comparing_answers_sees_differences(endpoint):
    answer = endpoint(samples.reconstruct())
    other = endpoint(samples.reconstruct(1))
    assert different(answer, answer) == [] and "frames.0.depth" in different(answer, other)


# ---- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize("name", samples.broken())
def test_broken_requests_are_refused(endpoint, name):
    request, code = samples.broken()[name]
    error = refused(endpoint, request)
    assert error.code == code and error.status == handler_module().ERRORS[code][0]
    assert 10 < len(error.message) < 500


def test_a_video_that_is_cut_short_is_refused(endpoint, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w", options={"movflags": "faststart"}) as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width = track.height = 64
        for number in range(40):
            noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(noise)))
        container.mux(track.encode())
    whole = (tmp_path / "clip.mp4").read_bytes()
    request = {
        "task": "ask",
        "inputs": {"question": "What?", "video": samples.encoded(whole)},
        "parameters": {"max_new_tokens": 1},
    }
    assert endpoint(request)["frames"][-1] == 39
    request["inputs"]["video"] = samples.encoded(whole[: len(whole) // 2])
    assert refused(endpoint, request).code == "unreadable_media"


def test_nothing_is_fetched(endpoint):
    """A playlist, an address and a reference in a file lead to no connection."""
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        log_message = lambda *args: None  # noqa: E731

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/secret"
    content = samples.playlist(address + ".ts")
    for value in (
        address,
        samples.encoded(content),
        samples.encoded(b"ffconcat version 1.0\nfile '" + address.encode() + b"'\n"),
    ):
        refused(endpoint, {"task": "ask", "inputs": {"question": "?", "video": value}})
        refused(endpoint, {"task": "ask", "inputs": {"question": "?", "images": [value]}})
    server.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    "limit, value, request_of",
    [
        ("bytes", 1000, lambda: samples.ask(0)),
        ("pixels", 4000, lambda: samples.ask(1)),
        ("pixels", 4000, lambda: samples.ask(0)),
        ("total_pixels", 6000, lambda: samples.reconstruct()),
        ("images", 1, lambda: samples.reconstruct()),
        ("frames", 3, lambda: samples.ask(0)),
        ("video_frames", 5, lambda: samples.ask(0)),
        ("video_pixels", 10**5, lambda: samples.ask(0)),
        ("points", 299, lambda: samples.cad()),
        ("text", 10, lambda: samples.ask(0)),
        ("phrases", 1, lambda: samples.segment(1)),
        ("prompt_tokens", 30, lambda: samples.ask(1)),
        ("new_tokens", 5, lambda: samples.ask(1)),
        ("candidates", 2, lambda: samples.cad(candidates=3)),
    ],
)
def test_limits_hold_and_come_from_the_environment(endpoint, repository, monkeypatch, limit, value, request_of):
    monkeypatch.setenv(f"DSR_LIMIT_{limit.upper()}", str(value))
    small = handler_module().EndpointHandler(str(repository))
    small._processors = endpoint._processors
    with pytest.raises(handler_module().RequestError) as caught:
        small.prepare(request_of())
    assert caught.value.code == "too_large"
    endpoint.prepare(request_of())


def test_a_limit_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("DSR_LIMIT_PIXELS", "many")
    with pytest.raises(ValueError, match="DSR_LIMIT_"):
        handler_module().Limits.from_environment()


def test_the_documentation_lists_every_error():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for code, (status, _) in handler_module().ERRORS.items():
        assert f"| `{code}` | {status} |" in text


def test_every_field_is_described(endpoint):
    described = endpoint.describe()
    assert set(described) == set(handler_module().TASKS)
    assert described["reconstruct"]["models"] == ["pi3", "page4d"]
    assert described["ask"]["parameters"]["properties"]["max_new_tokens"]["maximum"] == endpoint.limits.new_tokens


# ---- alone -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_handler_needs_nothing_but_its_folder(repository, tmp_path):
    """In a process that cannot see the source tree, and without the toolkit."""
    code = """
import importlib.abc, json, sys

class NoSourceTree(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        hidden = ("configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit")
        if fullname.split(".")[0] in hidden:
            raise ImportError(f"{fullname} belongs to the source tree")

sys.meta_path.insert(0, NoSourceTree())
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler, RequestError
endpoint = EndpointHandler(sys.argv[1])
requests = json.load(open(sys.argv[2]))
answers = [endpoint(request) for request in requests]
try:
    endpoint({"task": "cad", "inputs": {"text": "A plate"}, "parameters": {"execute": True}})
except RequestError as error:
    answers.append(error.as_json())
json.dump(answers, open(sys.argv[3], "w"))
"""
    requests = [make() for make in samples.GOOD.values()]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    files = [str(repository), str(tmp_path / "requests.json"), str(tmp_path / "answers.json")]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *files], cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *answers, error = json.loads((tmp_path / "answers.json").read_text())
    assert error["error"]["code"] == "not_available"
    endpoint = handler_module().EndpointHandler(str(repository))
    for request, answer in zip(requests, answers):
        assert different(answer, json.loads(json.dumps(endpoint(request)))) == []


@pytest.mark.slow
def test_programs_run_in_the_sandbox_or_are_refused(endpoint):
    request = samples.cad(execute=True, candidates=2)
    try:
        answer = endpoint(request)
    except handler_module().RequestError as error:
        assert error.code == "not_available"
        pytest.skip(error.message)
    assert [one["code"] for one in answer["execution"]["candidates"]]
    job = endpoint.prepare(request)
    outcome = endpoint.tasks["cad"].execute(["import cadquery as cq\nr = cq.Workplane().box(3, 2, 1)", "r = 1"], job)
    assert outcome["best"] == 0 and base64.b64decode(outcome["step"]).startswith(b"ISO-10303-21")
    assert Image.open(io.BytesIO(base64.b64decode(outcome["picture"]))).size == (384, 384)
