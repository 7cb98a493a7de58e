"""Three ways to use FrozenQwenSAM: masks for given phrases, for the phrases of its own answer, and a second look.

Each function takes a loaded model and its processor, and returns a dict with the masks as
`FrozenQwenSAMProcessor.post_process_masks` gives them (`result`) and the model's output (`output`).
"""

import torch


def segment_phrases(model, processor, image, phrases: list[str], caption: str | None = None, **options) -> dict:
    """
    Masks for phrases that the user names.

    Args:
        caption: a text that contains the phrases; None: each phrase by itself, so that they do not influence each
        other.
        options: of the model's `forward`, such as `multimask_output`.
    """
    inputs = processor(images=image, phrases=phrases, captions=caption).to(model.device)
    with torch.no_grad():
        output = model(**inputs, **options)
    return {
        "inputs": inputs,
        "output": output,
        "phrases": phrases,
        "result": processor.post_process_masks(output, [phrases])[0],
    }


def grounded_answer(
    model,
    processor,
    image,
    question: str,
    phrases: list[str] | None = None,
    history=None,
    max_new_tokens: int = 128,
    **generate_kwargs,
) -> dict:
    """
    Answer a question about an image, and a mask for each noun phrase of the answer.

    Args:
        phrases: words of the answer to look for; None: the model is asked which noun phrases its answer has.
        history: earlier turns as messages of text, put before the question.

    Returns:
        also `answer` (text) and `state`, what `second_look` goes on from. Without any phrase `output` and `result` are
        None.
    """
    question = question.strip() or "Describe this image."
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    inputs = processor(images=image, text=[*(history or []), turn]).to(model.device)
    found = model.answer_and_ground(processor, inputs, phrases, max_new_tokens=max_new_tokens, **generate_kwargs)
    result = found.output and processor.post_process_masks(found.output, [found.phrases])[0]
    return {**vars(found), "inputs": inputs, "result": result}


def second_look(
    model, processor, question: str, answered: dict, phrase: int = 0, max_new_tokens: int = 128, **generate_kwargs
) -> dict:
    """
    Visual chain of thought: the region of a phrase of the first answer is shown again, and the question asked again.

    The region is a rectangle of the image's own vision tokens, kept from the first answer: nothing is encoded again.

    Returns:
        `thought` (first answer), `box` (x0, y0, x1, y1 in pixels), `cells` (row0, row1, col0, col1), `answer`.
    """
    if answered["result"] is None:
        raise ValueError(
            "The first answer has no phrase with a mask, so there is no region to look at again. Name `phrases`."
        )
    box = answered["result"]["boxes"][phrase].tolist()
    if not any(box):  # an empty mask: look at everything again
        height, width = answered["result"]["masks"].shape[1:]
        box = [0, 0, width, height]
    tokens, cells = model.region_tokens(answered["state"], box)
    prompt = processor.region_prompt(question, len(tokens)).to(model.device)
    ids = model.answer_about_tokens(prompt, tokens, max_new_tokens=max_new_tokens, **generate_kwargs)
    answer = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return {"thought": answered["answer"], "box": box, "cells": cells, "answer": answer}
