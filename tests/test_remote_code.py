"""The files that ship to the Hub: what the loader accepts, and that the source tree and the Hub hold the same text."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from transformers import PreTrainedConfig, ProcessorMixin

import configuration_dsr
import processing_dsr
from tests.model_checks import ROOT, check_remote_code

ALIAS = ROOT / "modeling_dsr" / "configuration_dsr.py"


def defined_in(module, base) -> list[type]:
    """Public subclasses of `base`: a base class of our own with an underscore is never saved itself."""
    classes = {value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, base)}
    return sorted(
        (c for c in classes if c.__module__ == module.__name__ and c.__name__[0] != "_"), key=lambda c: c.__name__
    )


CONFIGS = defined_in(configuration_dsr, PreTrainedConfig)
PROCESSORS = defined_in(processing_dsr, ProcessorMixin)


def shipped() -> list[Path]:
    package = [path for path in (ROOT / "modeling_dsr").glob("*.py") if path.name != "__init__.py" and path != ALIAS]
    return [ROOT / "configuration_dsr.py", ROOT / "processing_dsr.py", *sorted(package)]


def test_there_are_configs_and_processors():
    assert CONFIGS and PROCESSORS


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_config_ships_with_what_is_saved(config_class):
    """Without this the alias file of the package, not the real configuration, would be in a saved folder."""
    assert config_class._auto_class == "AutoConfig"


@pytest.mark.parametrize("processor_class", PROCESSORS, ids=lambda c: c.__name__)
def test_every_processor_ships_with_what_is_saved(processor_class):
    assert processor_class._auto_class == "AutoProcessor"


def test_the_alias_is_one_import_of_every_config():
    tree = ast.parse(ALIAS.read_text())
    (statement,) = tree.body
    assert isinstance(statement, ast.ImportFrom) and statement.module == "configuration_dsr" and statement.level == 0
    assert {config.__name__ for config in CONFIGS} <= {alias.name for alias in statement.names}


def test_no_two_shipped_files_share_a_name():
    names = [path.name for path in shipped()]
    assert sorted(set(names)) == sorted(names)


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
