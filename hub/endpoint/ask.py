"""The task `ask`: questions about videos and images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from .conversation import Conversation
from .files_out import as_png
from .generation import Row, pad_rows
from .request import Field, RequestError
from .task import MODEL, SEED, STOP, TEMPERATURE, TOP_P, Job, Task, new_tokens_field, once


class Ask(Task):
    NAME = "ask"
    ABOUT = "Answers a question about motion and space in a video, or about images."
    MODEL_TYPES = ("dsr",)
    INPUTS = {
        "question": Field("text", "what to ask"),
        "video": Field("file", "a video file"),
        "images": Field("files", "image files, in the order in which the question speaks of them"),
        "messages": Field(
            "turns",
            "in place of the rest a conversation: turns of role (system, user, assistant) and content, a text or "
            'a list of {"type": "text", "text"}, {"type": "image", "image"} and {"type": "video", "video"}',
            high="turns",
        ),
    }
    PARAMETERS = {
        "max_new_tokens": new_tokens_field(128),
        "num_frames": Field("integer", "frames taken of the video; default: the model's", None, 1, "frames"),
        "attention": Field("flag", "also return where the geometry tokens looked, a grey picture per frame", False),
        "candidates": Field("integer", "answers; more than one are sampled, with a temperature", 1, 1, "candidates"),
        "stop": STOP, "temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        processor = self.endpoint.processor(model)
        self.check_stop(parameters)
        if parameters["candidates"] > 1 and not parameters["temperature"]:
            raise RequestError(
                "bad_request",
                "`parameters.candidates` above 1 needs `parameters.temperature`: without it all are the same.",
            )
        files, talk = self.files(processor), self.conversation(inputs)
        self.check_words(processor, *talk.texts)
        arguments, media = {}, {"sizes": [], "frames": []}
        if talk.video is not None:
            name, video = talk.video
            wanted = min(parameters["num_frames"] or processor.num_frames, self.limits.frames)
            choose = processor.sample_frame_indices
            frames, facts = files.video(name, video, lambda total: choose(total, wanted))
            metadata = VideoMetadata(
                total_num_frames=facts["total"], fps=facts["fps"], duration=facts["total"] / facts["fps"],
                height=frames.shape[1],
                width=frames.shape[2], video_backend="pyav", frames_indices=np.array(facts["indices"]),
            )  # fmt: skip
            arguments = {"videos": [frames], "video_metadata": [metadata]}
            media = {"sizes": [frames.shape[1:3]], "frames": [len(frames)], "indices": facts["indices"]}
        elif talk.images:
            pictures, media = self.pictures(processor, files.one_by_one(talk.images), parameters["attention"])
        if parameters["attention"] and not talk.images:
            media["shown"] = [_shown(Image.fromarray(frame)) for frame in arguments.get("videos", [[]])[0]]
        with self.endpoint.processing(model):
            prompt = processor.apply_chat_template(talk.turns, add_generation_prompt=True)
            if talk.images:
                encoded = self.text_of(processor, prompt, pictures["image_grid_thw"]) | pictures
            else:
                encoded = processor(text=[prompt], **arguments, return_tensors="pt")
        self.check_prompt(encoded)
        key = (self.NAME, model, self.pace(parameters))
        return Job(
            self.NAME,
            model,
            key,
            dict(encoded),
            parameters,
            media,
            cost=parameters["candidates"],
            length=parameters["max_new_tokens"],
        )

    @staticmethod
    def pictures(processor, images, shown: bool) -> tuple[dict, dict]:
        """Pixels and grids of images, of which one at a time is in memory, and what the answer needs of them."""
        parts, media = [], {"sizes": [], "frames": []}
        if shown:
            media["shown"] = []
        for image in images:
            parts.append(processor.image_processor(images=[image], return_tensors="pt"))
            media["sizes"].append(image.size[::-1])
            media["frames"].append(1)
            if shown:
                media["shown"].append(_shown(image))
        return {name: torch.cat([part[name] for part in parts]) for name in ("pixel_values", "image_grid_thw")}, media

    @staticmethod
    def text_of(processor, prompt: str, grids: torch.Tensor) -> dict:
        """A prompt as the processor makes it of images with these grids."""
        places = [processor.replace_image_token({"image_grid_thw": grids}, number) for number in range(len(grids))]
        prompts, _ = processor.get_text_with_replacements([prompt], images_replacements=places)
        encoded = processor.tokenizer(prompts)
        kinds = processor.create_mm_token_type_ids(encoded["input_ids"])
        return dict(BatchFeature({**encoded, "mm_token_type_ids": kinds}, tensor_type="pt"))

    def conversation(self, inputs: dict) -> Conversation:
        """What is asked, as turns; one question about one video or some images is a conversation of one turn."""
        if inputs["messages"] is not None:
            if others := [name for name in ("question", "video", "images") if inputs[name] is not None]:
                raise RequestError(
                    "bad_request", f"`inputs.messages` stands for `inputs.{others[0]}`; send one of them."
                )
            return Conversation.read("inputs.messages", inputs["messages"], self.limits)
        question = self.question(inputs)
        if self.one_of(inputs, ("video", "images")) == "video":
            return Conversation.question(question, ("inputs.video", inputs["video"]), [])
        if not inputs["images"]:
            raise RequestError("bad_request", "`inputs.images` holds no image.")
        return Conversation.question(question, None, inputs["images"])

    @staticmethod
    def can_share(job: Job) -> bool:
        """Whether [`another`] can ask more about the media of a job: about a video, as its frames need not be kept."""
        return "indices" in job.media

    def another(self, job: Job, question: str | None) -> Job:
        """A further question about the video of a job: the file is not read again, and [`run`] encodes it once."""
        processor = self.endpoint.processor(job.model)
        question = self.question({"question": self.INPUTS["question"].read("inputs.question", question, self.limits)})
        self.check_words(processor, question)
        content = [{"type": "video"}, {"type": "text", "text": question}]
        grids = {name: job.inputs[name] for name in ("video_grid_thw", "second_per_grid_ts") if name in job.inputs}
        with self.endpoint.processing(job.model):
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            encoded = processor(text=[prompt], **grids, return_tensors="pt")
        self.check_prompt(encoded)
        return replace(job, inputs={**job.inputs, **encoded})

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        inputs = self.inputs_of(model, [job for job in jobs for _ in range(job.cost)])
        rows = [
            Row(self.sampling(job.parameters, number), job.listener, number)
            for job in jobs
            for number in range(job.cost)
        ]
        answers = iter(self.write(model, jobs[0].model, inputs, rows))
        return [([next(answers) for _ in range(job.cost)], self.look(model, job)) for job in jobs]

    def inputs_of(self, model, jobs: list[Job]) -> dict:
        """Of the model. What several jobs show is encoded once, and kept for those of later batches."""
        rows, device = [job.inputs for job in jobs], model.device
        if len(once(jobs)[1]) == len(jobs) and not any(job.shared for job in jobs):
            return self.collate(rows, device)
        features = {}
        for name in PIXELS:
            if some := [job for job in jobs if name in job.inputs]:
                features[PIXELS[name][0]] = self.encoded(model, name, some)
        rows = [{name: value for name, value in row.items() if name not in PIXELS} for row in rows]
        return self.collate(rows, device) | {"mm_encoder_outputs": features}

    @torch.inference_mode()
    def encoded(self, model, name: str, jobs: list[Job]):
        """The features of what each job shows, one behind the other."""
        kind, grid = PIXELS[name]
        if new := [job for job in once(jobs)[1] if kind not in job.shared]:
            pixels, grids = (torch.cat([torch.as_tensor(job.inputs[part]) for job in new]) for part in (name, grid))
            encode = model.get_image_features if kind == "image" else model.get_video_features
            found, start = encode(pixels.to(model.device), grids.to(model.device)), 0
            for job in new:
                job.shared[kind] = found.select(range(start, start := start + len(job.inputs[grid])))
        every = [job.shared[kind] for job in jobs]
        joined = {
            part: tuple(one for each in every for one in getattr(each, part) or ()) or None for part in MEDIA_LISTS
        }
        return type(every[0])(**joined, grid_thw=torch.cat([one.grid_thw for one in every]))

    @staticmethod
    def collate(several: list[dict], device) -> dict:
        """Left-padded rows; vision patches one behind the other."""
        joined = {}
        for name, value in {"input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0}.items():
            joined[name] = pad_rows([one[name] for one in several], value)
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
            parts = [torch.as_tensor(one[name]) for one in several if name in one]
            if parts:
                joined[name] = torch.cat(parts)
        return {name: value.to(device) for name, value in joined.items()}

    def look(self, model, job: Job):
        """Geometry attentions of the prompt, where they are wanted and there are any."""
        if not job.parameters["attention"] or not job.media["frames"]:
            return None
        with torch.inference_mode():
            output = model(
                **self.collate([job.inputs], model.device),
                output_geometry_attentions=True,
                logits_to_keep=1,
                use_cache=False,
            )
        return output.geometry_attentions

    def finish(self, job, result):
        written, attentions = result
        processor = self.endpoint.processor(job.model)
        with self.endpoint.processing(job.model):
            texts = [self.text(processor, tokens, job.parameters) for tokens, _ in written]
        (tokens, finished), *_ = written
        answer = {"answer": texts[0], "tokens": tokens, "finished": finished}
        if job.cost > 1:
            answer["answers"] = [
                {"answer": text, "tokens": tokens, "finished": finished}
                for text, (tokens, finished) in zip(texts, written)
            ]
        answer["prompt_tokens"] = job.inputs["input_ids"].shape[1]
        if "indices" in job.media:
            answer["frames"] = job.media["indices"]
        if attentions is not None:
            small = [_shrunk(size, SHOWN_SIDE) for size in job.media["sizes"]]
            maps = processor.post_process_geometry_attentions(
                attentions, target_sizes=small, num_frames=job.media["frames"]
            )
            answer["attention"] = [as_png(_grey(frame, heat.max())) for heat in maps for frame in heat]
        return answer


# Pixels of what is shown: its kind, and the grids that belong to them.
PIXELS = {"pixel_values": ("image", "image_grid_thw"), "pixel_values_videos": ("video", "video_grid_thw")}
MEDIA_LISTS = ("pooler_output", "geometry_features")  # of a model's features, with an entry per medium
SHOWN_SIDE = 320  # of pictures of attention, in pixels


def _shown(image: Image.Image) -> Image.Image:
    return image.resize(_shrunk(image.size, SHOWN_SIDE))


def _shrunk(size, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _grey(heat: torch.Tensor, top: torch.Tensor) -> Image.Image:
    return Image.fromarray((heat / top.clamp_min(1e-12) * 255).round().byte().cpu().numpy())
