"""`verify REPO` finds each way in which an assembled repository can be wrong."""

import hashlib
import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_weights import HubReport, assemble, verify
from convert_weights.repository.verification import try_out
from tests.convert_weights.repositories import folders, report, repository

main = importlib.import_module("convert_weights.__main__").main


KINDS = ("dsr", "pi3", "page4d", "cad_recode")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    output = tmp_path_factory.mktemp("original") / "repo"
    assemble({kind: folders()[kind] for kind in KINDS}, output, progress=False)
    return output


@pytest.fixture
def copy(original, tmp_path):
    """A repository that may be changed."""
    return shutil.copytree(original, tmp_path / "repo")


def problems(folder):
    return verify(folder, load=False, progress=False)


def rehash(folder, name):
    """Enter the present content of a file in the report, as one who covers a change up would."""
    content = (folder / name).read_bytes()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = HubReport.load(folder)
    found.files[name] = facts
    found.save(folder)


def test_an_untouched_repository_is_in_order():
    assert problems(repository()) == []


def test_the_command_line_tells(copy, capsys):
    assert main(["verify", str(copy), "--files-only"]) == 0
    (copy / "pi3" / "config.json").unlink()
    assert main(["verify", str(copy), "--files-only"]) == 1
    assert "pi3/config.json: missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "cad_recode/model.safetensors", "page4d/config.json"])
def test_one_bit_of_a_file(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    assert any(f"{name}: sha256" in problem for problem in problems(copy))


@pytest.mark.parametrize(
    "name", ["modeling_pi3.py", "LICENSE.md", "cad_recode/tokenizer.json", "pi3/conversion_report.json"]
)
def test_a_missing_file(copy, name):
    (copy / name).unlink()
    assert any(name in problem and "missing" in problem for problem in problems(copy))


@pytest.mark.parametrize("name", ["extra.py", "pi3/modeling_pi3.py", "pi3/extra.safetensors", "page4d/checkpoint.pt"])
def test_a_file_that_was_not_written(copy, name):
    (copy / name).write_bytes(b"")
    assert any(f"{name}: not in hub_report.json" in problem for problem in problems(copy))


@pytest.mark.parametrize("name", ["modeling_pi3.py", "configuration_dsr.py"])
def test_changed_code_even_with_a_fitting_hash(copy, name):
    (copy / name).write_text((copy / name).read_text() + "\nimport os\n")
    rehash(copy, name)
    assert problems(copy) == [f"{copy / name}: differs from this library's."]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensor: tensor[:-1].clone(), "expected"),
        (lambda tensor: tensor.half(), "float16"),
        (lambda tensor: torch.full_like(tensor, float("nan")), "NaN"),
    ],
    ids=["shape", "dtype", "nan"],
)
def test_another_tensor_even_with_a_fitting_hash(copy, change, words):
    path = copy / "page4d" / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].ndim)
    save_file(tensors | {name: change(tensors[name])}, path, {"format": "pt"})
    rehash(copy, "page4d/model.safetensors")
    assert any(f"`{name}`" in problem and words in problem for problem in problems(copy))


def test_a_configuration_of_another_size_even_with_a_fitting_hash(copy):
    path = copy / "cad_recode" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 5}))
    rehash(copy, "cad_recode/config.json")
    assert any("does not make a CADRecodeForCausalLM" in problem for problem in problems(copy))


def test_models_that_were_exchanged_even_with_fitting_hashes(copy):
    for name in report().files:
        if name.startswith("pi3/"):
            (copy / name).write_bytes((repository() / name.replace("pi3", "page4d", 1)).read_bytes())
            rehash(copy, name)
    assert any("describes a Page4DModel" in problem for problem in problems(copy))


def test_a_card_that_the_hub_would_refuse(copy):
    (copy / "README.md").write_text("# A model without front matter\n")
    assert any("README.md" in problem and "front matter" in problem for problem in problems(copy))


def test_the_text_of_the_card_may_be_edited(copy):
    with open(copy / "README.md", "a") as file:
        file.write("\nMore to read.\n")
    assert problems(copy) == []


def test_a_folder_that_is_no_repository():
    with pytest.raises(FileNotFoundError, match="no repository"):
        HubReport.load(folders()["pi3"])


@pytest.mark.slow
def test_what_only_loading_shows(copy):
    """A processor that was not written with its class; the other model works all the same."""
    path = copy / "cad_recode" / "processor_config.json"
    path.write_text(json.dumps({"processor_class": "CADRecodeProcessor"}))
    chosen = {name: report().models[name] for name in ("cad_recode", "pi3")}
    (problem,) = try_out(copy, chosen)
    assert "cad_recode does not work" in problem


@pytest.mark.slow
def test_a_process_that_dies_takes_only_one_model_with_it(copy):
    """As when memory is short: here the model's code ends the process."""
    path = copy / "modeling_pi3.py"
    path.write_text(path.read_text() + "\nimport os\nos._exit(9)\n")
    chosen = {name: report().models[name] for name in ("page4d", "pi3", "cad_recode")}
    (problem,) = try_out(copy, chosen)
    assert "the process died (9) with pi3" in problem


@pytest.mark.slow
def test_weights_that_make_no_number(copy):
    """Finite weights whose outputs are not."""
    path = copy / "pi3" / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("fc1.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], 3e38)}, path, {"format": "pt"})
    (problem,) = try_out(copy, {"pi3": report().models["pi3"]})
    assert "pi3 does not work" in problem and "finite" in problem
