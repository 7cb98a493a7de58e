"""The terms of sources: what is known, what is assumed, what the whole is under."""

import pytest

from convert_weights.repository.licences import Terms, hub_id, of_the_whole, terms


def license_of(location, source="qwen", architecture="dsr", given=None):
    (one,) = terms("m", architecture, [{"name": source, "location": location}], given or {})
    return one.license


@pytest.mark.parametrize(
    "location, expected",
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("Qwen/Qwen2.5-VL-7B-Instruct@abc", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("yyfz233/Pi3:model.safetensors", "yyfz233/Pi3"),
        ("Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),  # a local copy under its name
        ("somebody/Qwen2.5-VL-7B-Instruct", None),
        ("Qwen2.5-VL-tiny", None),
    ],
)
def test_published_checkpoints_are_recognised(location, expected):
    assert hub_id(location) == expected


@pytest.mark.parametrize(
    "location, source, architecture, expected",
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen", "dsr", "apache-2.0"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen", "frozen_qwen_sam", "qwen-research"),
        ("downloads/sam_vit_l_0b3195.pth", "sam", "frozen_qwen_sam", "apache-2.0"),
        ("runs/checkpoint.pth", "pi3", "pi3", "cc-by-nc-4.0"),
        ("runs/checkpoint.pth", "page4d", "page4d", "unknown"),
    ],
)
def test_what_is_known_of_a_source(location, source, architecture, expected):
    assert license_of(location, source, architecture) == expected


def test_what_is_given_counts_more():
    assert license_of("runs/mine.pth", given={"m.qwen": "mit"}) == "mit"


@pytest.mark.parametrize(
    "license, restricted, words",
    [
        ("apache-2.0", False, "commercial use allowed"),
        ("cc-by-nc-4.0", True, "no commercial use"),
        ("llama2", True, "see its terms"),
        ("unknown", True, "see its terms"),
    ],
)
def test_what_a_licence_means(license, restricted, words):
    one = Terms("m", "s", "l", license)
    assert (one.restricted, one.use) == (restricted, words)


@pytest.mark.parametrize(
    "licenses, expected",
    [
        (["mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "qwen-research"], "other"),
        (["apache-2.0", "unknown"], "other"),
        (["llama2"], "other"),
    ],
)
def test_the_whole_is_under_the_strictest(licenses, expected):
    found = of_the_whole([Terms("m", "s", "l", license) for license in licenses])
    assert found["license"] == expected
    assert ("license_link" in found) == (expected == "other")
