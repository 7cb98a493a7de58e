"""CAD-Recode and Cadrille of a few million parameters, untrained, with tokenizer and sizes for the parts world."""

import copy
import math
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from configuration_dsr import CADRecodeConfig, CadrilleConfig
from processing_dsr import CADRecodeProcessor, CadrilleProcessor

from .cad_tokens import CORPUS, NUMBERS, PIECES
from .tokenizer import write_tokenizer

VOCABULARY_MULTIPLE = 64
VIEW_PIXELS = 112**2  # at least: two views are read as they are, 280 × 140 pixels, 50 tokens
VISION = {
    "depth": 2,
    "embed_dim": 128,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 14,
    "in_channels": 3,
    "initializer_range": 0.06,
}
TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "initializer_range", "hidden_act",
)  # fmt: skip


def cad_tokenizer():
    """A `Qwen2Tokenizer` with one token for each number and phrase of `cad_tokens`."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), CORPUS, PIECES)
        return AutoTokenizer.from_pretrained(folder)


def vocabulary_size(tokenizer) -> int:
    return -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def build_cad_recode(
    hidden_size: int = 256,
    intermediate_size: int = 512,
    num_hidden_layers: int = 3,
    num_attention_heads: int = 4,
    num_points: int = 64,
    num_surface_samples: int = 1024,
    attention: str = "eager",
):
    """(model, processor) of an untrained CAD-Recode; `build` of a recipe."""
    from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

    tokenizer = cad_tokenizer()
    # As published: Trainer, too, takes the model's from here.
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|im_end|>"
    end, placeholder = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = CADRecodeConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        num_points=num_points,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=placeholder,
        point_token_id=placeholder,
    )
    config._attn_implementation = attention
    model = CADRecodeForCausalLM(config)
    order_numbers(model, tokenizer)
    return model, CADRecodeProcessor(tokenizer, num_points=num_points, num_surface_samples=num_surface_samples)


def build_cadrille(recode, processor: CADRecodeProcessor, num_views: int = 2, **vision):
    """
    (model, processor) of a Cadrille with decoder and point encoder of a CAD-Recode and an untrained vision tower.

    Where all three axes of its rotary positions are equal, as on points and text, they are CAD-Recode's.

    Args:
        num_views: of a part; the first two look from opposite corners and see every face.
        vision: fields of its vision configuration that differ from `VISION`.
    """
    from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration

    text, tokenizer = recode.config, copy.deepcopy(processor.tokenizer)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    names = ("<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    pad, end, image, video, vision_start, vision_end = tokenizer.convert_tokens_to_ids(list(names))
    half = text.hidden_size // text.num_attention_heads // 2
    side = 3 * half // 8  # of the published 64 channels 24 turn with each side, 16 with time
    config = CadrilleConfig(
        text_config={
            **{name: getattr(text, name) for name in TEXT_FIELDS},
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_parameters["rope_theta"],
                "mrope_section": [half - 2 * side, side, side],
            },
            "bos_token_id": pad,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": True,
        },
        vision_config={**VISION, "hidden_size": text.hidden_size, **vision},
        num_points=text.num_points,
        point_token_id=pad,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=True,
    )
    config._attn_implementation = recode.config._attn_implementation
    model = CadrilleForConditionalGeneration(config)
    model.model.language_model.load_state_dict(
        {name: value for name, value in recode.model.state_dict().items() if not name.startswith("point_encoder.")}
    )
    model.model.point_encoder.load_state_dict(recode.model.point_encoder.state_dict())
    model.generation_config.update(eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=pad)
    sampling = {"num_points": processor.num_points, "num_surface_samples": processor.num_surface_samples}
    return model, cadrille_processor(tokenizer, num_views=num_views, **sampling)


def cadrille_processor(tokenizer, **options) -> CadrilleProcessor:
    from transformers import Qwen2VLImageProcessor

    options = {"view_pixels": VIEW_PIXELS, "view_coordinates": True, **options}
    return CadrilleProcessor(Qwen2VLImageProcessor(), tokenizer, **options)


def with_more_points(folders: dict, output: Path, stage: str, num_points: int) -> None:
    """`make` of a recipe: the CAD-Recode of an earlier stage, to read `num_points` points of a cloud from now on."""
    model, processor = _load(folders[stage])
    model.config.num_points = processor.num_points = num_points
    _save(model, processor, output)


def cadrille_of_cad_recode(
    folders: dict, output: Path, recipe: str = "tiny/cad_recode", sight: str | None = None, seed: int = 0, **options
) -> None:
    """`make` of a recipe: see `build_cadrille`. `sight`: the stage that trained the vision tower (`cad_sight`)."""
    torch.manual_seed(seed)
    model, processor = build_cadrille(*_load(folders[recipe]), **options)
    if sight is not None:
        from .cad_sight import PartSight, give_sight

        give_sight(model.model.visual, PartSight.from_pretrained(folders[sight]), model.model.point_encoder.projection)
    _save(model, processor, output)


def _load(folder: Path):
    from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

    return CADRecodeForCausalLM.from_pretrained(folder), CADRecodeProcessor.from_pretrained(folder)


def _save(model, processor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def order_numbers(model, tokenizer) -> None:
    """
    Let the embeddings of numbers start as smooth functions of their values.

    Sines and cosines with periods from 4 to 600, mixed at random: neighbours are alike from the first step on, and
    what is learnt of 95 is not unknown to 100.
    """
    weight = model.get_input_embeddings().weight
    values = torch.tensor([float(number) for number in NUMBERS])
    frequencies = torch.exp(torch.linspace(math.log(0.01), math.log(1.5), weight.shape[1] // 4))
    angles = values[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    vectors = waves @ torch.randn(waves.shape[1], weight.shape[1])
    ids = tokenizer.convert_tokens_to_ids(list(NUMBERS))
    weight[ids] = vectors / vectors.std() * model.config.get_text_config().initializer_range
