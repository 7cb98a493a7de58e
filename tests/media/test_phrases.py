"""Phrases are words, in every script and form."""

import unicodedata

import pytest

from modeling_dsr.frozen_qwen_sam_phrases import find_phrases


def found(text, phrases):
    return [text[start:end] for start, end in find_phrases(text, phrases)]


def test_a_phrase_is_a_word_and_not_the_end_of_one():
    assert find_phrases("a woman and a man", ["man"]) == [(14, 17)]
    assert find_phrases("A Man, a woman", ["man"]) == [(2, 5)]
    with pytest.raises(ValueError, match="is not in the text"):
        find_phrases("a woman", ["man"])
    assert found("two dogs", ["dog"]) == ["dog"]


def test_the_longer_phrase_has_its_place():
    assert find_phrases("the man with a hat and the man", ["man", "man with a hat"]) == [(27, 30), (4, 18)]
    assert find_phrases("男人的狗和一个男人", ["男人", "男人的狗"]) == [(7, 9), (0, 4)]


def test_scripts_without_spaces():
    assert find_phrases("一个女人和一个男人", ["男人"]) == [(7, 9)]
    assert find_phrases("男人和男人", ["男人", "男人"]) == [(0, 2), (3, 5)]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_composed_and_decomposed_letters_match(forms):
    text = unicodedata.normalize(forms[0], "le café noir à côté")
    (span,) = find_phrases(text, [unicodedata.normalize(forms[1], "café noir")])
    assert unicodedata.normalize("NFC", text[slice(*span)]) == "café noir"
