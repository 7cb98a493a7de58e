"""DSR for lmms-eval, which finds it by the entry point `lmms_eval.models` of this package:

lmms-eval --model dsr --model_args pretrained=OWNER/NAME,num_frames=32 --tasks vsibench,…
"""

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from .answering import Answering

NAME = "dsr"


def manifest() -> ModelManifest:
    """What the entry point says: the name of the model, and its class for tasks that hand over whole chats."""
    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.{DSRForLmmsEval.__name__}")


class DSRForLmmsEval(lmms):
    """
    A model of lmms-eval. With several processes each answers its share.

    Args:
        pretrained: a folder or OWNER/NAME. batch_size: 1. device: of a single process.
        settings: of [`Answering`].
    """

    is_simple = False

    def __init__(self, pretrained: str, batch_size: int | str = 1, device: str | None = None, **settings):
        super().__init__()
        if str(batch_size) != "1":
            raise ValueError(f"`batch_size` must be 1: every question has a video of its own; got {batch_size}.")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        device = str(self.accelerator.device) if self.world_size > 1 else device
        self.answer = Answering(pretrained, device=device, **settings)

    def generate_until(self, requests) -> list[str]:
        """Answers to requests whose arguments are (context, row -> chat, settings, row's number, task, split)."""
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context, chat, settings: dict, number, task: str, split: str) -> str:
        messages = [
            {"role": message["role"], "content": [_part(part) for part in message["content"]]}
            for message in chat(self.task_dict[task][split][number])
        ]
        text = self.answer(messages, **generation(settings))
        for end in _ends(settings):
            text = text.split(end)[0]
        self.cache_hook.add_partial("generate_until", (context, settings), text)
        return text

    def loglikelihood(self, requests):
        """DSR's published evaluations generate; likelihoods of given answers are not offered."""
        raise NotImplementedError("DSR answers questions in lmms-eval; it rates no given answers (loglikelihood).")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("DSR answers single rounds in lmms-eval.")


def generation(settings: dict) -> dict:
    """Settings of a task as `generate` takes them: temperature 0 means greedy."""
    kept = {name: settings[name] for name in ("max_new_tokens", "num_beams") if settings.get(name) is not None}
    if settings.get("do_sample", True) and (settings.get("temperature") or 0) > 0:
        kept |= {"do_sample": True, "temperature": settings["temperature"]}
        kept |= {name: settings[name] for name in ("top_p", "top_k") if settings.get(name) is not None}
    return kept


def _ends(settings: dict) -> list[str]:
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _part(part: dict) -> dict:
    """lmms-eval names every medium "url"; a stretch of a video is not cut out for DSR."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] not in ("image", "video"):
        raise ValueError(f"DSR reads text, images and videos, not {part['type']!r}.")
    if part.get("start_time") is not None or part.get("end_time") is not None:
        raise ValueError("DSR's adapter reads videos whole; this task asks for a stretch of one.")
    return {"type": part["type"], part["type"]: part["url"]}
