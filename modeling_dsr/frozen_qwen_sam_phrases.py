"""Where phrases stand in a text, and which tokens they are."""

import re
import unicodedata
from difflib import SequenceMatcher

COMBINING = r"[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f]"
# Thai, Lao, Khmer, Myanmar, kana, Han: no spaces between words.
UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"


def find_phrases(text: str, phrases) -> list[tuple[int, int]]:
    """
    Character ranges of phrases in a text.

    A phrase is looked for as whole words, as it is written; else without regard to case; else as the beginning of a
    word (`"dog"` of `"dogs"`); in scripts that put no spaces between words, anywhere. Composed and decomposed forms
    of a character are the same. Where phrases compete for a place (`"man"`, `"man with a hat"`), the longer one has it.

    Args:
        phrases: strings, or (start, end) ranges, which are checked and kept. A string listed again stands for its next
            occurrence.

    Raises:
        ValueError: a phrase is empty or not there; names the most similar words of the text.
    """
    plain, origin = _composed(text)
    spans: list = [None] * len(phrases)
    taken: list[tuple[int, int]] = []
    texts = []
    for number, phrase in enumerate(phrases):
        if isinstance(phrase, str):
            if not phrase.strip():
                raise ValueError(f"Phrase {number} is empty.")
            texts.append(number)
            continue
        start, end = phrase
        if not 0 <= start < end <= len(text):
            raise ValueError(f"Phrase {number} is the range {(start, end)} of a text of {len(text)} characters.")
        spans[number] = (start, end)
    wanted: dict[str, list[int]] = {}
    for number in texts:
        wanted.setdefault(unicodedata.normalize("NFC", phrases[number]), []).append(number)
    for phrase in sorted(wanted, key=len, reverse=True):
        numbers = wanted[phrase]
        places = _places(plain, phrase)
        # Occurrences within a longer phrase are left to it, as long as there are others.
        free = [place for place in places if not any(a <= place[0] and place[1] <= b for a, b in taken)]
        places = free if len(free) >= len(numbers) else places
        if len(places) < len(numbers):
            number = numbers[len(places)]
            if places:
                raise ValueError(
                    f"Phrase {number}, {phrases[number]!r}, is listed {len(numbers)} times but occurs {len(places)} "
                    f"times in {text!r}."
                )
            raise ValueError(
                f"Phrase {number}, {phrases[number]!r}, is not in the text {text!r}; the nearest is "
                f"{_nearest(text, phrases[number])!r}."
            )
        for number, (start, end) in zip(numbers, places):
            spans[number] = (origin[start], origin[end])
        taken += places[: len(numbers)]
    return spans


def _places(text: str, phrase: str) -> list[tuple[int, int]]:
    """Where a phrase stands, by the first rule that finds it."""
    letters = re.escape(phrase)
    begins = rf"(?<!\w){letters}"
    patterns = [letters] if re.search(UNSPACED, phrase) else [rf"{begins}(?!\w)", begins]
    for pattern, flags in ((pattern, flags) for pattern in patterns for flags in (0, re.IGNORECASE)):
        if found := [match.span() for match in re.finditer(pattern, text, flags)]:
            return found
    return []


def _composed(text: str) -> tuple[str, list[int]]:
    """The text in Unicode's composed form, and where each of its characters, and its end, begins in the text."""
    composed, origin = [], []
    for match in re.finditer(
        r"(?s).[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f]*", text
    ):
        piece = unicodedata.normalize("NFC", match[0])
        composed.append(piece)
        origin += [match.start()] * len(piece)
    return "".join(composed), [*origin, len(text)]


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
