"""Chamfer distance, matching, recall and average precision of map elements, by numbers worked out by hand."""

import numpy as np
import pytest

from dsr_toolkit.evaluation.map_metrics import average_precision, chamfer_distance, found_elements, map_scores

CLASSES = ("divider", "crossing", "boundary")


def line(x: float, label: int = 0) -> dict:
    """A line ahead, `x` metres to the right."""
    return {"label": label, "points": np.stack([np.full(5, x), np.linspace(-20, 20, 5)], -1)}


def predicted(*elements: tuple[float, dict]) -> dict:
    return {
        "scores": np.array([score for score, _ in elements]),
        "labels": np.array([element["label"] for _, element in elements]),
        "points": np.array([element["points"] for _, element in elements]).reshape(-1, 5, 2),
    }


def test_chamfer_distance_of_parallel_lines_is_their_distance():
    assert chamfer_distance(line(0)["points"], line(1.25)["points"]) == pytest.approx(1.25)
    assert chamfer_distance(line(0)["points"], line(0)["points"][::-1]) == 0.0


def test_chamfer_distance_averages_both_directions():
    one, other = np.array([[0.0, 0]]), np.array([[0.0, 1], [0.0, 3]])
    assert chamfer_distance(one, other) == pytest.approx((1 + 2) / 2)


def test_an_element_is_found_once_by_the_surest():
    hits, found = found_elements(
        predicted((0.6, line(0.1)), (0.9, line(0.2)), (0.5, line(9))), [line(0), line(3.5)], 1.5
    )
    assert hits.tolist() == [False, True, False] and found.tolist() == [True, False]


def test_another_class_finds_nothing():
    hits, found = found_elements(predicted((0.9, line(0, label=2))), [line(0)], 1.5)
    assert not hits.any() and not found.any()


def test_average_precision_of_a_worked_example():
    """Right, wrong, right of two: precision 1 up to recall 1/2, then 2/3."""
    scores, hits = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision(scores, hits, wanted=2) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(scores, hits, wanted=4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert np.isnan(average_precision(scores, hits, wanted=0))


def test_scores_over_scenes():
    wanted = [[line(0), line(3.5), line(7, label=2)], [line(0)]]
    found = [predicted((0.9, line(0.3)), (0.8, line(7.7, label=2))), predicted((0.7, line(1.2)), (0.6, line(-9)))]
    scores = map_scores(found, wanted, CLASSES)
    assert scores["map_recall"] == 3 / 4 and scores["map_precision"] == 3 / 4 and scores["map_distance"] == 1.5
    assert scores["map_recall_divider"] == pytest.approx(2 / 3) and scores["map_recall_boundary"] == 1
    # Dividers: at 0.5 and 1 m one of three is found, first in order; at 1.5 m two, first and second. Boundaries: from 1
    # m on.
    assert scores["map_ap"] == pytest.approx(((1 / 3 + 1 / 3 + 2 / 3) + (0 + 1 + 1)) / 6)


def test_nothing_predicted_scores_nothing():
    scores = map_scores([predicted()], [[line(0), line(0, 1), line(0, 2)]], CLASSES)
    assert (scores["map_recall"], scores["map_precision"], scores["map_ap"]) == (0, 0, 0)
