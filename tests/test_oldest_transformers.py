"""The oldest supported release of transformers, in an environment of its own; everything else runs the newest."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.parity import adapters

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests" / "reference"
ARCHITECTURES = [arch for arch in adapters() if any((SMALL / arch).rglob("cases.json"))]
MODELS = ("pi3", "page4d", "cad_recode", "cadrille", "scene_qformer", "dsr", "frozen_qwen_sam")

pytestmark = pytest.mark.timeout(3600)


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


@pytest.mark.slow
def test_it_is_that_release(python):
    found = run(python, "-c", "import transformers; print(transformers.__version__)")
    assert found.stdout.strip().startswith(f"{oldest()}."), found.stderr


PARITY = """
import contextlib, io, json, sys
from tests.parity import main
said = {}
for arch in sys.argv[2:]:
    with contextlib.redirect_stdout(io.StringIO()) as table:
        failed = main([arch, f"{sys.argv[1]}/{arch}"])
    said[arch] = table.getvalue() if failed else ""
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def tables(python) -> dict[str, str]:
    """{architecture: its table of reference cases if any failed}: of all in one process, which loads the libraries."""
    found = run(python, "-c", PARITY, str(SMALL), *ARCHITECTURES)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_reference_cases_pass(tables, arch):
    assert tables[arch] == "", tables[arch][-3000:]


@pytest.fixture(scope="module")
def checks(python, tmp_path_factory) -> dict[str, list[str]]:
    """{model: "" or what went wrong, for each test of its file}, likewise of all in one process."""
    report = tmp_path_factory.mktemp("checks") / "report.xml"
    files = [f"tests/modeling_dsr/test_modeling_{model}.py" for model in MODELS]
    found = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files)
    assert found.returncode in (0, 1), found.stdout[-4000:] + found.stderr[-4000:]
    told: dict[str, list[str]] = {model: [] for model in MODELS}
    for case in ElementTree.parse(report).iter("testcase"):
        (model,) = re.findall(r"test_modeling_(\w+)", case.get("classname") or case.get("name"))
        wrong = [part.text or "" for part in case if part.tag in ("failure", "error")]
        told[model].append("".join(f"{case.get('name')}: {text[-2000:]}\n" for text in wrong))
    return told


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_the_model_keeps_its_promises(checks, model):
    """Saving, loading in isolation, padding, caching, generation, training: the checks of every model."""
    assert len(checks[model]) > 10 and not any(checks[model]), "".join(checks[model])[-4000:]
