"""`verify` finds each way in which a converted folder can be wrong."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_weights import verify
from tests.convert_weights import repositories


@pytest.fixture
def folder(run, output):
    run(max_shard_size=1200)
    return output


def problems(folder):
    return verify(folder, progress=False)


def edit_report(folder, change):
    path = folder / "conversion_report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


def rehash(folder, name):
    """Enter the present content of a file in the report, as one who covers a change up would."""
    content = (folder / name).read_bytes()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_report(folder, lambda report: report["outputs"].update({name: facts}))


def holding(folder, key):
    """The shard that holds `key`, and its tensors."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if key in tensors:
            return path, tensors


def test_an_untouched_folder_is_in_order(folder):
    assert problems(folder) == []


def test_no_report(folder):
    (folder / "conversion_report.json").unlink()
    with pytest.raises(FileNotFoundError, match="no converted model"):
        problems(folder)


@pytest.mark.parametrize("pattern", ["model-00001-*", "config.json", "vocab.txt"])
def test_a_missing_file(folder, pattern):
    (path,) = folder.glob(pattern)
    path.unlink()
    assert any(path.name in problem and "missing" in problem for problem in problems(folder))


def test_one_bit_of_a_weight(folder):
    path, _ = holding(folder, "patch.bias")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(problems(folder)) == 1 and path.name in problems(folder)[0] and "sha256" in problems(folder)[0]


def test_a_truncated_shard(folder):
    path, _ = holding(folder, "patch.bias")
    path.write_bytes(path.read_bytes()[:-3])
    assert any(path.name in problem and "truncated" in problem for problem in problems(folder))


def test_a_changed_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": 1}))
    assert any("config.json: " in problem for problem in problems(folder))


def test_a_nan_even_with_a_fitting_hash(folder):
    path, tensors = holding(folder, "patch.bias")
    tensors["patch.bias"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    rehash(folder, path.name)
    found = problems(folder)
    assert len(found) == 1 and "`patch.bias`" in found[0] and "NaN" in found[0]


def test_another_shape_even_with_a_fitting_hash(folder):
    path, tensors = holding(folder, "patch.bias")
    save_file(tensors | {"patch.bias": torch.zeros(9)}, path)
    rehash(folder, path.name)
    assert any("`patch.bias`" in problem and "[9]" in problem for problem in problems(folder))


def test_another_dtype_even_with_a_fitting_hash(folder):
    path, tensors = holding(folder, "patch.bias")
    save_file(tensors | {"patch.bias": tensors["patch.bias"].half()}, path)
    rehash(folder, path.name)
    assert any("`patch.bias`" in problem and "float16" in problem for problem in problems(folder))


def test_another_name_even_with_a_fitting_hash(folder):
    path, tensors = holding(folder, "patch.bias")
    tensors["patch.tias"] = tensors.pop("patch.bias")
    save_file(tensors, path)
    rehash(folder, path.name)
    found = " ".join(problems(folder))
    assert "`patch.bias`: the model needs it" in found and "`patch.tias`: the model has no such tensor" in found


def test_a_configuration_of_another_size_even_with_a_fitting_hash(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layers": 3}))
    rehash(folder, "config.json")
    assert any("`blocks.2.norm.bias`: the model needs it" in problem for problem in problems(folder))


def test_a_configuration_that_makes_no_model(folder):
    (folder / "config.json").write_text("[]")
    rehash(folder, "config.json")
    assert any("does not make a ToyModel" in problem for problem in problems(folder))


@pytest.fixture
def converted(tmp_path):
    """A π³ folder, with the code of its model."""
    return shutil.copytree(repositories.folders()["pi3"], tmp_path / "pi3")


def test_changed_code_even_with_a_fitting_hash(converted):
    path = converted / "modeling_pi3.py"
    path.write_text(path.read_text() + "\nimport os\n")
    rehash(converted, path.name)
    assert problems(converted) == [f"{path}: differs from this library's."]


def test_missing_code(converted):
    (converted / "configuration_pi3.py").unlink()
    assert f"{converted / 'configuration_pi3.py'}: missing." in problems(converted)


def test_a_folder_holds_the_code_of_its_model_alone(converted):
    names = {path.name for path in converted.glob("*.py")}
    assert {"configuration_pi3.py", "modeling_pi3.py", "processing_geometry.py"} <= names
    assert not [name for name in names if any(part in name for part in ("cadrille", "qwen", "scene_d", "page4d_dpt"))]


@pytest.mark.parametrize("name", ["extra.py", "extra.safetensors", "pytorch_model.bin", "deep/inside.py"])
def test_a_file_that_was_not_written(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    assert any(name in problem and "not in conversion_report.json" in problem for problem in problems(folder))


def test_an_index_that_names_another_file_even_with_a_fitting_hash(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["queries"] = "elsewhere.safetensors"
    path.write_text(json.dumps(index))
    rehash(folder, path.name)
    assert any(path.name in problem for problem in problems(folder))


def test_a_missing_index_even_if_the_report_forgets_it(folder):
    (folder / "model.safetensors.index.json").unlink()
    edit_report(folder, lambda report: report["outputs"].pop("model.safetensors.index.json"))
    assert any("model.safetensors.index.json: missing" in problem for problem in problems(folder))


def test_a_shard_that_the_report_forgets(folder):
    path, _ = holding(folder, "patch.bias")
    edit_report(folder, lambda report: report["outputs"].pop(path.name))
    assert any(path.name in problem for problem in problems(folder))
