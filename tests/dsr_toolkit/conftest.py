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


@pytest.fixture(scope="session")
def served(repository):
    """A handler of the tiny repository whose models are loaded once; one queue at a time may have it."""
    from dsr_toolkit.serving import handler_module

    handler = handler_module().EndpointHandler(str(repository))
    yield handler
    handler.close()


@pytest.fixture(scope="session")
def kept_servers():
    from tests.dsr_toolkit import warm_sandbox

    yield
    warm_sandbox.end_all()


@pytest.fixture(scope="module")
def warm_sandboxes(kept_servers):
    """Sandboxes take over each other's server: for tests that are about what programs make, not about sandboxes."""
    from tests.dsr_toolkit import warm_sandbox

    with warm_sandbox.warm():
        yield
