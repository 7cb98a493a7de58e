"""Text of an answer as it is written: pieces that together are the text of the whole answer."""

from __future__ import annotations

from collections.abc import Callable

UNFINISHED = "\ufffd"  # what the first bytes of a letter decode to


class TextStream:
    """
    Args:
        text: ids so far -> the text of an answer that ends there.
        stops: texts that end the answer: what may be the beginning of one is kept back.
    """

    def __init__(self, text: Callable[[list[int]], str], stops: tuple[str, ...] = ()):
        self.text, self.stops = text, stops
        self.tokens: list[int] = []
        self.sent = ""

    def feed(self, token: int) -> str:
        """What is certain to follow, now that `token` is there; often nothing."""
        self.tokens.append(token)
        text = self.text(self.tokens)
        certain = len(text.rstrip(UNFINISHED).rstrip())  # white space at the end is no part of an answer
        for stop in self.stops:
            certain = min([certain, *(place for place in _beginnings(text, stop))])
        return self._send(text[:certain])

    def rest(self, text: str) -> str:
        """What of the whole answer has not been sent."""
        return self._send(text)

    def _send(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text if len(text) > len(self.sent) else self.sent
        return new


def _beginnings(text: str, stop: str):
    """Where the end of a text may be the beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            yield len(text) - length
