"""What a scene Q-Former with a language model says of scenes: answers to questions, map elements."""

import torch


@torch.inference_mode()
def scene_tokens(model, processor, images: list, cam_intrinsics=None, cam_extrinsics=None) -> torch.Tensor:
    """
    `[scenes, num_queries, hidden]`.

    Args:
        model: a `SceneQFormerForConditionalGeneration`. images, cam_intrinsics, cam_extrinsics: lists of scenes, as the
            processor takes them; calibration is left aside where the model does not read it.
    """
    calibration = {"cam_intrinsics": cam_intrinsics, "cam_extrinsics": cam_extrinsics}
    inputs = processor(images, **(calibration if processor.needs_calibration else {}))
    return model.scene_qformer(**inputs.to(model.device)).scene_tokens


@torch.inference_mode()
def answer_questions(
    model, processor, questions: list[str], tokens: torch.Tensor, max_new_tokens: int = 32
) -> list[str]:
    """Greedy answers; question number i is about the scene of `tokens[i]`."""
    side, processor.tokenizer.padding_side = processor.tokenizer.padding_side, "left"
    try:
        inputs = processor(text=[processor.question_prompt(question) for question in questions]).to(model.device)
    finally:
        processor.tokenizer.padding_side = side
    ids = model.generate(**inputs, scene_tokens=tokens, max_new_tokens=max_new_tokens, do_sample=False)
    written = ids[:, _prompt_length(model, inputs["input_ids"]) :]
    return [text.strip() for text in processor.tokenizer.batch_decode(written, skip_special_tokens=True)]


def _prompt_length(model, input_ids: torch.Tensor) -> int:
    """
    Tokens of the prompts in what `generate` returns, where one LLaVA placeholder has become as many as scene tokens.
    """
    one_each = int((input_ids == model.config.image_token_index).sum(1).max()) == 1
    return input_ids.shape[1] + (model.config.num_queries - 1 if one_each else 0)


@torch.inference_mode()
def find_map(model, processor, tokens: torch.Tensor, threshold: float = 0.3) -> list[dict]:
    """Map elements per scene of `tokens`: `{"scores", "labels", "points"}` as arrays, metres in the LiDAR frame."""
    inputs = processor(text=[processor.map_prompt()] * len(tokens)).to(model.device)
    outputs = model(**inputs, scene_tokens=tokens, output_map=True)
    found = processor.post_process_map_detection(outputs, threshold, model.config.map_config.point_range)
    return [{name: values.float().cpu().numpy() for name, values in scene.items()} for scene in found]
