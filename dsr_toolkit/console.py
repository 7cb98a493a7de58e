"""What the commands share when they talk to a person."""

import gc
import sys
import time
from contextlib import contextmanager


def say(message: str) -> None:
    """A line about the work, on stderr: stdout is kept for answers."""
    print(message, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """
    Text of others in one line that is only text: control characters, line ends and marks that turn the direction of
    reading are written out as escapes, so that it can neither steer a terminal nor pass for a line of ours.
    """
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode("ascii") for mark in text
    )


@contextmanager
def step(what: str):
    """Announce a piece of work and, where it took a while, say how long."""
    say(f"{what} …")
    start = time.perf_counter()
    yield
    if (seconds := time.perf_counter() - start) >= 1:
        say(f"  {seconds:.1f} s")


@contextmanager
def loading_libraries():
    """
    Around imports of torch, transformers and what needs them. They make objects that all stay, through which the
    collector of reference cycles would go again and again: it waits, which saves a seventh of their time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with step("Loading libraries"):
            yield
    finally:
        if collecting:
            gc.enable()


class TokenProgress:
    """A streamer for `generate` that counts the tokens written so far, where there is a terminal to show it."""

    def __init__(self):
        self.steps = 0
        self.shown = sys.stderr.isatty()

    def put(self, tokens) -> None:
        if self.shown and self.steps:  # the first call brings the prompt
            print(f"\r  {self.steps} tokens", end="", file=sys.stderr, flush=True)
        self.steps += 1

    def end(self) -> None:
        if self.shown:
            print(file=sys.stderr, flush=True)
