"""Where checkpoints may come from."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from convert_weights.containers import SafetensorsFile
from convert_weights.recipe import skeleton
from convert_weights.sources import open_source
from tests.convert_weights import toy

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub cache and no network; call it with a repository id and the files to put there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def publish(repo, files, kind="models", revision="main"):
        folder = tmp_path / "hub" / f"{kind}--{repo.replace('/', '--')}"
        for path in files:
            place = folder / "snapshots" / COMMIT / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        (folder / "refs").mkdir()
        (folder / "refs" / revision).write_text(COMMIT)

    return publish


def test_a_view_of_the_file_holds_no_copy(source, state):
    file = SafetensorsFile(source / "model.safetensors")
    first, second = file.read("emb.weight"), file.read("emb.weight")
    assert torch.equal(first, state["emb.weight"]) and first.data_ptr() == second.data_ptr()


def test_writing_to_a_view_leaves_the_file_alone(source, state):
    open_source("toy", source).read("emb.weight").zero_()
    assert torch.equal(open_source("toy", source).read("emb.weight"), state["emb.weight"])


def test_a_file_larger_than_memory_can_be_mapped(tmp_path):
    """1 TB, all holes; on Linux a private writable mapping of it needs the flag against reservation."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [10**12], "data_offsets": [0, 10**12]}}).encode()
    with open(tmp_path / "huge.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 10**12)
    tensor = open_source("toy", tmp_path / "huge.safetensors").read("a", (10**12 - 2, 10**12))
    assert tensor.tolist() == [0, 0]


def test_rows_are_a_view(source, state):
    opened = open_source("toy", source)
    rows = opened.read("blk.0.qkv.weight", (8, 16))
    assert torch.equal(rows, state["blk.0.qkv.weight"][8:16])
    assert rows.data_ptr() == opened.read("blk.0.qkv.weight")[8:].data_ptr()


def test_config_and_other_json_beside_the_weights(source):
    (source / "config.json").write_text('{"model_type": "toy"}')
    opened = open_source("toy", source / "model.safetensors")
    assert opened.config == {"model_type": "toy"} and opened.json("absent.json") == {}


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_a_pickle_with_and_without_wrapper(tmp_path, state, wrapper):
    content = {wrapper: state, "epoch": 7, "optimizer": {"state": {}}} if wrapper else state
    torch.save(content, tmp_path / "checkpoint.pt")
    opened = open_source("toy", tmp_path / "checkpoint.pt")
    assert set(opened.keys()) == set(state) and torch.equal(opened.read("conv.bias"), state["conv.bias"])
    assert set(opened.ignored) == ({"epoch", "optimizer"} if wrapper else set())


def test_an_entry_of_a_pickle_by_name(tmp_path, state):
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"shadow": state}}, tmp_path / "checkpoint.pth")
    opened = open_source("toy", f"{tmp_path / 'checkpoint.pth'}#ema.shadow")
    assert set(opened.keys()) == set(state)


def test_a_pickle_of_the_old_format(tmp_path, state):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(open_source("toy", tmp_path / "old.pth").read("conv.bias"), state["conv.bias"])


def test_parameters_and_transposed_tensors_in_a_pickle(tmp_path, state):
    torch.save({"a": torch.nn.Parameter(state["conv.bias"]), "b": state["emb.weight"].T}, tmp_path / "mixed.pth")
    opened = open_source("toy", tmp_path / "mixed.pth")
    assert not opened.read("a").requires_grad and opened.shape("b") == (8, 10)


def test_pickled_shards(tmp_path, state):
    keys = list(state)
    for number, part in enumerate((keys[:4], keys[4:]), 1):
        torch.save({key: state[key] for key in part}, tmp_path / f"pytorch_model-{number}.bin")
    names = {key: f"pytorch_model-{1 + (key not in keys[:4])}.bin" for key in keys}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert set(open_source("toy", tmp_path).keys()) == set(state)


def test_safetensors_come_before_pickles(source, state):
    torch.save({"other": torch.ones(1)}, source / "pytorch_model.bin")
    assert "other" not in open_source("toy", source)


def test_a_key_list_tells_shapes_and_the_dtypes_it_knows(tmp_path):
    entries = {"a": ["unknown", [2, 3]], "b": ["bfloat16 (inferred)", [4]]}
    (tmp_path / "keys.json").write_text(json.dumps({"note": "x", "Big": entries}))
    opened = open_source("toy", f"{tmp_path / 'keys.json'}#Big")
    assert opened.shape("a") == (2, 3) and opened.info("a").dtype is None and opened.info("b").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="pick one of .*Big"):
        open_source("toy", tmp_path / "keys.json")


def test_a_model_repository(hub, source, state):
    (source / "config.json").write_text('{"width": 8}')
    hub("someone/toy", source.iterdir())
    opened = open_source("toy", "someone/toy")
    assert set(opened.keys()) == set(state) and opened.config == {"width": 8} and opened.location == "someone/toy"


def test_a_revision(hub, source, state):
    hub("someone/toy", source.iterdir(), revision="v1.0")
    assert set(open_source("toy", "someone/toy@v1.0").keys()) == set(state)
    with pytest.raises(FileNotFoundError):
        open_source("toy", "someone/toy")


def test_a_file_of_a_dataset_repository(hub, tmp_path, state):
    torch.save({"model": state}, tmp_path / "checkpoint_mask.pt")
    torch.save({"model": {}}, tmp_path / "checkpoint_nomask.pt")
    hub("someone/weights", tmp_path.glob("*.pt"), kind="datasets")
    assert set(open_source("toy", "datasets/someone/weights:checkpoint_mask.pt").keys()) == set(state)


def test_a_repository_that_cannot_be_had(hub):
    with pytest.raises(FileNotFoundError, match="`toy`: someone/absent is no path here, and the Hub does not give it"):
        open_source("toy", "someone/absent")


def test_a_file_that_the_repository_lacks(hub, source):
    hub("someone/toy", source.iterdir())
    with pytest.raises(FileNotFoundError, match="someone/toy on the Hub has no `absent.pt`"):
        open_source("toy", "someone/toy:absent.pt")


def test_the_skeleton_has_no_storage_and_no_tied_names():
    layout = skeleton(toy.ToyModel, toy.ToyConfig(width=1024, vocab_size=50_000_000))  # 205 GB if it were real
    assert layout.tensors["embed.weight"].shape == (50_000_000, 1024)
    assert layout.tied == {"head.weight": "embed.weight"} and "head.weight" not in layout.tensors
    assert layout.tensors["steps"].dtype == torch.int64


def test_a_key_in_two_shards(tmp_path):
    for number in (1, 2):
        save_file({"a": torch.ones(1), f"b{number}": torch.ones(1)}, tmp_path / f"{number}.safetensors")
    weight_map = {"a": "1.safetensors", "b1": "1.safetensors", "b2": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="2.safetensors holds `a`"):
        open_source("toy", tmp_path)
