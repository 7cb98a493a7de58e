"""A tiny Qwen2.5-VL with the words of the space world, and a tiny SAM, both untrained; what is made of trained ones."""

import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from ..worlds.space.questions import KINDS
from ..worlds.space.scene import COLOURS, SHAPES
from .language import marks, mrope_section, number_vectors
from .tokenizer import SHOW_MACRO, TURNS, vocabulary_size, write_tokenizer

NUMBERS = tuple(f"{number:02d} " for number in range(100))
PICTURE, FRAME = 224, 112  # sides in pixels of a picture and of a video's frames
WORD_SIZE = 0.5  # standard deviation of embeddings
DESCRIBE = "Please give me a description of the image."
PHRASE_WORDS = "the thing behind in front of to the left of to the right of it nearest to the camera and"
CHAT_TEMPLATE = SHOW_MACRO + TURNS  # the world's questions need no system's turn


def corpus() -> list[str]:
    """Every word that the world writes, with and without a space before it, often enough to become one token."""
    names = {letter: f"the {colour} {shape}" for letter, colour, shape in zip("abc", COLOURS, SHAPES)}
    names["A"] = "The" + names["a"][3:]
    texts = [DESCRIBE, "Options:\nA\nB\nC\nD\n", "system\nuser\nassistant\n", PHRASE_WORDS]
    texts += [f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for kind in KINDS:
        texts += [text.format(**names) for text in kind.texts]
        for wordings in kind.answers.values():
            options = [option.format(**names) for option in wordings]
            texts += [f"A {option}" for option in options] + [kind.phrase.format(answer=o, **names) for o in options]
    return texts * 20


def space_tokenizer():
    """A `Qwen2Tokenizer` with one token for each word of the world and for each number of two digits and a space."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), corpus(), NUMBERS, merges=900)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_qwen_vl(
    hidden_size: int = 128,
    intermediate_size: int = 384,
    layers: int = 4,
    heads: int = 4,
    vision_width: int = 96,
    vision_layers: int = 3,
    attention: str = "eager",
):
    """(model, processor) of an untrained Qwen2.5-VL; `build` of a recipe."""
    tokenizer = space_tokenizer()
    names = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    pad, end, vision_start, vision_end, image, video = tokenizer.convert_tokens_to_ids(list(names))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary_size(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            # The usual 0.02 is for widths of thousands.
            "initializer_range": 0.08,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": mrope_section(hidden_size // heads),
            },
            "bos_token_id": pad,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_width,
            "intermediate_size": 2 * vision_width,
            "num_heads": 4,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": list(range(vision_layers)),
            "window_size": FRAME,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "initializer_range": 0.08,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        # As large as what layers add to them, or the second layer would not find the words any more.
        model.get_input_embeddings().weight.mul_(WORD_SIZE / config.text_config.initializer_range)
        for layer in model.model.language_model.layers[1:-1]:
            _look_for_alike(layer.self_attn.q_proj, layer.self_attn.k_proj)
    order_numbers(model, tokenizer)
    model.generation_config.update(eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=pad)
    return model, processor_of(tokenizer)


def processor_of(tokenizer) -> Qwen2_5_VLProcessor:
    """Pictures and frames of any size are read at one size."""
    sizes = [{"shortest_edge": side * side, "longest_edge": side * side} for side in (PICTURE, FRAME)]
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=sizes[0]),
        tokenizer,
        Qwen2VLVideoProcessor(size=sizes[1]),
        chat_template=tokenizer.chat_template,
    )


@torch.no_grad()
def order_numbers(model, tokenizer) -> None:
    """Let the embeddings of numbers, read and written, start as [`number_vectors`]."""
    ids = tokenizer.convert_tokens_to_ids(list(NUMBERS))
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        size = layer.weight.std()
        layer.weight[ids] = number_vectors(torch.arange(100.0), (-4, 0), layer.weight.shape[1]) * size


@torch.no_grad()
def _look_for_alike(query, key) -> None:
    """Let an attention begin by looking for what is like the asking token."""
    same = torch.eye(*query.weight.shape)
    for layer in (query, key):
        layer.weight.mul_(0.3).add_(same)


def marks_of_slots(count: int, width: int) -> torch.Tensor:
    """What is added to the words of geometry tokens: what reads them finds the number that it wants by its mark."""
    return WORD_SIZE * marks(count, width)


@torch.no_grad()
def begin_by_looking(selection) -> None:
    """
    Let the queries of a new Geometry Selection Module begin as the words of the question, with a trace of the marks
    that tell geometry tokens apart, and read the cells that are like them. From the usual start each reads the mean of
    all cells, and hardly learns which ones it should.
    """
    count, width = selection.q_former_queries.shape
    selection.q_former_queries.copy_(0.1 * marks(count, width))
    first, second = selection.q_former_1.attn, selection.q_former_2.attn
    for layer in (first.v_proj, first.o_proj, second.v_proj, second.o_proj):
        layer.weight.copy_(torch.eye(width))
    _look_for_alike(second.q_proj, second.k_proj)
    selection.q_former_norm.weight.fill_(WORD_SIZE)  # as large as words, which geometry tokens shall be like


@torch.no_grad()
def begin_by_reading(model, numbers: list[int]) -> None:
    """
    Let a language model write the number that it reads: words for numbers are written as they are read, and all
    layers but the first begin by passing on what they look at. Else it has to learn at once where to look and how to
    write what it finds there.
    """
    read, written = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    written[numbers] = read[numbers] * (written.std() / read.std())
    for layer in model.model.language_model.layers[1:]:
        for part in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            part.weight.mul_(0.3).add_(torch.eye(*part.weight.shape))


def dsr_of_parts(
    folders: dict, output: Path, qwen: str = "tiny/qwen_vl", pi3: str = "tiny/pi3", num_geometry_tokens: int = 30,
    num_frames: int = 4,
) -> None:  # fmt: skip
    """`make` of a recipe: a DSR of a Qwen2.5-VL and of π³'s encoder by the converter, its selection module new."""
    from convert_weights import convert
    from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
    from modeling_dsr.processing_dsr import DSRProcessor

    sources = {"qwen": folders[qwen], "pi3": folders[pi3]}
    convert("dsr", sources, output, config_overrides={"num_geometry_tokens": num_geometry_tokens}, progress=False)
    model = DSRForConditionalGeneration.from_pretrained(output, dtype="float32")
    processor = DSRProcessor.from_pretrained(output)
    begin_by_looking(model.model.geometry_selection)
    begin_by_reading(model, processor.tokenizer.convert_tokens_to_ids(list(NUMBERS)))
    model.save_pretrained(output)
    processor.num_frames = num_frames
    processor.save_pretrained(output)


def frozen_qwen_sam_of_parts(
    folders: dict, output: Path, qwen: str = "tiny/qwen_vl", sam: str = "tiny/sam", **overrides
) -> None:
    """`make` of a recipe: a FrozenQwenSAM of a Qwen2.5-VL and a SAM by the converter, its mask head new."""
    from convert_weights import convert

    sources = {"qwen": folders[qwen], "sam": folders[sam]}
    convert("frozen_qwen_sam", sources, output, config_overrides=overrides, progress=False)
