"""Questions in files as people write them: what is wrong is said row by row, and what is right is read."""

import json

import pytest

from dsr_toolkit.datasets.checks import problems
from dsr_toolkit.datasets.questions import Questions


def told(path) -> list[str]:
    return [str(problem) for problem in problems("dsr", Questions(path))]


def test_lines_end_at_newlines_alone(tmp_path):
    """U+2028 stands unescaped in JSON, byte order marks and CRLF in files from Windows."""
    row = {"question": "One\u2028line\x85?", "answer": "yes", "id": "ü\u2029ß"}
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for _ in range(2))
    (tmp_path / "rows.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert list(Questions(tmp_path / "rows.jsonl")) == [row, row]


def test_a_faulty_row_hides_no_other(tmp_path):
    (tmp_path / "clip.mp4").touch()
    good = {"Question": "Where?", "A": "left", "B": "right", "Correct": "A", "Type": "x"}
    entries = [good, {**good, "Correct": ["A"]}, "Where?", {**good, "Question": ["Where?"]}, good]
    (tmp_path / "train.json").write_text(json.dumps({"clip": entries}))
    first, second, third = told(tmp_path / "train.json")
    assert first.startswith("row 1, field 'answer'") and third.startswith("row 3, field 'question'")
    assert second.startswith("row 2: ") and "an object of JSON, got 'Where?'" in second


def test_turns_that_are_none_are_named(tmp_path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt"}]
    entries = [{"conversations": turns}, {"conversations": "What?"}, {"conversations": turns[:1]}]
    (tmp_path / "chat.json").write_text(json.dumps(entries))
    first, second = told(tmp_path / "chat.json")
    assert first.startswith("row 0: ") and "'conversations'" in first and "{'from': 'gpt'}" in first
    assert second.startswith("row 1: ") and "a list of turns" in second


def test_a_file_name_that_no_disk_can_hold_is_a_missing_file(tmp_path):
    rows = [{"video": "v" * 300 + ".mp4", "question": "What?", "answer": "a ball"}]
    assert "there is no file" in str(next(problems("dsr", rows)))


def test_a_video_without_a_list_of_questions_is_named(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"clip": {"Question": "Where?"}}))
    with pytest.raises(ValueError, match="train.json: 'clip' must have a list"):
        Questions(tmp_path / "train.json")
