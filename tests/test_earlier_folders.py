"""A folder that version 0.1 of the library saved, when all processors lay in one file: it loads, and saves again
whole."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import modeling_dsr  # noqa: F401  registers the classes
from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.processing_geometry import GeometryProcessor
from tests.modeling_dsr.pi3_samples import images

EARLIER = Path(__file__).parent / "reference" / "pi3" / "folder_of_version_0_1.zip"

ALONE = """
import importlib.abc, sys

class NoLibrary(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        hidden = ("configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit")
        if fullname.split(".")[0] in hidden:
            raise ImportError(f"{fullname} belongs to the source tree")

sys.meta_path.insert(0, NoLibrary())
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
folder, again, images, answer = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
processor.save_pretrained(again)
with torch.no_grad():
    output = AutoModel.from_pretrained(again, trust_remote_code=True).eval()(torch.load(images))
assert AutoProcessor.from_pretrained(again, trust_remote_code=True).pixel_limit == processor.pixel_limit
save_file({name: output[name] for name in ("points", "camera_poses", "conf")}, answer)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("earlier") / "pi3"
    with zipfile.ZipFile(EARLIER) as archive:
        archive.extractall(target)
    return target


def alone(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Outputs of the folder, saved once more, in a process that cannot import the library."""
    torch.save(images(1), tmp_path / "images.pt")
    files = [folder, tmp_path / "again", tmp_path / "images.pt", tmp_path / "answer.safetensors"]
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", ALONE, *map(str, files)]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(tmp_path / "answer.safetensors")


def assert_as_recorded(found, folder: Path) -> None:
    for name, expected in load_file(folder / "expected.safetensors").items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)


def test_it_loads_with_its_own_code_and_saves_again_whole(folder, tmp_path):
    assert_as_recorded(alone(folder, tmp_path), folder)


def test_this_library_loads_it_and_saves_a_folder_of_its_own(folder, tmp_path):
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert type(model) is Pi3Model and type(processor) is GeometryProcessor
    with torch.no_grad():
        assert_as_recorded(model(images(1)), folder)
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    names = {path.name for path in (tmp_path / "new").glob("*.py")}
    assert {"configuration_pi3.py", "modeling_pi3.py", "processing_geometry.py"} <= names
    assert not {"configuration_dsr.py", "processing_dsr.py"} & names
    assert_as_recorded(alone(tmp_path / "new", tmp_path), folder)
