"""The tiny checkpoints: layout of the published ones, the same bytes every time, a tokenizer like Qwen's."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from dsr_toolkit import tiny
from dsr_toolkit.tiny.pi3 import write_pi3
from dsr_toolkit.tiny.qwen2_5_vl import write_qwen2_5_vl
from dsr_toolkit.tiny.tokenizer import CONTROL_TOKENS, MARKER_TOKENS
from dsr_toolkit.tiny.weights import random_tensor

PI3_KEYS = Path(__file__).parents[3] / "shared" / "reference" / "pi3" / "keys.json"


@pytest.fixture(scope="module")
def tokenizer(tiny_sources):
    return AutoTokenizer.from_pretrained(tiny_sources / "Qwen2.5-VL-tiny")


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_same_bytes_every_time(tmp_path, tiny_sources):
    torch.manual_seed(1)  # the global generator has no say
    assert digests(write_qwen2_5_vl(tmp_path / "qwen")) == digests(tiny_sources / "Qwen2.5-VL-tiny")
    assert digests(write_pi3(tmp_path / "pi3" / "model.safetensors").parent) == digests(tiny_sources / "Pi3-tiny")


def test_another_seed_gives_other_weights():
    assert not torch.equal(random_tensor("a.weight", (4, 4)), random_tensor("a.weight", (4, 4), seed=1))


def test_transformers_own_class_loads_the_qwen_folder_completely(tiny_sources):
    _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tiny_sources / "Qwen2.5-VL-tiny", output_loading_info=True
    )
    assert not any(info.values())


def test_qwen_weights_have_published_names_in_shards(tiny_sources):
    index = json.loads((tiny_sources / "Qwen2.5-VL-tiny" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) == 2
    assert {name.split(".")[0] for name in index} == {"visual", "model", "lm_head"}
    assert "model.layers.0.self_attn.q_proj.weight" in index and "visual.blocks.0.attn.qkv.weight" in index


@pytest.mark.skipif(not PI3_KEYS.is_file(), reason="needs the published key list")
def test_pi3_weights_have_published_names(tiny_sources):
    def pattern(name):
        return ".".join("N" if part.isdigit() else part for part in name.split("."))

    published = {pattern(name): len(shape) for name, (_, shape) in json.loads(PI3_KEYS.read_text())["Pi3"].items()}
    with safe_open(tiny_sources / "Pi3-tiny" / "model.safetensors", "pt") as file:
        ours = {pattern(name): len(file.get_slice(name).get_shape()) for name in file.keys()}
    assert ours == published


@pytest.mark.parametrize("text", ["Where does it go?", "  two\n\nlines\t", "日本語 ñ 🙂 ½", "it's 1234", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_single_and_in_published_order(tokenizer):
    ids = [tokenizer(token).input_ids for token in CONTROL_TOKENS + MARKER_TOKENS]
    assert ids == [[ids[0][0] + i] for i in range(len(ids))]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_only_control_tokens_are_skipped(tokenizer):
    text = "<|im_start|>a<tool_call><|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == "a<tool_call>"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_roles_are_single_tokens(tokenizer, role):
    assert len(tokenizer(f"<|im_start|>{role}\n").input_ids) == 3


def test_the_config_takes_its_ids_from_the_tokenizer(tokenizer, tiny_sources):
    config = json.loads((tiny_sources / "Qwen2.5-VL-tiny" / "config.json").read_text())
    assert config["video_token_id"] == tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert config["vocab_size"] > len(tokenizer)


CONVERSATION = [
    {"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "Q?"}]},
    {"role": "assistant", "content": "B"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": [{"type": "text", "text": "C"}]},
]


def test_chat_template_writes_chatml(tokenizer):
    text = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
        "<|vision_start|><|image_pad|><|vision_end|>Q?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_template_keeps_a_given_system_turn(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, *CONVERSATION[2:3]]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"


def test_chat_template_marks_what_the_assistant_wrote(tokenizer):
    encoded = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    written = [token for token, marked in zip(encoded["input_ids"], encoded["assistant_masks"]) if marked]
    assert tokenizer.decode(written) == "B<|im_end|>\nC<|im_end|>\n"


def test_a_tiny_model_is_built_once_and_kept(tmp_path, monkeypatch, tiny_dsr):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    folder = tiny.hub_folder("dsr")
    built = (folder / "config.json").stat().st_mtime_ns
    assert tiny.hub_folder("dsr") == folder and (folder / "config.json").stat().st_mtime_ns == built
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left of the building
    assert (folder / "model.safetensors").read_bytes() == (tiny_dsr / "model.safetensors").read_bytes()


def test_an_unknown_tiny_model():
    with pytest.raises(ValueError, match="no tiny 'dino' model"):
        tiny.hub_folder("dino")
