"""`--model` names a folder, a Hub repository, or one model of a repository of several."""

import huggingface_hub
import pytest

from dsr_toolkit.loading import load, resolve
from tests.convert_weights.repositories import folders, hub_cache, repository


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The repository in the Hub's cache, and no Hub."""
    hub_cache(repository(), tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_folder_of_one_model():
    assert resolve(str(folders()["page4d"]), "pi3") == (str(folders()["page4d"]), None)


def test_the_root_of_a_repository():
    assert resolve(str(repository()), "dsr") == (str(repository()), None)


@pytest.mark.parametrize("kind", ["page4d", "cadrille"])
def test_a_model_in_a_repository_s_subfolder(kind):
    source, stand_in = resolve(str(repository()), kind)
    assert stand_in is None and load(source, kind, dtype="float32")[0].config.model_type == kind


def test_a_repository_on_the_hub(cached):
    assert resolve("org/models", "dsr") == ("org/models", None)


@pytest.mark.parametrize(
    "name, kind", [("org/models", "pi3"), ("org/models/page4d", "pi3"), ("org/models", "scene_qformer")]
)
def test_a_subfolder_on_the_hub(cached, name, kind):
    source, stand_in = resolve(name, kind)
    assert stand_in is None
    assert source.endswith("/page4d" if "page4d" in name else f"/{kind}")


def test_a_name_that_cannot_be_a_repository_s():
    with pytest.raises(ValueError, match="neither a folder nor a Hub repository's name"):
        resolve("a/b/c/d", "dsr")


def test_training_names_a_model_of_the_hub_as_it_was_named(cached):
    """Not its place in this machine's cache, which a recipe or an adapter would carry to others."""
    from dsr_toolkit.commands.train import _base
    from dsr_toolkit.training import make_model

    assert _base("org/models", "dsr") == ("org/models", None)
    path, subfolder = _base("org/models", "pi3")
    assert (path, subfolder) == ("org/models", "pi3") == _base("org/models/pi3", "pi3")
    assert make_model({"path": path, "subfolder": subfolder}, {})[0].config.model_type == "pi3"
    assert _base(str(repository()), "pi3") == (str(repository() / "pi3"), None)


def test_a_model_of_a_type_that_nobody_registered_is_told_by_its_type(tmp_path):
    """A command registers what it asks for alone; a repository of the Hub may hold anything."""
    (tmp_path / "config.json").write_text('{"model_type": "somebodys"}')
    with pytest.raises(ValueError, match="holds a 'somebodys' model where 'pi3' is needed"):
        load(str(tmp_path), "pi3")
