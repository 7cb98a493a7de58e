"""Scene Q-Former: the checks common to all models, for the vision model and with a language model."""

import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dsr_toolkit.tiny.tokenizer import write_tokenizer
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration, SceneQFormerModel
from processing_dsr import SceneQFormerProcessor
from tests.model_checks import ModelChecks, tensors_of
from tests.modeling_dsr.scene_samples import (
    IMAGE_SIZE,
    map_labels,
    prompts,
    scenes,
    tiny_config,
    tiny_language_config,
)


class TestSceneQFormer(ModelChecks):
    """Depth code with calibration, queries that belong to cameras."""

    model_classes = (SceneQFormerModel,)
    lora_targets = r".*(linear1|linear2)"

    def tiny_config(self):
        return tiny_config(position_encoding="depth_3d", num_constrained_queries=8)

    def inputs(self, batch, padding_side="left"):
        return scenes(batch)

    def loss(self, outputs):
        # A plain mean square of post-norm states is nearly constant.
        weight = torch.linspace(-1, 1, outputs.scene_tokens.shape[1])[:, None]
        return (outputs.scene_tokens * weight).mean()

    def expected_hidden_states(self, config, inputs):
        return config.num_decoder_layers + 1, (len(inputs["pixel_values"]), config.num_queries, config.embed_dims)

    def expected_attentions(self, config, inputs):
        grid = (-(-IMAGE_SIZE[0] // 32), -(-IMAGE_SIZE[1] // 32))
        return config.num_decoder_layers, (len(inputs["pixel_values"]), config.num_heads, config.num_queries, 6, *grid)

    def compile_pieces(self, model, inputs):
        queries, memory = torch.randn(1, 14, 32), torch.randn(2, 36, 32)
        return {
            "backbone": (model.backbone, (inputs["pixel_values"].flatten(0, 1),), {}),
            "decoder": (model.scene_decoder, (queries, memory), {}),
        }

    def need(self, check):
        pytest.skip("the isolated process runs for the class below, whose base this is, and for the parity cases")


class TestSceneQFormerForConditionalGeneration(ModelChecks):
    """A LLaMA with output queries behind the sine variant."""

    model_classes = (SceneQFormerModel, SceneQFormerForConditionalGeneration)
    generative = True
    padding_sides = ("left", "right")
    lora_targets = r".*language_model.*(q_proj|v_proj)"
    fsdp_layers = ("LlamaDecoderLayer", "SceneDecoder")

    def tiny_config(self):
        return tiny_language_config()

    def inputs(self, batch, padding_side="left"):
        return prompts(batch, 14, padding_side) | {"pixel_values": scenes(batch)["pixel_values"]}

    def training_inputs(self, batch):
        inputs = prompts(batch, 14, "right", answer=4) | {"pixel_values": scenes(batch)["pixel_values"]}
        return inputs | {"map_labels": map_labels(batch)}

    def compile_pieces(self, model, inputs):
        text = {"inputs_embeds": torch.randn(2, 7, 32), "use_cache": False}
        return {"text": (model.language_model, (), text)}

    def processor(self):
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        return SceneQFormerProcessor(tokenizer, image_size=IMAGE_SIZE, num_scene_tokens=14)

    def per_sample(self, outputs, inputs, batch):
        samples = super().per_sample(outputs, inputs, batch)
        assert all("scene_tokens" in sample for sample in samples)
        return samples


def test_outputs_hold_no_cache_of_the_model():
    """What the model keeps for the next call is no part of a result that a caller may change."""
    model = SceneQFormerModel(tiny_config(position_encoding="ray_3d")).eval()
    with torch.no_grad():
        first = model(**scenes(1), output_hidden_states=True)
        for tensor in tensors_of(first).values():
            tensor.zero_()
        again = model(**scenes(1))
    assert again.scene_tokens.abs().max() > 0.1
