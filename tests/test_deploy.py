"""The container's files: what they promise of users, rights and health."""

import argparse
import json
from pathlib import Path

import pytest

from dsr_toolkit.commands import serve

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_the_image_runs_without_rights_and_says_whether_it_lives():
    lines = [line.strip() for line in (DEPLOY / "Dockerfile").read_text().splitlines()]
    said = {line.split()[0]: line for line in lines if line and not line.startswith("#")}
    assert said["FROM"] == "FROM ${BASE}" and lines.index("ARG BASE=python:3.13-slim") < lines.index("FROM ${BASE}")
    assert said["USER"] == "USER 10001" and "/health" in "\n".join(lines) and said["STOPSIGNAL"] == "STOPSIGNAL SIGTERM"


def test_two_replicas_stand_behind_a_proxy():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name in ("one", "two"):
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"] and "ports" not in services[name]
        assert f"server {name}:8000" in (DEPLOY / "proxy.conf").read_text()
        assert services["proxy"]["depends_on"][name]["condition"] == "service_healthy"
        assert all(one.endswith(":ro") for one in services[name]["volumes"])
    assert services["proxy"]["read_only"]


def test_the_commands_of_the_image_are_those_of_the_library():
    """Its flags are parsed by the command itself."""
    text = (DEPLOY / "Dockerfile").read_text()
    entry = json.loads(text.split("ENTRYPOINT ", 1)[1].splitlines()[0])
    command = json.loads(text.rsplit("\nCMD ", 1)[1].splitlines()[0])
    assert entry[:2] == ["dsr", "serve"]
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    options = parser.parse_args([*entry[2:], *command])
    assert (options.host, options.port, options.log, options.model) == ("0.0.0.0", 8000, "json", "/models")
