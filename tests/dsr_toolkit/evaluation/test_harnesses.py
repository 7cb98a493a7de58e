"""DSR in other harnesses: the real packages, where they are installed, ask it about a fixture."""

import sys
from pathlib import Path

import pytest

from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.evaluation.harnesses.answering import Answering
from dsr_toolkit.evaluation.video_benchmarks import BENCHMARKS, Question
from dsr_toolkit.evaluation.video_questions import ask
from dsr_toolkit.tiny import hub_folder

QUESTION = "Where does it move?\nA. left\nB. right"


@pytest.fixture(scope="module")
def folder():
    return str(hub_folder("dsr"))


@pytest.fixture(scope="module")
def expected(folder):
    """What `dsr eval` gets from the model for the same question, frames and settings."""
    one = Answering(folder, num_frames=4)
    benchmark = BENCHMARKS["vsi-bench"].__class__(
        read=lambda row, number: None, score=lambda text, question: 0.0, num_frames=4,
        seconds_per_step=None, generation={"max_new_tokens": 6},
    )  # fmt: skip
    ((_, text),) = ask(one.model, one.processor, benchmark, [Question("0", str(CLIP), QUESTION, "A", "all")])
    return text


def test_a_chat_is_answered_as_in_our_own_evaluation(folder, expected):
    chat = [{"role": "user", "content": [{"type": "video", "video": str(CLIP)}, {"type": "text", "text": QUESTION}]}]
    answer = Answering(folder, num_frames=4)
    assert answer(chat, max_new_tokens=6) == expected
    assert isinstance(answer([{"role": "user", "content": chat[0]["content"][1:]}], max_new_tokens=2), str)


def test_lmms_eval_runs_a_task(folder, expected, tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval")
    import json

    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    from lmms_eval.tasks import TaskManager

    from dsr_toolkit.evaluation.harnesses.lmms_eval_model import manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    model_class = registry.get_model_class("dsr")
    row = {"video": str(CLIP), "question": QUESTION, "answer": expected}
    (tmp_path / "rows.json").write_text(json.dumps([row, {**row, "answer": "another"}]))
    (tmp_path / "moves_utils.py").write_text(
        "def visual(doc):\n    return [doc['video']]\n"
        "def chat(doc, *_):\n"
        "    return [{'role': 'user', 'content': [{'type': 'video', 'url': doc['video']},\n"
        "                                         {'type': 'text', 'text': doc['question']}]}]\n"
    )
    (tmp_path / "moves.yaml").write_text(
        "task: moves\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.json'}\n"
        "test_split: test\noutput_type: generate_until\n"
        "doc_to_visual: !function moves_utils.visual\ndoc_to_messages: !function moves_utils.chat\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs:\n  max_new_tokens: 6\n  temperature: 0\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    found = simple_evaluate(
        model=model_class(pretrained=folder, num_frames=4), tasks=["moves"], batch_size=1,
        task_manager=TaskManager(include_path=str(tmp_path)), log_samples=False, bootstrap_iters=0,
    )  # fmt: skip
    assert found["results"]["moves"]["exact_match,none"] == 0.5


def test_the_entry_point_of_lmms_eval_names_our_manifest():
    text = (Path(__file__).parents[3] / "setup.py").read_text()
    assert '"lmms_eval.models": ["dsr=dsr_toolkit.evaluation.harnesses.lmms_eval_model:manifest"]' in text


def test_vlmevalkit_asks(folder, expected):
    pytest.importorskip("vlmeval.vlm.base", exc_type=ImportError)
    import torch

    from dsr_toolkit.evaluation.harnesses.vlmeval_model import DSRForVLMEvalKit

    with torch.set_grad_enabled(True):  # VLMEvalKit turns gradients off for the whole process
        model = DSRForVLMEvalKit(folder, nframe=4, generation={"max_new_tokens": 6})
        message = [{"type": "video", "value": str(CLIP)}, {"type": "text", "value": QUESTION}]
        assert model.generate(message) == expected
    torch.set_grad_enabled(True)
    assert "vlmeval" in sys.modules
