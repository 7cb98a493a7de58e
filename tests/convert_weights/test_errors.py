"""Faulty sources and places: a clear error that names file and key, and nothing left behind."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_weights import convert
from tests.convert_weights import toy
from tests.convert_weights.forks import run_script
from tests.convert_weights.upstream_layouts import write_sparse_shards

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def save(source):
    """Replaces the checkpoint by another."""
    return lambda state: save_file(state, source / "model.safetensors")


def fails(run, *words, error=ValueError, **options):
    with pytest.raises(error) as caught:
        run(**options)
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} not in: {message}"


# ---- files


def test_truncated_data(run, source):
    path = source / "model.safetensors"
    last = max(_header(path).items(), key=lambda item: item[1]["data_offsets"])[0]
    os.truncate(path, path.stat().st_size - 4)
    fails(run, str(path), "truncated", f"`{last}`")


def test_truncated_header(run, source):
    path = source / "model.safetensors"
    os.truncate(path, 100)
    fails(run, str(path), "truncated")


def test_empty_file(run, source):
    (source / "model.safetensors").write_bytes(b"")
    fails(run, "model.safetensors", "truncated")


def test_bytes_after_the_last_tensor(run, source):
    with open(source / "model.safetensors", "ab") as file:
        file.write(b"1234")
    fails(run, "model.safetensors", "4 bytes after its last tensor")


def test_offsets_that_overlap(run, source):
    path = source / "model.safetensors"
    text = path.read_bytes()
    header = _header(path)
    key, entry = next(iter(header.items()))
    header[key] = {**entry, "shape": [1]}
    _write_header(path, header, text)
    fails(run, str(path), f"`{key}`", "damaged")


def test_git_lfs_pointer(run, source):
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    fails(run, "model.safetensors", "git lfs pull")


def test_other_content_under_the_name(run, source):
    (source / "model.safetensors").write_text("<!doctype html>" * 20)
    fails(run, "model.safetensors", "not a safetensors file")


def test_missing_shard(run, sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    key = list(toy.checkpoint())[5]
    fails(run, "model-00002-of-00002.safetensors", f"`{key}`", error=FileNotFoundError, sources={"toy": sharded})


def test_shard_with_a_key_that_the_index_does_not_list(run, sharded):
    shard = sharded / "model-00001-of-00002.safetensors"
    save_file(load_file(shard) | {"surprise": torch.ones(1)}, shard)
    fails(run, shard.name, "`surprise`", "does not list", sources={"toy": sharded})


def test_shard_without_a_key_that_the_index_lists(run, sharded):
    shard = sharded / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    key = next(iter(tensors))
    del tensors[key]
    save_file(tensors, shard)
    fails(run, shard.name, f"`{key}`", sources={"toy": sharded})


def test_several_files_without_an_index(run, sharded):
    (sharded / "model.safetensors.index.json").unlink()
    fails(run, "no index", sources={"toy": sharded})


def test_broken_index(run, sharded):
    (sharded / "model.safetensors.index.json").write_text("{")
    fails(run, "model.safetensors.index.json", "JSON", sources={"toy": sharded})


def test_broken_config(run, source):
    (source / "config.json").write_text("{]")
    fails(run, "config.json", "JSON")


def test_folder_without_weights(run, source):
    (source / "model.safetensors").unlink()
    fails(run, str(source), "no weights", error=FileNotFoundError)


def test_path_that_does_not_exist(run):
    fails(run, "/nowhere/at/all", "`toy`", error=FileNotFoundError, sources={"toy": "/nowhere/at/all"})


# ---- pickles


class Dangerous:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def pickled(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth")
    return {"toy": tmp_path / "checkpoint.pth"}


def test_pickle_that_runs_code(run, tmp_path):
    fails(run, "checkpoint.pth", "not a plain state dict", "system", sources=pickled(tmp_path, {"a": Dangerous()}))


def test_pickle_of_a_list(run, tmp_path):
    fails(run, "checkpoint.pth", "not a plain state dict", "list", sources=pickled(tmp_path, [torch.ones(1)]))


def test_pickle_without_tensors(run, tmp_path):
    fails(run, "checkpoint.pth", "`epoch` (int)", sources=pickled(tmp_path, {"epoch": 1}))


def test_pickle_with_two_state_dicts(run, tmp_path, state):
    fails(run, "checkpoint.pth", "#NAME", sources=pickled(tmp_path, {"model": state, "state_dict": state}))


def test_pickle_without_the_entry_asked_for(run, tmp_path, state):
    sources = {"toy": f"{pickled(tmp_path, {'model': state})['toy']}#ema"}
    fails(run, "checkpoint.pth", "`ema`", "`model`", sources=sources)


def test_truncated_pickle(run, tmp_path, state):
    sources = pickled(tmp_path, state)
    os.truncate(sources["toy"], sources["toy"].stat().st_size // 2)
    fails(run, "checkpoint.pth", "truncated", sources=sources)


def test_pickle_of_other_content(run, tmp_path):
    (tmp_path / "checkpoint.pth").write_bytes(b"no pickle at all")
    fails(run, "checkpoint.pth", "truncated or of another kind", sources={"toy": tmp_path / "checkpoint.pth"})


# ---- tensors


def test_wrong_shape(run, save, state):
    save(state | {"conv.bias": torch.zeros(9)})
    fails(run, "model.safetensors", "toy:conv.bias [9]", "patch.bias [8]")


def test_wrong_shape_after_a_function(run, save, state):
    save(state | {"conv.weight": torch.zeros(8, 8, 2)})
    fails(run, "model.safetensors", "flatten_kernel(toy:conv.weight) [8, 16]", "patch.weight [8, 8]")


def test_rows_that_cannot_be_split(run, save, state):
    save(state | {"blk.0.qkv.bias": torch.zeros(25)})
    fails(run, "toy:blk.0.qkv.bias [25]", "cannot be split")


def test_wrong_dtype(run, save, state):
    save(state | {"conv.bias": torch.zeros(8, dtype=torch.int32)})
    fails(run, "model.safetensors", "toy:conv.bias", "torch.int32", "torch.float32")


def test_wrong_integer_dtype(run, save, state):
    save(state | {"steps": torch.zeros(3, dtype=torch.int32)})
    fails(run, "toy:steps", "torch.int32", "torch.int64")


def test_quantised_weights(run, save, state):
    save(state | {"conv.bias": torch.zeros(8).to(torch.float8_e4m3fn)})
    fails(run, "toy:conv.bias", "quantised")


def test_extra_key(run, save, state):
    save(state | {"mystery.weight": torch.zeros(2)})
    fails(run, "toy:mystery.weight", "model.safetensors", "without a rule")


def test_missing_key(run, save, state):
    del state["conv.bias"]
    save(state)
    fails(run, "without a value", "patch.bias [8]")


def test_missing_partner(run, save, state):
    del state["ad.b"]
    save(state)
    fails(run, "toy:ad.b beside ad.base")


def test_all_problems_are_listed_at_once(run, save, state):
    save(state | {"mystery.weight": torch.zeros(2), "conv.bias": torch.zeros(9)})
    fails(run, "mystery.weight", "conv.bias")


def test_two_values_for_one_target(source, output, tmp_path, monkeypatch):
    save_file({"patch.bias": torch.ones(8)}, tmp_path / "patch.safetensors")
    from convert_weights.recipe import rename

    plan = toy.plan

    def without_precedence(sources, overrides):
        made = plan(sources, overrides)
        made.load["patch"] = [rename(r"(patch\..+)", r"\1")]
        return made

    monkeypatch.setattr(toy, "plan", without_precedence)
    with pytest.raises(ValueError, match="patch.bias from toy:conv.bias and patch:patch.bias"):
        convert("toy", {"toy": source, "patch": tmp_path / "patch.safetensors"}, output, progress=False)


@pytest.mark.parametrize(
    "value, word", [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numbers_that_are_not_finite(run, save, state, value, word, dtype):
    bias = state["conv.bias"].to(dtype)
    bias[-1] = value
    save(state | {"conv.bias": bias})
    fails(run, word, "`conv.bias`", "model.safetensors", "`patch.bias`")


def test_a_nan_in_a_late_piece_of_a_big_tensor(run, save):
    state = toy.checkpoint(vocab_size=1_000_000)
    state["emb.weight"][-1, -1] = float("nan")
    save(state)
    fails(run, "NaN", "`emb.weight`", max_shard_size="8MB")


def test_overflow_by_a_cast(run, save, state):
    state["conv.bias"][3] = 1e6
    save(state)
    fails(run, "`conv.bias`", "1e+06", "another dtype", dtype="float16")


def test_tied_tensors_that_differ(run, save, state):
    save(state | {"head.weight": torch.ones(10, 8)})
    fails(run, "`head.weight`", "`emb.weight`", "tie_word_embeddings")


# ---- arguments


def test_unknown_architecture(output):
    with pytest.raises(ValueError, match="`arch` must be one of .*dsr.*got 'nonsense'"):
        convert("nonsense", {}, output)


def test_sources_that_the_architecture_does_not_take(run, source):
    fails(run, "`toy` or `toy` + `patch`", "['other']", sources={"other": source})


@pytest.mark.parametrize("dtype", ["int8", "float", "bf16", torch.int64])
def test_unknown_dtype(run, dtype):
    fails(run, "`dtype`", "bfloat16", dtype=dtype)


@pytest.mark.parametrize("size", ["5 apples", "GB", "0", -1])
def test_unreadable_shard_size(run, size):
    fails(run, "`max_shard_size`", "5GB", max_shard_size=size)


def test_override_of_an_unknown_field(run):
    fails(run, "hiden_size", "ToyConfig", config_overrides={"hiden_size": 3})


def test_key_list_in_place_of_weights(run, tmp_path, state):
    entries = {key: ["unknown", list(value.shape)] for key, value in state.items() if value.is_floating_point()}
    entries["steps"] = ["int64", [3]]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": entries}))
    sources = {"toy": tmp_path / "keys.json"}
    assert run(sources, dry_run=True).summary["total"]["tensors"] == 39
    fails(run, "keys.json", "not weights", sources=sources)


# ---- place


def test_disk_that_is_too_small(tmp_path, output):
    """A sparse checkpoint of 8 TB: refused before anything is written."""
    rows = 500 * 10**9
    folder = tmp_path / "huge"
    write_sparse_shards(folder, {"emb.weight": (rows, 8)}, 2**62)
    state = toy.checkpoint()
    del state["emb.weight"]
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, folder / "rest.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(half, "rest.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="needs 8000.* GB, the disk has .* GB free.*output"):
        convert("toy", {"toy": folder}, output, progress=False)


def test_disk_that_fills_up_on_the_way(source, output):
    """A limit on file sizes stands for the full disk: writes fail in the same place."""
    save_file(toy.checkpoint(vocab_size=100_000), source / "model.safetensors")
    script = f"""
import resource, signal, sys
from convert_weights import ARCHITECTURES, convert
ARCHITECTURES["toy"] = "tests.convert_weights.toy"
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    convert("toy", {{"toy": {str(source)!r}}}, {str(output)!r}, progress=False)
except OSError as error:
    print(type(error).__name__, error)
"""
    said = run_script(script)[1]
    assert "while writing the weights" in said and str(output) in said, said


def _header(path):
    text = path.read_bytes()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    header.pop("__metadata__", None)
    return header


def _write_header(path, header, text):
    data = text[8 + int.from_bytes(text[:8], "little") :]
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data)


class TestOutputThatIsTaken:
    """Errors about the place itself, which stays as it was."""

    pytestmark = []

    @pytest.fixture
    def nothing_left(self):
        """The place existed before."""

    def test_folder_with_content(self, run, output):
        output.mkdir(parents=True)
        (output / "precious.txt").write_text("mine")
        fails(run, str(output), "already exists", error=FileExistsError)
        assert [path.name for path in output.parent.rglob("*")] == ["output", "precious.txt"]

    def test_file_of_that_name(self, run, output):
        output.parent.mkdir()
        output.write_text("mine")
        fails(run, str(output), "already exists", error=FileExistsError)
        assert output.read_text() == "mine"

    def test_other_process_at_work(self, source, output, run):
        with subprocess.Popen(
            [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
             "print('locked', flush=True); sys.stdin.read()", str(_journal(output))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as other:  # fmt: skip
            other.stdout.readline()
            fails(run, str(output), "in use", error=BlockingIOError)
            assert _journal(output).exists()  # theirs
            other.stdin.close()
        run()
        assert (output / "config.json").is_file()

    def test_a_failure_removes_what_an_interrupted_run_left(self, run, output, source, state):
        toy_interrupted(run, output)
        state["conv.bias"][0] = float("nan")
        save_file(state, source / "model.safetensors")
        fails(run, "NaN")
        assert not list(output.parent.iterdir()) if output.parent.exists() else True


def _journal(output):
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.with_name(f".{output.name}.journal")


def toy_interrupted(run, output):
    """Leaves an unfinished conversion."""

    def stop():
        if output.with_name(f".{output.name}.partial").exists():  # not while the plan is made
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "interrupt", stop)
        with pytest.raises(KeyboardInterrupt):
            run(max_shard_size=600)
