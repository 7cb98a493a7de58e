"""The feature cache: the same loss and gradients, the tower computed once, bounded, and right for other weights."""

import copy
import multiprocessing
import os

import pytest
import torch

from dsr_toolkit.training.feature_cache import TOWERS, FeatureCache
from tests.dsr_toolkit.training.models import CASES, build

FREEZE = {
    "dsr": "published",
    "pi3": "without_encoder",
    "page4d": "page4d",
    "frozen_qwen_sam": None,
    "scene_qformer": "stage1",
}


def gradients(name: str, model, numbers=(0, 1)) -> tuple[float, dict[str, torch.Tensor]]:
    model.train().zero_grad(set_to_none=True)
    loss = model(**CASES[name].batch(list(numbers))).loss
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FREEZE)
def test_losses_and_gradients_are_those_without_it(name, tmp_path):
    model = build(name).freeze(FREEZE[name])
    loss, expected = gradients(name, model)
    cache = FeatureCache(tmp_path)
    towers = cache.attach(model)
    assert len(towers) == len(TOWERS[name])
    for read in (False, True):
        found, moved = gradients(name, model)
        assert found == pytest.approx(loss, rel=1e-5)
        assert moved.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(moved[key], value, atol=1e-5, rtol=1e-3, msg=lambda text: f"{key}: {text}")
        assert (cache.hits > 0) is read
    before = cache.misses
    gradients(name, model, (1, 0))  # another order is another batch of the same images
    assert cache.misses == before
    cache.detach()
    assert gradients(name, model)[0] == loss


def test_the_tower_is_not_computed_again(tmp_path):
    model = build("dsr").freeze("published")
    cache = FeatureCache(tmp_path)
    cache.attach(model)
    gradients("dsr", model)
    calls = []
    for tower in (model.model.visual.blocks[0], model.model.geometry_encoder.encoder):
        tower.register_forward_hook(lambda *_: calls.append(1))
    gradients("dsr", model)
    assert calls == []
    another = FeatureCache(tmp_path)  # a later run on the same disk
    again = copy.deepcopy(build("dsr")).freeze("published")
    another.attach(again)
    gradients("dsr", again)
    assert another.misses == 0


def test_the_language_model_of_frozen_qwen_sam_is_not_read_again(tmp_path):
    """Rows are known again in other batches: of another size, with other padding."""
    model = build("frozen_qwen_sam")
    expected = {numbers: gradients("frozen_qwen_sam", model, numbers)[0] for numbers in ((0,), (2, 1), (0, 1, 2, 3))}
    cache = FeatureCache(tmp_path)
    cache.attach(model)
    gradients("frozen_qwen_sam", model, (0, 1, 2, 3))
    calls = []
    model.vlm.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    for numbers, loss in expected.items():
        assert gradients("frozen_qwen_sam", model, numbers)[0] == pytest.approx(loss, rel=1e-4)
    assert calls == []


def test_other_weights_have_other_features(tmp_path):
    cache = FeatureCache(tmp_path)
    model = build("pi3").freeze("without_encoder")
    cache.attach(model)
    gradients("pi3", model)
    changed = build("pi3").freeze("without_encoder")
    with torch.no_grad():
        changed.encoder.embeddings.cls_token.add_(1.0)
    expected = gradients("pi3", changed)[0]
    other = FeatureCache(tmp_path)
    other.attach(changed)
    assert gradients("pi3", changed)[0] == pytest.approx(expected, rel=1e-5)
    assert other.hits == 0


def test_its_size_is_bounded(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=20_000)
    for number in range(20):
        cache.rows("w", [torch.full((10,), float(number))], lambda missing: [torch.zeros(1000)])
    assert sum(file.stat().st_size for file in tmp_path.glob("*/*.safetensors")) <= 20_000
    cache.rows("w", [torch.full((10,), 19.0)], lambda missing: 1 / 0)  # the newest is still there


def _fill(folder: str, start: int) -> None:
    cache = FeatureCache(folder, max_bytes=50_000)
    for number in range(start, start + 30):
        row = torch.full((10,), float(number % 40))
        (found,) = cache.rows("w", [row], lambda missing: [torch.full((500,), float(number % 40))])
        assert torch.equal(found, torch.full((500,), float(number % 40)))


def test_several_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(str(tmp_path), 10 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


def test_a_model_without_a_frozen_tower_is_told(tmp_path):
    with pytest.raises(ValueError, match="needs a frozen tower"):
        FeatureCache(tmp_path).attach(build("pi3"))
