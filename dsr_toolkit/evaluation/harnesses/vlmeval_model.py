"""DSR for VLMEvalKit. `register()` adds it to the models that VLMEvalKit knows, before it is run:

from dsr_toolkit.evaluation.harnesses.vlmeval_model import register
register("DSR", model="OWNER/NAME")
"""

from functools import partial

from vlmeval.vlm.base import BaseModel

from .answering import Answering


class DSRForVLMEvalKit(BaseModel):
    """
    A model of VLMEvalKit: videos as files, pictures and text in any order.

    Args:
        model: a folder or OWNER/NAME. nframe: frames of a video where the data set says nothing; what it says comes
            first, as in all of VLMEvalKit. generation: for `generate`. settings: of [`Answering`].
    """

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(self, model: str, nframe: int = 32, generation: dict | None = None, **settings):
        super().__init__()
        self.answer = Answering(model, **settings)
        self.nframe, self.fps = nframe, 0
        self.generation = {"max_new_tokens": 512, **(generation or {})}

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """The answer to parts `{"type": "text", "image" or "video", "value"}`, in turns by their "role", if any."""
        self.answer.sampling = {"fps": self.fps} if self.fps else {"num_frames": self.nframe}
        turns: list[dict] = []
        for part in message:
            role = part.get("role", "user")
            if not turns or turns[-1]["role"] != role:
                turns.append({"role": role, "content": []})
            turns[-1]["content"].append({"type": part["type"], part["type"]: part["value"]})
        return self.answer(turns, **self.generation)


def register(name: str, **settings) -> None:
    """Add DSR to VLMEvalKit's `supported_VLM` under `name`; settings: of [`DSRForVLMEvalKit`]."""
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(DSRForVLMEvalKit, **settings)
