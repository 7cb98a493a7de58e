"""Where outputs go, what they may replace, and what is left of an end at the worst moment."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from convert_weights import assemble, convert, verify
from convert_weights.__main__ import main
from convert_weights.staging import Staging, check_output
from tests.convert_weights import toy
from tests.convert_weights.forks import run_script
from tests.convert_weights.repositories import folders


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------
# Place
# --------------------------------------------------------------------------------------


def test_a_link_stands_for_the_folder_that_it_leads_to(run, output, tmp_path):
    """It stays a link, and the work lies beside the folder, on that folder's disk."""
    (tmp_path / "disk" / "model").mkdir(parents=True)
    output.parent.mkdir()
    output.symlink_to(tmp_path / "disk" / "model")
    with Staging(output, "x") as staging:
        assert staging.folder.parent == tmp_path / "disk"
    run()
    assert output.is_symlink() and verify(tmp_path / "disk" / "model", progress=False) == []
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_a_link_to_a_folder_that_is_not_there_yet(run, output, tmp_path):
    output.parent.mkdir()
    output.symlink_to(tmp_path / "disk" / "model")
    run()
    assert output.is_symlink() and verify(tmp_path / "disk" / "model", progress=False) == []


def test_a_circle_of_links(output):
    output.parent.mkdir()
    output.symlink_to(output)
    with pytest.raises(OSError, match="circle of links"):
        check_output(output)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no second disk is mounted in a known place")
def test_a_mount_point_is_refused_before_any_work(source, tmp_path):
    with pytest.raises(OSError, match="is where a disk is mounted.*/dev/shm"):
        convert("toy", {"toy": source}, "/dev/shm", progress=False)
    (tmp_path / "link").symlink_to("/dev/shm")
    with pytest.raises(OSError, match="is where a disk is mounted"):
        convert("toy", {"toy": source}, tmp_path / "link", progress=False)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no second disk is mounted in a known place")
def test_the_disk_that_is_asked_for_space_is_the_one_that_is_written_to(source, tmp_path):
    place = Path("/dev/shm") / f"place-{os.getpid()}"
    (tmp_path / "link").symlink_to(place / "model")
    try:
        with Staging(tmp_path / "link", "x") as staging:
            assert staging.folder.stat().st_dev == os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev
    finally:
        shutil.rmtree(place, ignore_errors=True)


# --------------------------------------------------------------------------------------
# What is there already
# --------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_a_source_is_opened(output):
    output.mkdir(parents=True)
    (output / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="already exists: choose another output, or replace it with --overwrite"):
        convert("toy", {"toy": "nowhere"}, output, progress=False)


def test_an_earlier_output_is_replaced_whole(run, output, source):
    run(max_shard_size=600)
    names = set(everything(output))
    run(overwrite=True)
    assert verify(output, progress=False) == []
    assert set(everything(output)) < names | {"model.safetensors"}  # no shard of the earlier one is left
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "notes.txt").write_text("mine"), "holds notes.txt, which no earlier run wrote"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds config.json, which was changed"),
        (lambda folder: (folder / "deep").mkdir() or (folder / "deep" / "a").write_text(""), "holds deep/a"),
        (lambda folder: (folder / "link").symlink_to("/etc"), "holds link, which no earlier run wrote"),
        (lambda folder: (folder / "conversion_report.json").unlink(), "holds no report of an earlier run"),
        (lambda folder: (folder / "conversion_report.json").write_text("[]"), "holds no report of an earlier run"),
    ],
)
def test_what_an_earlier_run_did_not_write_is_never_replaced(change, words, run, output):
    run()
    change(output)
    before = everything(output)
    with pytest.raises(FileExistsError, match=words):
        run(overwrite=True)
    assert everything(output) == before and [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_file_is_never_replaced(run, output):
    output.parent.mkdir()
    output.write_text("mine")
    with pytest.raises(FileExistsError, match="already exists"):
        run(overwrite=True)
    assert output.read_text() == "mine"


def test_what_is_put_there_during_the_work_is_not_lost(run, output, monkeypatch):
    run()
    put = output / "mine.txt"
    monkeypatch.setattr(
        toy, "interrupt", lambda: put.write_text("x") if output.with_name(f".{output.name}.partial").exists() else 0
    )
    with pytest.raises(FileExistsError, match="mine.txt"):
        run(overwrite=True, max_shard_size=600)
    assert put.read_text() == "x" and "model.safetensors" in everything(output)


def test_an_input_is_never_replaced(output, source):
    """Not even one that an earlier conversion wrote."""
    from dsr_toolkit.tiny.cadrille import write_cad_recode

    first = write_cad_recode(source.parent / "cad")
    convert("cad_recode", {"cad_recode": first}, output, progress=False)
    before = everything(output)
    with pytest.raises(ValueError, match="holds .*model.safetensors, which source `cad_recode` reads"):
        convert("cad_recode", {"cad_recode": output}, output, overwrite=True, progress=False)
    assert everything(output) == before


def test_a_failure_leaves_the_earlier_output(run, output, monkeypatch):
    run()
    before = everything(output)

    def fail():
        if output.with_name(f".{output.name}.partial").exists():
            raise ValueError("no")

    monkeypatch.setattr(toy, "interrupt", fail)
    with pytest.raises(ValueError, match="no"):
        run(overwrite=True, max_shard_size=600)
    assert everything(output) == before


KILLED = """
import os, shutil, sys
from convert_weights import ARCHITECTURES, convert
ARCHITECTURES["toy"] = "tests.convert_weights.toy"
source, output, function, ending = sys.argv[1:]
module = os if function == "rename" else shutil
call = getattr(module, function)
setattr(module, function, lambda path, *a, **k: os._exit(9) if str(path).endswith(ending) else call(path, *a, **k))
convert("toy", {"toy": source}, output, overwrite=True, max_shard_size=600, progress=False)
"""


def killed(moment: str, source: Path, output: Path) -> None:
    """Replace the output, and end between its two renames (`before` it has its new name), or just after them."""
    where = {"before": ("rename", ".partial"), "after": ("rmtree", ".replaced")}[moment]
    assert run_script(KILLED, source, output, *where)[0] == 9


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_end_between_the_two_renames_loses_nothing(moment, run, output, source):
    """The earlier output comes back if the new one had not its name yet, and goes if it had."""
    run()
    killed(moment, source, output)
    assert output.with_name(f".{output.name}.replaced").is_dir() and output.exists() == (moment == "after")
    with pytest.raises(FileExistsError):  # without leave to replace, what is there is refused again
        run()
    assert verify(output, progress=False) == []
    run(overwrite=True, max_shard_size=600)
    assert verify(output, progress=False) == [] and [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_was_put_beside_an_earlier_output_meanwhile_stays(moment, run, output, source):
    run()
    killed(moment, source, output)
    mine = output.with_name(f".{output.name}.replaced") / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="replaced"):
        run(overwrite=True)
    assert mine.read_text() == "mine"
    mine.unlink()
    run(overwrite=True)
    assert verify(output, progress=False) == [] and [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("ending", ["partial", "replaced", "journal"])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_names_of_the_work_that_are_somebody_elses_stay(kind, ending, overwrite, run, output, tmp_path):
    run() if overwrite else output.parent.mkdir()
    place = output.with_name(f".{output.name}.{ending}")
    theirs = place
    if kind == "folder":
        if ending == "journal":
            pytest.skip("no file can be opened there: an error of its own")
        place.mkdir()
        theirs = place / "mine.txt"
        theirs.write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        (tmp_path / "mine").mkdir()
        theirs = tmp_path / "mine" / "mine.txt"
        theirs.write_text("mine")
        place.symlink_to(theirs if ending == "journal" else theirs.parent)
    before = everything(output.parent)
    with pytest.raises(FileExistsError, match=ending):
        run(overwrite=overwrite)
    assert everything(output.parent) == before and theirs.read_text() == "mine" and os.path.lexists(place)


def test_the_command_line_replaces_with_leave_alone(source, output, capsys):
    words = ["toy", "--source", f"toy={source}", "--output", str(output), "--quiet"]
    assert main(words) == 0 and main(words) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


# --------------------------------------------------------------------------------------
# The repository
# --------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
from convert_weights import assemble

def watch(event, arguments):  # the last step: the folder takes its name
    if event == "os.rename" and str(arguments[1]) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
assemble({"dsr": sys.argv[2], "pi3": sys.argv[3]}, sys.argv[1], progress=False)
"""


def test_an_assembly_killed_between_its_report_and_its_name_is_continued(tmp_path):
    models = {name: folders()[name] for name in ("dsr", "pi3")}
    output = tmp_path / "repository"
    assert run_script(KILL, output, *models.values())[0] == -signal.SIGKILL
    assert (tmp_path / ".repository.partial" / "hub_report.json").exists() and not output.exists()
    assemble(models, output, progress=False)
    assert verify(output, load=False, progress=False) == []
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_repository_is_replaced_unless_something_was_changed(tmp_path):
    models, output = {"dsr": folders()["dsr"]}, tmp_path / "repository"
    assemble(models, output, progress=False)
    with pytest.raises(FileExistsError):
        assemble(models, output, progress=False)
    assemble(models, output, overwrite=True, progress=False)
    assert verify(output, load=False, progress=False) == []
    (output / "README.md").write_text((output / "README.md").read_text() + "\nA word of mine.\n")
    with pytest.raises(FileExistsError, match="holds README.md, which was changed"):
        assemble(models, output, overwrite=True, progress=False)


def test_a_model_is_never_replaced_by_the_repository(tmp_path):
    shutil.copytree(folders()["dsr"], tmp_path / "dsr")
    with pytest.raises((ValueError, FileExistsError)):
        assemble({"dsr": tmp_path / "dsr"}, tmp_path / "dsr", overwrite=True, progress=False)
    assert verify(tmp_path / "dsr", progress=False) == []


# --------------------------------------------------------------------------------------
# Files that appear beside what was written
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "kernel.so", "deep/x.bin", ".hidden"]
)
def test_a_file_that_changes_what_is_loaded_is_told(name, run, output):
    run()
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("{}")
    assert [
        problem for problem in verify(output, progress=False) if f"{name}: not in conversion_report.json" in problem
    ]


def test_a_link_that_leads_out_is_told(run, output):
    run()
    (output / "more").symlink_to("/etc")
    assert any("more: not in" in problem for problem in verify(output, progress=False))


def test_what_is_not_checked_is_said(run, output, capsys):
    run()
    assert main(["verify", str(output)]) == 0
    assert "complete and unchanged\n" in capsys.readouterr().out
    (output / "README.md").write_text("mine")
    (output / ".git").mkdir()
    (output / ".git" / "HEAD").write_text("x")
    assert main(["verify", str(output)]) == 0
    assert "complete and unchanged (not checked: the text of README.md)" in capsys.readouterr().out


def test_the_card_s_bytes_are_on_record(tmp_path):
    output = tmp_path / "repository"
    assemble({"dsr": folders()["dsr"]}, output, progress=False)
    card = json.loads((output / "hub_report.json").read_text())["card"]
    assert card["bytes"] == (output / "README.md").stat().st_size
