"""What the commands share when they talk to a person."""

import sys
import time
from contextlib import contextmanager


def say(message: str) -> None:
    """A line about the work, on stderr: stdout is kept for answers."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def step(what: str):
    """Announce a piece of work and, where it took a while, say how long."""
    say(f"{what} …")
    start = time.perf_counter()
    yield
    if (seconds := time.perf_counter() - start) >= 1:
        say(f"  {seconds:.1f} s")


RANDOM_WEIGHTS = "(random weights: neither answer nor picture means anything)"
RANDOM_WEIGHTS_NOTICE = (
    "No trained model is loaded: this is a tiny one with RANDOM WEIGHTS. Everything runs, but the answer means nothing.\n"
    "Use --model REPO_OR_DIR for real weights."
)
