"""A request on its way through the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass(eq=False)
class Ticket:
    """
    A request on its way; it is also the listener of its job.

    Args:
        name: of the request, for the log.
        on_token: called with (row, token) as an answer is written, in the thread that computes.

    Attributes:
        future: of the answer. job: once prepared, until it is answered.
        task, model, parameters: of the request, once it is known. facts: what its route remembers of it.
        cancelled: nobody wants the answer any more.
        seconds: spent in each stage so far, by its name.
        stages: for the trace that another process keeps, see [`past_spans`]; None where this one does.
    """

    name: str = "-"
    on_token: Callable[[int, int], None] | None = None
    future: Future = field(default_factory=Future)
    task: str = "none"
    model: str = "-"
    parameters: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    came: float = field(default_factory=time.perf_counter)
    job: object = None
    ready: float = 0.0
    context: object = None  # of its trace
    stages: list[tuple[str, int, int, dict]] | None = None
    cancelled: bool = False
    accepted: bool = False
    on_cancel: Callable[[Ticket], None] = lambda ticket: None
    seconds: dict[str, float] = field(default_factory=dict)

    def token(self, row: int, token: int) -> None:
        self.seconds.setdefault("first_token", time.perf_counter() - self.came)
        if self.on_token is not None:
            self.on_token(row, token)

    def cancel(self) -> None:
        """Give the request up: what is under way for it ends at the next token or frame."""
        self.cancelled = True
        self.on_cancel(self)
