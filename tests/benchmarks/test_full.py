"""The benchmarks of published sizes: both sides agree, small ones run, and what is sized for a GPU fits one."""

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import full_cad, full_dsr_prefill, full_gpu, full_load, full_page4d, full_pi3


@torch.no_grad()
@pytest.mark.parametrize("module", [full_pi3, full_page4d], ids=lambda module: module.NAME)
def test_a_geometry_model_equals_its_plain_way(module):
    ours, baseline, images = module.build("small")
    found, expected = ours(images), baseline(images)
    for name in module.OUTPUTS:
        limit = 1e-4 * float(expected[name].abs().max().clamp_min(1))
        assert float((found[name] - expected[name]).abs().max()) <= limit, name


def test_the_plain_cad_recode_writes_the_same_tokens():
    for batch in (1, 3):
        baseline, ours = full_cad.sides("small", batch)
        assert torch.equal(baseline(), ours())


def test_several_questions_get_the_same_answers_in_the_plain_way():
    plain, ours = full_dsr_prefill.calls("small")
    for questions in (1, 3):
        expected = plain(questions)
        assert (ours(questions) - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)


def test_the_plain_pi3_file_converts_to_equal_weights(tmp_path):
    full_load.make_files(tmp_path, "small")
    expected = full_load.load("baseline", tmp_path, "small").state_dict()
    found = full_load.published_weights(full_load.load("ours", tmp_path, "small"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_what_is_sized_for_a_gpu_fits_it():
    found = {name for name, module in command.discover().items() if "gpu" in getattr(module, "SIZES", ())}
    assert found == set(full_gpu.NEEDED)
    for name, needed in full_gpu.NEEDED.items():
        assert 3e9 < needed() < 0.9 * command.GPU_MEMORY, f"{name} needs {needed() / 1e9:.1f} GB"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_set_is_refused_without_one(capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(["--gpu"])
    assert refused.value.code == 2 and "torch finds none" in capsys.readouterr().err


def test_published_sizes_run_when_they_are_named(capsys):
    command.main(["--list"])
    assert "full." not in capsys.readouterr().out
    command.main(["full", "--list"])
    assert capsys.readouterr().out.split() == ["full.cad", "full.dsr_prefill", "full.load", "full.page4d", "full.pi3"]


def test_an_option_that_a_benchmark_does_not_know_is_refused():
    with pytest.raises(SystemExit, match="cad.fps has no --small"):
        command.main(["cad.fps", "--small"])
