"""Letters in answers: the published vectors, and what the strict rule says about them."""

import json
from pathlib import Path

import pytest

from dsr_toolkit.evaluation.multiple_choice import (
    accuracy,
    extract_letter_dsr_bench,
    extract_letter_sti,
    extract_letter_strict,
    is_correct_sti,
)

VECTORS = json.loads((Path(__file__).parents[1] / "reference" / "dsr" / "letter_extraction.json").read_text())


@pytest.mark.parametrize("text, letter", VECTORS["dsr_bench_letter_extraction"])
def test_dsr_bench_rule(text, letter):
    assert extract_letter_dsr_bench(text) == letter


@pytest.mark.parametrize("text, letter", VECTORS["sti_vlm4d_letter_extraction"])
def test_sti_rule(text, letter):
    assert extract_letter_sti(text) == letter


@pytest.mark.parametrize(
    "text, answer, correct",
    [
        ("B.", "B", True),
        ("(b) something", "B", True),
        ("The answer is C", "C", True),  # no pattern; the text's last character counts
        ("C is my choice", "C", False),
        ("a", "A", False),
        ("", "A", False),
    ],
)
def test_sti_score_reads_the_last_character(text, answer, correct):
    assert is_correct_sti(text, answer) is correct


@pytest.mark.parametrize(
    "text, letter",
    [
        ("A", "A"),
        ("a", "A"),
        ("  C\n", "C"),
        ("(b) something", "B"),
        ("B.", "B"),
        ("**D**", "D"),
        ("D. Become larger.", "D"),
        ("C.\nbecause", "C"),
        ("Answer: D", "D"),
        ("Option: A", "A"),
        ("Best answer: C", "C"),
        ("The answer is **B**.", "B"),
        ("The correct option is B", "B"),
        ("Based on the video, the answer is C", "C"),
        ("The correct answer is B. Become smaller.", "B"),
        ("C is correct", "C"),
        ("I would say C", "C"),
        ("camera moves left", None),
        ("A person walks towards the camera.", None),
        ("Based on the video, I cannot tell.", None),
        ("Both A and C", None),
        ("The answer is B. No, the answer is C.", None),
        ("Don't know", None),
        ("E", None),
        ("", None),
    ],
)
def test_strict_rule(text, letter):
    assert extract_letter_strict(text) == letter


def test_strict_rule_takes_other_letters():
    assert extract_letter_strict("E", letters="ABCDE") == "E"


def test_accuracy_counts_a_missing_letter_as_wrong():
    assert accuracy(["A", None, "", "D"], ["A", "B", "C", "C"]) == 0.25


@pytest.mark.parametrize("predictions, answers", [(["A"], ["A", "B"]), ([], [])])
def test_accuracy_refuses_what_does_not_pair_up(predictions, answers):
    with pytest.raises(ValueError, match="pair up"):
        accuracy(predictions, answers)
