"""Programs judged in the parts world: IoU by execution, best of n, invalid programs."""

import pytest

from dsr_toolkit.evaluation.world_cad import Judge, _figures, evaluate
from dsr_toolkit.worlds.parts import PartsWorld

pytest.importorskip("cadquery")
BOX = "import cadquery as cq\nr=cq.Workplane('XY').box({},100,50)\n"


@pytest.fixture(scope="module")
def sandbox():
    from dsr_toolkit.cad import Sandbox

    with Sandbox(workers=1, allow_missing="all") as running:
        yield running


def test_best_of_n_counts_the_invalid_as_nothing():
    samples = [PartsWorld(0, num_points=0)[index] for index in range(2)]
    written = [[samples[0].program, "x", "x", "x"], ["x", "x", "y", "z"]]
    figures = _figures([[1.0, None, None, None], [None, None, 0.5, 0.9]], written, samples, (1, 2, 4))
    assert (figures["valid"], figures["median_iou"], figures["exact"]) == (0.5, 0.5, 0.5)
    assert [figures["best_of"][n]["mean_iou"] for n in "124"] == [0.5, 0.5, 0.95]
    assert [figures["best_of"][n]["valid"] for n in "124"] == [0.5, 0.5, 1.0]


@pytest.mark.slow
def test_a_program_is_worth_what_its_solid_shares_with_the_truth(sandbox):
    sample = PartsWorld(0, num_points=0)[0]
    sample.program = BOX.format(200)
    judge = Judge(sandbox)
    same, thinner, broken = judge.ious([BOX.format(200), BOX.format(160), "r = 1 +"], sample)
    assert same == pytest.approx(1) and broken is None
    # Scaled to a longest side of 1: 160 × 100 × 50 becomes 200 × 125 × 62.5.
    assert thinner == pytest.approx(1 / 1.25**2, rel=1e-6)


@pytest.mark.slow
def test_an_untrained_model_writes_nothing_valid(sandbox):
    from dsr_toolkit.tiny.cad_models import build_cad_recode, build_cadrille

    recode = build_cad_recode(hidden_size=64, num_hidden_layers=1, num_points=16, num_surface_samples=64)
    for model, processor in (recode, build_cadrille(*recode, embed_dim=32, depth=1)):
        report = evaluate(model.eval(), processor, 5, 2, (1, 2), sandbox, max_new_tokens=4)
        assert report["seed"] == 5 and report["count"] == 2 and report["model_type"] == model.config.model_type
        kinds = [] if report["model_type"] == "cad_recode" else ["points", "views", "text"]
        assert list(report["metrics"].get("by_input", [])) == kinds
        assert report["metrics"]["valid"] == 0 == report["metrics"]["median_iou"]
