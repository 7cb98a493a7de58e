"""What a conversion writes."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convert_weights import Report, convert
from convert_weights.containers import SafetensorsFile
from convert_weights.recipe import rename, resolve
from convert_weights.sources import open_source
from tests.convert_weights import toy


def read_output(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def test_a_renamed_tensor_is_loaded_unchanged(run, output, state):
    run()
    assert torch.equal(read_output(output)["embed.weight"], state["emb.weight"])


def test_a_split_gives_consecutive_rows(run, output, state):
    run()
    tensors = read_output(output)
    for rows, name in zip(state["blk.1.qkv.weight"].split(8), "qkv"):
        assert torch.equal(tensors[f"blocks.1.{name}_proj.weight"], rows)


def test_functions_of_one_and_of_several_tensors_are_applied(run, output, state):
    run()
    tensors = read_output(output)
    assert torch.equal(tensors["patch.weight"], state["conv.weight"][:, :, 0])
    assert torch.allclose(tensors["adapter.weight"], state["ad.base"] + state["ad.b"] @ state["ad.a"])


def test_a_copied_block_equals_its_origin(run, output):
    run()
    tensors = read_output(output)
    copies = [name for name in tensors if name.startswith("twin.")]
    assert len(copies) == 16
    for name in copies:
        assert torch.equal(tensors[name], tensors[name.replace("twin.", "blocks.")])


def test_initial_values_are_seeded_by_name_and_have_the_stated_deviation(run, output, tmp_path):
    wide = tmp_path / "wide.safetensors"
    save_file(toy.checkpoint(width=512), wide)
    run({"toy": wide})
    queries = read_output(output)["queries"]
    assert 0.45 < queries.std() < 0.55
    convert("toy", {"toy": wide}, tmp_path / "again", progress=False, max_shard_size=2_000_000)
    assert torch.equal(read_output(tmp_path / "again")["queries"], queries)


def test_initial_values_do_not_depend_on_pieces_of_other_tensors(run, output):
    run()
    assert torch.equal(read_output(output)["scale"], torch.tensor([1 / 3, 2 / 3, 1.0]))


def test_a_tied_tensor_is_stored_once(run, output):
    report = run()
    assert "head.weight" not in read_output(output)
    assert report.tied == {"head.weight": "embed.weight"}


def test_a_second_copy_of_a_tied_tensor_is_dropped_when_equal(source, state, run, output):
    save_file(state | {"head.weight": state["emb.weight"].clone()}, source / "model.safetensors")
    report = run()
    assert report.dropped["toy:head.weight"] == "tied to embed.weight"


def test_a_tied_tensor_may_come_under_either_name(source):
    opened = {"toy": open_source("toy", source)}
    plan = toy.plan(opened, {})
    plan.load["toy"].insert(0, rename(r"emb\.weight", "head.weight"))
    assert str(resolve(plan, opened).entries["embed.weight"].reads[0]) == "toy:emb.weight"


def test_untied_embeddings_are_both_stored(source, state, run, output):
    save_file(state | {"head.weight": torch.ones(10, 8)}, source / "model.safetensors")
    run(config_overrides={"tie_word_embeddings": False})
    assert torch.equal(read_output(output)["head.weight"], torch.ones(10, 8))


def test_a_later_source_may_replace_and_the_report_says_so(run, output, source, tmp_path):
    save_file({"patch.weight": torch.ones(8, 8), "patch.bias": torch.ones(8)}, tmp_path / "patch.safetensors")
    report = run({"toy": source, "patch": tmp_path / "patch.safetensors"})
    assert torch.equal(read_output(output)["patch.bias"], torch.ones(8))
    assert report.dropped["toy:conv.bias"] == "replaced: patch.bias comes from patch:patch.bias"


def test_the_folder_loads_without_missing_or_unexpected_keys(run, output, state):
    run()
    model, info = toy.ToyModel.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.head.weight, state["emb.weight"])
    assert model.steps.tolist() == [1, 2, 3]


def test_shards_are_within_the_limit_and_load(run, output, state):
    run(max_shard_size=1200)
    shards = sorted(output.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(shard).values()) for shard in shards]
    assert max(sizes) <= 1200
    _, info = toy.ToyModel.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())


def test_one_file_and_many_shards_hold_the_same(run, output, tmp_path, source):
    run()
    convert("toy", {"toy": source}, tmp_path / "sharded", max_shard_size=600, progress=False)
    one, many = read_output(output), read_output(tmp_path / "sharded")
    assert one.keys() == many.keys() and all(torch.equal(one[key], many[key]) for key in one)


def test_every_tensor_starts_at_a_multiple_of_its_item_size(run, output):
    run(dtype="bfloat16")  # bf16, fp32 and int64 in one file
    file = SafetensorsFile(output / "model.safetensors")
    assert all(file._offsets[key] % info.dtype.itemsize == 0 for key, info in file.tensors.items())


def test_dtype_casts_floating_point_but_what_the_model_keeps_in_float32(run, output):
    run(dtype="bfloat16")
    tensors = read_output(output)
    assert tensors["embed.weight"].dtype == tensors["queries"].dtype == torch.bfloat16
    assert tensors["blocks.0.norm.weight"].dtype == torch.float32
    assert tensors["steps"].dtype == torch.int64
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_without_dtype_new_tensors_follow_the_loaded_ones(source, state, run, output):
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, source / "model.safetensors")
    run()
    assert {tensor.dtype for tensor in read_output(output).values()} == {torch.bfloat16, torch.int64}


def test_scalars_and_empty_tensors_pass(tmp_path):
    save_file({"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}, tmp_path / "odd.safetensors")
    file = SafetensorsFile(tmp_path / "odd.safetensors")
    assert file.read("scalar").item() == 3.5 and file.read("empty").shape == (0, 4)


def test_the_report_accounts_for_every_tensor_of_both_sides(run, output, state):
    report = run()
    assert Report.load(output) == report
    with safe_open(output / "model.safetensors", "pt") as file:
        assert set(report.tensors) == set(file.keys())
    used = " ".join(tensor["from"] for tensor in report.tensors.values())
    assert all(key in used or f"toy:{key}" in report.dropped for key in state)
    assert report.dropped == {"toy:aux.head.weight": "only used in training"}
    assert report.notes == ["toys have no processor"]


def test_the_summary_counts_tensors_and_parameters(run):
    summary = run().summary
    assert [summary[action]["tensors"] for action in ("loaded", "transformed", "copied", "initialised")] == [
        7,
        14,
        16,
        2,
    ]
    assert summary["total"]["parameters"] == sum(summary[a]["parameters"] for a in list(summary)[:4])
    assert sum(summary[a]["percent"] for a in list(summary)[:4]) == pytest.approx(100, abs=1e-3)


def test_the_report_has_the_hashes_of_sources_and_outputs(run, output, source):
    import hashlib

    report = run()
    expected = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert report.sources[0]["files"][0]["sha256"] == expected
    present = {path.name for path in output.iterdir()} - {"conversion_report.json"}
    assert set(report.outputs) == present and "vocab.txt" in present
    for name, facts in report.outputs.items():
        assert facts["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()


def test_the_report_names_no_place_on_this_machine(run, output, tmp_path):
    run()
    assert str(tmp_path) not in (output / "conversion_report.json").read_text()


def test_a_dry_run_reports_the_same_and_writes_nothing(run, output):
    planned = run(dry_run=True)
    assert not output.parent.exists()
    done = run()
    assert planned.tensors == done.tensors and planned.dropped == done.dropped


def test_nothing_is_left_beside_the_output(run, output):
    run()
    assert [path.name for path in output.parent.iterdir()] == ["output"]


def test_an_empty_output_folder_is_used(run, output):
    output.mkdir(parents=True)
    run()
    assert (output / "config.json").is_file()


def test_a_pickle_gives_the_same_as_safetensors(run, output, tmp_path, state):
    torch.save({"epoch": 3, "model": state}, tmp_path / "checkpoint.pth")
    report = run({"toy": tmp_path / "checkpoint.pth"})
    assert torch.equal(read_output(output)["embed.weight"], state["emb.weight"])
    assert report.dropped["toy:epoch"] == "beside the weights in the checkpoint"


def test_shards_give_the_same_as_one_file(run, output, sharded, state):
    run({"toy": sharded})
    assert torch.equal(read_output(output)["adapter.weight"], state["ad.base"] + state["ad.b"] @ state["ad.a"])


def test_the_table_names_actions_reasons_and_notes(run):
    table = run(dry_run=True).table(details=True)
    for text in (
        "transformed",
        "toy:blk.0.qkv.weight[8:16]",
        "only used in training",
        "add_low_rank(toy:ad.base, toy:ad.a",
    ):
        assert text in table
