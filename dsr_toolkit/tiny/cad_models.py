"""CAD-Recode and Cadrille of a few million parameters, untrained, with tokenizer and sizes for the parts world."""

import copy
import math
from pathlib import Path

import torch

from configuration_dsr import CADRecodeConfig, CadrilleConfig
from processing_dsr import CADRecodeProcessor

from .cad_inputs import VISION, cad_tokenizer, cadrille_processor
from .cad_sight import PartSight, give_sight
from .cad_tokens import NUMBERS
from .language import mrope_section, number_vectors
from .tokenizer import vocabulary_size

TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "initializer_range", "hidden_act",
)  # fmt: skip


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
    config = CadrilleConfig(
        text_config={
            **{name: getattr(text, name) for name in TEXT_FIELDS},
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_parameters["rope_theta"],
                "mrope_section": mrope_section(text.hidden_size // text.num_attention_heads),
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
    """Let the embeddings of numbers start as [`number_vectors`]."""
    weight = model.get_input_embeddings().weight
    values = torch.tensor([float(number) for number in NUMBERS])
    vectors = number_vectors(values, (math.log(0.01), math.log(1.5)), weight.shape[1])
    ids = tokenizer.convert_tokens_to_ids(list(NUMBERS))
    weight[ids] = vectors * model.config.get_text_config().initializer_range
