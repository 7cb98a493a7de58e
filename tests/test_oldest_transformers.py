"""The oldest supported release of transformers, in an environment of its own; everything else runs the newest."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.parity import adapters

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests" / "reference"
MODELS = ("pi3", "page4d", "cad_recode", "cadrille", "scene_qformer", "dsr", "frozen_qwen_sam")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def oldest() -> str:
    """`5.17` of `transformers>=5.17,<5.25` in setup.py."""
    return re.search(r'"transformers>=([\d.]+),<', (ROOT / "setup.py").read_text())[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """
    The interpreter of a new environment with that release and what it requires, over the packages that are here.

    Packages here are seen through a path file, so that nothing is installed again that fits; pip leaves them alone.
    """
    folder = tmp_path_factory.mktemp("oldest") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    here = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
    (Path(site) / "here.pth").write_text("\n".join(dict.fromkeys([str(ROOT), *here])) + "\n")
    wanted = f"transformers=={oldest()}.*"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], capture_output=True, text=True)
    if "from versions: none" in done.stderr:
        pytest.skip(f"no package index is reachable to install {wanted} from")
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [python, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def test_it_is_that_release(python):
    found = run(python, "-c", "import transformers; print(transformers.__version__)")
    assert found.stdout.strip().startswith(f"{oldest()}."), found.stderr


@pytest.mark.parametrize("arch", [arch for arch in adapters() if any((SMALL / arch).rglob("cases.json"))])
def test_small_reference_cases_pass(python, arch):
    found = run(python, "-m", "tests.parity", arch, str(SMALL / arch))
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]


@pytest.mark.parametrize("model", MODELS)
def test_the_model_keeps_its_promises(python, model):
    """Saving, loading in isolation, padding, caching, generation, training: the checks of every model."""
    found = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/modeling_dsr/test_modeling_{model}.py")
    assert found.returncode == 0, found.stdout[-4000:]
