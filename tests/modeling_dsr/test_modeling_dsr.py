"""DSR: the checks common to all models."""

import functools
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from dsr_toolkit.tiny.tokenizer import write_tokenizer
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration, DSRModel
from processing_dsr import DSRProcessor
from tests.model_checks import ModelChecks
from tests.modeling_dsr.dsr_samples import NUM_GEOMETRY_TOKENS, collate, sample, tiny_config

# A video, two videos of two resolutions, an image beside a video: every batch of two or more is mixed.
CONVERSATIONS = (
    dict(videos=((2, 4, 6),), words=6),
    dict(videos=((1, 6, 4), (3, 4, 4)), words=9),
    dict(videos=((1, 4, 4),), images=((1, 4, 8),), words=4),
)


@functools.cache
def processor() -> DSRProcessor:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return DSRProcessor(
        Qwen2VLImageProcessor(),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
        num_geometry_tokens=NUM_GEOMETRY_TOKENS,
    )


class TestDSR(ModelChecks):
    model_classes = (DSRModel, DSRForConditionalGeneration)
    generative = True
    padding_sides = ("left", "right")
    parameters_without_gradient = (r".*geometry_encoder\.embeddings\.mask_token",)  # used by DINO's own training alone
    lora_targets = r".*language_model.*(q_proj|v_proj)"
    fsdp_layers = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")

    def tiny_config(self):
        return tiny_config()

    def inputs(self, batch, padding_side="left"):
        return collate([sample(i, **CONVERSATIONS[i]) for i in range(batch)], padding_side)

    def training_inputs(self, batch):
        samples = [sample(i, answer=4, **CONVERSATIONS[i]) for i in range(batch)]
        return collate(samples, "right", with_labels=True)

    def processor(self):
        return processor()

    def compile_pieces(self, model, inputs):
        embeds = torch.randn(2, 7, 32)
        positions = torch.arange(7).expand(3, 2, 7)
        text = dict(inputs_embeds=embeds, position_ids=positions, use_cache=False)
        return {
            "text": (model.model.language_model, (), text),
            "geometry encoder": (model.model.geometry_encoder, (torch.randn(2, 3, 56, 84),), {}),
        }
