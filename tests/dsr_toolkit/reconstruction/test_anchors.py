"""Windows in the world of known cameras: where these are good they decide, where they are bad nothing jumps."""

import numpy as np
import pytest

from dsr_toolkit.reconstruction.anchors import anchor
from dsr_toolkit.reconstruction.windows import reconstruct_windows
from tests.dsr_toolkit.reconstruction.test_loops import drifting
from tests.dsr_toolkit.reconstruction.tours import model_of, tour, world_of

COUNT = 62  # ten windows


def placed(truth, poses, predict=None):
    """Centres of the cameras, found and true, with `poses` by name as what is known."""
    predict = predict or model_of(truth, 0.02)
    known = lambda view: poses.get(view.name)  # noqa: E731
    found = list(reconstruct_windows(predict, iter(truth), 8, 2, pose_of=known))
    assert [view.name for view in found] == [view.name for view in truth]
    return tuple(np.stack([view.camera_to_world[:3, 3] for view in views]) for views in (found, truth))


def steps(centres) -> np.ndarray:
    return np.linalg.norm(np.diff(centres, axis=0), axis=1)


def test_known_cameras_hold_a_chain_that_drifts():
    truth = tour(COUNT)
    predict = drifting(model_of(truth, 0.02))
    found, true = placed(truth, {view.name: view.camera_to_world for view in truth}, predict)
    assert np.linalg.norm(found - true, axis=1).max() < 0.1  # of a circle of radius 10
    assert np.abs(steps(found) / steps(true) - 1).max() < 0.1


def test_some_known_cameras_are_enough():
    truth = tour(COUNT)
    found, true = placed(truth, {truth[i].name: truth[i].camera_to_world for i in (3, 20, 41, 60)})
    assert np.linalg.norm(found - true, axis=1).max() < 0.2


def test_badly_known_cameras_make_no_jumps_between_windows():
    """Each window by itself would follow what is wrong with its own cameras."""
    generator, truth, poses = np.random.default_rng(0), tour(COUNT), {}
    for view in truth:
        pose = view.camera_to_world.copy()
        pose[:3, 3] += generator.normal(0, 1.0, 3)
        poses[view.name] = pose
    found, true = placed(truth, poses)
    assert steps(found).max() < 1.5 * steps(true).max()
    assert np.median(np.linalg.norm(found - true, axis=1)) < 0.7


@pytest.mark.parametrize("known", [0, 1])
def test_too_few_known_cameras_leave_the_model_s_own_world(known, capsys):
    truth = tour(20)
    predict = model_of(truth, 0.0)
    poses = {view.name: view.camera_to_world for view in truth[:known]}
    found = list(reconstruct_windows(predict, iter(truth), 8, 2, pose_of=lambda view: poses.get(view.name)))
    assert np.allclose(found[0].camera_to_world, truth[0].moved(world_of(1)).camera_to_world)
    assert "Too few cameras are known" in capsys.readouterr().err


def test_an_anchor_is_the_similarity_between_both_worlds():
    truth, world = tour(5), world_of(3)
    found = anchor([view.moved(world) for view in truth], [view.camera_to_world for view in truth])
    assert found.scale == pytest.approx(1 / world.scale) and np.allclose(found.rotation, world.rotation.T)
    assert anchor(truth, [None] * 5) is None
