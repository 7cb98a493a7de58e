"""Where phrases stand in a text, and which tokens they are."""

import re
from difflib import SequenceMatcher


def find_phrases(text: str, phrases) -> list[tuple[int, int]]:
    """
    Character ranges of phrases in a text: exact matches, else without regard to case.

    Args:
        phrases: strings, or (start, end) ranges, which are checked and kept. A string listed again stands for its next
            occurrence.

    Raises:
        ValueError: a phrase is empty or not there; names the most similar words of the text.
    """
    spans, seen = [], {}
    for number, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            start, end = phrase
            if not 0 <= start < end <= len(text):
                raise ValueError(f"Phrase {number} is the range {(start, end)} of a text of {len(text)} characters.")
            spans.append((start, end))
            continue
        if not phrase.strip():
            raise ValueError(f"Phrase {number} is empty.")
        places = [match.start() for match in re.finditer(re.escape(phrase), text)]
        places = places or [match.start() for match in re.finditer(re.escape(phrase), text, re.IGNORECASE)]
        turn = seen[phrase] = seen.get(phrase, -1) + 1
        if turn >= len(places):
            if places:
                raise ValueError(
                    f"Phrase {number}, {phrase!r}, is listed {turn + 1} times but occurs {len(places)} times in "
                    f"{text!r}."
                )
            raise ValueError(
                f"Phrase {number}, {phrase!r}, is not in the text {text!r}; the nearest is {_nearest(text, phrase)!r}."
            )
        spans.append((places[turn], places[turn] + len(phrase)))
    return spans


def _nearest(text: str, phrase: str) -> str:
    """The piece of the text that looks most like the phrase: whole words where there are spaces, else characters."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    count = max(min(len(phrase.split()), len(words)), 1)
    pieces = {text[words[i][0] : words[i + count - 1][1]] for i in range(len(words) - count + 1)}
    if len(words) < 2:
        pieces |= {text[i : i + len(phrase)] for i in range(max(len(text) - len(phrase), 0) + 1)}
    return max(
        sorted(pieces), key=lambda piece: SequenceMatcher(None, piece.lower(), phrase.lower()).ratio(), default=""
    )


def captions_of_phrases(caption: str | None, phrases) -> list[tuple[str, list, list]]:
    """(caption, character ranges, phrase numbers) of each caption of a row."""
    phrases = [phrases] if isinstance(phrases, str) else list(phrases)
    if not phrases:
        raise ValueError("`phrases` is empty; name at least one phrase.")
    if caption is not None:
        return [(caption, find_phrases(caption, phrases), list(range(len(phrases))))]
    return [(phrase, find_phrases(phrase, [phrase]), [number]) for number, phrase in enumerate(phrases)]


def phrases_of_tokens(offsets, text: str, spans, numbers) -> list[int]:
    """Phrase of each token, -1 outside: a token belongs to the first phrase that it shares a character with."""
    mask_ids = [-1] * len(offsets)
    for number, (start, end) in zip(numbers, spans):
        touched = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        free = [i for i in touched if mask_ids[i] < 0]
        if not free:
            raise ValueError(
                f"Phrase {number}, {text[start:end]!r}, has no token of its own in {text!r}: other phrases hold them. "
                "Give overlapping phrases as captions of their own (pass no caption)."
            )
        for i in free:
            mask_ids[i] = number
    return mask_ids
