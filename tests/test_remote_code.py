"""The files that ship to the Hub, what the loader accepts, and the doors that lead to them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import configuration_dsr
import processing_dsr
from modeling_dsr import ARCHITECTURES
from tests.model_checks import ROOT, check_remote_code

CONFIGS = [getattr(configuration_dsr, name) for name in configuration_dsr.__all__]
PROCESSORS = [getattr(processing_dsr, name) for name in processing_dsr.__all__]


def shipped() -> list[Path]:
    return sorted(path for path in (ROOT / "modeling_dsr").glob("*.py") if path.name != "__init__.py")


def defined_in_package(ending: str) -> set[str]:
    """Names of the classes of the package that are called so and come with a line that lets them be saved."""
    texts = [path.read_text() for path in shipped()]
    return {name for text in texts for name in re.findall(rf"^(\w+{ending})\.register_for_auto_class", text, re.M)}


def test_the_doors_lead_to_every_config_and_processor():
    assert set(configuration_dsr.__all__) == defined_in_package("Config")
    assert set(processing_dsr.__all__) == defined_in_package("Processor")
    for door in (configuration_dsr, processing_dsr):
        assert {getattr(door, name).__module__.split(".")[0] for name in door.__all__} == {"modeling_dsr"}
        with pytest.raises(AttributeError, match="no attribute 'absent'"):
            door.absent


@pytest.mark.slow
def test_a_program_may_name_the_architectures_that_it_needs():
    code = (
        "import sys, modeling_dsr\nfrom transformers import AutoConfig\n"
        "loaded = [name for name in modeling_dsr.ARCHITECTURES if f'modeling_dsr.modeling_{name}' in sys.modules]\n"
        "modeling_dsr.register('cad_recode')\nAutoConfig.for_model('cad_recode')\nprint(*loaded)"
    )
    named = {**os.environ, "DSR_ARCHITECTURES": "pi3, page4d"}
    run = lambda named: subprocess.run([sys.executable, "-c", code], env=named, capture_output=True, text=True)  # noqa: E731
    assert run(named).stdout.split() == ["pi3", "page4d"]
    assert "DSR_ARCHITECTURES names pi4" in run({**named, "DSR_ARCHITECTURES": "pi4"}).stderr


@pytest.mark.parametrize("door", ["configuration_dsr", "processing_dsr"])
def test_a_door_costs_nothing_until_somebody_enters(door):
    code = f"import sys, {door}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_the_registry_says_what_a_saved_configuration_says(model_type):
    architecture = ARCHITECTURES[model_type]
    auto_map = getattr(configuration_dsr, architecture.config)().auto_map
    models = {auto: f"modeling_{model_type}.{name}" for auto, name in architecture.models.items()}
    assert auto_map == {"AutoConfig": f"configuration_{model_type}.{architecture.config}"} | models


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_config_ships_with_what_is_saved(config_class):
    assert config_class._auto_class == "AutoConfig"


@pytest.mark.parametrize("processor_class", PROCESSORS, ids=lambda c: c.__name__)
def test_every_processor_ships_with_what_is_saved(processor_class):
    assert processor_class._auto_class == "AutoProcessor"


def test_no_class_or_file_name_looks_like_a_tokenizer():
    """transformers writes the auto_map of anything whose name contains `Tokenizer` as a pair of tokenizers."""
    names = [path.stem for path in shipped()]
    for path in shipped():
        names += re.findall(r"^class (\w+)", path.read_text(), re.M)
    assert [name for name in names if "tokenizer" in name.lower()] == []


def test_what_ships_can_be_loaded(tmp_path):
    for path in shipped():
        (tmp_path / path.name).write_text(path.read_text())
    assert check_remote_code(tmp_path) == []


@pytest.mark.parametrize(
    "line, problem",
    [
        ("from ..other import x", "relative imports"),
        ("from . import other", "relative imports"),
        ("from .pack.other import x", "relative imports"),
        ("from .missing import x", "not exported"),
        ("import einops", "imports einops"),
        ("from configuration_dsr import x", "imports configuration_dsr"),
        ("def f():\n    import torchvision", "imports torchvision"),
        ('"""\nfrom .missing import x\n"""', "text that the loader reads"),
    ],
)
def test_the_check_sees_what_the_loader_cannot_follow(tmp_path, line, problem):
    (tmp_path / "other.py").write_text("")
    (tmp_path / "one.py").write_text(line + "\n")
    assert any(problem in found for found in check_remote_code(tmp_path))


def test_the_check_accepts_what_the_loader_follows(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    guarded = "try:\n    import einops\nexcept ImportError:\n    einops = None\n"
    (tmp_path / "one.py").write_text("import math\nimport torch\nfrom .other import x\n" + guarded)
    assert check_remote_code(tmp_path) == []
