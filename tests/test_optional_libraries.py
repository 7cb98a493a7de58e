"""What needs an extra says which, before anything else; what is shipped takes no other library's name."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsr_toolkit.cli import COMMANDS
from dsr_toolkit.extras import EXTRAS, needs
from modeling_dsr import optional_libraries

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "dsr_toolkit" / "assets" / "demo.mp4"


@pytest.fixture(scope="module")
def setup_arguments():
    """What setup.py tells setuptools."""
    import setuptools

    told, original = {}, setuptools.setup
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    before, setuptools.setup = os.getcwd(), lambda **arguments: told.update(arguments)
    os.chdir(ROOT)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    finally:
        setuptools.setup = original
        os.chdir(before)
    return told


def test_an_extra_installs_what_is_looked_for(setup_arguments):
    by_module = importlib.metadata.packages_distributions()
    for extra, libraries in EXTRAS.items():
        installs = {re.split(r"[<>=\[]", name)[0].lower() for name in setup_arguments["extras_require"][extra]}
        for library in libraries:
            distributions = {name.lower() for name in by_module.get(library, [library])}
            assert installs & distributions, (extra, library)


def test_what_is_missing_is_named_with_its_extra():
    needs("cad", "A test", "json")
    with pytest.raises(ImportError, match=r"^A test needs no_such_thing: pip install \"dsr-models\[cad\]\"$"):
        needs("cad", "A test", "json", "no_such_thing")
    with pytest.raises(ImportError, match=r"^A test needs no_such_thing: pip install no_such_thing$"):
        needs(None, "A test", "no_such_thing")


def test_there_is_one_list_of_extras():
    assert EXTRAS == optional_libraries.EXTRAS


WITHOUT = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{fullname!r}}", name=fullname)
sys.meta_path.insert(0, Missing())
from dsr_toolkit.cli import main
status = main({arguments!r})
assert "torch" not in sys.modules, "work was done before"
sys.exit(status)
"""
NEED = {
    "cad": [
        ["cad", "part.stl"],
        ["cad", "--text", "A plate"],
        ["batch", "cad", "part.stl"],
        ["eval", "cad", "programs", "meshes"],
    ],
    "geometry": [
        ["eval", "relpose", "folder"],
        ["eval", "points", "folder"],
        ["reconstruct", str(CLIP), "--window", "4"],
    ],
    "serve": [["serve"]],
    "view": [["reconstruct", str(CLIP), "--format", "rrd"]],
    "train": [["train", "--recipe", "tiny/pi3", "-o", "out"]],
    "scale": [["batch", "ask", str(CLIP), "--engine", "ray", "-o", "out"]],
}


@pytest.mark.parametrize(("extra", "arguments"), [(extra, each) for extra, several in NEED.items() for each in several])
def test_a_command_names_its_extra_before_it_begins(extra, arguments, tmp_path):
    """The same with a real environment: tests/bare.py, which .ci/run runs."""
    code = WITHOUT.format(hidden=EXTRAS[extra], arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"[{extra}]" in done.stderr and not list(tmp_path.iterdir())


def test_the_command_line_says_which_extra_a_command_needs():
    rows = re.findall(r"^\| `dsr (\w+)` \| .* \|(.*)\|$", (ROOT / "docs" / "command_line.md").read_text(), re.MULTILINE)
    told = {command: set(re.findall(r"`(\w+)`", extras)) for command, extras in rows}
    assert set(told) == set(COMMANDS)
    for extra, commands in NEED.items():
        for command, *_ in commands:
            assert extra in told[command], (command, extra)


def test_a_shipped_file_shadows_no_library():
    """The Hub's inference toolkit puts the repository's folder first on the path of everything."""
    shipped = {path.stem for folder in ("modeling_dsr", "hub") for path in (ROOT / folder).glob("*.py")}
    shipped |= {path.name for path in (ROOT / "hub").iterdir() if path.is_dir()}
    shipped -= {"__init__", "__pycache__"}
    installed = importlib.metadata.packages_distributions()
    others = {name for name, owners in installed.items() if set(owners) != {"dsr-models"}}
    assert not shipped & (others | set(sys.stdlib_module_names))


def test_nothing_is_installed_under_a_general_name(setup_arguments):
    tops = {name.split(".")[0] for name in setup_arguments["packages"]} | set(setup_arguments["py_modules"])
    assert tops == {"modeling_dsr", "convert_weights", "dsr_toolkit", "configuration_dsr", "processing_dsr"}
