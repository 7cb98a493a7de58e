"""Sources that are damaged, odd or hostile: each is told in words (`ValueError`), and nothing hangs or swells."""

import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convert_weights import convert
from convert_weights.containers import SafetensorsFile
from convert_weights.pickles import MAX_CALLS, MAX_CONTAINERS, PickleFile
from convert_weights.sources import open_source
from dsr_toolkit.tiny.cadrille import write_cad_recode
from dsr_toolkit.tiny.qwen2_5_vl import write_qwen2_5_vl
from dsr_toolkit.tiny.sam import write_sam
from tests.convert_weights import toy

# --------------------------------------------------------------------------------------
# Safetensors
# --------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_header_is_a_value_error_or_harmless(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6).view(2, 3), "b": torch.ones(4)}, path)
    good = path.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for bit in range(8 * length):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            file = SafetensorsFile(path)
        except ValueError as error:
            refused += str(path) in str(error)
        else:  # a letter of a name, a space, a dtype of the same width
            assert sum(file.read(key).numel() for key in file.tensors) == 10
    assert refused > 4 * length


def header(path: Path, text: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


GOOD = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"7",
        b'"a"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{}}",
        b"\xff{}",
        *(json.dumps({"a": {**GOOD, name: value}}).encode() for name, value in (
            ("dtype", None), ("dtype", []), ("dtype", "C64"), ("shape", None), ("shape", 2), ("shape", [2.0]),
            ("shape", [True, 2]), ("shape", [-2]), ("shape", ["2"]), ("shape", [1] * 65), ("shape", [0, 2**63]),
            ("data_offsets", None), ("data_offsets", [0]), ("data_offsets", [0, "2"]), ("data_offsets", [-2, 0]),
            ("data_offsets", [2, 0]), ("data_offsets", {"0": 2}), ("data_offsets", [0, 2, 3]),
        )),
        *(json.dumps({"a": value}).encode() for value in (None, [], 7, "x", {}, {"dtype": "U8"})),
        json.dumps({"a": GOOD, "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}).encode(),
        ('{"a": {"dtype": "U8", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 2]}}').encode(),
    ],
)  # fmt: skip
def test_an_odd_header_is_a_value_error(content, tmp_path):
    with pytest.raises(ValueError, match="model.safetensors"):
        SafetensorsFile(header(tmp_path / "model.safetensors", content, b"xx"))


@pytest.mark.parametrize("shard", [None, 7, [], {}, "", "..", "../model.safetensors", "/etc/hostname", "a\0b", True])
def test_an_odd_weight_map_is_a_value_error(shard, tmp_path, sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["emb.weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="`weight_map` has .* for `emb.weight`"):
        open_source("toy", sharded)


@pytest.mark.parametrize("content", [{"a": None}, {"a": ["float32"]}, {"a": ["float32", [2.5]]}, {"a": [7, [2]]}])
def test_an_odd_key_list_is_a_value_error(content, tmp_path):
    (tmp_path / "keys.json").write_text(json.dumps({"keys": content}))
    with pytest.raises(ValueError, match="expected .dtype, shape."):
        open_source("toy", tmp_path / "keys.json")


# --------------------------------------------------------------------------------------
# Pickles
# --------------------------------------------------------------------------------------


def test_an_empty_pickle(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="empty.pt is empty"):
        open_source("toy", tmp_path / "empty.pt")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 10, 22])
def test_the_first_bytes_of_a_pickle(size, tmp_path, state):
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "begin.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:size])
    with pytest.raises(ValueError, match="begin.pt cannot be read"):
        open_source("toy", tmp_path / "begin.pt")


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.empty(3, device="meta"), "meta device"),
        (lambda: torch.zeros(1).expand(1000, 1000), "over 4 bytes"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex64"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised|cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_plain_numbers(make, kind, tmp_path):
    torch.save({"a": torch.ones(2), "odd": make()}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=f"odd.pt.*({kind})"):
        open_source("toy", tmp_path / "odd.pt")


def test_a_deflated_archive_is_refused(tmp_path, state):
    """Mapped as it lies there, the packed bytes would be taken for numbers."""
    torch.save(state, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="deflated.pth is a compressed archive"):
        open_source("toy", tmp_path / "deflated.pth")


def archive_around(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


SETS = b"(" + b"\x8f" * (MAX_CONTAINERS + 1) + b"l."  # empty ones, of 216 bytes each
DICTIONARIES = b"ccollections\nOrderedDict\nq\x00" + b"(h\x00)R" * (MAX_CALLS + 1) + b"l."


@pytest.mark.parametrize(
    "form, operations",
    [
        pytest.param("archive", SETS, marks=pytest.mark.slow, id="sets"),
        pytest.param("archive", DICTIONARIES, id="calls"),
        pytest.param("legacy", DICTIONARIES, id="calls of old"),
    ],
)
def test_a_small_pickle_cannot_take_much_memory(form, operations, tmp_path):
    """A few bytes each stand for objects of hundreds: they are counted, not made."""
    path, data = tmp_path / "bomb.pt", b"\x80\x04" + operations
    archive_around(path, data) if form == "archive" else path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="bomb.pt holds more objects than any checkpoint"):
            PickleFile(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 2**20
    finally:
        tracemalloc.stop()


def test_a_small_legacy_pickle_cannot_ask_for_a_large_storage(tmp_path):
    """Files of torch < 1.6 tell the size of a storage in a number; it is set aside before anything is read."""
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pt").read_bytes()
    at = data.index(b"K\x03N")  # BININT1 3, NONE: three elements, a storage of its own
    (tmp_path / "old.pt").write_bytes(data[:at] + b"\x8a\x05" + (2**38).to_bytes(5, "little") + data[at + 2 :])
    with pytest.raises(ValueError, match="asks for a storage of 274877906944 elements"):
        PickleFile(tmp_path / "old.pt")


def test_a_large_checkpoint_of_many_tensors_is_read(tmp_path):
    torch.save({f"layer.{number}": torch.ones(1) for number in range(2000)}, tmp_path / "many.pt")
    assert len(PickleFile(tmp_path / "many.pt").tensors) == 2000


class Runs:
    def __reduce__(self):
        return os.system, ("echo run > /tmp/must-not-be-there",)


def test_nothing_in_a_pickle_is_run(tmp_path):
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"a": Runs()}, protocol=2))
    with pytest.raises(ValueError, match="code.pt"):
        open_source("toy", tmp_path / "code.pt")
    assert not Path("/tmp/must-not-be-there").exists()


# --------------------------------------------------------------------------------------
# Things that are no files
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "keys.json", "pipe"])
@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        open_source("toy", tmp_path / name)


@pytest.mark.timeout(20)
def test_a_pipe_in_a_folder_is_passed_over(tmp_path, source):
    os.mkfifo(source / "a.safetensors")
    os.mkfifo(source / "config.json")
    assert open_source("toy", source).config == {}


@pytest.mark.parametrize("location", ["a" * 5000, "a\0b", "name" * 100 + "#x"])
def test_a_name_that_no_file_can_have(location):
    with pytest.raises((ValueError, FileNotFoundError)):
        open_source("toy", location)


# --------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cad_recode(tmp_path_factory):
    return write_cad_recode(tmp_path_factory.mktemp("cad") / "source")


def with_config(source: Path, folder: Path, **changes) -> Path:
    """The same source, its files linked, with another config.json."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    content = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": "two"}, {"num_hidden_layers": -1}, {"num_hidden_layers": None},
        {"num_hidden_layers": [2]}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": 0},
        {"hidden_size": 0}, {"hidden_size": 2.5},
        {"hidden_size": {}}, {"num_attention_heads": 0}, {"num_attention_heads": 7}, {"num_key_value_heads": 0},
        {"rope_scaling": "linear"}, {"rope_scaling": {"type": "no such"}}, {"rope_scaling": {"rope_type": 7}},
        {"rope_theta": "big"}, {"hidden_act": 7}, {"hidden_act": "no such"}, {"torch_dtype": "float99"},
        {"torch_dtype": 5}, {"tie_word_embeddings": "yes"}, {"vocab_size": -5}, {"bos_token_id": "a"},
        {"layer_types": 3}, {"layer_types": ["odd"] * 2}, {"rms_norm_eps": "small"}, {"max_position_embeddings": []},
        {"architectures": 3, "hidden_size": "x"}, {"num_freqs": 10**12}, {"num_freqs": "8"}, {"point_channels": {}},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)  # fmt: skip
def test_odd_values_of_a_configuration_are_told_in_words(changes, cad_recode, tmp_path):
    source = with_config(cad_recode, tmp_path / "odd", **changes)
    with pytest.raises(ValueError):
        convert("cad_recode", {"cad_recode": source}, tmp_path / "hub", dry_run=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_config": 3}, {"vision_config": None}, {"vision_config": []}, {"vision_config": {"depth": "x"}},
        {"vision_config": {"depth": 10**9}}, {"rope_scaling": {"mrope_section": "x"}}, {"image_token_id": None},
    ],
    ids=str,
)  # fmt: skip
def test_odd_values_of_nested_configurations(changes, tmp_path):
    source = with_config(write_qwen2_5_vl(tmp_path / "qwen"), tmp_path / "odd", **changes)
    sources = {"qwen": source, "sam": write_sam(tmp_path / "sam.pth")}
    with pytest.raises(ValueError):
        convert("frozen_qwen_sam", sources, tmp_path / "hub", dry_run=True)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"", b"[]", b"7", b'{"a": ' + b"9" * 5000 + b"}"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_beside_the_weights_that_is_no_json(name, content, cad_recode, tmp_path):
    source = with_config(cad_recode, tmp_path / "odd")
    (source / name).unlink()
    (source / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        convert("cad_recode", {"cad_recode": source}, tmp_path / "hub", progress=False)


@pytest.mark.parametrize("content", ['{"do_sample": 7, "temperature": "hot"}', '{"bos_token_id": {"a": 1}}'])
def test_odd_generation_settings(content, cad_recode, tmp_path):
    source = with_config(cad_recode, tmp_path / "odd")
    (source / "generation_config.json").unlink()
    (source / "generation_config.json").write_text(content)
    with pytest.raises(ValueError):
        convert("cad_recode", {"cad_recode": source}, tmp_path / "hub", progress=False)
    assert not (tmp_path / "hub").exists()


def test_a_broken_tokenizer_is_told_before_the_weights_are_written(cad_recode, tmp_path):
    source = with_config(cad_recode, tmp_path / "odd", point_token_id=3)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match="odd"):
        convert("cad_recode", {"cad_recode": source}, tmp_path / "hub", progress=False)


@pytest.mark.parametrize("overrides", [{"hidden_size": "x"}, {"num_hidden_layers": 10**9}, {"rope_parameters": 3}])
def test_odd_overrides(overrides, cad_recode, tmp_path):
    with pytest.raises(ValueError):
        convert("cad_recode", {"cad_recode": cad_recode}, tmp_path / "hub", config_overrides=overrides, dry_run=True)


# --------------------------------------------------------------------------------------
# Sources that change
# --------------------------------------------------------------------------------------


def rewrite(path: Path, keep_times: bool) -> None:
    """Other numbers, the same size; with the old times, as a program that hides its tracks leaves them."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[-3:] = b"abc"
    with open(path, "r+b") as file:
        file.write(data)
    if keep_times:
        os.utime(path, ns=times)


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_source_that_is_overwritten_while_it_is_read(keep_times, run, source, output, monkeypatch):
    path = source / "model.safetensors"
    monkeypatch.setattr(toy, "interrupt", lambda: output.parent.exists() and rewrite(path, keep_times))
    with pytest.raises(ValueError, match="model.safetensors of source `toy` was changed while it was read"):
        run()
    assert not output.parent.exists()


def test_a_source_that_is_exchanged_while_it_is_read(run, source, output, monkeypatch):
    path, other = source / "model.safetensors", source / "other"
    save_file(toy.checkpoint(seed=1), other)

    def exchange():
        if output.parent.exists() and other.exists():
            os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            os.replace(other, path)

    monkeypatch.setattr(toy, "interrupt", exchange)
    with pytest.raises(ValueError, match="was changed while it was read"):
        run()


def test_a_file_written_just_now_is_compared_by_its_content(source):
    """Two changes within a tick of the file system's clock have one time."""
    opened, path = open_source("toy", source), source / "model.safetensors"
    assert opened.is_fresh(path) and not opened.changed(path)


def test_a_source_that_stays_as_it_is(run, source):
    path = source / "model.safetensors"
    os.utime(path, ns=(10**18, 10**18))
    assert run().sources[0]["files"][0]["bytes"] == path.stat().st_size
