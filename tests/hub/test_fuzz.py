"""Anything may come: the handler answers it or raises a `RequestError`, processors return or raise `ValueError`."""

import base64
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from dsr_toolkit.serving import handler_module
from tests.hub import samples

hypothesis = pytest.importorskip("hypothesis", reason="needs the [test] extra")
st = hypothesis.strategies
pytestmark = pytest.mark.slow
# One fixed sequence of examples, so that a failure can be seen again; the loaded models make examples slow.
settings = hypothesis.settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
fewer = hypothesis.settings(settings, max_examples=20)  # of what takes half a second each

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def endpoint(repository):
    return handler_module().EndpointHandler(str(repository))


def answers_or_refuses(endpoint, request) -> bool:
    """Whether it answers in JSON, or with an error of its own; anything else is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unusual scales and sizes are told to people
        try:
            answer = endpoint(request)
        except handler_module().RequestError as error:
            return error.code in handler_module().ERRORS and error.code != "internal" and bool(error.message)
        return bool(json.dumps(answer, allow_nan=False))


def mutated(draw, value):
    """A request in which some parts are replaced by anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(json_values)
    if isinstance(value, dict):
        changed = {key: mutated(draw, one) for key, one in value.items() if draw(st.integers(0, 19))}
        return changed | (
            draw(st.dictionaries(st.text(max_size=8), json_values, max_size=1)) if draw(st.booleans()) else {}
        )
    if isinstance(value, list) and len(value) < 10:
        return [mutated(draw, one) for one in value]
    if isinstance(value, str) and len(value) > 100:  # a file
        content = bytearray(base64.b64decode(value))
        for _ in range(draw(st.integers(0, 6))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
        return samples.encoded(bytes(content[: draw(st.integers(1, len(content)))] if draw(st.booleans()) else content))
    return value


@st.composite
def broken_requests(draw):
    kind = draw(st.sampled_from(sorted(samples.GOOD)))
    request = samples.GOOD[kind](draw(st.integers(0, 3)))
    request["parameters"]["max_new_tokens"] = 2
    if kind in ("reconstruct", "page4d"):
        del request["parameters"]["max_new_tokens"]
    return mutated(draw, request)


@settings
@hypothesis.given(json_values)
def test_any_json(endpoint, request_data):
    assert answers_or_refuses(endpoint, request_data)


@settings
@hypothesis.given(broken_requests())
def test_broken_requests(endpoint, request_data):
    assert answers_or_refuses(endpoint, request_data)


@settings
@hypothesis.given(st.sampled_from(["ask", "reconstruct", "segment", "cad", "scene"]), st.data())
def test_any_values_in_the_right_fields(endpoint, task, data):
    known = endpoint.tasks[task]
    inputs = {
        name: data.draw(json_values | st.binary(max_size=40)) for name in known.INPUTS if data.draw(st.booleans())
    }
    parameters = {name: data.draw(json_values) for name in known.PARAMETERS if data.draw(st.integers(0, 4)) == 0}
    assert answers_or_refuses(endpoint, {"task": task, "inputs": inputs, "parameters": parameters})


@settings
@hypothesis.given(
    st.text(min_size=1, max_size=40), st.integers(1, 90), st.integers(1, 90), st.sampled_from(["ask", "segment", "cad"])
)
def test_any_text_and_any_size(endpoint, text, width, height, task):
    image = samples.encoded(samples.picture(0, (width, height)))
    inputs = {
        "ask": {"question": text, "images": [image]},
        "segment": {"phrases": [text], "image": image},
        "cad": {"text": text},
    }[task]
    parameters = {} if task == "segment" else {"max_new_tokens": 2}
    assert answers_or_refuses(endpoint, {"task": task, "inputs": inputs, "parameters": parameters})


@settings
@hypothesis.given(
    st.lists(st.tuples(*[st.floats(width=32)] * 3), min_size=0, max_size=300),
    st.sampled_from(["fit", "unit_cube", "program", "none"]), st.sampled_from(["cadrille", "cad_recode"]),
)  # fmt: skip
def test_any_points(endpoint, points, normalization, model):
    points = points * (300 // max(len(points), 1))  # enough for the model
    parameters = {"normalization": normalization, "model": model, "max_new_tokens": 2}
    inputs = {"points": [list(point) for point in points]}
    assert answers_or_refuses(endpoint, {"task": "cad", "inputs": inputs, "parameters": parameters})


@fewer
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 120), st.integers(1, 120)), min_size=1, max_size=3),
    st.sampled_from(["pi3", "page4d"]),
)
def test_images_of_any_sizes(endpoint, sizes, model):
    images = [samples.encoded(samples.picture(number, size)) for number, size in enumerate(sizes)]
    request = {
        "task": "reconstruct",
        "inputs": {"images": images},
        "parameters": {"model": model, "outputs": ["depth", "glb"]},
    }
    assert answers_or_refuses(endpoint, request)


# ---- processors --------------------------------------------------------------------------

arrays = st.builds(
    lambda shape, kind, seed: (np.random.default_rng(seed).normal(size=shape) * 100).astype(kind),
    st.lists(st.integers(0, 40), min_size=0, max_size=4).map(tuple), st.sampled_from(["uint8", "float32", "int64"]),
    st.integers(0, 5),
)  # fmt: skip
images = st.builds(
    lambda width, height, mode: Image.new(mode, (width, height)), st.integers(1, 60), st.integers(1, 60),
    st.sampled_from(["RGB", "RGBA", "L", "P", "I;16", "CMYK", "1"]),
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=12)
things = (
    scalars
    | arrays
    | images
    | st.lists(arrays | images | scalars, max_size=3)
    | st.dictionaries(st.text(max_size=4), images, max_size=2)
)


@settings
@hypothesis.given(st.data())
@pytest.mark.parametrize("name, arguments", [
    ("", ("images", "text", "videos")),
    ("pi3", ("images", "depths", "intrinsics", "poses")),
    ("page4d", ("images",)),
    ("frozen_qwen_sam", ("images", "text", "phrases", "captions")),
    ("cadrille", ("images", "text", "point_clouds", "meshes")),
    ("cad_recode", ("point_clouds", "meshes")),
    ("scene_qformer", ("images", "text", "cam_intrinsics", "cam_extrinsics")),
])  # fmt: skip
def test_processors(repository, name, arguments, data):
    processor = PROCESSORS.setdefault(name, None) or AutoProcessor.from_pretrained(
        repository, subfolder=name, trust_remote_code=True
    )
    PROCESSORS[name] = processor
    needed = arguments[:1] if name in ("pi3", "page4d") else ()
    given = {one: data.draw(things, label=one) for one in arguments if one in needed or data.draw(st.booleans())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            processor(**given)
        except ValueError as error:
            assert str(error)


PROCESSORS: dict = {}
