"""Places seen again: found by what the encoder says of each frame, and the chain of windows closed over them on
Sim(3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .similarity import Similarity

MOST_LOOPS = 30  # that are looked at
LARGEST_DISAGREEMENT = 0.2  # of a loop after all were fitted: radians, parts of the depth, logarithm of the scale
LARGEST_TURN = np.pi / 2  # between a loop and the way there, from which closing it may turn the chain the wrong way
LARGEST_BEND = 0.25  # of a trusted join when loops are closed, in the same units as a disagreement
DOUBTFUL = 0.1  # weight of a join that is not trusted
ROUNDS, SMALLEST_STEP = 50, 1e-9


def find_loops(
    descriptors: np.ndarray, window_of: np.ndarray, size: int, most: int = MOST_LOOPS
) -> list[tuple[int, int]]:
    """
    Pairs of frames (earlier, later) that seem to show one place, though they are at least two windows apart; best
    first.

    Two frames are alike if they are at least as alike as frames half a window apart usually are: those see one place
    too. Likeness is the cosine between descriptors without what all frames have in common.

    Args:
        descriptors: `[N, C]`, of each frame. window_of: `[N]`, the window that predicted it, ascending.
        size: frames of a window; of pairs that are closer to one another than that in both frames, the best is kept.
    """
    found = descriptors - descriptors.mean(0)
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    half = max(size // 2, 1)
    if len(found) <= 2 * size:
        return []
    usual = float(np.median((found[:-half] * found[half:]).sum(1)))
    if not usual > 0:  # neighbours are no more alike than any two frames: nothing can be told
        return []
    pairs = []
    for window in np.unique(window_of):
        later = np.flatnonzero(window_of == window)
        earlier = np.flatnonzero((window_of <= window - 2) & (np.arange(len(found)) <= later[0] - 2 * size))
        if not len(earlier):
            continue
        likeness = found[later] @ found[earlier].T
        for other in np.unique(window_of[earlier]):  # the best pair of every two windows
            columns = np.flatnonzero(window_of[earlier] == other)
            row, column = np.unravel_index(np.argmax(likeness[:, columns]), (len(later), len(columns)))
            value = likeness[row, columns[column]]
            if value >= usual:
                pairs.append((float(value), int(earlier[columns[column]]), int(later[row])))
    chosen: list[tuple[int, int]] = []
    for _, i, j in sorted(pairs, reverse=True):
        if all(abs(i - a) >= size or abs(j - b) >= size for a, b in chosen):
            chosen.append((i, j))
            if len(chosen) == most:
                break
    return chosen


@dataclass(frozen=True)
class Edge:
    """
    What was measured between two windows: `measured` takes the world of window `later` to that of window `earlier`;
    `weight` is one number, or one each of turn, place and scale `[7]`.
    """

    earlier: int
    later: int
    measured: Similarity
    weight: float | np.ndarray = 1.0


def close_loops(
    placements: list[Similarity], joins: list[Edge], loops: list[Edge], depths: list[float]
) -> tuple[list[Similarity], list[str]]:
    """
    Placements of the windows that contradict joins and loops least.

    A loop is left out if the way there ends so far turned from it that there is no telling which way round the chain
    went wrong, if it cannot be brought to agree with the others, or if joins that can be trusted would have to give way
    by more than any drift: then one of both is an error, and the chain stays as the joins say. Of several such loops
    the one goes that asks most of each join.

    Args:
        placements: of each window in the common world, as the joins alone give them. depths: a typical depth of each
            window, in its own world, in which translations are measured.

    Returns:
        The new placements, and why each loop is left out, in words; "" of one that is closed.
    """
    why = [""] * len(loops)
    if not loops:
        return placements, why
    open_errors = disagreement(placements, loops, depths)
    turns = np.linalg.norm(open_errors[:, :3], axis=1)
    asked = np.linalg.norm(open_errors, axis=1) / [loop.later - loop.earlier for loop in loops]
    for i in np.flatnonzero(turns > LARGEST_TURN):
        why[i] = f"the way there ends turned by {np.degrees(turns[i]):.0f}° from it: which way round, nobody can tell"
    trusted = [join for join in joins if np.min(join.weight) >= 1]
    while kept := [i for i, reason in enumerate(why) if not reason]:
        found = optimise(placements, [*joins, *(loops[i] for i in kept)], depths)
        errors = np.linalg.norm(disagreement(found, [loops[i] for i in kept], depths), axis=1)
        bend = np.linalg.norm(disagreement(found, trusted, depths), axis=1).max() if trusted else 0.0
        if errors.max() > LARGEST_DISAGREEMENT:
            why[kept[int(errors.argmax())]] = "it contradicts the joins or the other loops"
        elif bend > LARGEST_BEND:
            worst = max(kept, key=lambda i: asked[i])
            why[worst] = f"joins that fit would have to give way by {bend:.2f} for it ({LARGEST_BEND:g} at most)"
        else:
            return found, why
    return placements, why


def optimise(placements: list[Similarity], edges: list[Edge], depths: list[float]) -> list[Similarity]:
    """
    Least squares over Sim(3) by the Levenberg-Marquardt method with sparse normal equations; the first window stays.

    A window moves by rotation vector, translation and logarithm of its scale in its own frame, so that no direction and
    no scale is special. H. Strasdat, J. M. M. Montiel and A. J. Davison, "Scale drift-aware large scale monocular
    SLAM", RSS 2010.
    """
    from scipy.sparse import coo_matrix, eye
    from scipy.sparse.linalg import spsolve

    state, edge = _stack(placements), _stack([one.measured for one in edges])
    ends = np.array([one.earlier for one in edges]), np.array([one.later for one in edges])
    depths, weight = np.asarray(depths, float), np.sqrt(np.stack([np.broadcast_to(one.weight, 7) for one in edges]))
    count = 7 * (len(placements) - 1)
    damping, error = 1e-6, weight * _errors(state, edge, ends, depths)
    for _ in range(ROUNDS):
        rows, columns, values = [], [], []
        for end in ends:
            for axis in range(7):  # each edge has two ends: 14 evaluations give the whole Jacobian
                step = np.zeros((len(edges), 7))
                step[:, axis] = 1e-6
                slope = []
                for sign in (1, -1):
                    moved = _moved(tuple(part[end] for part in state), sign * step, depths[end])
                    pair = tuple(part[end_] for end_ in ends for part in state)
                    pair = (*moved, *pair[3:]) if end is ends[0] else (*pair[:3], *moved)
                    slope.append(_pair_errors(pair, edge, depths[ends[1]]))
                rows.append(np.arange(error.size))
                columns.append(np.repeat(7 * (end - 1) + axis, 7))
                values.append((weight * (slope[0] - slope[1]) / 2e-6).ravel())
        rows, columns, values = (np.concatenate(parts) for parts in (rows, columns, values))
        free = columns >= 0
        jacobian = coo_matrix((values[free], (rows[free], columns[free])), (error.size, count)).tocsr()
        normal, gradient = (jacobian.T @ jacobian).tocsc(), jacobian.T @ error.ravel()
        while damping < 1e6:
            step = spsolve(normal + damping * eye(count, format="csc"), -gradient).reshape(-1, 7)
            trial = _moved(state, np.vstack([np.zeros(7), step]), depths)
            trial_error = weight * _errors(trial, edge, ends, depths)
            if np.square(trial_error).sum() <= np.square(error).sum():
                state, error, damping = trial, trial_error, max(damping / 10, 1e-12)
                break
            damping *= 10
        if damping >= 1e6 or np.abs(step).max() < SMALLEST_STEP:
            break
    return [Similarity(float(scale), rotation, translation) for scale, rotation, translation in zip(*state)]


def disagreement(placements: list[Similarity], edges: list[Edge], depths: list[float]) -> np.ndarray:
    """Of each edge with the placements `[E, 7]`: rotation vector, translation in depths of its later window, log
    scale."""
    ends = np.array([edge.earlier for edge in edges]), np.array([edge.later for edge in edges])
    measured = _stack([edge.measured for edge in edges])
    return _errors(_stack(placements), measured, ends, np.asarray(depths, float))


# Many similarities at once are (scale [n], rotation [n, 3, 3], translation [n, 3]).


def _stack(similarities: list[Similarity]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([one.scale for one in similarities]),
        np.stack([one.rotation for one in similarities]),
        np.stack([one.translation for one in similarities]),
    )


def _moved(state, step: np.ndarray, depths: np.ndarray):
    """Each similarity after a small one of its own frame: `step` `[n, 7]` is rotation vector, translation, log
    scale."""
    from scipy.spatial.transform import Rotation

    scale, rotation, translation = state
    turn = Rotation.from_rotvec(step[:, :3]).as_matrix()
    shift = np.einsum("nij,nj->ni", rotation, step[:, 3:6] * depths[:, None])
    return scale * np.exp(step[:, 6]), rotation @ turn, translation + scale[:, None] * shift


def _errors(state, edge, ends, depths: np.ndarray) -> np.ndarray:
    pair = tuple(part[end] for end in ends for part in state)
    return _pair_errors(pair, edge, depths[ends[1]])


def _pair_errors(pair, edge, depths: np.ndarray) -> np.ndarray:
    """edge⁻¹ · earlier⁻¹ · later, which would be the identity, in the frame of the later window: `[E, 7]`."""
    from scipy.spatial.transform import Rotation

    (scale_a, turn_a, shift_a, scale_b, turn_b, shift_b), (scale, turn, shift) = pair, edge
    between = np.einsum("nji,nj->ni", turn_a, shift_b - shift_a) / scale_a[:, None]
    rest = np.einsum("nji,nj->ni", turn, between - shift) / scale[:, None]
    rotation = np.swapaxes(turn, 1, 2) @ np.swapaxes(turn_a, 1, 2) @ turn_b
    vector = Rotation.from_matrix(rotation).as_rotvec()
    return np.concatenate([vector, rest / depths[:, None], np.log(scale_b / (scale_a * scale))[:, None]], 1)
