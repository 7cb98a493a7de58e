"""What the adapters of all harnesses share: a chat with media goes in, the model's answer comes out."""

import torch

from ...loading import load, resolve

GREEDY = {"do_sample": False, "max_new_tokens": 128}


class Answering:
    """
    A DSR model that answers chats.

    Args:
        model: a folder or OWNER/NAME[/SUBFOLDER]. num_frames, fps: of a video; one of both, by default 32 frames.
        min_pixels, max_pixels: of a frame or image; None: the processor's own.
        seconds_per_step: what the model is told of time: 1.0 as DSR-Bench's published evaluation, None: the truth.
        device, dtype: as `dsr eval` takes them.
    """

    def __init__(
        self,
        model: str,
        num_frames: int | None = 32,
        fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        seconds_per_step: float | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ):
        source, _ = resolve(model, "dsr")
        self.model, self.processor = load(source, "dsr", dtype, device)
        self.processor.fixed_second_per_grid_ts = seconds_per_step
        self.sampling = {"fps": fps} if fps is not None else {"num_frames": num_frames}
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self.limits = {name: value for name, value in limits.items() if value is not None}

    def __call__(self, messages: list[dict], **generation) -> str:
        """
        The answer to a chat.

        Args:
            messages: `{"role", "content"}` with a list of `{"type": "text", "text"}`, `{"type": "image", "image"}`
                (file or PIL), `{"type": "video", "video"}` (file, frames, or a list of pictures).
            generation: for `generate`; greedy by default.
        """
        media: dict[str, list] = {"image": [], "video": []}
        shown = []
        for message in messages:
            content = []
            for part in message["content"]:
                if part["type"] in media:
                    media[part["type"]].append(part[part["type"]])
                    part = {"type": part["type"]}
                content.append(part)
            shown.append({"role": message["role"], "content": content})
        prompt = self.processor.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        given = {f"{kind}s": values for kind, values in media.items() if values}
        options = {**self.limits, **(self.sampling if media["video"] else {})}
        inputs = self.processor(text=[prompt], **given, return_tensors="pt", **options).to(self.model.device)
        with torch.no_grad():
            tokens = self.model.generate(**inputs, **{**GREEDY, **generation})
        return self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
