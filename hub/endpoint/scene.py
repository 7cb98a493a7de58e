"""The task `scene`: six surround cameras, their scene tokens, answers and map."""

from __future__ import annotations

import torch
from PIL import Image

from .files_in import Files
from .files_out import as_npy, as_png
from .generation import Row, pad_rows
from .request import Field, RequestError, read_fields
from .task import MODEL, SEED, TEMPERATURE, TOP_P, Job, Task, new_tokens_field, once

TEXT = ("input_ids", "attention_mask")


class Scene(Task):
    NAME = "scene"
    ABOUT = "Scene tokens of six surround cameras; with a question, the language model's answer from them."
    MODEL_TYPES = ("scene_qformer",)
    OUTPUTS = ("tokens", "picture")
    INPUTS = {
        "images": Field("object", "image files by camera name: CAM_FRONT and so on"),
        "calibration": Field(
            "object", "by camera name {intrinsics: 3×3 in pixels, extrinsics: 4×4 camera → vehicle, metres}"
        ),
        "question": Field("text", "what to ask; without one there are tokens only"),
    }
    PARAMETERS = {
        "outputs": Field("texts", "what to return beside the summary", ("picture",), choices=OUTPUTS),
        "max_new_tokens": new_tokens_field(128), "temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED,
        "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        processor = self.endpoint.processor(model)
        files = self.files(processor)
        cameras = list(processor.camera_names)
        images = read_fields(
            "inputs.images", inputs["images"], {name: Field("file", "an image file") for name in cameras}, self.limits
        )
        missing = [name for name in cameras if images[name] is None]
        if missing:
            raise RequestError(
                "bad_request", f"`inputs.images` lacks {', '.join(missing)}; it must hold {', '.join(cameras)}."
            )
        read = files.named_images({f"inputs.images.{name}": images[name] for name in cameras})
        images = dict(zip(cameras, read.values()))
        arguments = {}
        if processor.needs_calibration or inputs["calibration"] is not None:
            arguments = self.calibration(files, inputs["calibration"], cameras)
        question = None
        if inputs["question"] is not None:
            if not self.endpoint.has_language_model(model):
                raise RequestError(
                    "invalid_input", f"the model {model!r} has no language model: leave `inputs.question` out."
                )
            question = self.question(inputs)
            self.check_words(processor, question)
        with self.endpoint.processing(model):
            if question is not None:
                arguments["text"] = processor.question_prompt(question)
            encoded = dict(processor(images, **arguments))
        if question is not None:
            self.check_prompt(encoded)
        # The picture shows the cameras at the size of the attention over them.
        size = tuple(reversed(processor.image_size))
        shown = {name: image.resize(size, Image.Resampling.BILINEAR) for name, image in images.items()}
        key = (self.NAME, model, question and self.pace(parameters), "cam_intrinsics" in encoded)
        return Job(
            self.NAME, model, key, encoded, parameters, {"images": shown, "question": question},
            length=parameters["max_new_tokens"] if question is not None else 1,
        )  # fmt: skip

    def calibration(self, files: Files, given, cameras: list[str]) -> dict:
        known = {name: Field("object", "{intrinsics: 3×3, extrinsics: 4×4}") for name in cameras}
        each = read_fields("inputs.calibration", given, known, self.limits)
        matrices = {"cam_intrinsics": {}, "cam_extrinsics": {}}
        parts = {
            "intrinsics": Field("cloud", "rows of a 3×3 matrix"),
            "extrinsics": Field("cloud", "rows of a 4×4 matrix"),
        }
        for camera in cameras:
            found = read_fields(f"inputs.calibration.{camera}", each[camera], parts, self.limits)
            for name, side in (("intrinsics", 3), ("extrinsics", 4)):
                place = f"inputs.calibration.{camera}.{name}"
                if found[name] is None:
                    raise RequestError(
                        "bad_request", f"`{place}` is missing; this request needs the calibration of every camera."
                    )
                matrices[f"cam_{name}"][camera] = files.array(place, found[name], side, side)
        return matrices

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        order, distinct = once(jobs)
        scenes = [{name: value for name, value in job.inputs.items() if name not in TEXT} for job in distinct]
        images = self.collate(scenes, model.device)
        texts = [{name: value for name, value in job.inputs.items() if name in TEXT} for job in jobs]
        text = self.collate(texts, model.device)
        with torch.inference_mode():
            output = getattr(model, "scene_qformer", model)(**images, output_attentions=True)
        tokens, attentions = output.scene_tokens[order], output.attentions[-1]
        answers = [None] * len(jobs)
        if text:
            rows = [Row(self.sampling(job.parameters), job.listener) for job in jobs]
            answers = self.write(model, jobs[0].model, text | {"scene_tokens": tokens}, rows)
        return [
            {"tokens": tokens[number], "attentions": attentions[place : place + 1], "answer": answers[number]}
            for number, place in enumerate(order)
        ]

    @staticmethod
    def collate(several: list[dict], device) -> dict:
        joined = {}
        for name in several[0]:
            values = [one[name] for one in several]
            filling = {"input_ids": None, "attention_mask": 0}
            joined[name] = pad_rows(values, filling[name]) if name in filling else torch.cat(values)
        return {name: value.to(device) for name, value in joined.items()}

    def finish(self, job, result):
        processor, tokens = self.endpoint.processor(job.model), result["tokens"].float()
        shares = result["attentions"][0].float().mean((0, 1)).sum((-2, -1))
        answer = {
            "shape": list(tokens.shape),
            "mean_norm": tokens.norm(dim=-1).mean().item(),
            "attention": dict(zip(processor.camera_names, shares.tolist())),
        }
        if result["answer"] is not None:
            ids, finished = result["answer"]
            with self.endpoint.processing(job.model):
                answer |= {"answer": self.text(processor, ids, job.parameters)}
            answer |= {"tokens_written": ids, "finished": finished}
        if "tokens" in job.parameters["outputs"]:
            answer["tokens"] = as_npy(tokens)
        if "picture" in job.parameters["outputs"]:
            heat = processor.post_process_attentions((result["attentions"],))[0]
            answer["picture"] = as_png(processor.paint_attentions(job.media["images"], heat))
        return answer
