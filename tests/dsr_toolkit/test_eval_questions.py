"""`dsr eval dsr-bench|vlm4d|sti-bench|vsi-bench`: published prompts and scores, per type, and resumed runs."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from dsr_toolkit.cli import main
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.evaluation.video_benchmarks import BENCHMARKS, Question, read_questions, strict_score
from dsr_toolkit.evaluation.video_questions import evaluate, score, table

ROWS = {
    "dsr-bench": [
        {
            "videoID": "clip",
            "options": ["A. left", "B. right", "C. up", "D. down"],
            "question": "Where?",
            "answer": "B",
        },
        {"videoID": "clip", "options": '["A. 1", "B. 2"]', "question": "How many?", "answer": "A", "type": "count"},
    ],
    "vlm4d": [
        {
            "id": "v1",
            "video": "sub/clip.mp4",
            "question": "Which way does it turn",
            "choices": {"A": "left", "B": "right"},
            "answer": "right",
            "question_type": "multiple-choice",
        },
    ],
    "sti-bench": [
        {
            "ID": 4,
            "Video": "clip.mp4",
            "Task": "Speed",
            "time_start": 1,
            "time_end": 3,
            "Question": "How fast?",
            "Candidates": {"A": "1 m/s", "B": "2 m/s", "E": None},
            "Answer": "B",
        },
    ],
    "vsi-bench": [
        {
            "id": 0,
            "dataset": "arkit",
            "scene_name": "clip",
            "question_type": "room_size",
            "question": "How large?",
            "options": None,
            "ground_truth": "20.0",
        },
        {
            "id": 1,
            "dataset": "arkit",
            "scene_name": "clip",
            "question_type": "direction",
            "question": "Where is it?",
            "options": ["A. left", "B. right"],
            "ground_truth": "B",
        },
    ],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A table of each benchmark and its videos; DSR-Bench's as parquet, as published."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name, rows in ROWS.items():
        folder = root / name
        (folder / "videos" / "arkit").mkdir(parents=True)
        for place in ("clip.mp4", "arkit/clip.mp4"):
            shutil.copy(CLIP, folder / "videos" / place)
        (folder / "table.json").write_text(json.dumps(rows))
    columns = [{"type": None, **row, "options": json.dumps(row["options"])} for row in ROWS["dsr-bench"][:1]]
    table = pyarrow.Table.from_pylist(columns + ROWS["dsr-bench"][1:])
    pyarrow.parquet.write_table(table, root / "dsr-bench" / "table.parquet")
    return root


def first(files, name: str) -> Question:
    return read_questions(name, files / name / "table.json")[0]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_videos_are_found(name, files):
    assert all(question.video.endswith("clip.mp4") for question in read_questions(name, files / name / "table.json"))


def test_prompts_are_the_published_ones(files):
    assert first(files, "dsr-bench").text == (
        "\nThese are the frames of a video. Select the best answer to the following multiple-choice question based on "
        "the video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "Question: Where?\nA. left\nB. right\nC. up\nD. down\nAnswer: "
    )
    assert first(files, "vlm4d").text == (
        "Which way does it turn. Choose the closest answer from the following 4 candidates and only output your choice "
        "as one of A,B,C,D: A: left; B: right"
    )
    assert first(files, "sti-bench").text == (
        "From 1 s to 3 s. How fast?\n(A) 1 m/s\n(B) 2 m/s\nPlease output only the option letter!"
    )
    number, letter = read_questions("vsi-bench", files / "vsi-bench" / "table.json")
    assert number.text.splitlines()[-1] == "Please answer the question using a single word or phrase."
    assert letter.text.splitlines()[2:] == [
        "Options:", "A. left", "B. right", "Answer with the option's letter from the given choices directly."
    ]  # fmt: skip


def test_answers_by_text_become_letters(files):
    assert first(files, "vlm4d").answer == "B"
    assert read_questions("dsr-bench", files / "dsr-bench" / "table.parquet")[1].type == "count"


@pytest.mark.parametrize(
    "name, text, published, strict",
    [
        ("dsr-bench", "B. right", 1, 1),
        ("dsr-bench", "Based on it, A", 1, 0),  # the first capital letter of a word
        ("vlm4d", "(B)", 1, 1),
        ("vlm4d", "B", 1, 1),
        ("sti-bench", "The answer is 2 m/s, B", 1, 1),
        ("sti-bench", "A", 0, 0),
        ("vsi-bench", "20", 1, 1),
        ("vsi-bench", "21.5", 0.9, 0.9),  # 7.5 % off: within all tolerances but the last
        ("vsi-bench", "about 20", 0, 1),  # published: the first word alone
        ("vsi-bench", "nothing", 0, 0),
    ],
)
def test_scores(name, text, published, strict, files):
    question = first(files, name)
    assert BENCHMARKS[name].score(text, question) == pytest.approx(published)
    assert strict_score(text, question) == pytest.approx(strict)


def test_types_are_told_apart(files):
    questions = read_questions("dsr-bench", files / "dsr-bench" / "table.json")
    result = score("dsr-bench", questions, {questions[0].key: "B", questions[1].key: "B"})
    assert result["published"] == 0.5 and result["types"]["count"] == {"count": 1, "published": 0.0, "strict": 0.0}
    assert "count" in table(result) and "50.0%" in table(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_command_asks_scores_and_resumes(name, files, tmp_path, capsys):
    arguments = ["eval", name, str(files / name / "table.json"), "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "published" in capsys.readouterr().out
    predictions = (tmp_path / "out" / "predictions.jsonl").read_text()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["count"] == len(ROWS[name]) == len(predictions.splitlines())
    key = next(iter(result["answers"]))
    kept = {**result, "answers": {**result["answers"], key: "from before"}}  # this one is not asked again
    (tmp_path / "out" / "result.json").write_text(json.dumps(kept))
    assert main(arguments) == 0
    assert "from before" in (tmp_path / "out" / "predictions.jsonl").read_text()
    assert "answered already" in capsys.readouterr().err


class Interrupted(Exception):
    pass


def answering(texts: dict, after: int, asked: list):
    """In place of a model: what `ask` gives, until it is interrupted."""

    def ask(model, processor, benchmark, questions):
        for question in questions:
            if len(asked) == after:
                raise Interrupted
            asked.append(question.key)
            yield question, texts[question.key]

    return ask


def test_an_interrupted_run_goes_on_and_another_models_answers_are_not_taken(files, tmp_path, monkeypatch):
    from dsr_toolkit.evaluation import video_questions

    questions, asked = read_questions("vsi-bench", files / "vsi-bench" / "table.json"), []
    run = lambda settings, **more: evaluate(None, None, "vsi-bench", questions, tmp_path, settings, **more)  # noqa: E731
    monkeypatch.setattr(video_questions, "ask", answering({"0": "20", "1": "B"}, 1, asked))
    with pytest.raises(Interrupted):
        run({"model": "a"})
    monkeypatch.setattr(video_questions, "ask", answering({"0": "20", "1": "B"}, 9, asked))
    assert run({"model": "a"})["published"] == 1.0 and asked == ["0", "1"]
    assert [json.loads(line)["text"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == [
        "20",
        "B",
    ]
    with pytest.raises(ValueError, match="from an earlier run"):
        run({"model": "b"})
    assert run({"model": "b"}, overwrite=True)["count"] == 2 and asked == ["0", "1"] * 2


def test_questions_of_one_number_keep_their_own_answers(tmp_path):
    """VLM4D pools real and synthetic videos, each numbered from the first."""
    from dsr_toolkit.evaluation import video_questions

    row = {**ROWS["vlm4d"][0], "id": 7}
    (tmp_path / "table.json").write_text(json.dumps([row, {**row, "question": "And now"}, {**row, "id": "7#2"}, row]))
    questions = read_questions("vlm4d", tmp_path / "table.json")
    assert [question.key for question in questions] == ["7", "7#2", "7#2#2", "7#3"]
    with pytest.raises(ValueError, match="keys of their own"):
        video_questions.evaluate(None, None, "vlm4d", [questions[0]] * 2, tmp_path / "out")


def test_predictions_of_somebody_else_are_not_touched(files, tmp_path):
    questions = read_questions("vsi-bench", files / "vsi-bench" / "table.json")
    (tmp_path / "predictions.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="predictions.jsonl is there already"):
        evaluate(None, None, "vsi-bench", questions, tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == "mine"


def test_a_table_of_another_kind_is_told(tmp_path, capsys):
    (tmp_path / "t.json").write_text('[{"video": "x"}]')
    assert main(["eval", "dsr-bench", str(tmp_path / "t.json"), "-o", str(tmp_path / "out")]) == 2
    assert "row 0 lacks 'options'" in capsys.readouterr().err
