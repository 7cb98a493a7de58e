"""A place seen again closes the way: the end meets the start."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsr_toolkit.reconstruction.loops import Edge, close_loops, find_loops, optimise
from dsr_toolkit.reconstruction.similarity import Similarity
from dsr_toolkit.reconstruction.windows import reconstruct_windows
from tests.dsr_toolkit.reconstruction.tours import gap, model_of, scale_drift, tour, world_of


def drifting(predict, per_window: float = 0.03):
    """A model whose later windows bend: what they see further back is larger, so that every join is wrong in the same
    way."""

    def bent(frames):
        views = predict(frames)
        if len({frame.name for frame in frames}) < 8:
            return views
        strength = np.linspace(1 - per_window / 2, 1 + per_window / 2, len(views))
        first = np.linalg.inv(views[0].camera_to_world)
        out = []
        for view, factor in zip(views, strength):
            local = Similarity(float(factor), np.eye(3), np.zeros(3))
            world = Similarity(1.0, first[:3, :3], first[:3, 3])
            out.append(view.moved(world).moved(local).moved(world.inverse()))
        return out

    return bent


@pytest.mark.parametrize("noise, outliers", [(0.02, 0.1), (0.05, 0.0)])
def test_the_end_of_a_closed_tour_meets_its_start_within_one_percent(noise, outliers):
    truth, report = tour(116), {}
    predict = drifting(model_of(truth, noise, outliers))
    open_way = list(reconstruct_windows(predict, iter(truth), 8, 2))
    closed = list(reconstruct_windows(predict, iter(truth), 8, 2, loops=True, report=report))
    assert [view.name for view in closed] == [view.name for view in truth]
    assert gap(open_way, truth) > 0.03  # the model bends: joins alone cannot know
    assert gap(closed, truth) < 0.01
    assert abs(scale_drift(closed, truth) - 1) < abs(scale_drift(open_way, truth) - 1)
    assert report["loops"] and all(loop["closed"] for loop in report["loops"])
    assert 0 < report["bend"] < 0.12  # what was wrong is spread over all joins


def test_where_nothing_is_seen_again_closing_changes_nothing():
    truth, report = tour(50, turns=0.5), {}
    plain = list(reconstruct_windows(model_of(truth, 0.02), iter(truth), 8, 2))
    looked = list(reconstruct_windows(model_of(truth, 0.02), iter(truth), 8, 2, loops=True, report=report))
    assert report["loops"] == []
    assert all(np.array_equal(a.points, b.points) for a, b in zip(plain, looked))


def test_places_that_only_look_alike_are_looked_at_and_not_joined():
    """Two rooms with the same wallpaper: the encoder is fooled, the geometry is not."""
    truth, report = tour(50, turns=0.5), {}
    fooled = [
        type(view)(**{**vars(view), "descriptor": twin.descriptor}) for view, twin in zip(truth, tour(50, turns=1.0))
    ]
    model = model_of(fooled, 0.02)

    def predict(frames):
        numbers = [int(frame.name[:4]) for frame in frames]
        views = model(frames)
        if max(numbers) - min(numbers) > 8:  # both places at once: it puts the second where the first is
            shift = views[0].camera_to_world @ np.linalg.inv(views[-1].camera_to_world)
            generator = np.random.default_rng(0)
            for number, view in enumerate(views[len(views) // 2 :], len(views) // 2):
                points = view.points @ shift[:3, :3].T + shift[:3, 3] + generator.normal(0, 5, view.points.shape)
                views[number] = type(view)(**{**vars(view), "points": points.astype(np.float32)})
        return views

    list(reconstruct_windows(predict, iter(fooled), 8, 2, loops=True, report=report))
    assert report["loops"] and not any(loop["closed"] for loop in report["loops"])
    assert all(loop["doubts"] for loop in report["loops"])


def test_loops_are_far_apart_alike_and_one_per_place():
    truth = tour(200, turns=2)
    descriptors = np.stack([view.descriptor for view in truth])
    loops = find_loops(descriptors, np.arange(200) // 6, 8)
    assert len(loops) >= 5 and all(j - i >= 16 for i, j in loops)
    assert all(abs((j - i) % 99.5) < 5 or abs((j - i) % 99.5) > 94.5 for i, j in loops)
    assert all(abs(a[0] - b[0]) >= 8 or abs(a[1] - b[1]) >= 8 for a in loops for b in loops if a is not b)
    assert find_loops(np.ones((200, 8)), np.arange(200) // 6, 8) == []  # all alike: nothing can be told
    assert len(find_loops(descriptors, np.arange(200) // 6, 8, most=2)) == 2


def test_the_graph_gives_back_placements_that_agree_with_every_measurement():
    truth = [Similarity.identity(), *(world_of(seed) for seed in range(1, 9))]
    between = lambda a, b: Edge(a, b, truth[a].inverse() @ truth[b])  # noqa: E731
    edges = [between(n, n + 1) for n in range(8)] + [between(0, 8), between(2, 7)]
    generator, depths = np.random.default_rng(0), [2.0] * 9
    start = [truth[0]]
    for place in truth[1:]:
        start.append(Similarity(place.scale * 1.2, place.rotation, place.translation + generator.normal(0, 0.3, 3)))
    for place, true in zip(optimise(start, edges, depths), truth):
        assert place.scale == pytest.approx(true.scale, rel=1e-6)
        assert np.allclose(place.rotation, true.rotation, atol=1e-6)
        assert np.allclose(place.translation, true.translation, atol=1e-5)


def test_a_loop_that_contradicts_all_the_others_is_left_out():
    truth = [Similarity.identity(), *(world_of(seed) for seed in range(1, 9))]
    between = lambda a, b: Edge(a, b, truth[a].inverse() @ truth[b])  # noqa: E731
    joins = [between(n, n + 1) for n in range(8)]
    wrong = Edge(1, 6, between(1, 6).measured @ world_of(50))
    placements, doubts = close_loops(truth, joins, [between(0, 8), wrong, between(2, 7)], [2.0] * 9)
    assert [bool(doubt) for doubt in doubts] == [False, True, False]
    assert all(a.scale == pytest.approx(b.scale, rel=1e-6) for a, b in zip(placements, truth))


def around(count: int, part: float = 1.0) -> list[Similarity]:
    """Windows on `part` of a circle of radius 5, that look outwards."""
    turns = [Rotation.from_euler("y", 2 * np.pi * part * n / count).as_matrix() for n in range(count + 1)]
    return [Similarity(1.0, turn, turn @ [0.0, 0.0, 5.0]) for turn in turns]


@pytest.mark.parametrize("count", [12, 100])
def test_a_model_that_sees_half_of_every_turn_is_not_turned_the_wrong_way(count):
    """It says that a whole round was half of one: to bend the chain straight would be as near as to bend it round."""
    found = around(count, 0.47)
    joins = [Edge(n, n + 1, a.inverse() @ b) for n, (a, b) in enumerate(zip(found, found[1:]))]
    placements, doubts = close_loops(found, joins, [Edge(0, count, Similarity.identity())], [2.0] * (count + 1))
    assert placements is found and "169° from it: which way round, nobody can tell" in doubts[0]


def test_joins_that_fit_do_not_give_way_to_a_loop_as_to_no_drift():
    found = around(4, 0.2)
    joins = [Edge(n, n + 1, a.inverse() @ b) for n, (a, b) in enumerate(zip(found, found[1:]))]
    wrong = Edge(0, 3, found[0].inverse() @ found[3] @ Similarity(1.0, np.eye(3), np.array([3.0, 0, 0])))
    right = Edge(1, 4, found[1].inverse() @ found[4])
    placements, doubts = close_loops(found, joins, [wrong], [2.0] * 5)
    assert placements is found and doubts[0]
    placements, doubts = close_loops(found, joins, [wrong, right], [2.0] * 5)
    assert doubts[0] and not doubts[1]
    assert all(np.allclose(a.translation, b.translation) for a, b in zip(placements, found))
