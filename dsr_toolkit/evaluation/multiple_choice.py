"""Multiple-choice answers: the letter in a model's text, and accuracy.

Two rules are those of published evaluations, kept with their faults so that scores compare with published ones; the
third says what an answer states, or that it states nothing.
"""

import re
from collections.abc import Iterable

# Phrases that DSR-Bench's evaluation deletes before it looks for a letter. Its list names four more, "The best option
# is", "The correct option is", "Best answer:" and "Best option:", which missing commas glue into two that never occur.
DSR_BENCH_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "Answer:",
    "Option:",
)

STI_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"\(([A-E])\)",
        r"Ans\s*=\s*['\"]?([A-E])['\"]?",
        r"Answer\s*[:=]\s*([A-E])",
        r"Option\s+([A-E])",
        r"\b([A-E])\s*(?:is|was)\s*correct",
        r"\b([A-E])[\.\)]\s*$",
    )
)


def extract_letter_dsr_bench(text: str) -> str:
    """
    The rule of DSR-Bench: known prefixes deleted, then the first capital A to D anywhere, `""` if there is none.

    The first capital may be any word's: "Based on the video, the answer is C" gives B.
    """
    for prefix in DSR_BENCH_PREFIXES:
        text = text.replace(prefix, "")
    match = re.search(r"[ABCD]", text)
    return match.group() if match else ""


def extract_letter_sti(text: str) -> str | None:
    """The rule of STI-Bench and VLM4D: the first of `STI_PATTERNS` that matches, in capitals, None if none does."""
    for pattern in STI_PATTERNS:
        match = pattern.search(text)
        if match:
            return match.group(1).upper()
    return None


def is_correct_sti(text: str, answer: str) -> bool:
    """How STI-Bench scores: the last character of the extracted letter, or of the whole text where there is none."""
    parsed = extract_letter_sti(text) or text.strip()
    return parsed[-1:] in tuple("ABCDE") and parsed[-1:] == answer


def extract_letter_strict(text: str, letters: str = "ABCD") -> str | None:
    """
    The one letter that `text` gives as its answer, None where it gives none or several.

    Read in this order: a text that is a letter or begins with a marked one ("B", "(b) larger", "C. Front"); letters
    that the text calls the answer ("the correct option is D", "A is right"); a single capital that stands alone. A
    word's first letter or the article "A" is never an answer.
    """
    one = f"[{letters}]"
    text = text.strip()
    opening = re.match(rf"[*`'\"]*(?:\(({one})\)|({one})(?:[.):,*`'\"]|\s*$))", text, re.IGNORECASE)
    if opening:
        return (opening.group(1) or opening.group(2)).upper()
    alone = rf"(?<![\w'])\(?({one})\)?(?![\w'])"
    stated = re.findall(rf"(?i:answer|option|choice)(?i:\s+is|\s*[:=])?[\s*`'\"]*{alone}", text)
    stated += re.findall(rf"{alone}\s+(?:is|was)\s+(?:the\s+)?(?:correct|right|best|answer)", text)
    if not stated:
        without_articles = re.sub(r"(?:^|(?<=[.!?\n])\s*)A(?=\s+[a-z])", "", text)
        stated = re.findall(alone, without_articles)
    return stated[0] if len(set(stated)) == 1 else None


def accuracy(predictions: Iterable[str | None], answers: Iterable[str]) -> float:
    """Share of `predictions` equal to `answers`; a missing letter (None or `""`) is wrong."""
    predictions, answers = list(predictions), list(answers)
    if len(predictions) != len(answers) or not answers:
        raise ValueError(
            f"`predictions` and `answers` must pair up and not be empty, got {len(predictions)} and {len(answers)}."
        )
    return sum(bool(letter) and letter == answer for letter, answer in zip(predictions, answers)) / len(answers)
