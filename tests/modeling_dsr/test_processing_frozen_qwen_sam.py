"""FrozenQwenSAMProcessor: phrases to tokens and back to masks."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dsr_toolkit.tiny.tokenizer import write_tokenizer
from modeling_dsr.frozen_qwen_sam_phrases import find_phrases
from modeling_dsr.pictures import mask_to_rle, rle_to_mask
from modeling_dsr.processing_frozen_qwen_sam import PUBLISHED_REFERRING_INSTRUCTION
from processing_dsr import FrozenQwenSAMProcessor


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 140})
    return FrozenQwenSAMProcessor(images, tokenizer, tokenizer.chat_template, sam_image_size=64)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def words_of(processor, inputs, phrase, row=0):
    ids = inputs["input_ids"][row][inputs["mask_ids"][row] == phrase]
    return processor.tokenizer.decode(ids).strip()


@pytest.mark.parametrize(
    "caption, phrases",
    [
        ("A man in a blue shirt walks a brown dog.", ["A man", "blue shirt", "brown dog"]),
        ("图片中有一个男人和一只棕色的狗。", ["男人", "棕色的狗"]),
        ("A dog 🐶 next to a 🚕 taxi 🚕", ["dog 🐶", "🚕 taxi"]),
        ("the dog sees the other dog", ["dog", "other dog"]),
    ],
)
def test_phrases_are_found_by_the_tokenizers_offsets(processor, image, caption, phrases):
    inputs = processor(image, phrases=phrases, captions=caption)
    for number, phrase in enumerate(phrases):
        # A token may reach over the edge of a phrase (a space, a byte of a neighbour), never miss a part of it.
        assert phrase in words_of(processor, inputs, number)
    outside = inputs["input_ids"][0][(inputs["mask_ids"][0] < 0) & (inputs["caption_ids"][0] == 1)]
    assert not any(
        phrase in processor.tokenizer.decode(outside)
        for phrase in phrases
        if len(phrase) > 3 and caption.count(phrase) == 1
    )


def test_a_phrase_listed_twice_stands_for_its_two_occurrences(processor, image):
    caption = "the dog sees the dog"
    assert find_phrases(caption, ["dog", "dog"]) == [(4, 7), (17, 20)]
    inputs = processor(image, phrases=["dog", "dog"], captions=caption)
    first, second = ((inputs["mask_ids"][0] == n).nonzero().flatten().tolist() for n in (0, 1))
    assert max(first) < min(second) and words_of(processor, inputs, 0) == words_of(processor, inputs, 1) == "dog"


def test_without_a_caption_every_phrase_is_a_caption_of_its_own(processor, image):
    inputs = processor(image, phrases=["a man", "the dog", "the dog"])
    captions, masks = inputs["caption_ids"][0], inputs["mask_ids"][0]
    assert captions.max() == 3
    for number in range(3):
        assert torch.equal(captions == number + 1, masks == number)
    assert inputs["input_ids"][0][masks == 1].tolist() == inputs["input_ids"][0][masks == 2].tolist()


def test_a_conversation_that_ends_with_the_assistant_holds_the_phrases(processor, image):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]}
    told = processor(image, text=[user, {"role": "assistant", "content": "A taxi and a man."}], phrases=["taxi"])
    captioned = processor(image, text=[user], captions="A taxi and a man.", phrases=["taxi"])
    assert torch.equal(told["input_ids"], captioned["input_ids"]) and torch.equal(
        told["mask_ids"], captioned["mask_ids"]
    )
    assert "What is there?" in processor.tokenizer.decode(told["input_ids"][0])


def test_batches_pad_on_the_right_and_keep_rows(processor, image):
    other = image.resize((50, 90))
    batch = processor([image, other], phrases=[["a man"], ["the dog", "a taxi on the road"]])
    alone = processor(other, phrases=["the dog", "a taxi on the road"])
    length = alone["input_ids"].shape[1]
    for name in ("input_ids", "mask_ids", "caption_ids", "mm_token_type_ids"):
        assert torch.equal(batch[name][1, :length], alone[name][0])
    assert batch["attention_mask"].sum(1).tolist()[1] == length
    assert torch.equal(batch["image_grid_thw"][1:], alone["image_grid_thw"])
    assert batch["original_sizes"].tolist() == [[60, 80], [90, 50]]


def test_published_instruction_is_templated_into_itself(processor, image):
    rendered = processor.tokenizer.decode(processor(image, text=PUBLISHED_REFERRING_INSTRUCTION)["input_ids"][0])
    rendered = re.sub(r"(<\|image_pad\|>)+", "", rendered)
    assert rendered.endswith(
        "<|vision_start|><|vision_end|><|im_start|>user\n<|im_end|>\n<|im_start|>assistant<|im_end|>\n<|im_start|>assistant\n"
    )


def test_spans_of_generated_tokens(processor):
    text = "棕色的狗 and a 🚕, a man"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    for (start, end), phrase in zip(
        processor.token_spans(ids, ["棕色的狗", "🚕", "a man"]), ["棕色的狗", "🚕", "a man"]
    ):
        assert phrase in processor.tokenizer.decode(ids[start:end])
        assert phrase not in processor.tokenizer.decode(ids[start + 1 : end])
        assert phrase not in processor.tokenizer.decode(ids[start : end - 1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(phrases=["brown cat"], captions="a man and a brown dog"), "nearest is 'brown dog'"),
        (dict(phrases=["红色的狗"], captions="一个男人和一只棕色的狗"), "nearest is '棕色的狗'"),
        (dict(phrases=["dog", "dog"], captions="one dog"), "listed 2 times but occurs 1 times"),
        (dict(phrases=[" "]), "Phrase 0 is empty"),
        (dict(phrases=[]), "`phrases` is empty"),
        (dict(phrases=["a man", "man"], captions="a man"), "no token of its own"),
        (dict(captions="a man"), "no `phrases`"),
        (dict(phrases=["x"], text=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]), "shows 0 images"),
    ],
)
def test_what_does_not_fit_is_refused(processor, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(image, **arguments)


def test_an_image_is_needed(processor):
    with pytest.raises(ValueError, match="`images` is missing"):
        processor(phrases=["a man"])


def test_a_missing_grid_is_inferred_or_refused(processor, image):
    inputs = processor(image, phrases=["a man"])
    tokens = int((inputs["mm_token_type_ids"] == 1).sum())
    assert torch.equal(processor.infer_image_grid(inputs["meta_data"], tokens), inputs["image_grid_thw"])
    with pytest.raises(ValueError, match=f"Image token count {tokens + 1} "):
        processor.infer_image_grid(inputs["meta_data"], tokens + 1)
    with pytest.raises(ValueError, match="both missing"):
        processor.infer_image_grid(None)
    with pytest.raises(ValueError, match="no multiples of 28"):
        processor.infer_image_grid({"image_shape": {"height": 30, "width": 56}})


def test_run_lengths_are_cocos():
    masks = np.random.default_rng(1).random((3, 7, 5)) > 0.5
    masks[0], masks[1] = False, True
    for mask in masks:
        rle = mask_to_rle(mask)
        assert np.array_equal(rle_to_mask(rle), mask)
        try:
            from pycocotools import mask as coco
        except ImportError:
            continue
        assert np.array_equal(coco.decode(coco.frPyObjects(rle, *rle["size"])), mask)


def test_masks_scores_boxes_and_picture(processor, image):
    logits = torch.full((2, 60, 80), -4.0)
    logits[0, 10:20, 30:50] = 2.0
    result = processor.post_process_masks(
        SimpleNamespace(sam_pred_masks=(logits,)), [["狗 🐶", "nothing"]], return_rle=True
    )[0]
    assert result["boxes"].tolist() == [[30, 10, 50, 20], [0, 0, 0, 0]]
    assert result["scores"].tolist() == pytest.approx([torch.sigmoid(torch.tensor(2.0)).item(), 0.0])
    assert np.array_equal(rle_to_mask(result["rle"][0]), result["masks"][0].numpy())
    picture = np.asarray(processor.draw_masks(image, result))
    changed = (picture[:60] != np.asarray(image)).any(-1)
    assert changed[11:19, 31:49].mean() > 0.9 and not changed[:9].any()
    assert picture.shape[0] > 60
    with pytest.raises(ValueError, match="coarse masks only"):
        processor.post_process_masks(SimpleNamespace(sam_pred_masks=None))


REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "frozen_qwen_sam"


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference cases are not beside the package")
def test_published_samples_are_rebuilt(tmp_path):
    """Token by token: prompts and phrases of the stored training samples, from images, instruction and pieces."""
    from convert_weights.architectures import frozen_qwen_sam
    from convert_weights.sources import open_source

    tiny, cases = REFERENCE / "tiny", json.loads((REFERENCE / "cases.json").read_text())
    sources = {"qwen": open_source("qwen", tiny / "qwen"), "sam": open_source("sam", tiny / "sam_vit_tiny.pth")}
    config = frozen_qwen_sam.plan(sources, {}).config
    frozen_qwen_sam.write_processor(sources, config, tmp_path)
    processor = FrozenQwenSAMProcessor.from_pretrained(tmp_path)
    for name, instruction in (("base_mean", None), ("refcoco_prompt", PUBLISHED_REFERRING_INSTRUCTION)):
        stored = load_file(REFERENCE / cases[name]["file"])
        pieces = [[piece for i, phrase in enumerate(cases[name]["phrases"]) for piece in ((phrase, i), (".", -1))]]
        image = Image.fromarray(stored["input.image_uint8"].numpy())
        inputs = processor(image, text=instruction, pieces=pieces)
        assert torch.equal(inputs["input_ids"][0], stored["input.input_ids"])
        assert torch.equal(inputs["mask_ids"][0], stored["input.mask_ids"])
        assert torch.equal(inputs["image_grid_thw"], stored["input.image_grid_thw"])
        assert inputs["meta_data"][0]["scale_factor"] == pytest.approx(cases[name]["meta_data"]["scale_factor"])
        if "input.pixel_values" in stored:  # stored in half precision
            torch.testing.assert_close(inputs["pixel_values"], stored["input.pixel_values"].float(), atol=1e-3, rtol=0)
