"""Tiny models of every architecture and the repository made of them, once per test run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from convert_weights import HubReport, assemble
from dsr_toolkit import tiny

# Kept alive for the whole run; removed with it.
_HOME = tempfile.TemporaryDirectory(prefix="tiny-repository-")


@functools.cache
def folders() -> dict[str, Path]:
    """Upstream-layout checkpoints of every kind, converted."""
    return {kind: tiny.build(kind, Path(_HOME.name) / kind) for kind in tiny.SOURCES}


@functools.cache
def repository() -> Path:
    """All of them assembled. Tests that change it work on a copy."""
    output = Path(_HOME.name) / "repository"
    assemble(folders(), output, progress=False)
    return output


def report() -> HubReport:
    return HubReport.load(repository())


def hub_cache(source: Path, cache: Path, repo_id: str = "org/models", commit: str = "0123456789" * 4) -> dict[str, str]:
    """Lay a folder out as the Hub's cache has it after a download; returns the variables that make it be used."""
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / commit).symlink_to(source, target_is_directory=True)
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
