"""Windows keep their scale, whatever noise and outliers do; a join that cannot be trusted says so."""

from dataclasses import replace

import numpy as np
import pytest

from dsr_toolkit.reconstruction.joins import join_views, location
from dsr_toolkit.reconstruction.similarity import Similarity, robust_similarity, umeyama
from dsr_toolkit.reconstruction.windows import reconstruct_windows
from tests.dsr_toolkit.reconstruction.tours import model_of, scale_drift, tour, world_of

SIZE, OVERLAP = 8, 2
COUNT = SIZE + 32 * (SIZE - OVERLAP)  # frames of 33 windows


@pytest.mark.parametrize("noise, most", [(0.01, 0.005), (0.02, 0.01), (0.05, 0.02)])
def test_thirty_three_windows_of_noisy_depth_keep_their_scale(noise, most):
    """One-sided least squares ended at 0.975, 0.884 and 0.416 of the first window's scale."""
    truth = tour(COUNT)
    report = {}
    found = list(reconstruct_windows(model_of(truth, noise), iter(truth), SIZE, OVERLAP, report=report))
    assert abs(scale_drift(found, truth) - 1) < most
    assert len(report["joins"]) == 32 and all(join["trusted"] for join in report["joins"])


def test_two_joins_in_a_row_forget_none_of_the_scale():
    """Swapping the windows inverts the similarity: nothing is lost in either direction."""
    truth = tour(4)
    predict = model_of(truth, 0.05)
    one, other = predict(truth), predict(truth)
    forward, back = join_views(one, other), join_views(other, one)
    assert forward.similarity.scale * back.similarity.scale == pytest.approx(1, abs=1e-9)


def test_most_pairs_may_be_wrong_and_the_join_says_that_it_is_not_to_be_trusted():
    """40 % wrong pixels in either window are 64 % wrong pairs: least squares collapsed to 1e-3 … 1e-6 there."""
    truth = tour(4)
    predict = model_of(truth, 0.02, outliers=0.4)
    one, other = predict(truth), predict(truth)
    expected = world_of(2).scale / world_of(1).scale
    join = join_views(one, other)
    assert join.similarity.scale == pytest.approx(expected, rel=0.02)
    assert not join.trusted and join.agreement < 0.5
    assert any("agree" in doubt for doubt in join.doubts)


@pytest.mark.parametrize("share", [0.55, 0.7])
@pytest.mark.parametrize("count", [1000, 20_000])  # all at once, and a few first
def test_a_majority_of_outliers_does_not_move_the_similarity(share, count):
    generator = np.random.default_rng(1)
    truth, x = world_of(5), generator.normal(size=(count, 3))
    y = truth.apply(x)
    wrong = generator.random(count) < share
    y[wrong] += generator.normal(0, 50, (wrong.sum(), 3))
    found, inlier = robust_similarity(x, y, generator.uniform(0.1, 1, count))
    assert np.allclose(found.apply(x), truth.apply(x), atol=1e-6)
    assert not inlier[wrong].any()


def test_noise_on_both_sides_does_not_shrink_a_symmetric_fit():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20_000, 3))
    y = x + 0.3 * generator.normal(size=x.shape)
    x = x + 0.3 * generator.normal(size=x.shape)
    assert umeyama(x, y).scale < 0.93
    assert umeyama(x, y, symmetric=True).scale == pytest.approx(1, abs=0.01)
    assert robust_similarity(x, y)[0].scale == pytest.approx(1, abs=0.01)


def test_the_most_frequent_value_is_found_among_a_majority_of_others():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0.3, 0.02, 400), generator.uniform(-3, 3, 600)])
    assert location(values, np.ones(1000)) == pytest.approx(0.3, abs=0.01)


def test_points_that_are_not_finite_do_not_move_a_join():
    truth = tour(3)
    world = world_of(4)
    one = [view.moved(world.inverse()) for view in truth]
    for values, bad in zip((one[0].points, one[1].depth, one[2].depth), (np.nan, np.inf, -1.0)):
        values[5:20] = bad
    join = join_views(one, truth)
    assert join.trusted and join.similarity.scale == pytest.approx(world.scale, rel=1e-4)


def test_shared_cameras_hold_a_join_that_the_points_leave_open():
    """A pole straight ahead: points on one line say nothing of the turn around it."""
    truth = tour(1)
    thin = np.zeros_like(truth[0].mask)
    thin[:, 32] = True
    depth = np.full_like(truth[0].depth, 3.0)
    line = replace(truth[0], mask=thin, points=(truth[0].points * 0 + [0, 0, 1]) * np.linspace(1, 4, 48)[:, None, None])
    line = replace(line, points=line.points.astype(np.float32), depth=depth)
    world = world_of(7)
    found = join_views([line.moved(world.inverse())], [line]).similarity
    assert np.allclose(found.rotation, world.rotation, atol=1e-6)


def test_without_common_points_cameras_decide_and_the_join_is_doubted():
    truth = tour(3)
    blind = [replace(view, mask=np.zeros_like(view.mask)) for view in truth]
    world = world_of(3)
    join = join_views([view.moved(world.inverse()) for view in blind], blind)
    assert join.similarity.scale == pytest.approx(world.scale) and np.allclose(join.similarity.rotation, world.rotation)
    assert not join.trusted and "cameras alone" in join.doubts[0] and join.report()["residual"] is None


def test_a_shared_image_that_the_windows_saw_at_two_sizes_joins_them():
    """Windows of landscape and portrait photographs: the first image of each decides the size of all of its frames."""
    truth = tour(2)
    twice, other = np.ix_(np.arange(96) // 2, np.arange(192) // 3), []
    for view in truth:
        maps = {name: getattr(view, name)[twice] for name in ("points", "depth", "confidence", "mask")}
        other.append(replace(view, **maps))
    world = world_of(1)
    join = join_views([view.moved(world.inverse()) for view in other], truth)
    assert join.similarity.scale == pytest.approx(world.scale, rel=0.01) and join.trusted


def test_a_scale_that_differs_within_the_images_is_doubted():
    truth = tour(3)
    bent = [replace(view, depth=view.depth * np.linspace(0.6, 1.6, 64, dtype=np.float32)) for view in truth]
    join = join_views(bent, truth)
    assert any("scale differs" in doubt for doubt in join.doubts)


def test_similarities_have_inverses():
    world = world_of(2)
    assert (world @ world.inverse()).scale == pytest.approx(1)
    points = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(world.inverse().apply(world.apply(points)), points)
    assert np.allclose((Similarity.identity() @ world).apply(points), world.apply(points))


def test_doubts_are_told_on_the_screen_and_in_the_report(capsys):
    truth = tour(20)
    report = {}
    list(reconstruct_windows(model_of(truth, 0.02, outliers=0.5), iter(truth), 8, 2, report=report))
    assert [join["trusted"] for join in report["joins"]] == [False, False]
    assert all(join["doubts"] for join in report["joins"])
    assert "2 of 2 joins of windows cannot be trusted" in capsys.readouterr().err
