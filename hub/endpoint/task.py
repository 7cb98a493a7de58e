"""What a task is, and what several tasks do."""

from __future__ import annotations

from dataclasses import dataclass, field

from .files_in import Files
from .generation import Listener, Row, Sampling, generate_rows, until_stop
from .request import Field, RequestError


@dataclass
class Job:
    """
    A request that is ready for the model.

    Args:
        task, model: who answers it. key: jobs with the same one can run together; None runs alone.
        inputs: of the model, for this request alone. parameters: as the request gave them, with defaults.
        media: what is needed once the model has run.
        cost: rows that it adds to a batch.
        shared: what `run` computes of its media; jobs about the same media hold the same dict.
        length: steps that it may keep the model for: tokens of its longest answer, 1 without any.
        listener: who follows it while it runs. plain: answered as a pipeline answers, see `widget`.
    """

    task: str
    model: str
    key: tuple | None
    inputs: dict
    parameters: dict
    media: dict = field(default_factory=dict)
    cost: int = 1
    shared: dict = field(default_factory=dict)
    length: int = 1
    listener: Listener = field(default_factory=Listener)
    plain: bool = False


def once(jobs: list[Job]) -> tuple[list[int], list[Job]]:
    """Jobs about the same media, one of each: for each job which of these it goes with, and these."""
    places: dict[int, int] = {}
    order = [places.setdefault(id(job.shared), len(places)) for job in jobs]
    return order, [jobs[order.index(place)] for place in range(len(places))]


SEED = Field("integer", "of the random numbers; the same request with the same seed gets the same answer", 0, 0, 2**53)
MODEL = Field("text", "subfolder of the model, where several can do it")
TEMPERATURE = Field("number", "0: always the likeliest token; above: sampled", 0.0, 0, 10)
TOP_P = Field("number", "sample among the likeliest tokens that together have this probability", 1.0, 1e-6, 1)
STOP = Field("texts", "texts that end an answer, which is returned without them", (), high="stops")


def new_tokens_field(default: int) -> Field:
    return Field("integer", "longest answer, in tokens", default, 1, "new_tokens")


class Task:
    """One entry of `TASKS`. `prepare` and `finish` may run in several threads, `run` in one at a time."""

    NAME: str
    ABOUT: str
    MODEL_TYPES: tuple[str, ...]
    INPUTS: dict[str, Field]
    PARAMETERS: dict[str, Field]

    def __init__(self, endpoint):
        self.endpoint, self.limits = endpoint, endpoint.limits

    def prepare(self, model: str, inputs: dict, parameters: dict) -> Job:
        raise NotImplementedError

    def run(self, jobs: list[Job]) -> list:
        raise NotImplementedError

    def finish(self, job: Job, result) -> dict:
        raise NotImplementedError

    # ---- what several tasks do -----------------------------------------------------------

    def sampling(self, parameters: dict, candidate: int = 0) -> Sampling:
        return Sampling(
            parameters["max_new_tokens"],
            parameters["temperature"],
            parameters["top_p"],
            (parameters["seed"], candidate),
            tuple(parameters.get("stop") or ()),
        )

    def files(self, processor) -> Files:
        """The reader of a request's files."""
        return self.endpoint.files(processor)

    def write(self, model, name: str, inputs: dict, rows: list[Row]) -> list[tuple[list[int], bool]]:
        """See [`generate_rows`]."""
        return generate_rows(model, inputs, rows, self.decoder(name), self.endpoint.pause)

    def decoder(self, name: str):
        """ids -> text, for whoever looks for texts in what is being written."""
        listening = self.endpoint.listening(name)
        return lambda tokens: self.text(listening, tokens, {})

    def text(self, processor, tokens: list[int], parameters: dict) -> str:
        """What tokens say, without the text of `parameters` that ended them."""
        text = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        stops = tuple(parameters.get("stop") or ())
        return until_stop(text, stops).rstrip() if stops else text

    @staticmethod
    def check_stop(parameters: dict) -> None:
        if "" in (parameters["stop"] or ()):
            raise RequestError("bad_request", "`parameters.stop` holds an empty text, which every answer ends with.")

    @staticmethod
    def pace(parameters: dict) -> int:
        """Requests for few tokens do not share a batch with those for many, which would keep their answers back."""
        return parameters["max_new_tokens"].bit_length() // 3

    def check_prompt(self, inputs: dict) -> None:
        length = inputs["input_ids"].shape[1]
        if length > self.limits.prompt_tokens:
            raise RequestError(
                "too_large",
                f"the prompt with its images has {length} tokens; at most {self.limits.prompt_tokens} are read. Send "
                "less or smaller media.",
            )

    def one_of(self, given: dict, names: tuple[str, ...]) -> str:
        """The one of several inputs that is there."""
        there = [name for name in names if given[name] is not None]
        if len(there) != 1:
            raise RequestError(
                "bad_request",
                f"`inputs` must hold one of {', '.join(names)}; got {' and '.join(there) or 'none of them'}.",
            )
        return there[0]

    @staticmethod
    def check_words(processor, *texts: str) -> None:
        """Refuse texts that hold special tokens: placeholders of images, ends of turns."""
        for token in [*processor.tokenizer.all_special_tokens, "<image>"]:
            if any(token and token in text for text in texts):
                raise RequestError(
                    "invalid_input", f"a text holds {token!r}, which stands for something else than these letters."
                )

    def question(self, given: dict) -> str:
        if given["question"] is None or not given["question"].strip():
            raise RequestError("bad_request", "`inputs.question` is missing or empty.")
        return given["question"]
