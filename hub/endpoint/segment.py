"""The task `segment`: masks for phrases, and for the phrases of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from .files_in import Files
from .files_out import as_png
from .generation import pad_rows
from .request import Field, RequestError
from .task import MODEL, SEED, Job, Task, new_tokens_field


class Segment(Task):
    NAME = "segment"
    ABOUT = "Masks for phrases of an image; or answers a question about it, with masks for the phrases of the answer."
    MODEL_TYPES = ("frozen_qwen_sam",)
    INPUTS = {
        "image": Field("file", "an image file"),
        "phrases": Field("texts", "what to look for; with a question, words of the answer (default: its noun phrases)"),
        "caption": Field("text", "a text that contains the phrases (default: each by itself)"),
        "question": Field("text", "what to ask"),
    }
    PARAMETERS = {
        "threshold": Field("number", "probability from which a pixel belongs to a mask", 0.5, 0, 1),
        "mask_format": Field("text", "of the masks: COCO run lengths or PNG pictures", "rle", choices=("rle", "png")),
        "max_new_tokens": new_tokens_field(128),
        "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        phrases, question, caption = inputs["phrases"], inputs["question"], inputs["caption"]
        if inputs["image"] is None:
            raise RequestError("bad_request", "`inputs.image` is missing.")
        if question is None and not phrases:
            raise RequestError("bad_request", "`inputs` must hold phrases or a question.")
        if question is not None:
            question = self.question(inputs)
            if caption is not None:
                raise RequestError(
                    "bad_request", "with `inputs.question` the answer is the caption; leave `caption` out."
                )
        if phrases and len(phrases) > self.limits.phrases:
            raise RequestError("too_large", f"`inputs.phrases` holds more than {self.limits.phrases} phrases.")
        processor = self.endpoint.processor(model)
        image = Files(self.limits, processor.media).image("inputs.image", inputs["image"])
        media = {"phrases": phrases, "question": question}
        self.check_words(processor, *(phrases or ()), question or "", caption or "")
        with self.endpoint.processing(model):
            if question is None:
                encoded = processor(images=image, phrases=list(phrases), captions=caption)
            else:
                turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
                encoded = processor(images=image, text=[turn])
        self.check_prompt(encoded)
        # An answer and its phrases follow one another: such a job has the model to itself.
        key = (self.NAME, model) if question is None else None
        return Job(self.NAME, model, key, dict(encoded), parameters, media)

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        if jobs[0].media["question"] is not None:
            return [self.answer(model, job) for job in jobs]
        with torch.inference_mode():
            output = model(**self.collate([job.inputs for job in jobs], model.device))
        return [{"logits": logits, "phrases": job.media["phrases"]} for logits, job in zip(output.sam_pred_masks, jobs)]

    @staticmethod
    def collate(several: list[dict], device) -> dict:
        """Right-padded rows; patches one behind the other."""
        joined = {"meta_data": [meta for one in several for meta in one["meta_data"]]}
        for name, value in {
            "input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0, "mask_ids": -1, "caption_ids": 0
        }.items():  # fmt: skip
            joined[name] = pad_rows([one[name] for one in several], value, "right")
        for name in ("pixel_values", "image_grid_thw", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"):
            joined[name] = torch.cat([one[name] for one in several])
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in joined.items()}

    def answer(self, model, job: Job) -> dict:
        processor, options = self.endpoint.processor(job.model), {"max_new_tokens": job.parameters["max_new_tokens"]}
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in job.inputs.items()
        }
        try:
            with torch.inference_mode():
                found = model.answer_and_ground(processor, inputs, job.media["phrases"], self.limits.phrases, **options)
        except ValueError as error:
            raise RequestError("invalid_input", f"`inputs.phrases`: {error}") from error
        logits = found.output and found.output.sam_pred_masks[0]
        tokens = found.state.output_ids.tolist()
        return {"answer": found.answer, "tokens": tokens, "phrases": found.phrases, "logits": logits}

    def finish(self, job, result):
        processor, media = self.endpoint.processor(job.model), job.media
        answer = {name: result[name] for name in ("answer", "tokens") if name in result}
        answer["phrases"] = []
        if result["logits"] is None:
            return answer
        output = _Masks([result["logits"]])
        (found,) = processor.post_process_masks(output, [result["phrases"]], job.parameters["threshold"])
        place = 0
        for phrase, mask, score, box in zip(found["phrases"], found["masks"].numpy(), found["scores"], found["boxes"]):
            entry = {"phrase": phrase, "score": float(score), "box": box.tolist(), "area": int(mask.sum())}
            if media["question"] is not None:  # where it stands in the answer, for whoever wants to click on it
                place = result["answer"].find(phrase, place)
                place = result["answer"].find(phrase) if place < 0 else place
                entry |= {"start": place, "end": place + len(phrase)}
            if job.parameters["mask_format"] == "rle":
                entry["rle"] = processor.mask_to_rle(mask)
            else:
                entry["mask"] = as_png(Image.fromarray(mask))
            answer["phrases"].append(entry)
        return answer


@dataclass
class _Masks:
    """The part of the model's output that `post_process_masks` reads."""

    sam_pred_masks: list
