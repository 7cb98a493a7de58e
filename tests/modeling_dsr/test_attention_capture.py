"""`capture_attention` on decoders of several families, against their own eager attention."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    ViTConfig,
    ViTModel,
)

from modeling_dsr.attention_capture import capture_attention, capture_hidden_states
from tests.model_checks import randomize

SIZES = dict(
    vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "mistral with a sliding window": MistralConfig(**SIZES, sliding_window=4),
    "gemma2 with soft caps and windows": Gemma2Config(**SIZES, sliding_window=4, attn_logit_softcapping=2.0),
    "gpt-oss with sinks": GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=4),
}
ROWS, COLUMNS = torch.tensor([3, 7, 8]), torch.tensor([0, 2, 5, 6])


def decoder(name: str, implementation: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name], attn_implementation=implementation).eval()
    randomize(model)
    return model


def tokens(padding: int = 0):
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return ids, mask


def eager_attentions(name, ids, mask):
    with torch.no_grad():
        return decoder(name, "eager")(ids, attention_mask=mask, output_attentions=True).attentions


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_and_columns_equal_those_of_eager_attention(name, padding):
    # Soft caps and sinks exist in the eager kernel alone: the model runs on it, or as transformers allows.
    ids, mask = tokens(padding)
    implementation = "sdpa" if name in ("llama", "qwen2", "mistral with a sliding window") else "eager"
    model = decoder(name, implementation)
    with torch.no_grad(), capture_attention(model, ROWS, COLUMNS) as captured:
        model(ids, attention_mask=mask)
    expected = eager_attentions(name, ids, mask)
    assert len(captured.attentions) == 3
    real = mask[:, ROWS].bool()
    for found, whole in zip(captured.attentions, expected):
        whole = whole[:, :, ROWS][..., COLUMNS]
        torch.testing.assert_close(found.transpose(1, 2)[real], whole.transpose(1, 2)[real], atol=1e-6, rtol=1e-5)


def test_cached_steps_look_at_all_tokens():
    ids, _ = tokens()
    model = decoder("llama", "sdpa")
    expected = eager_attentions("llama", ids, None)
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        with capture_attention(model, torch.tensor([2, 3])) as captured:  # tokens 7 and 8 of the whole
            model(ids[:, 5:], past_key_values=cache)
    for found, whole in zip(captured.attentions, expected):
        torch.testing.assert_close(found, whole[:, :, [7, 8]], atol=1e-6, rtol=1e-5)


def test_rows_may_differ_between_samples_and_be_reduced():
    ids, _ = tokens()
    model = decoder("llama", "sdpa")
    rows = torch.tensor([[1, 4], [8, 2]])
    with (
        torch.no_grad(),
        capture_attention(model, rows, slice(0, 2), reduce=lambda weights: weights.mean(1)) as captured,
    ):
        model(ids)
    for found, whole in zip(captured.attentions, eager_attentions("llama", ids, None)):
        expected = torch.stack([whole[i][:, rows[i], :2].mean(0) for i in range(2)])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_outputs_do_not_change_and_the_implementation_comes_back():
    ids, _ = tokens()
    model = decoder("llama", "sdpa")
    with torch.no_grad():
        plain = model(ids).logits
        with capture_attention(model, ROWS):
            captured = model(ids).logits
    assert torch.equal(plain, captured)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="stop"), capture_attention(model, ROWS):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"


def test_hidden_states_of_rows():
    ids, _ = tokens()
    model = decoder("llama", "sdpa")
    rows = torch.tensor([[1, 4], [8, 2]])
    with torch.no_grad(), capture_hidden_states(model.model.layers, rows) as states:
        whole = model(ids, output_hidden_states=True).hidden_states
    for found, expected in zip(states[:2], whole[1:3]):
        assert torch.equal(found, torch.stack([expected[i, rows[i]] for i in range(2)]))


def test_refusals():
    ids, _ = tokens()
    model = decoder("llama", "sdpa")
    with pytest.raises(ValueError, match="positions 3…9, but there are 9 tokens"), torch.no_grad():
        with capture_attention(model, torch.tensor([3, 9])):
            model(ids)
    vit = ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    )
    with pytest.raises(ValueError, match="no decoder attention"), capture_attention(vit):
        pass


def test_soft_caps_are_refused_on_kernels_that_hide_them():
    ids, _ = tokens()
    model = decoder("gemma2 with soft caps and windows", "eager")
    with pytest.raises(ValueError, match="softcap"), torch.no_grad():
        with capture_attention(model, ROWS, implementation="sdpa"):
            model(ids)
