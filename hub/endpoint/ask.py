"""The task `ask`: questions about videos and images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from .files_in import Files
from .files_out import as_png
from .generation import generate_rows, pad_rows
from .request import Field
from .task import MODEL, SEED, TEMPERATURE, TOP_P, Job, Task, new_tokens_field


class Ask(Task):
    NAME = "ask"
    ABOUT = "Answers a question about motion and space in a video, or about images."
    MODEL_TYPES = ("dsr",)
    INPUTS = {
        "question": Field("text", "what to ask"),
        "video": Field("file", "a video file"),
        "images": Field("files", "image files, in the order in which the question speaks of them"),
    }
    PARAMETERS = {
        "max_new_tokens": new_tokens_field(128),
        "num_frames": Field("integer", "frames taken of the video; default: the model's", None, 1, "frames"),
        "attention": Field("flag", "also return where the geometry tokens looked, a grey picture per frame", False),
        "temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        question, processor = self.question(inputs), self.endpoint.processor(model)
        files = Files(self.limits, processor.media)
        kind = self.one_of(inputs, ("video", "images"))
        media = {}
        if kind == "video":
            wanted = min(parameters["num_frames"] or processor.num_frames, self.limits.frames)
            choose = processor.sample_frame_indices
            frames, facts = files.video("inputs.video", inputs["video"], lambda total: choose(total, wanted))
            metadata = VideoMetadata(
                total_num_frames=facts["total"], fps=facts["fps"], duration=facts["total"] / facts["fps"],
                height=frames.shape[1],
                width=frames.shape[2], video_backend="pyav", frames_indices=np.array(facts["indices"]),
            )  # fmt: skip
            arguments = {"videos": [frames], "video_metadata": [metadata]}
            content = [{"type": "video"}]
            media = {"sizes": [frames.shape[1:3]], "frames": [len(frames)], "indices": facts["indices"]}
        else:
            arguments = {"images": files.images_of("inputs.images", inputs["images"])}
            content = [{"type": "image"} for _ in arguments["images"]]
            media = {"sizes": [image.size[::-1] for image in arguments["images"]], "frames": [1] * len(content)}
        if parameters["attention"]:
            shown = (
                [Image.fromarray(frame) for frame in arguments["videos"][0]] if kind == "video" else arguments["images"]
            )
            media["shown"] = [image.resize(_shrunk(image.size, SHOWN_SIDE)) for image in shown]
        content.append({"type": "text", "text": question})
        self.check_words(processor, question)
        with self.endpoint.processing(model):
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            encoded = processor(text=[prompt], **arguments, return_tensors="pt")
        self.check_prompt(encoded)
        return Job(self.NAME, model, (self.NAME, model, self.pace(parameters)), dict(encoded), parameters, media)

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        inputs = self.collate([job.inputs for job in jobs], model.device)
        answers = generate_rows(model, inputs, [self.sampling(job.parameters) for job in jobs])
        return [(answer, self.look(model, job)) for answer, job in zip(answers, jobs)]

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
        if not job.parameters["attention"]:
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
        (tokens, finished), attentions = result
        processor = self.endpoint.processor(job.model)
        with self.endpoint.processing(job.model):
            answer = {"answer": processor.decode(tokens, skip_special_tokens=True).strip()}
        answer |= {"tokens": tokens, "finished": finished, "prompt_tokens": job.inputs["input_ids"].shape[1]}
        if "indices" in job.media:
            answer["frames"] = job.media["indices"]
        if attentions is not None:
            small = [_shrunk(size, SHOWN_SIDE) for size in job.media["sizes"]]
            maps = processor.post_process_geometry_attentions(
                attentions, target_sizes=small, num_frames=job.media["frames"]
            )
            answer["attention"] = [as_png(_grey(frame, heat.max())) for heat in maps for frame in heat]
        return answer


SHOWN_SIDE = 320  # of pictures of attention, in pixels


def _shrunk(size, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _grey(heat: torch.Tensor, top: torch.Tensor) -> Image.Image:
    return Image.fromarray((heat / top.clamp_min(1e-12) * 255).round().byte().cpu().numpy())
