"""`dsr_toolkit.cad.reward`, and programs that the model gets to see again with their errors."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cadquery")

import dsr_toolkit.cad  # noqa: E402
from dsr_toolkit.cad import Execution, Sandbox, reward  # noqa: E402
from dsr_toolkit.cad.part_files import stl_bytes  # noqa: E402
from dsr_toolkit.cad.repair import repair_inputs  # noqa: E402
from dsr_toolkit.cad.rewards import unfenced  # noqa: E402
from modeling_dsr.cad_solids import TriangleMesh  # noqa: E402
from tests.dsr_toolkit.test_cad import CUBE, HEAD, LIMITS, block  # noqa: E402

pytestmark = pytest.mark.usefixtures("warm_sandboxes")
CUBE_PROGRAM = HEAD + "r = cq.Workplane().box(5, 5, 5)"
PLATE = block((0, 0, 0), (4, 4, 1))


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=LIMITS, allow_missing="all") as sandbox:
        yield sandbox


@pytest.fixture
def cube_file(tmp_path) -> Path:
    path = tmp_path / "cube.stl"
    path.write_bytes(stl_bytes(CUBE, None))
    return path


def test_every_program_is_measured_against_its_part(sandbox, cube_file):
    found = reward([CUBE_PROGRAM, CUBE_PROGRAM, "r = 1", "import os"], [cube_file, PLATE, cube_file, PLATE], sandbox)
    assert found.valid == [True, True, False, False] and found.codes == ["ok", "ok", "no_result", "policy"]
    assert found.iou == pytest.approx([1, 0.25, 0, 0], abs=1e-6)  # in the unit cube the plate is a quarter of the cube
    assert found.chamfer[0] < 1e-3 < found.chamfer[1] and all(map(math.isnan, found.chamfer[2:]))
    assert found.values == pytest.approx([10, 2.5, -10, -10], abs=1e-5)


def test_an_open_part_gives_no_overlap_and_no_error(sandbox):
    found = reward([CUBE_PROGRAM], [TriangleMesh(CUBE.vertices, CUBE.faces[:6])], sandbox)
    assert found.valid == [True] and found.iou == [0.0] and found.values == [0.0]


def test_rewards_do_not_depend_on_the_number_of_workers(sandbox, cube_file):
    programs = [HEAD + f"r = cq.Workplane().box(5, 5, {height})" for height in range(1, 7)]
    with Sandbox(workers=1, limits=LIMITS, allow_missing="all") as single:
        assert reward(programs, [cube_file] * 6, single) == reward(programs, [cube_file] * 6, sandbox)


def test_it_is_a_reward_function_of_trl(sandbox, cube_file):
    """Called as `GRPOTrainer` does: by name, with the data set's columns, ids and state that it does not read."""

    def cad_reward(prompts, completions, mesh, **columns):
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        return dsr_toolkit.cad.reward(texts, mesh, sandbox).values

    messages = [
        [{"role": "assistant", "content": f"```python\n{CUBE_PROGRAM}\n```"}],
        [{"role": "assistant", "content": "no"}],
    ]
    values = cad_reward(
        prompts=["a", "a"],
        completions=messages,
        completion_ids=[[1], [2]],
        mesh=[str(cube_file)] * 2,
        trainer_state=None,
    )
    assert values == pytest.approx([10, -10], abs=1e-5)


def test_a_program_may_stand_in_a_fence():
    assert unfenced(f"Here it is:\n```python\n{CUBE_PROGRAM}\n```\nDone.").strip() == CUBE_PROGRAM
    assert unfenced(CUBE_PROGRAM) == CUBE_PROGRAM


@pytest.mark.parametrize(
    "programs, meshes, message",
    [
        (["r = 1"], [], "one part per program, got 0 for 1"),
        (["r = 1"], ["none.stl"], r"`meshes\[0\]` cannot be used: There is no mesh file"),
        (["r = 1"], [TriangleMesh(np.eye(3) * 0 + [[0], [1], [2]], np.array([[0, 1, 2]]))], "no area"),
    ],
)
def test_what_is_no_part_is_refused(sandbox, programs, meshes, message):
    with pytest.raises(ValueError, match=message):
        reward(programs, meshes, sandbox)


# --------------------------------------------------------------------------------------
# Repair
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cadrille", "cad_recode"])
def test_the_model_sees_its_program_and_the_error(kind, tmp_path, monkeypatch):
    import dsr_toolkit.tiny as tiny
    from dsr_toolkit.loading import load

    model, processor = load(str(tiny.build(kind, tmp_path / kind)), kind)
    failed = Execution("runtime", "ValueError: No pending wires present")
    samples = {"meshes": CUBE}
    inputs = repair_inputs(processor, kind, samples, "r = broken", failed)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert "r = broken" in text and "runtime: ValueError: No pending wires present" in text
    plain = processor(**samples, seed=0)
    assert all(inputs[name].shape[0] == 1 for name in plain)
    same = "point_clouds" if kind == "cadrille" else "point_cloud"
    assert (inputs[same] == plain[same]).all()  # the part is shown again
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 2
