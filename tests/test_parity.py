"""The parity harness: it passes on every reference folder, and fails on whatever should make it fail."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model_checks import kind_of
from tests.parity import adapters, convert_suite, format_table, load_adapter, main, run_parity
from tests.parity_cases import Case, Suite, Tolerance, find_suites, find_tolerance
from tests.parity_results import Models, Result, Value, compare_case, compare_tensor

SMALL = Path(__file__).parent / "reference"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "reference"


def failures(rows) -> list[str]:
    return [f"{row.case} {row.tensor}: {row.note} ({row.difference})" for row in rows if row.passed is False]


# --------------------------------------------------------------------------------------
# Every architecture
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [arch for arch in adapters() if any((SMALL / arch).rglob("cases.json"))])
def test_small_reference_cases_pass(arch, capsys):
    status = main([arch, str(SMALL / arch)])
    table = capsys.readouterr().out
    assert status == 0, table
    assert re.search(r"[1-9]\d* passed, 0 failed", table.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("arch", adapters())
def test_shared_reference_cases_pass(arch):
    if not (SHARED / arch).is_dir():
        pytest.skip("the full reference folder is not beside the checkout")
    rows = run_parity(arch, SHARED / arch)
    assert failures(rows) == []
    assert any(row.passed for row in rows)


def test_every_reference_folder_has_an_adapter():
    assert {path.name for path in SMALL.iterdir() if path.is_dir()} <= set(adapters())


# --------------------------------------------------------------------------------------
# DSR: weights, names, sizes
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(adapter, suite, models) of DSR's small reference folder, in this process."""
    adapter = load_adapter("dsr")
    suite = next(suite for suite in find_suites(SMALL / "dsr") if suite.files("config.json"))
    folders, _ = convert_suite(adapter, suite, "dsr", tmp_path_factory.mktemp("converted"))
    return adapter, suite, Models(folders, isolated=False)


def some_case_fails(adapter, cases, models) -> bool:
    return any(failures(compare_case(case, adapter.run_case(case, models))) for case in cases)


# DINO's mask token belongs to its own training; no forward pass of DSR reads it. A bias of the keys adds the same
# number to all logits of a query, which a softmax without rotary positions does not see.
WITHOUT_EFFECT = {
    "model.geometry_encoder.embeddings.mask_token",
    "model.geometry_encoder.encoder.layer.*.attention.k_proj.bias",
}


def test_a_changed_weight_of_any_kind_fails(converted):
    """Every parameter kind moved by a few per cent of its own size, one at a time, is noticed by some case."""
    from transformers import AutoModelForImageTextToText

    adapter, suite, models = converted
    cases = [case for case in suite.cases if "input_ids" in case.inputs]
    model = models.load(AutoModelForImageTextToText)
    assert not some_case_fails(adapter, cases, models)
    kinds = {kind_of(name): name for name, _ in model.named_parameters()}
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    unnoticed = []
    for kind, name in kinds.items():
        original = parameters[name].detach().clone()
        with torch.no_grad():
            noise = torch.randn(original.shape, generator=generator)
            parameters[name].add_(0.05 * original.abs().mean().clamp_min(0.1) * noise)
        if not some_case_fails(adapter, cases, models):
            unnoticed.append(kind)
        with torch.no_grad():
            parameters[name].copy_(original)
    assert set(unnoticed) == WITHOUT_EFFECT


def test_a_changed_checkpoint_fails(tmp_path):
    """The same through the converter and the isolated process: the file is what is checked, not a copy in memory."""
    shutil.copytree(SMALL / "dsr", tmp_path / "dsr")
    keep_cases(tmp_path / "dsr", lambda case: "labels" not in json.dumps(case) and "call" not in case)
    file = tmp_path / "dsr" / "tiny" / "checkpoint" / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"] = state["model.norm.weight"] * 1.05
    save_file(state, file, {"format": "pt"})
    rows = run_parity("dsr", tmp_path / "dsr")
    assert any("output.logits" in failure for failure in failures(rows))


def keep_cases(reference: Path, wanted) -> None:
    file = reference / "tiny" / "cases.json"
    document = json.loads(file.read_text())
    dropped = [case for case in document["cases"] if not wanted(case)]
    document["cases"] = [case for case in document["cases"] if wanted(case)]
    for case in dropped:
        (file.parent / case["file"]).unlink()
    file.write_text(json.dumps(document))


def test_other_names_fewer_tensors_and_other_sizes_pass(tmp_path):
    """One folder with the known cases renamed and thinned out, and one with another model altogether."""
    renamed, other = tmp_path / "reference" / "one", tmp_path / "reference" / "two"
    shutil.copytree(SMALL / "dsr" / "tiny", renamed)
    rename_and_thin(renamed)
    write_other_size(other)
    rows = run_parity("dsr", tmp_path / "reference")
    assert failures(rows) == []
    assert {row.suite for row in rows if row.passed} == {"one", "two"}
    assert not any(row.case in ("train_row", "generate") for row in rows)


def rename_and_thin(folder: Path) -> None:
    document = json.loads((folder / "cases.json").read_text())
    names = {case["name"]: f"number_{i}" for i, case in enumerate(document["cases"])}
    for case in document["cases"]:
        old = folder / case["file"]
        case["name"], case["file"] = names[case["name"]], f"{names[case['name']]}.safetensors"
        if "other_inputs_from" in case:
            case["other_inputs_from"] = names[case["other_inputs_from"]]
        tensors = load_file(old)
        results = sorted(name for name in tensors if not name.startswith("input."))
        thinned = {name: t for name, t in tensors.items() if name not in results[1::2] or name.endswith("sequences")}
        save_file(thinned, folder / case["file"])
        old.unlink()
    document["cases"].reverse()
    (folder / "cases.json").write_text(json.dumps(document))


def write_other_size(folder: Path) -> None:
    """A reference folder around another tiny model: its weights in the published layout, its outputs as goldens."""
    from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
    from tests.model_checks import randomize
    from tests.modeling_dsr import dsr_samples as samples

    config = samples.tiny_config(question_scope="published")
    model = DSRForConditionalGeneration(config).eval()
    randomize(model, seed=3)
    checkpoint = folder / "weights"
    checkpoint.mkdir(parents=True)
    save_file(published_layout(model.state_dict()), checkpoint / "model.safetensors", {"format": "pt"})
    text, vision, geometry = config.text_config.to_dict(), config.vision_config.to_dict(), config.geometry_config
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    published = {**text, **{name: getattr(config, name) for name in ids}, "vision_token_id": config.vision_pad_token_id}
    published |= {"model_type": "qwen2_5_vl", "vision_config": vision, "tie_word_embeddings": False}
    (checkpoint / "config.json").write_text(json.dumps(published))

    inputs = samples.collate([samples.sample(5, videos=((2, 4, 6),), words=8)])
    with torch.no_grad():
        logits = model(**inputs).logits
    stored = {f"input.{name}": tensor for name, tensor in inputs.items()}
    save_file({**stored, "output.logits": logits}, folder / "anything.safetensors")
    document = {
        "special_ids": {"im_start": samples.IM_START, "im_end": samples.IM_END, "endoftext": samples.END_OF_TEXT},
        "dino": {
            "img_size": geometry.image_size,
            "dim": geometry.hidden_size,
            "depth": geometry.num_hidden_layers,
            "heads": geometry.num_attention_heads,
        },
        "cases": [{"name": "a", "file": "anything.safetensors", "tolerance": {"abs": 1e-4}}],
    }
    (folder / "cases.json").write_text(json.dumps(document))


def published_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The library's parameters under the names of the published checkpoint, with the encoder's fused projections."""
    prefix = "model.geometry_encoder."
    renames = [
        (r"model\.language_model\.", "model."),
        (r"model\.visual\.", "visual."),
        (r"model\.geometry_selection\.", "visual."),
        (rf"{prefix}embeddings\.(cls_token|register_tokens)", r"visual.spatial_encoder.\1"),
        (rf"{prefix}embeddings\.position_embeddings", "visual.spatial_encoder.pos_embed"),
        (rf"{prefix}embeddings\.patch_embeddings\.projection", "visual.spatial_encoder.patch_embed.proj"),
        (rf"{prefix}layernorm", "visual.spatial_encoder.norm"),
        (rf"{prefix}encoder\.layer\.(\d+)\.attention\.(?:\w+\.)*o_proj", r"visual.spatial_encoder.blocks.\1.attn.proj"),
        (rf"{prefix}encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"visual.spatial_encoder.blocks.\1.ls\2.gamma"),
        (rf"{prefix}encoder\.layer\.(\d+)\.", r"visual.spatial_encoder.blocks.\1."),
    ]
    published, fused = {}, {}
    for name, tensor in state.items():
        if name.endswith("mask_token"):
            continue
        layer = re.fullmatch(rf"{prefix}encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", name)
        if layer:
            fused.setdefault(f"visual.spatial_encoder.blocks.{layer[1]}.attn.qkv.{layer[3]}", {})[layer[2]] = tensor
            continue
        for pattern, replacement in renames:
            renamed, count = re.subn(rf"^{pattern}", replacement, name)
            if count:
                name = renamed
                break
        published[name] = tensor.contiguous()
    return published | {name: torch.cat([parts[x] for x in "qkv"]) for name, parts in fused.items()}


# --------------------------------------------------------------------------------------
# Comparison
# --------------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path) -> Case:
    """Two stored results, one of integers."""
    save_file(
        {"input.x": torch.ones(2), "output.y": torch.ones(2, 3), "output.n": torch.arange(3)},
        tmp_path / "case_a.safetensors",
    )
    (tmp_path / "cases.json").write_text(json.dumps({"cases": [{"name": "a", "tolerance": 1e-3}]}))
    return find_suites(tmp_path)[0].cases[0]


def good() -> dict[str, torch.Tensor]:
    return {"output.y": torch.ones(2, 3), "output.n": torch.arange(3)}


def test_equal_results_pass(case):
    assert [row.passed for row in compare_case(case, Result(good()))] == [True, True]


def test_a_result_that_is_not_produced_fails(case):
    tensors = good()
    del tensors["output.y"]
    assert failures(compare_case(case, Result(tensors))) == ["a output.y: not produced (None)"]


def test_a_case_that_does_not_run_fails_with_its_reason(case):
    rows = compare_case(case, None, "did not run: ValueError: no")
    assert [(row.passed, row.note) for row in rows] == [(False, "did not run: ValueError: no")] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"output.y": torch.full((2, 3), 1.002)},
        {"output.y": torch.full((2, 3), float("nan"))},
        {"output.y": torch.full((2, 3), float("inf"))},
        {"output.y": torch.ones(3, 2)},
        {"output.y": torch.ones(2, 3, dtype=torch.long)},
        {"output.n": torch.tensor([0, 1, 3])},
        {"output.n": torch.arange(3.0)},
    ],
)
def test_what_differs_fails(case, change):
    assert len(failures(compare_case(case, Result(good() | change)))) == 1


def test_nan_fails_even_where_nan_is_stored(case):
    nan = torch.tensor([float("nan")])
    assert compare_tensor(nan, nan, Tolerance(atol=1.0))[1]


def test_an_upstream_bug_is_named_and_not_compared(case):
    buggy = replace(case, meta={**case.meta, "upstream_bug": ["y"]})
    rows = {row.tensor: row for row in compare_case(buggy, Result({"output.n": torch.arange(3)}))}
    assert rows["output.y"].passed is None and rows["output.y"].note == "upstream bug, not reproduced"


def test_an_optional_result_may_be_missing_but_not_wrong(case):
    optional = replace(case, meta={**case.meta, "parity": "optional"})
    assert failures(compare_case(optional, Result({}))) == []
    assert len(failures(compare_case(optional, Result({"output.y": torch.zeros(2, 3)})))) == 1


def test_a_mask_limits_the_comparison_and_may_not_be_empty(case):
    padded = good() | {"output.y": torch.tensor([[1.0] * 3, [9.0] * 3])}
    where = {"output.y": torch.tensor([True, False])}
    assert failures(compare_case(case, Result(padded, where=where))) == []
    assert len(failures(compare_case(case, Result(padded, where={"output.y": torch.zeros(2)})))) == 1


def test_gradient_norms_of_the_json_are_compared(case):
    listed = Case(case.suite, "a", {**case.meta, "grad_norms": {"w": 2.0, "unused": None}}, case.path)
    found = good() | {"grad_norms.w": torch.tensor(2.0), "grad_norms.unused": None}
    assert failures(compare_case(listed, Result(found))) == []
    assert len(failures(compare_case(listed, Result(found | {"grad_norms.w": None, "grad_norms.unused": 1.0})))) == 2


def test_a_stored_file_without_an_entry_is_still_a_case(case):
    save_file({"output.z": torch.ones(1)}, case.suite.folder / "case_forgotten.safetensors")
    (suite,) = find_suites(case.suite.folder)
    assert failures(compare_case(suite.case("forgotten"), None)) == ["forgotten output.z: not produced (None)"]


def test_a_missing_file_fails(case):
    case.path.unlink()
    assert failures(compare_case(case, Result({}))) == ["a (all): case_a.safetensors is missing (None)"]


def test_sections_of_a_json_file_must_be_compared(tmp_path):
    (tmp_path / "vectors.json").write_text(json.dumps({"rule": "text", "sizes": [1, 2], "words": {"a": "b"}}))
    (suite,) = find_suites(tmp_path)
    values = [Value("sizes.0", 1, 1), Value("words.a", "b", "c")]
    rows = compare_case(suite.cases[0], Result(values=values))
    assert failures(rows) == ["vectors words.a: 'c', stored 'b' (None)"]
    assert failures(compare_case(suite.cases[0], Result(values=values[:1])))[-1].startswith(
        "vectors words: not produced"
    )


def test_the_table_counts_and_marks(case):
    table = format_table(compare_case(case, Result({"output.n": torch.arange(3)})))
    assert "FAIL  not produced" in table and table.endswith("1 passed, 1 failed, 0 not compared")


def test_an_unknown_architecture_is_refused(capsys):
    assert main(["nothing", "."]) == 2
    assert "there are adapters for" in capsys.readouterr().err


# --------------------------------------------------------------------------------------
# Tolerances, in every form that the reference folders use
# --------------------------------------------------------------------------------------

GROUPS = {
    "logits/hidden": {"atol": 3e-4, "rtol": 1e-3},
    "embeds": {"atol": 2e-5},
    "grads": {"atol": 1e-5},
    "ids": "exact",
}
PLAIN = {"logits_and_intermediates_abs": 2e-4, "loss_abs": 1e-5, "int_tensors": "exact", "grad_abs": 3e-4}


@pytest.mark.parametrize(
    "spec, tensor, expected",
    [
        (0.5, "output.y", Tolerance(atol=0.5)),
        ({"abs": 1e-5}, "output.y", Tolerance(atol=1e-5)),
        ({"atol": 1e-4, "rtol": 1e-5}, "output.y", Tolerance(atol=1e-4, rtol=1e-5)),
        (PLAIN, "output.logits", Tolerance(atol=2e-4)),
        (PLAIN, "output.loss", Tolerance(atol=1e-5)),
        (PLAIN, "output.grad.a.weight", Tolerance(atol=3e-4)),
        (PLAIN, "grad_norms.a.weight", Tolerance(atol=3e-4)),
        (PLAIN, "output.something_new", Tolerance(atol=2e-4)),
        (GROUPS, "intermediate.hidden_states.1", Tolerance(atol=3e-4, rtol=1e-3)),
        (GROUPS, "output.point_embeds", Tolerance(atol=2e-5)),
        (GROUPS, "output.something_new", Tolerance(atol=2e-5)),
        ({"output.masks": 2e-3, "default": 1e-3}, "output.masks", Tolerance(atol=2e-3)),
        ({"output.masks": 2e-3, "default": 1e-3}, "output.boxes", Tolerance(atol=1e-3)),
        ({"losses": 1e-5, "grads_rel_to_max": 5e-3}, "output.grad.w", Tolerance(rtol_of_max=5e-3)),
        ({"pixel values": {"max_abs": 0.02, "mean_abs": 1e-3}}, "output.patches", Tolerance(atol=0.02, mean_abs=1e-3)),
        ("atol 2e-4 rtol 1e-4", "output.y", Tolerance(atol=2e-4, rtol=1e-4)),
        ("rtol 2e-3, atol 2e-4*max|grad|", "output.grad.w", Tolerance(rtol=2e-3, rtol_of_max=2e-4)),
        ("1e-3 relative", "output.K", Tolerance(rtol_of_max=1e-3)),
        ("bool masks exact; normals 1e-5", "output.normals", Tolerance(atol=1e-5)),
        ("logits atol 2e-4; embeds exact", "intermediate.embeds", Tolerance()),
        ("exact with the same resampling", "output.y", Tolerance()),
        ("atol 4.0 (scaled by 2e4), bounds exact", "output.y", Tolerance(atol=4.0, bounds_exact=True)),
    ],
)
def test_tolerance_of(spec, tensor, expected):
    case = Case(Suite("s", Path("."), {}), "a", {"tolerance": spec}, None)
    assert find_tolerance(case, tensor) == expected


def test_a_float_without_any_tolerance_fails():
    assert compare_tensor(torch.ones(1), torch.ones(1), None) == (0.0, "cases.json gives no tolerance")


def test_bounds_may_have_to_be_exact():
    stored, tolerance = torch.tensor([1.0, 0.5]), Tolerance(atol=0.1, bounds_exact=True)
    assert compare_tensor(stored, torch.tensor([1.0, 0.55]), tolerance)[1] == ""
    assert compare_tensor(stored, torch.tensor([0.99, 0.5]), tolerance)[1] == "clamped elements differ"
