"""`publish` uploads in one commit, to a Hub on the loopback interface, through huggingface_hub as it is."""

import _thread
import importlib
import logging
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, snapshot_download

from convert_weights import HubReport, assemble, verify
from convert_weights.repository.publish import publish
from convert_weights.repository.verification import try_out
from tests.convert_weights.repositories import folders, report, repository
from tests.hub_stand_in import TOKEN, HubStandIn

main = importlib.import_module("convert_weights.__main__").main
NAME = "org/models"


@pytest.fixture
def hub(monkeypatch):
    """The stand-in speaks Git LFS, one of the two ways huggingface_hub has; the other is switched off as users may."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubStandIn() as standing_in:
        yield standing_in


@pytest.fixture
def send(hub):
    def call(folder=None, repo_id=NAME, **options):
        given = {"upload": True, "agree": lambda plan: True, "endpoint": hub.url, "token": TOKEN, **options}
        return publish(folder or repository(), repo_id, **given)

    return call


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """DSR and CAD-Recode alone."""
    output = tmp_path_factory.mktemp("small") / "repo"
    assemble({kind: folders()[kind] for kind in ("dsr", "cad_recode")}, output, progress=False)
    return output


def stored(hub, revision="main"):
    return hub.repos[NAME].files(revision)


# ---- What is sent ----------------------------------------------------------------------


def test_nothing_is_sent_unless_asked_for(hub, send, capsys):
    plan = send(upload=False)
    assert hub.requests == [] and plan.url is None
    assert {file.name for file in plan.files} == {"README.md", "hub_report.json", *report().files}
    assert main(["publish", str(repository()), NAME]) == 0
    printed = capsys.readouterr().out
    assert "page4d/model.safetensors" in printed and "nothing was sent" in printed and "no commercial use" in printed


def test_code_and_weights_come_in_one_commit(hub, send, small):
    done = send(small, tag="v1.0")
    assert [message for _, message, _ in hub.repos[NAME].commits] == ["initial commit", "Publish v1.0"]
    assert stored(hub).keys() == {".gitattributes", *(file.name for file in done.files)}
    for name in HubReport.load(small).files:
        assert stored(hub)[name].content == (small / name).read_bytes()
    assert hub.repos[NAME].tags == {"v1.0": hub.repos[NAME].head} and hub.repos[NAME].private is False
    assert done.url.endswith("org/models/tree/v1.0")


def test_the_card_on_the_hub_names_the_repository(hub, send, small):
    send(small)
    text = stored(hub)["README.md"].content.decode()
    assert f'from_pretrained("{NAME}", subfolder=' in text and "OWNER/dsr" not in text
    ModelCard(text)


def test_what_was_published_can_be_downloaded_and_verified(hub, send, small, tmp_path):
    send(small, tag="v1")
    folder = snapshot_download(
        NAME, revision="v1", local_dir=tmp_path / "repo", endpoint=hub.url, token=TOKEN, cache_dir=tmp_path / "cache"
    )
    assert verify(folder, load=False, progress=False) == []


def test_a_private_repository(hub, send, small):
    send(small, private=True)
    assert hub.repos[NAME].private


def test_a_public_repository_does_not_become_a_private_one(hub, send, small):
    send(small)
    with pytest.raises(ValueError, match="exists and is public"):
        send(small, private=True)


def test_publishing_again_sends_nothing(hub, send, small):
    send(small)
    before = hub.count("PUT", "/lfs/")
    assert send(small).sent == [] and len(hub.repos[NAME].commits) == 2
    assert hub.count("PUT", "/lfs/") == before


def test_a_further_model_is_sent_alone(hub, send, small):
    send(small, tag="v1")
    done = send(tag="v2")
    assert "modeling_dsr.py" not in done.sent and "model.safetensors" not in done.sent
    assert "pi3/model.safetensors" in done.sent and "README.md" in done.sent
    assert "pi3/model.safetensors" not in stored(hub, "v1")


def test_files_of_an_earlier_release_stay_unless_pruned(hub, send, small):
    send()
    left = send(small)
    assert "pi3/model.safetensors" in left.left and "pi3/model.safetensors" in stored(hub)
    pruned = send(small, prune=True)
    assert "pi3/model.safetensors" in pruned.deleted and pruned.left == ()
    assert stored(hub).keys() == {".gitattributes", *(file.name for file in pruned.files)}


def test_a_tag_stays_where_it_is(hub, send, small):
    send(small, tag="v1")
    objects = len(hub.objects)
    with pytest.raises(ValueError, match="v1 exists on org/models already"):
        send(tag="v1")
    assert len(hub.repos[NAME].commits) == 2 and len(hub.objects) == objects
    assert send(small, tag="v1").sent == []


# ---- Terms -----------------------------------------------------------------------------


def test_restricted_weights_are_asked_about(hub, send, small):
    asked = []
    with pytest.raises(ValueError, match="not agreed to"):
        send(small, agree=lambda plan: asked.append(plan.restricted))
    assert {one.license for one in asked[0]} == {"cc-by-nc-4.0", "unknown"} and hub.requests == []
    with pytest.raises(ValueError, match="not agreed to"):
        send(small, agree=None)


def test_free_weights_are_not_asked_about(hub, send, tmp_path):
    free = {"dsr.qwen": "apache-2.0", "dsr.pi3": "mit"}
    assemble({"dsr": folders()["dsr"]}, tmp_path / "repo", licenses=free, progress=False)
    assert send(tmp_path / "repo", agree=None).sent


def test_the_command_line_takes_silence_for_a_no(hub, small, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    assert main(["publish", str(small), NAME, "--upload"]) == 1
    assert "not agreed to" in capsys.readouterr().err and hub.requests == []


# ---- What is refused before the Hub is asked -------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"repo_id": "models"}, "ORG/NAME"),
        ({"repo_id": "a/b/c"}, "a/b/c"),
        ({"tag": "a tag"}, "`tag` must be"),
    ],
)
def test_names_that_cannot_be(hub, send, small, options, words):
    with pytest.raises(ValueError, match=words):
        send(small, **options)
    assert hub.requests == []


def test_a_damaged_repository_is_not_sent(hub, send, small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "repo")
    with open(copy / "cad_recode" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(ValueError, match="cad_recode/model.safetensors: sha256"):
        send(copy)
    assert hub.requests == []


# ---- Trouble ---------------------------------------------------------------------------


def large_files(folder):
    return [name for name in HubReport.load(folder).files if name.endswith(".safetensors")]


def test_a_token_that_is_not_accepted(hub, send, small):
    with pytest.raises(OSError, match="status 401.*hf auth login"):
        send(small, token="hf_wrong")
    assert hub.repos == {}


def test_too_many_requests_are_repeated_when_told(hub, send, small):
    soon = {"Retry-After": "0"}
    for method, path in (("POST", "repos/create"), ("GET", "/tree/"), ("POST", "/commit/"), ("POST", "/tag/")):
        hub.fault(method, path, status=429, headers=soon)
    send(small, tag="v1")
    assert len(hub.repos[NAME].commits) == 2 and hub.repos[NAME].tags
    assert hub.count("POST", "/commit/") == hub.count("POST", "/tag/") == 2


def test_errors_of_the_server_are_outlasted(hub, send, small):
    for status, method, path in ((502, "GET", "/refs"), (503, "POST", "/commit/"), (504, "GET", f"/models/{NAME}$")):
        hub.fault(method, path, status=status, times=2, headers={"Retry-After": "0"})
    send(small)
    assert len(hub.repos[NAME].commits) == 2 and hub.count("POST", "/commit/") == 3


def test_an_error_that_stays(hub, send, small, monkeypatch):
    monkeypatch.setattr("convert_weights.repository.publish.TRIES", 2)
    hub.fault("POST", "repos/create", status=500, times=99, headers={"Retry-After": "0"})
    with pytest.raises(OSError, match="status 500.*continues"):
        send(small)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, send, small):
    """The Hub makes the commit, but the answer is an error."""
    done = HubStandIn.commit

    def then_fail(self, *arguments, **options):
        done(self, *arguments, **options)
        return 502, {"error": "bad gateway"}, {"Retry-After": "0"}

    routes = importlib.import_module("tests.hub_stand_in").ROUTES
    index = next(i for i, route in enumerate(routes) if route[2] is HubStandIn.commit)
    routes[index] = (*routes[index][:2], then_fail)
    try:
        send(small, tag="v1")
    finally:
        routes[index] = (*routes[index][:2], done)
    assert hub.count("POST", "/commit/") == 1 and len(hub.repos[NAME].commits) == 2
    assert hub.repos[NAME].tags == {"v1": hub.repos[NAME].head}


def test_a_connection_that_breaks_in_a_large_file(hub, send, small, caplog):
    hub.fault("PUT", "/lfs/", drop=True)
    with caplog.at_level(logging.ERROR):
        send(small)
    assert stored(hub)["model.safetensors"].content == (small / "model.safetensors").read_bytes()


def test_an_interrupted_upload_is_continued(hub, send):
    """Ctrl-C after some large files: nothing is visible, and the second run sends only the others."""
    hub.on("POST", "/verify", _thread.interrupt_main, after=2)
    with pytest.raises(KeyboardInterrupt):
        send()
    arrived = len(hub.objects)
    assert 0 < arrived and len(hub.repos[NAME].commits) == 1
    hub.requests.clear()
    send()
    assert (
        hub.count("POST", "/verify") == len({report().files[n]["sha256"] for n in large_files(repository())}) - arrived
    )
    assert stored(hub)["pi3/model.safetensors"].content == (repository() / "pi3/model.safetensors").read_bytes()
    assert len(hub.repos[NAME].commits) == 2


def test_a_large_file_that_the_hub_finds_to_have_another_hash(hub, send, small, monkeypatch):
    def other_bytes(self, oid, content):
        return store(self, oid, content[:-1] + b"\x00\x01")

    store = HubStandIn.store
    monkeypatch.setattr(HubStandIn, "store", other_bytes)
    with pytest.raises(OSError, match="model.safetensors.*status 400"):
        send(small)
    assert len(hub.repos[NAME].commits) == 1


@pytest.mark.parametrize("name", ["cad_recode/model.safetensors", "processing_dsr.py"])
def test_a_file_that_arrives_with_another_hash_is_noticed(hub, send, small, name):
    hub.corrupt.add(name)
    with pytest.raises(ValueError, match=f"not what was sent.*{name}"):
        send(small, tag="v1")
    assert hub.repos[NAME].tags == {}


def test_a_repository_that_someone_else_changes_meanwhile(hub, send, small):
    """Between looking and committing: the commit is refused, not put on top."""
    hub.on("POST", "objects/batch", lambda: hub.repos[NAME].commit("someone else's", dict(stored(hub))))
    with pytest.raises(OSError, match="status 412.*changed by someone else"):
        send(small)
    assert [message for _, message, _ in hub.repos[NAME].commits] == ["initial commit", "someone else's"]


@pytest.mark.slow
def test_the_command_line_publishes_by_xet_and_continues_after_a_kill(tmp_path):
    """The way that huggingface_hub takes by default, in a process that is killed while large files travel."""
    pytest.importorskip("hf_xet")
    with HubStandIn() as hub:
        variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)}
        variables.pop("HF_HUB_DISABLE_XET", None)
        arguments = ["publish", str(repository()), NAME, "--upload", "--yes", "--tag", "v1"]
        command = [sys.executable, "-m", "convert_weights", *arguments]
        killed = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        hub.on("POST", "/v1/shards", killed.kill)
        assert killed.wait() == -9
        assert hub.blocks and len(hub.repos[NAME].commits) == 1
        subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
        assert [message for _, message, _ in hub.repos[NAME].commits] == ["initial commit", "Publish v1"]
        assert hub.count("PUT", "/lfs/") == 0
        for name in large_files(repository()):
            assert stored(hub)[name].announced == (
                report().files[name]["sha256"],
                (repository() / name).stat().st_size,
            )
        done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
        assert "0 files sent" in done.stdout and len(hub.repos[NAME].commits) == 2


@pytest.mark.slow
def test_models_load_from_where_they_were_published(hub, send, tmp_path):
    """Downloaded by `from_pretrained` itself, in a process that cannot see the source tree; nothing but what it
    needs."""
    send(tag="v1")
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    variables["HF_HUB_CACHE"] = str(tmp_path / "cache")
    chosen = {name: report().models[name] for name in ("dsr", "pi3", "cad_recode")}
    assert try_out(NAME, chosen, **variables) == []
    assert hub.count("GET", "/org/models/resolve/.*/pi3/model.safetensors") == 1
    assert hub.count("GET", "/org/models/resolve/.*/page4d/") == 0
