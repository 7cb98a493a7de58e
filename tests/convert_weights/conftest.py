import json

import pytest
from safetensors.torch import save_file

from convert_weights import ARCHITECTURES, convert
from tests.convert_weights import toy


@pytest.fixture(autouse=True)
def toy_architecture(monkeypatch):
    """Registers the toy architecture for the test."""
    monkeypatch.setitem(ARCHITECTURES, "toy", "tests.convert_weights.toy")


@pytest.fixture
def state():
    return toy.checkpoint()


@pytest.fixture
def source(tmp_path, state):
    """Folder with the toy checkpoint in one file."""
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture
def output(tmp_path):
    """The output's path, in a folder that holds nothing else."""
    return tmp_path / "place" / "output"


@pytest.fixture
def run(source, output):
    """Converts the toy checkpoint."""

    def convert_toy(sources=None, **options):
        return convert("toy", sources or {"toy": source}, output, progress=False, **options)

    return convert_toy


@pytest.fixture
def nothing_left(output):
    """Checks that a failed conversion leaves nothing behind, the folder it had to make included."""
    yield
    assert not output.parent.exists()


@pytest.fixture
def sharded(tmp_path, state):
    """The toy checkpoint in two shards with an index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    keys = list(state)
    names = {key: f"model-0000{1 + (i >= 5)}-of-00002.safetensors" for i, key in enumerate(keys)}
    for name in set(names.values()):
        save_file({key: state[key] for key in keys if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder
