"""`freeze` on every model: what trains, that it is kept, and that loading applies it again."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.dsr_toolkit.training.models import CASES, build

PUBLISHED = {
    "dsr": "published",
    "pi3": "without_encoder",
    "page4d": "page4d",
    "frozen_qwen_sam": "mask_head",
    "cadrille": "language",
    "cad_recode": "point_encoder",
    "scene_qformer": "stage1",
}
AUTO = {"ForConditionalGeneration": AutoModelForImageTextToText, "ForCausalLM": AutoModelForCausalLM}


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def auto_class(model):
    return next((auto for end, auto in AUTO.items() if type(model).__name__.endswith(end)), AutoModel)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """{name: (model with a preset, folder of it)}"""
    made = {}
    for name, preset in PUBLISHED.items():
        model = build(name).freeze(preset)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        made[name] = (model, folder)
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_preset_survives_saving_and_loading(name, frozen):
    model, folder = frozen[name]
    assert 0 < len(trainable(model)) < len(list(model.parameters()))
    assert trainable(auto_class(model).from_pretrained(folder)) == trainable(model)


@pytest.mark.parametrize("name", CASES)
def test_every_trainable_parameter_is_reached_by_the_loss(name, frozen):
    """With a preset and without one: what DDP waits for is what the loss reaches."""
    models = [frozen[name][0], build(name)]
    # These samples of Cadrille are points, which need no vision tower: that is what its preset is for.
    for model in models[: 1 if name == "cadrille" else 2]:
        model.train().zero_grad(set_to_none=True)
        model(**CASES[name].batch([0, 1])).loss.backward()
        reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert reached == trainable(model)


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_preset_is_refused_and_changes_nothing(name):
    model = build(name)
    before = trainable(model)
    with pytest.raises(ValueError, match="must be one of 'all'|must be one of 'published'"):
        model.freeze("nothing of the kind")
    assert trainable(model) == before


def test_a_preset_given_while_loading_counts(frozen):
    _, folder = frozen["pi3"]
    model = AutoModel.from_pretrained(folder, trainable="confidence")
    assert {name.split(".")[0] for name in trainable(model)} == {"conf_decoder", "conf_head"}


def test_confidence_cannot_be_trained_without_a_weight_in_the_loss():
    model = build("pi3")
    model.config.confidence_loss_weight = 0.0
    with pytest.raises(ValueError, match="confidence_loss_weight"):
        model.freeze("confidence")
    assert not any(name.startswith("conf_") for name in trainable(model.freeze("all")))


def test_frozen_qwen_sam_trains_its_published_parts_after_loading(tmp_path):
    model = build("frozen_qwen_sam")
    expected = trainable(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert trainable(loaded) == expected
    assert not any(name.startswith(("vlm.", "sam.vision_encoder.")) for name in expected)


def test_dinos_mask_token_never_trains():
    for name in ("dsr", "pi3", "page4d"):
        assert not any(key.endswith("mask_token") for key in trainable(build(name)))


def test_a_model_of_the_hub_is_frozen_by_names_alone(frozen):
    """A scene model whose classes came from the Hub: no class object of ours is the same."""
    from dsr_toolkit.training.scene_qformer import begin_stage

    model, _ = frozen["scene_qformer"]
    twin = type("Twin", (type(model.scene_qformer),), {})
    model.scene_qformer.__class__ = twin
    groups = {group["name"] for group in begin_stage(model, 1)}
    assert groups == {"decoder", "projector"}
    assert torch.is_tensor(next(model.parameters()))
