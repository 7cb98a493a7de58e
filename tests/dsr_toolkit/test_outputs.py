"""Where commands write: nothing that they did not write is ever touched."""

import json
import os

import pytest

from dsr_toolkit.outputs import Output, free_folder, listed_files


def run(folder, content="one", names=("a.txt", "deep/b.txt"), **options):
    options = {"names": ("*.txt", "deep/*"), **options}
    with Output(folder, "report.json", **options) as out:
        for name in names:
            out.path(name).write_text(content)
        out.report({"content": content})
    return folder


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_files_get_their_place_and_the_report_lists_them(tmp_path):
    folder = run(tmp_path / "new" / "out")
    assert (folder / "a.txt").read_text() == "one" and (folder / "deep" / "b.txt").read_text() == "one"
    assert listed_files(folder / "report.json").keys() == {"a.txt", "deep/b.txt"}
    assert json.loads((folder / "report.json").read_text())["content"] == "one"
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "deep", "report.json"]


def test_an_earlier_run_is_refused_without_overwrite(tmp_path):
    folder = run(tmp_path / "out")
    before = snapshot(folder)
    with pytest.raises(ValueError, match="--overwrite"):
        run(folder, "two")
    assert snapshot(folder) == before


def test_overwrite_replaces_what_the_report_lists_and_removes_what_is_no_longer_made(tmp_path):
    folder = run(tmp_path / "out")
    (folder / "notes.md").write_text("mine")
    (folder / "deep" / "mine").mkdir()
    run(folder, "two", names=("a.txt",), overwrite=True)
    assert snapshot(folder).keys() == {"a.txt", "notes.md", "report.json"}
    assert (folder / "a.txt").read_text() == "two" and (folder / "notes.md").read_text() == "mine"
    assert (folder / "deep" / "mine").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_somebody_else_is_refused_before_any_work(tmp_path, overwrite):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="a.txt"):
        run(folder, overwrite=overwrite)
    assert snapshot(folder) == {"a.txt": b"mine"}


def test_a_file_that_was_changed_since_is_refused(tmp_path):
    folder = run(tmp_path / "out")
    (folder / "a.txt").write_text("my notes on it")
    with pytest.raises(ValueError, match="was changed"):
        run(folder, "two", overwrite=True)
    assert (folder / "a.txt").read_text() == "my notes on it"


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '{"files": ["a.txt"]}'])
def test_a_report_of_somebody_else_is_refused(tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "report.json").write_text(content)
    with pytest.raises(ValueError, match="no report of this command"):
        run(folder, overwrite=True)
    assert (folder / "report.json").read_text() == content


def test_a_report_cannot_name_files_outside(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    names = {"../precious.txt": "0", str(tmp_path / "precious.txt"): "0"}
    (folder / "report.json").write_text(json.dumps({"files": names}))
    assert listed_files(folder / "report.json") == {}
    run(folder, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_input_folder_is_no_output(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("photo")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is the folder that is read"):
            run(tmp_path / "photos", inputs=[tmp_path / "photos"], overwrite=overwrite)
    assert snapshot(tmp_path) == {"photos/1.jpg": b"photo"}


def test_an_input_inside_the_output_stays(tmp_path):
    (tmp_path / "proj" / "images").mkdir(parents=True)
    (tmp_path / "proj" / "images" / "1.jpg").write_text("photo")
    run(tmp_path / "proj", inputs=[tmp_path / "proj" / "images"])
    run(tmp_path / "proj", "two", inputs=[tmp_path / "proj" / "images"], overwrite=True)
    assert (tmp_path / "proj" / "images" / "1.jpg").read_text() == "photo"
    assert (tmp_path / "proj" / "a.txt").read_text() == "two"


@pytest.mark.parametrize("read", ["deep", "deep/b.txt"])
def test_results_that_the_next_run_reads_are_neither_removed_nor_replaced(tmp_path, read):
    folder = run(tmp_path / "out")
    with pytest.raises(ValueError, match="is an input"):
        run(folder, "two", inputs=[folder / read], overwrite=True)
    with Output(folder, "report.json", names=("*.txt",), inputs=[folder / read], overwrite=True) as out:
        out.path("a.txt").write_text("two")
    assert (folder / "a.txt").read_text() == "two" and (folder / "deep" / "b.txt").read_text() == "one"
    run(folder, "three", overwrite=True)  # still known for ours, once it is not read
    assert (folder / "deep" / "b.txt").read_text() == "three"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_file_is_never_a_target(tmp_path, overwrite):
    run(tmp_path)
    with pytest.raises(ValueError, match="never overwritten|--overwrite"):
        run(tmp_path, "two", inputs=[tmp_path / "a.txt"], overwrite=overwrite)
    assert (tmp_path / "a.txt").read_text() == "one"


def test_links_are_neither_followed_nor_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    with pytest.raises(ValueError, match="a link"):
        run(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "a.txt").unlink()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ValueError, match="a link"):
        run(tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path / "elsewhere") == {"a.txt": b"mine"}


def test_the_output_may_be_a_link_to_a_folder_or_the_present_one(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes.md").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
    run(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "a.txt").read_text() == "one"
    monkeypatch.chdir(tmp_path / "disk")
    run(".", "two", overwrite=True)
    assert (tmp_path / "disk" / "a.txt").read_text() == "two" and (tmp_path / "disk" / "notes.md").read_text() == "mine"
    inode = os.stat(tmp_path / "disk").st_ino
    run(".", "three", overwrite=True)
    assert os.stat(tmp_path / "disk").st_ino == inode  # written into, never replaced: a mount point would do


def test_what_is_finished_stays_when_something_later_fails(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="disk full"):
        with Output(tmp_path / "out", "report.json", names=("*.txt",)) as out:
            out.path("a.txt").write_text("finished")
            out.publish("a.txt")
            out.path("b.txt").write_text("half")
            raise RuntimeError("disk full")
    assert snapshot(tmp_path / "out").keys() == {"a.txt", "report.json"}
    assert listed_files(tmp_path / "out" / "report.json").keys() == {"a.txt"}
    assert "a.txt" in capsys.readouterr().err


def test_a_run_that_failed_before_anything_was_finished_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Output(tmp_path / "out", "report.json") as out:
            out.path("a.txt").write_text("half")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_named(tmp_path, capsys):
    work = tmp_path / "out" / ".report.partial"
    work.mkdir(parents=True)
    (work / "a.txt").write_text("half")
    run(tmp_path / "out")
    assert str(work) in capsys.readouterr().err
    assert not work.exists() and (tmp_path / "out" / "a.txt").read_text() == "one"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="a.txt"):
        with Output(tmp_path / "out", "report.json", names=("*.txt",)) as out:
            out.path("a.txt").write_text("ours")
            (tmp_path / "out" / "a.txt").write_text("mine")
    assert (tmp_path / "out" / "a.txt").read_text() == "mine"


def test_without_a_name_a_new_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(free_folder("dsr-ask")) == "dsr-ask"
    (tmp_path / "dsr-ask").mkdir()
    (tmp_path / "dsr-ask-2").write_text("")
    assert str(free_folder("dsr-ask")) == "dsr-ask-3"
