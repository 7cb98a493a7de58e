"""Quantised loading: what must stay float stays float, and features point where those of the whole weights do."""

import functools

import pytest
import torch
from transformers import AutoConfig, BitsAndBytesConfig, TorchAoConfig

from dsr_toolkit.tiny import hub_folder
from dsr_toolkit.training import make_model
from dsr_toolkit.training.run import auto_class
from tests.modeling_dsr.test_training_collators import rows_of

pytest.importorskip("bitsandbytes")


def eight_bit():
    return BitsAndBytesConfig(load_in_8bit=True)


def four_bit():
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def torchao():
    config = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
    return TorchAoConfig(config)


def features(kind: str, model, batch) -> dict[str, torch.Tensor]:
    if kind in ("cadrille", "cad_recode"):
        return {"points": model.get_point_features(batch.get("point_clouds", batch.get("point_cloud")))}
    output = model(**batch)
    if kind == "frozen_qwen_sam":
        return {"text_embeds": torch.cat([phrase for row in output.text_embeds for phrase in row])}
    names = {
        "pi3": ("local_points", "camera_poses", "conf"),
        "page4d": ("pose_enc", "depth", "world_points"),
        "dsr": ("geometry_tokens", "logits"),
        "scene_qformer": ("scene_tokens", "logits"),
    }[kind]
    return {name: output[name] for name in names}


@functools.cache
@torch.no_grad()
def whole(kind: str):
    """(folder, batch, features of the whole weights)"""
    folder = str(hub_folder(kind))
    model, processor = make_model({"path": folder}, {})
    batch = processor.training_collator()([{**row, "seed": 0} for row in rows_of(kind)])
    return folder, batch, features(kind, model.eval(), batch)


# The CPU kernels of 4 bit want widths that tiny vision towers have not; modules that stay float want none.
CASES = [("cad_recode", four_bit), ("scene_qformer", eight_bit)] + [
    pytest.param(kind, how, marks=pytest.mark.slow)
    for kind in ("dsr", "pi3", "page4d", "frozen_qwen_sam", "cadrille", "cad_recode", "scene_qformer")
    for how in (eight_bit, torchao)
    if (kind, how) != ("scene_qformer", eight_bit)
]


@pytest.mark.parametrize("kind, how", CASES)
@torch.no_grad()
def test_features_keep_their_direction(kind, how):
    folder, batch, expected = whole(kind)
    quantized = (
        auto_class(AutoConfig.from_pretrained(folder))
        .from_pretrained(folder, quantization_config=how(), dtype=torch.float32)
        .eval()
    )
    for name, value in features(kind, quantized, batch).items():
        cosine = torch.nn.functional.cosine_similarity(value.float().flatten(), expected[name].flatten(), dim=0)
        assert cosine >= 0.99, name
    kept = quantized._keep_in_fp32_modules_strict
    for name, parameter in quantized.named_parameters():
        if any(f".{part}." in f".{name}" for part in kept):
            assert parameter.dtype == torch.float32, name
