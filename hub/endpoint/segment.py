"""The task `segment`: masks for phrases, and for the phrases of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from .files_out import as_png
from .generation import Listener, Row, pad_rows, stop_rows
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
        image = self.files(processor).image("inputs.image", inputs["image"])
        media = {"phrases": phrases, "question": question}
        self.check_words(processor, *(phrases or ()), question or "", caption or "")
        with self.endpoint.processing(model):
            if question is None:
                encoded = processor(images=image, phrases=list(phrases), captions=caption)
            else:
                turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
                encoded = processor(images=image, text=[turn])
        self.check_prompt(encoded)
        length = 1 if question is None else parameters["max_new_tokens"]
        key = (self.NAME, model, None if question is None else self.pace(parameters))
        return Job(self.NAME, model, key, dict(encoded), parameters, media, length=length)

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        if jobs[0].media["question"] is not None:
            return self.answers(model, jobs)
        with torch.inference_mode():
            output = model(**self.collate([job.inputs for job in jobs], model.device, "right"))
        return [{"logits": logits, "phrases": job.media["phrases"]} for logits, job in zip(output.sam_pred_masks, jobs)]

    @staticmethod
    def collate(several: list[dict], device, side: str) -> dict:
        """Rows padded on one side; patches one behind the other."""
        joined = {"meta_data": [meta for one in several for meta in one["meta_data"]]}
        for name, value in {
            "input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0, "mask_ids": -1, "caption_ids": 0
        }.items():  # fmt: skip
            if name in several[0]:
                joined[name] = pad_rows([one[name] for one in several], value, side)
        for name in ("pixel_values", "image_grid_thw", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"):
            joined[name] = torch.cat([one[name] for one in several])
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in joined.items()}

    def answers(self, model, jobs: list[Job]) -> list[dict | RequestError]:
        """Answers and their masks; a request whose phrases its answer does not hold has an error in its place."""
        name, processor = jobs[0].model, self.endpoint.processor(jobs[0].model)
        rows = [Row(self.sampling({"temperature": 0.0, "top_p": 1.0, **job.parameters}), job.listener) for job in jobs]
        quiet = [Row(row.sampling, Unheard(row.listener)) for row in rows]
        answered, listed = (
            stop_rows(model.vlm, some, self.decoder(name), self.endpoint.pause)
            for some in (rows, [row for row, job in zip(quiet, jobs) if job.media["phrases"] is None])
        )
        longest = max(row.sampling.max_new_tokens for row in rows)
        with torch.inference_mode():
            inputs = self.collate([job.inputs for job in jobs], model.device, "left")
            found = model.answers_and_ground(
                processor, inputs, [job.media["phrases"] for job in jobs], self.limits.phrases,
                {"stopping_criteria": [listed]}, max_new_tokens=longest, stopping_criteria=[answered],
            )  # fmt: skip
        return [self.found(one, end) for one, end in zip(found, answered.finished)]

    @staticmethod
    def found(one, finished: bool) -> dict | RequestError:
        if isinstance(one, ValueError):
            return RequestError("invalid_input", f"`inputs.phrases`: {one}")
        logits = one.output and one.output.sam_pred_masks[0]
        tokens = one.state.output_ids.tolist()
        return {
            "answer": one.answer, "tokens": tokens, "finished": finished, "phrases": one.phrases, "logits": logits,
        }  # fmt: skip

    def text(self, processor, tokens, parameters):
        return processor.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def finish(self, job, result):
        if isinstance(result, RequestError):
            raise result
        processor, media = self.endpoint.processor(job.model), job.media
        answer = {name: result[name] for name in ("answer", "tokens", "finished") if name in result}
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


class Unheard(Listener):
    """Of what a request's model writes for itself: nobody hears it, and it ends when the request is given up."""

    def __init__(self, listener: Listener):
        self.listener = listener

    @property
    def cancelled(self) -> bool:
        return self.listener.cancelled


@dataclass
class _Masks:
    """The part of the model's output that `post_process_masks` reads."""

    sam_pred_masks: list
