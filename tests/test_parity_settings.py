"""Reference folders of other settings: the harness reads each from the case or its checkpoint, and assumes none.

Each folder here is made from one that is known, with one setting changed. Its numbers come from the library itself,
told that setting directly; the harness must find the setting in the folder.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from convert_weights import convert
from dsr_toolkit.tiny import page4d as tiny_page4d
from dsr_toolkit.tiny.page4d import write_page4d
from dsr_toolkit.tiny.qwen2_5_vl import TEXT, write_qwen2_5_vl
from dsr_toolkit.tiny.sam import write_flmm, write_sam
from tests.parity import case_rows, convert_suite, load_adapter, uncompared
from tests.parity_adapters.cadrille import code_of_outcome, seconds_of, special_ids
from tests.parity_cases import Case, Suite, find_suites
from tests.parity_results import Models, Result, Row, compare_case, published_overrides, rows_like

SMALL = Path(__file__).parent / "reference"


def run_here(arch: str, reference: Path, work: Path) -> list[Row]:
    """Like `run_parity`, in this process: the folder's settings are what is looked at."""
    adapter, rows = load_adapter(arch), []
    for suite in find_suites(reference):
        folders, failures = convert_suite(adapter, suite, arch, work)
        models = Models(folders, failures, isolated=False)
        for case in suite.cases:
            found = case_rows(adapter.run_case, case, models)
            if found is None:
                found = case_rows(getattr(adapter, "run_function_case", lambda case: None), case)
            rows += found if found is not None else uncompared(case, "")
    return rows


def failures(rows) -> list[str]:
    return [f"{row.case} {row.tensor}: {row.note} ({row.difference})" for row in rows if row.passed is False]


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def copy_of(name: str, folder: Path, cases: tuple[str, ...]) -> Path:
    """A small reference folder with these cases alone."""
    shutil.copytree(SMALL / name, folder)
    for path in folder.rglob("case_*.safetensors"):
        if path.stem.removeprefix("case_") not in cases:
            path.unlink()

    def keep(document):
        listed = document.get("cases", document)
        for case in [case for case in listed if isinstance(listed[case], dict) and case not in cases]:
            del listed[case]

    edit(folder / "cases.json", keep)
    return folder


def change_case(folder: Path, name: str, **settings) -> None:
    def change(document):
        document.get("cases", document)[name].update(settings)

    edit(folder / "cases.json", change)


def store(folder: Path, name: str, **results: torch.Tensor) -> None:
    """Replace results of a case; those named None go."""
    path = folder / f"case_{name}.safetensors"
    tensors = {**load_file(path), **results}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}, path)


# --------------------------------------------------------------------------------------
# Settings that the checkpoint's own files tell
# --------------------------------------------------------------------------------------


def record(arch: str, folder: Path, work: Path, **arguments) -> None:
    """Store what a model that is told its settings directly computes, in place of the results of every case."""
    adapter = load_adapter(arch)
    (suite,) = find_suites(folder)
    convert(arch, output=work, progress=False, **arguments)
    models = Models({"model": work}, isolated=False)
    for case in suite.cases:
        found = adapter.run_case(case, models).tensors
        inputs = {name: tensor for name, tensor in case.tensors.items() if name.startswith("input.")}
        kept = {name: found[name].detach().clone().contiguous() for name in case.expected}
        save_file({**{name: tensor.clone() for name, tensor in inputs.items()}, **kept}, case.path)


@pytest.mark.slow
def test_sam_decoder_heads_come_from_the_description(tmp_path):
    heads = 4
    folder = tmp_path / "reference" / "tiny"
    write_qwen2_5_vl(folder / "qwen")
    write_sam(folder / "sam.pth")
    write_flmm(folder / "flmm.pth", TEXT["hidden_size"], TEXT["num_hidden_layers"], TEXT["num_attention_heads"])
    described = {
        "model": {"pretrained_model_name_or_path": "qwen"},
        "sam": {"checkpoint": "sam.pth", "architecture": {"decoder_num_heads": heads}},
        "mask_head": {"upsample_input": 64},
        "trained_checkpoint": "flmm.pth",
    }
    (folder / "config.json").write_text(json.dumps(described))
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input.text_embeds.0": torch.randn(3, 32, generator=generator),
        "input.coarse_logits": torch.randn(1, 10, 14, generator=generator),
        "input.image_uint8": torch.randint(0, 255, (20, 28, 3), generator=generator, dtype=torch.uint8),
    }
    outputs = {"output.sam_pred_masks": torch.zeros(1, 20, 28)}
    save_file({**inputs, **outputs}, tmp_path / "reference" / "case_one.safetensors")
    case = {"kind": "sam_refiner", "tolerance": {"default": 1e-4}, "kwargs": {}}
    (tmp_path / "reference" / "cases.json").write_text(json.dumps({"one": {**case, "file": "case_one.safetensors"}}))

    told = {"sam_config": {"mask_decoder_config": {"num_attention_heads": heads}}}
    sources = {"qwen": folder / "qwen", "sam": folder / "sam.pth", "flmm": folder / "flmm.pth"}
    record("frozen_qwen_sam", folder.parent, tmp_path / "told", sources=sources, config_overrides=told)
    assert failures(run_here("frozen_qwen_sam", folder.parent, tmp_path)) == []
    edit(folder / "config.json", lambda content: content["sam"]["architecture"].update(decoder_num_heads=2))
    assert failures(run_here("frozen_qwen_sam", folder.parent, tmp_path / "wrong"))


def test_pi3_heads_and_rotary_base_come_from_its_config(tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(SMALL / "pi3" / "tiny", folder)

    def change(content):
        content["pos_type"] = "rope50"
        content["tiny_dims"].update(head_num_heads=4, enc_num_heads=2)

    edit(folder / "config.json", change)
    told = {"rope_base": 50.0, "head_num_attention_heads": 4, "encoder_config": {"num_attention_heads": 2}}
    dims = json.loads((folder / "config.json").read_text())["tiny_dims"]
    told |= {"num_decoder_layers": dims["dec_depth"], "num_attention_heads": dims["dec_num_heads"]}
    plain = tmp_path / "weights.safetensors"  # apart from its config.json
    shutil.copy(folder / "model.safetensors", plain)
    record("pi3", folder, tmp_path / "told", sources={"pi3": plain}, config_overrides=told)
    assert failures(run_here("pi3", folder, tmp_path / "work")) == []
    edit(folder / "config.json", lambda content: content.update(pos_type="rope100"))
    assert failures(run_here("pi3", folder, tmp_path / "wrong"))


@pytest.mark.parametrize("dilated", [True, False])
def test_the_backbone_is_dilated_as_the_config_says(dilated, tmp_path):
    folder = copy_of("scene_qformer/sine_camera", tmp_path / "sine_camera", ("full",))
    edit(folder / "config.json", lambda content: content["backbone_tiny"].update(dilate_last=dilated))
    (weights,) = (path for path in folder.glob("*.safetensors") if not path.name.startswith("case_"))
    told = {"backbone_dilation": dilated, "num_heads": 4}
    apart = tmp_path / "weights.safetensors"
    shutil.copy(weights, apart)
    record_scene(folder, apart, told, tmp_path / "told")
    assert failures(run_here("scene_qformer", folder, tmp_path / "work")) == []
    edit(folder / "config.json", lambda content: content["backbone_tiny"].update(dilate_last=not dilated))
    assert failures(run_here("scene_qformer", folder, tmp_path / "wrong"))


def record_scene(folder: Path, weights: Path, told: dict, work: Path) -> None:
    convert("scene_qformer", {"scene_qformer": weights}, work, config_overrides=told, progress=False)
    model = AutoModel.from_pretrained(work, trust_remote_code=True, dtype=torch.float32).eval()
    (case,) = (case for suite in find_suites(folder) for case in suite.cases)
    with torch.no_grad():
        tokens = model(case.inputs["images"].float()).scene_tokens
    inputs = {name: tensor.clone() for name, tensor in case.tensors.items() if name.startswith("input.")}
    save_file({**inputs, "output.scene_tokens": tokens}, case.path)


def test_results_of_a_backbone_are_read_as_their_names_say(tmp_path):
    """Also where the model's own backbone is not dilated."""
    folder = copy_of("scene_qformer/sine_camera", tmp_path / "sine_camera", ("full",))
    edit(folder / "config.json", lambda content: content["backbone_tiny"].update(dilate_last=False))
    (weights,) = (path for path in folder.glob("*.safetensors") if not path.name.startswith("case_"))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stored = {"input.images": images}
    for name, dilated in (("stage4_stride32", False), ("stage4_dilated_stride16", True)):
        told = {"backbone_dilation": dilated, "num_heads": 4}
        convert("scene_qformer", {"scene_qformer": weights}, tmp_path / name, config_overrides=told, progress=False)
        model = AutoModel.from_pretrained(tmp_path / name, trust_remote_code=True, dtype=torch.float32).eval()
        with torch.no_grad():
            stored[f"output.{name}"] = model.backbone(images).feature_maps[-1].contiguous()
    assert stored["output.stage4_stride32"].shape[-1] == 2 and stored["output.stage4_dilated_stride16"].shape[-1] == 4
    (folder / "case_full.safetensors").unlink()
    save_file(stored, folder / "case_maps.safetensors")
    (folder / "cases.json").write_text(json.dumps({"maps": {"tolerance": 1e-4, "file": "case_maps.safetensors"}}))
    assert failures(run_here("scene_qformer", folder, tmp_path / "work")) == []


@pytest.mark.slow
def test_page4d_settings_come_from_its_constructor_arguments(tmp_path):
    folder = tmp_path / "tiny"
    write_page4d(folder / "checkpoint_tiny.pt")
    published = {
        "aggregator": {"rope_freq": 30, "temporal_list1_mask": [0], "temporal_list2": [1, 3]},
        "patch_embed": {"num_heads": 4},
        "spatial_mask_head": {"scale": 32.0},
        "camera_head": {"num_heads": 8, "num_iterations": 2},
        "depth_head": {"activation": "linear", "conf_activation": "expp0", "intermediate_layer_idx": [0, 1, 2, 3]},
        "point_head": {"activation": "exp", "conf_activation": "expp0", "intermediate_layer_idx": [0, 1, 2, 3]},
    }
    (folder / "config.json").write_text(json.dumps(published))
    call = {"mask_head_step": 0.0, "mask_hold_start": 1, "mask_hold_end": 1}
    document = {"one": {"call": call, "suggested_tolerance": 1e-4, "file": "case_one.safetensors"}}
    (folder / "cases.json").write_text(json.dumps(document))
    names = ("depth", "depth_conf", "world_points", "world_points_conf", "pose_enc_list")
    size = 2 * tiny_page4d.PATCH, 3 * tiny_page4d.PATCH
    images = torch.rand(1, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    save_file(
        {"input.images": images, **{f"output.{n}": torch.zeros(1) for n in names}}, folder / "case_one.safetensors"
    )
    told = {
        "rope_freq": 30,
        "mask_layer": 0,
        "masked_layers": [1, 3],
        "encoder_config": {"num_attention_heads": 4},
        "mask_scale": 32.0,
        "camera_num_heads": 8,
        "camera_iterations": 2,
        "depth_activation": "linear",
        "point_activation": "exp",
        "confidence_activation": "expp0",
        "dpt_layers": [0, 1, 2, 3],
    }
    sources = {"page4d": folder / "checkpoint_tiny.pt"}
    record("page4d", folder, tmp_path / "told", sources=sources, config_overrides=told)
    assert failures(run_here("page4d", folder, tmp_path / "work")) == []
    for section, setting, other in (("aggregator", "rope_freq", 100), ("aggregator", "temporal_list2", [2]),
                                    ("patch_embed", "num_heads", 2), ("camera_head", "num_iterations", 4)):  # fmt: skip
        before = published[section][setting]
        edit(folder / "config.json", lambda content: content[section].update({setting: other}))
        assert failures(run_here("page4d", folder, tmp_path / f"wrong_{section}_{setting}")), setting
        edit(folder / "config.json", lambda content: content[section].update({setting: before}))


@pytest.mark.parametrize(
    "section, setting, value",
    [
        ("camera_head", "fl_act", "exp"),
        ("aggregator", "qk_norm", False),
        ("depth_head", "down_ratio", 2),
        ("point_head", "intermediate_layer_idx", [0, 1, 2, 2]),
        ("aggregator", "a_new_one", 1),
    ],
)
def test_a_setting_that_this_library_does_not_have_is_refused(section, setting, value):
    adapter = load_adapter("page4d")
    heads = {name: {"intermediate_layer_idx": [0, 1, 2, 3]} for name in ("depth_head", "point_head")}
    published = {**heads, section: {**heads.get(section, {}), setting: value}}
    with pytest.raises(ValueError, match=setting):
        adapter.config_overrides(published)


def test_published_overrides_translate_refuse_and_ignore():
    fields, only, known = {"heads": "num_heads"}, {"bias": True}, ("depth",)
    published = {"heads": 3, "bias": True, "depth": 7, "_note": "x"}
    assert published_overrides(published, fields, only, known) == {"num_heads": 3}
    with pytest.raises(ValueError, match="bias = False, this library has True alone"):
        published_overrides({"bias": False}, fields, only, known)
    with pytest.raises(ValueError, match="does not know: eps = 1"):
        published_overrides({"eps": 1}, fields, only, known)


# --------------------------------------------------------------------------------------
# Settings that a case tells
# --------------------------------------------------------------------------------------

MV = "page4d_mv/tiny"


@pytest.mark.slow
def test_the_block_that_a_mask_biases_is_the_cases_own(tmp_path):
    folder = copy_of(MV, tmp_path / "tiny", ("spatial_mask_head",))
    shutil.rmtree(folder / "weight_loading", ignore_errors=True)
    change_case(folder, "spatial_mask_head", kwargs={"patch_start_idx": 5, "h": 4, "w": 4, "block_index": 3})
    adapter = load_adapter("page4d_mv")
    (suite,) = find_suites(folder)
    models = Models(convert_suite(adapter, suite, "page4d_mv", tmp_path / "told")[0], isolated=False)
    model, (case,) = models.load(AutoModel, "spatial_mask_head"), suite.cases
    positions, table = (
        models.module("vision_rope", name, "spatial_mask_head") for name in ("patch_positions", "axial_rope_tables")
    )
    rope = table(positions(4, 4, 5), model.config.embed_dim // model.config.num_heads, model.config.rope_freq)
    x, row, bias = case.inputs["x"], case.expected["output.row_mask"], case.expected["output.key_bias"]
    everything = row.float().unsqueeze(2) * bias.unsqueeze(1)  # the block's own bias, written out
    with torch.no_grad():
        mask = model.aggregator._mask(x.flatten(0, 1), (4, 4), x.shape[:2], 1.0)[1]
        wanted = model.aggregator.global_blocks[3](x.flatten(1, 2), rope=rope, attention_mask=mask)
    assert everything.shape[1] == wanted.shape[1]
    store(folder, "spatial_mask_head", **{"output.block_out": wanted})
    assert failures(run_here("page4d_mv", folder, tmp_path / "work")) == []
    change_case(folder, "spatial_mask_head", kwargs={"patch_start_idx": 5, "h": 4, "w": 4, "block_index": 1})
    assert failures(run_here("page4d_mv", folder, tmp_path / "wrong"))


def test_gated_masks_need_no_case_of_that_name(tmp_path):
    folder = copy_of(MV, tmp_path / "tiny", ("dynamic_mask_head",))
    shutil.rmtree(folder / "weight_loading", ignore_errors=True)
    (folder / "case_dynamic_mask_head.safetensors").rename(folder / "masks.safetensors")

    def rename(document):
        document["some masks"] = {**document.pop("dynamic_mask_head"), "file": "masks.safetensors"}

    edit(folder / "cases.json", rename)
    rows = run_here("page4d_mv", folder, tmp_path / "work")
    assert failures(rows) == [] and any("gated" in row.tensor for row in rows)


@pytest.mark.parametrize(
    "name, case, auto_class",
    [
        ("cad_recode", "generate_batch2", AutoModelForCausalLM),
        ("cadrille", "generate_pc", AutoModelForImageTextToText),
    ],
)
def test_beams_have_a_row_each(name, case, auto_class, tmp_path):
    """Positions and deltas are stored for every beam, as a model sees them, or for every sample."""
    beams, folder = 3, copy_of(name, tmp_path / name, (case,))
    for path in folder.glob("*.json"):
        if path.name != "cases.json":
            path.unlink()
    call = json.loads((folder / "cases.json").read_text())["cases"][case]["call"] | {"num_beams": beams}
    change_case(folder, case, call=call)
    adapter = load_adapter(name)
    (suite,) = find_suites(folder)
    models = Models(convert_suite(adapter, suite, name, tmp_path / "told")[0], isolated=False)
    (one,), model = suite.cases, models.load(auto_class)
    settings = {key: value for key, value in call.items() if key != "method"}
    out = model.generate(**one.inputs, **settings, output_logits=True, return_dict_in_generate=True)
    axis = 1 if name == "cadrille" else 0
    results = {"output.sequences": out.sequences, "output.step_logits": torch.stack(out.logits)}
    steps = len(out.logits) - 1
    for key, tensor in one.expected.items():
        if "decode" in key:
            results[key] = tensor.repeat_interleave(beams, 1 + axis)[:steps]
        elif "prefill" in key and tensor.shape[axis] > 1 or key.endswith("rope_deltas"):
            results[key] = tensor.repeat_interleave(beams, axis if "prefill" in key else 0)
        elif key.endswith("after_call"):  # the rows of several beams are copies: the caller's mask stays as it is
            results[key] = one.inputs["attention_mask"]
    store(folder, case, **results)
    assert failures(run_here(name, folder, tmp_path / "work")) == []
    stored = load_file(folder / f"case_{case}.safetensors")
    alone = [key for key in stored if "prefill" in key or key.endswith("rope_deltas")]
    store(folder, case, **{key: one.expected[key] for key in alone})
    assert failures(run_here(name, folder, tmp_path / "again")) == []


def test_rows_of_beams_that_differ_are_not_joined():
    found = torch.arange(4).view(4, 1)
    assert rows_like(torch.zeros(2, 1), found) is found
    assert torch.equal(rows_like(torch.zeros(2, 1), found[:2].repeat_interleave(2, 0)), found[:2])
    assert torch.equal(rows_like(torch.zeros(4, 1), found[:2]), found[:2].repeat_interleave(2, 0))


@pytest.mark.parametrize("name", ["cad_recode", "cadrille"])
def test_the_placeholder_of_points_is_what_the_cases_have(name, tmp_path):
    """Ids of a vocabulary of its own: nothing but the cases says which one stands for points."""
    case = {"cad_recode": "prompt_batch2", "cadrille": "pc_batch2_bf16_points"}[name]
    folder = copy_of(name, tmp_path / name, (case,))
    for path in folder.glob("*.json"):
        if path.name != "cases.json":
            path.unlink()
    (suite,) = find_suites(folder)
    usual = load_adapter(name).conversions(suite)["model"]["config_overrides"]["point_token_id"]
    inputs = suite.cases[0].inputs
    ids = inputs["input_ids"].clone()
    assert (ids == usual).any() and not (ids == 299).any()
    ids[ids == usual] = 299
    store(folder, case, **{"input.input_ids": ids})
    (suite,) = find_suites(folder)
    assert load_adapter(name).conversions(suite)["model"]["config_overrides"] == {"point_token_id": 299}


@pytest.mark.parametrize(
    "outcome, code",
    [
        ("invalid SyntaxError: '(' was never closed (<string>, line 2)", "syntax"),
        ("invalid IndentationError: unexpected indent (<string>, line 1)", "syntax"),
        ("invalid KeyError: 'r'", "no_result"),
        ("invalid KeyError: 'width'", "runtime"),
        ("invalid ZeroDivisionError: division by zero", "runtime"),
        ("invalid NameError: name 'cqq' is not defined", "runtime"),
        ("invalid OCP.OCP.StdFail.StdFail_NotDone: BRep_API: command not done", "runtime"),
        ("invalid MemoryError", "memory"),
        ("invalid mesh faces=0", "empty_mesh"),
        ("no mesh (killed after 2 s)", "timeout"),
    ],
)
def test_outcomes_of_programs_are_read_whatever_the_error(outcome, code):
    assert code_of_outcome(outcome) == code


def test_an_outcome_in_other_words_is_refused():
    with pytest.raises(ValueError, match="does not know: 'something else'"):
        code_of_outcome("something else")


def test_the_time_limit_of_programs_is_the_one_told():
    assert seconds_of(["invalid KeyError: 'r'", "no mesh (killed after 2 s)"]) == 2.0
    assert seconds_of([]) == 3.0


def test_special_ids_are_those_that_the_rule_names():
    rule = "ids: 3 pad/endoftext, 4 im_start, 9 im_end, 12 the single token for the word assistant, 7 newline; others"
    assert special_ids(rule) == {"im_start": 4, "header": [12], "im_end": 9}


# --------------------------------------------------------------------------------------
# One case that cannot be compared
# --------------------------------------------------------------------------------------


@pytest.fixture
def two_cases(tmp_path):
    document = {"cases": {"good": {"tolerance": 0.1}, "bad": {"tolerance": 0.1}}}
    (tmp_path / "cases.json").write_text(json.dumps(document))
    for name in document["cases"]:
        save_file({"output.y": torch.ones(2)}, tmp_path / f"case_{name}.safetensors")
    return tmp_path


def test_a_damaged_file_fails_its_own_case(two_cases):
    (two_cases / "case_bad.safetensors").write_bytes(b"\xff" * 100)
    (suite,) = find_suites(two_cases)
    good, bad = (case_rows(lambda case: Result({"output.y": torch.ones(2)}), case) for case in suite.cases)
    assert [row.passed for row in good] == [True]
    assert [(row.passed, row.tensor) for row in bad] == [(False, "(all)")] and "did not run" in bad[0].note


def test_an_exception_while_comparing_fails_its_own_case(two_cases):
    (suite,) = find_suites(two_cases)
    odd = Result({"output.y": torch.ones(2)}, where={"output.y": torch.ones(7, 3, dtype=torch.bool)})
    with pytest.raises(RuntimeError):
        compare_case(suite.cases[0], odd)
    (row,) = case_rows(lambda case: odd, suite.cases[0])
    assert (row.passed, row.tensor) == (False, "output.y") and "did not run: RuntimeError" in row.note


def test_a_file_of_results_that_is_no_json_fails_itself(tmp_path):
    (tmp_path / "vectors.json").write_text("{")
    (tmp_path / "others.json").write_text('{"a": [1]}')
    (suite,) = find_suites(tmp_path)
    rows = [row for case in suite.cases for row in case_rows(lambda case: None, case) or uncompared(case, "")]
    assert [(row.case, row.passed) for row in rows] == [("others", False), ("vectors", False)]
    assert rows[1].note.startswith("no JSON")


def test_a_conversion_that_fails_fails_the_cases_that_need_it(tmp_path):
    folder = copy_of(MV, tmp_path / "tiny", ("spatial_mask_head", "epipolar"))
    shutil.rmtree(folder / "weight_loading", ignore_errors=True)
    change_case(folder, "epipolar", kwargs={"band_pixels": 10.0, "penalty": 3.0, "landmark_k": "many"})
    rows = run_here("page4d_mv", folder, tmp_path / "work")
    assert {row.passed for row in rows if row.case == "spatial_mask_head"} == {True}
    assert {row.passed for row in rows if row.case == "epipolar"} == {False}
    assert all("conversion failed" in row.note for row in rows if row.case == "epipolar")


def test_a_case_without_a_suite_file_is_named():
    case = Case(Suite("s", Path("."), {}), "a", {}, None, broken="no JSON: x")
    assert [(row.passed, row.note) for row in case_rows(lambda case: None, case)] == [(False, "no JSON: x")]
