"""How well map elements were found: Chamfer distance, recall and average precision, as they are counted for HD maps.

A prediction finds an element of its class whose Chamfer distance from it is below the threshold; per class, predictions
choose within their scene in order of score, and an element is found once.
"""

from collections.abc import Sequence

import numpy as np

THRESHOLDS = (0.5, 1.0, 1.5)  # metres


def chamfer_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Symmetric mean Chamfer distance between points `[n, 2]` and `[m, 2]`: the average of both directions."""
    distances = np.linalg.norm(one[:, None] - other, axis=-1)
    return float((distances.min(0).mean() + distances.min(1).mean()) / 2)


def found_elements(predicted: dict, wanted: Sequence[dict], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Which predictions of one scene found something, and which elements were found.

    Args:
        predicted: `{"scores" [n], "labels" [n], "points" [n, P, 2]}`, metres. wanted: `{"label", "points" [m, 2]}`
            each.

    Returns:
        bool `[n]` and bool `[len(wanted)]`.
    """
    hits, found = np.zeros(len(predicted["scores"]), bool), np.zeros(len(wanted), bool)
    for number in np.argsort(-np.asarray(predicted["scores"]), kind="stable"):
        free = [i for i, e in enumerate(wanted) if not found[i] and e["label"] == predicted["labels"][number]]
        distances = [chamfer_distance(np.asarray(predicted["points"][number]), wanted[i]["points"]) for i in free]
        if free and min(distances) < threshold:
            hits[number] = found[free[int(np.argmin(distances))]] = True
    return hits, found


def average_precision(scores: np.ndarray, hits: np.ndarray, wanted: int) -> float:
    """Area under the precision envelope over recall, at every point."""
    if wanted == 0:
        return float("nan")
    right = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], right / wanted])
    return float((np.diff(recall) * envelope).sum())


def map_scores(
    predicted: Sequence[dict], wanted: Sequence[Sequence[dict]], classes: Sequence[str], distance: float = 1.5
) -> dict[str, float]:
    """
    Args:
        predicted, wanted: per scene; see `found_elements`. classes: name of each label. distance: of recall and
            precision.

    Returns:
        `map_distance` (metres), `map_recall`, `map_precision` at that distance, `map_recall_CLASS` of the classes that
        there are, and `map_ap`: the mean of their average precisions over `THRESHOLDS`.
    """
    pairs = list(zip(predicted, wanted, strict=True))
    scores, labels = (np.concatenate([np.asarray(one[name]) for one in predicted]) for name in ("scores", "labels"))
    truth = np.array([element["label"] for scene in wanted for element in scene], int)

    def outcome(threshold: float) -> tuple[np.ndarray, np.ndarray]:
        each = [found_elements(one, scene, threshold) for one, scene in pairs]
        return np.concatenate([hits for hits, _ in each]), np.concatenate([found for _, found in each])

    hits, found = outcome(distance)
    precisions = [
        average_precision(scores[labels == label], hit[labels == label], int((truth == label).sum()))
        for hit, _ in map(outcome, THRESHOLDS)
        for label in range(len(classes))
    ]
    return {
        "map_distance": distance,
        "map_recall": float(found.mean()),
        "map_precision": float(hits.mean()) if len(hits) else 0.0,
        **{f"map_recall_{classes[label]}": float(found[truth == label].mean()) for label in np.unique(truth)},
        "map_ap": float(np.nanmean(precisions)),
    }
