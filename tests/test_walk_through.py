"""Tiny versions of all models: published layouts → convert → hub → verify → load → pipeline → handler."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert_weights import HubReport
from dsr_toolkit.tiny import SOURCES, VARIANTS
from tests.hub import samples

main = importlib.import_module("convert_weights.__main__").main
WORKER = Path(__file__).with_name("walk_worker.py")


@pytest.mark.slow
def test_from_published_checkpoints_to_answers(tmp_path, capsys):
    """By the command line where there is one; what loads, loads in processes that cannot see the source tree."""
    models = []
    recipes = {**{kind: (kind, write) for kind, write in SOURCES.items()}, **VARIANTS}
    for kind, (architecture, write) in recipes.items():
        sources, overrides = write(tmp_path / kind / "sources")
        (tmp_path / kind / "overrides.json").write_text(json.dumps(overrides))
        named = [option for name, path in sources.items() for option in ("--source", f"{name}={path}")]
        output = tmp_path / kind / "converted"
        options = ["--config", str(tmp_path / kind / "overrides.json"), "--output", str(output), "--quiet"]
        assert main([architecture, *named, *options]) == 0, kind
        models += ["--model", f"{kind}={output}"]
    repository = tmp_path / "repository"
    assert main(["hub", *models, "--output", str(repository), "--quiet"]) == 0
    assert HubReport.load(repository).models.keys() == recipes.keys()
    assert main(["verify", str(repository)]) == 0, capsys.readouterr().err  # loads and runs each, isolated

    requests = {name: make() for name, make in samples.GOOD.items()}
    job = {"repository": str(repository), "requests": requests, "answers": str(tmp_path / "answers.json")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-P", WORKER, tmp_path / "job.json"], cwd=tmp_path, env=variables, check=True)
    steps = json.loads((tmp_path / "answers.json").read_text())
    assert {name: problem for name, (problem, _) in steps.items() if problem} == {}
    answers = steps["handler"][1]
    assert answers.keys() == requests.keys() and all(answers.values())
