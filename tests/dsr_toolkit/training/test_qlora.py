"""QLoRA: an adapter, and what is new or small in full, learn on a base of 4 bits (bitsandbytes)."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from configuration_dsr import CadrilleConfig
from dsr_toolkit.training import add_adapter, load_adapter, save_adapter
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from tests.modeling_dsr import cad_samples, dsr_samples

bitsandbytes = pytest.importorskip("bitsandbytes")
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}  # 4 bits come in blocks of 64


def dsr():
    config = dsr_samples.tiny_config()
    config = dsr_samples.tiny_config(
        text_config={**config.text_config.to_dict(), **TEXT},
        vision_config={
            **config.vision_config.to_dict(), "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 64
        },
        geometry_config={**config.geometry_config.to_dict(), "hidden_size": 64},
    )  # fmt: skip
    samples = [dsr_samples.sample(i, videos=((2, 4, 4),), answer=3) for i in range(2)]
    return DSRForConditionalGeneration(config), dsr_samples.collate(samples, "right", with_labels=True)


def cadrille():
    config = cad_samples.cadrille_config()
    config = CadrilleConfig(
        **{
            **config.to_dict(),
            "text_config": {**config.text_config.to_dict(), **TEXT},
            "vision_config": {**config.vision_config.to_dict(), "embed_dim": 64, "hidden_size": 64},
        }
    )
    return CadrilleForConditionalGeneration(config), cad_samples.cadrille_inputs("pv", "right", answer=3)


@pytest.mark.parametrize("make", [dsr, cadrille])
def test_an_adapter_learns_on_four_bits(make, tmp_path):
    torch.manual_seed(0)
    model, batch = make()
    model.save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    settings = {"quantization_config": quantization, "dtype": torch.float32}
    base = type(model).from_pretrained(tmp_path / "base", **settings)
    model = add_adapter(base, rank=4).train()
    four_bits = {name: w.clone() for name, w in model.named_parameters() if type(w).__name__ == "Params4bit"}
    assert any("q_proj.base_layer" in name for name in four_bits) and any("visual" in name for name in four_bits)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    losses = []
    for _ in range(16):
        loss = model(**batch).loss
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in model.named_parameters():
        if name in four_bits:
            assert torch.equal(parameter, four_bits[name]), name
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", **settings)
    # In training mode: the quick kernels of evaluation on CPUs want widths that tiny models have not.
    assert again.train()(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)
