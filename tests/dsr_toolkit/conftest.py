"""The tiny DSR model, converted once for all tests of the toolkit."""

from pathlib import Path

import pytest

from dsr_toolkit.tiny import build


@pytest.fixture(scope="session")
def tiny_dsr(tmp_path_factory) -> Path:
    return build("dsr", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_sources(tiny_dsr) -> Path:
    """The checkpoints that the tiny model was converted from."""
    return tiny_dsr.parent / "sources"
