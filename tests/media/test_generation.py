"""Calls that people make: prompts as embeddings, batches of any tokenizer, lists of images."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from dsr_toolkit import tiny
from dsr_toolkit.loading import load

KINDS = ("dsr", "cadrille", "cad_recode")


@pytest.fixture(scope="module", params=KINDS)
def model_and_processor(request):
    return load(tiny.hub_folder(request.param), request.param, dtype="float32", device="cpu")


def test_a_prompt_may_come_as_embeddings(model_and_processor):
    model, processor = model_and_processor
    ids = processor.tokenizer("What moves in the room?", return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    by_ids = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    embeds = model.get_input_embeddings()(ids)
    by_embeds = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert by_embeds.tolist() == by_ids[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["dsr", "scene_qformer"])
def test_generation_pads_left_whatever_the_tokenizer_says(kind, tmp_path):
    folder = tiny.hub_folder(kind)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.padding_side == "left"
    processor.tokenizer.padding_side = "right"
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "left"


def test_a_batch_of_questions_answers_as_its_rows():
    model, processor = load(tiny.hub_folder("dsr"), "dsr", dtype="float32", device="cpu")
    clip = np.random.default_rng(0).integers(0, 255, (4, 56, 56, 3), dtype=np.uint8)
    texts = [
        f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in ("What moves?", "Does the red ball come nearer than the box behind it?")
    ]
    options = {"max_new_tokens": 5, "do_sample": False}
    both = processor(text=texts, videos=[clip, clip], padding=True, return_tensors="pt")
    answers = model.generate(**both, **options)[:, both["input_ids"].shape[1] :]
    for text, answer in zip(texts, answers):
        alone = processor(text=[text], videos=[clip], return_tensors="pt")
        expected = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        assert answer.tolist()[: len(expected)] == expected.tolist()


def test_pipelines_take_lists():
    model, processor = load(tiny.hub_folder("frozen_qwen_sam"), "frozen_qwen_sam", dtype="float32", device="cpu")
    pipe = model.as_pipeline(processor)
    images = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    found = pipe(images, phrases=["a ball"])
    assert [one["masks"].shape for one in found] == [(1, 40, 60)] * 2
    each = pipe(images, phrases=[["a ball"], ["a box", "a cone"]])
    assert [len(one["phrases"]) for one in each] == [1, 2]
    model, processor = load(tiny.hub_folder("pi3"), "pi3", dtype="float32", device="cpu")
    scenes = model.as_pipeline(processor)([[images[0]], images])
    assert [len(scene.depth) for scene in scenes] == [1, 2]
