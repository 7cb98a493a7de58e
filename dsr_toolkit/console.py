"""What the commands share when they talk to a person."""

import sys
import time
from contextlib import contextmanager


def say(message: str) -> None:
    """A line about the work, on stderr: stdout is kept for answers."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def step(what: str):
    """Announce a piece of work and, when it is done, how long it took."""
    print(f"{what} …", end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    except BaseException:
        print(file=sys.stderr, flush=True)
        raise
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


RANDOM_WEIGHTS_NOTICE = (
    "No trained model was given: this is a tiny one with RANDOM WEIGHTS. The whole path runs, but the answer means nothing.\n"
    "Use --model REPO_OR_DIR for real weights."
)
