"""LoRA and DoRA on every model: what trains, that the adapter holds it all, finds its base again and merges."""

import pytest
import torch
from transformers import AutoConfig

from dsr_toolkit.training.adapters import PRESETS, add_adapter, auto_class, load_adapter, merge_adapter, save_adapter
from tests.dsr_toolkit.training.models import CASES
from tests.dsr_toolkit.training.models import build as plain

FROZEN = {
    "dsr": ("model.visual", "model.geometry_encoder"),
    "frozen_qwen_sam": ("vlm", "sam.vision_encoder"),
    "pi3": ("encoder.",),
}


def trained(name: str, model):
    """A few steps, so that an adapter differs from nothing. Returns the model in evaluation mode."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        model.train()
        model(**CASES[name].batch([0, 1])).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def loss(name: str, model) -> float:
    with torch.no_grad():
        return model.eval()(**CASES[name].batch([2, 3])).loss.item()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{name: folder of the model without an adapter}"""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("base") / name
            plain(name).save_pretrained(made[name])
        return made[name]

    return of


def start(folder):
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_is_saved_loaded_and_merged(name, bases, tmp_path):
    model = trained(name, add_adapter(start(bases(name)), rank=4))
    expected = loss(name, model)
    assert expected != loss(name, start(bases(name)))
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", dtype=torch.float32)
    assert loss(name, loaded) == expected
    assert loss(name, loaded.merge_and_unload()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_dora_and_linear_presets(name, bases, tmp_path):
    model = trained(name, add_adapter(start(bases(name)), preset="linear", rank=4, dora=True))
    expected = loss(name, model)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", dtype=torch.float32)
    assert loss(name, loaded) == pytest.approx(expected, rel=1e-6)
    assert loss(name, loaded.merge_and_unload()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_leave_frozen_towers_alone(name):
    model = add_adapter(plain(name), preset="linear", rank=2)
    names = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_A" in key for key in names) and any("modules_to_save" in key for key in names)
    for tower in FROZEN.get(name, ()):
        assert not any(key.removeprefix("base_model.model.").startswith(tower) for key in names)


def test_batch_norms_of_the_scene_model_are_in_the_adapter(tmp_path):
    """With batch norms that move: those of the neck are kept, the frozen backbone's stay where they were."""
    from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration
    from tests.modeling_dsr import scene_samples

    config = scene_samples.tiny_language_config(map_config=None, dropout=0.0)
    SceneQFormerForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = trained("scene_qformer", add_adapter(start(tmp_path / "base"), rank=4))
    expected = loss("scene_qformer", model)
    save_adapter(model, tmp_path / "adapter")
    assert loss("scene_qformer", load_adapter(tmp_path / "adapter", dtype=torch.float32)) == expected


def test_frozen_batch_norms_stay_under_lora_of_ones_own(tmp_path):
    """12.720 became 12.759 after a reload: the neck had moved in training and was in no file."""
    from peft import LoraConfig, PeftModel, get_peft_model

    from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration
    from tests.modeling_dsr import scene_samples

    config = scene_samples.tiny_language_config(map_config=None, dropout=0.0)
    SceneQFormerForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = get_peft_model(start(tmp_path / "base"), LoraConfig(r=4, target_modules=r".*language_model.*q_proj"))
    expected = loss("scene_qformer", trained("scene_qformer", model))
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(start(tmp_path / "base"), tmp_path / "adapter")
    assert loss("scene_qformer", again) == expected


def test_a_base_in_a_subfolder_is_found_again_and_the_root_is_not_taken_for_it(repository, tmp_path):
    folder = repository / "cad_recode"
    model = add_adapter(start(folder), rank=2)
    save_adapter(model, tmp_path / "adapter", base=str(repository), subfolder="cad_recode")
    loaded = load_adapter(tmp_path / "adapter")
    assert loaded.config.model_type == "cad_recode"
    assert type(auto_class(loaded.config).from_pretrained(tmp_path / "adapter")).__name__ == "CADRecodeForCausalLM"


def test_merging_writes_a_model_with_its_processor(tmp_path):
    from transformers import AutoProcessor

    from dsr_toolkit.tiny import hub_folder

    folder = hub_folder("cad_recode")
    model = add_adapter(start(folder), rank=2)
    save_adapter(model, tmp_path / "adapter")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert start(merged).config.model_type == "cad_recode" and AutoProcessor.from_pretrained(merged)
    with pytest.raises(ValueError, match="exists"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="must be one of attention, linear"):
        add_adapter(plain("cad_recode"), preset="everything")
