"""What a run leaves: whole, whenever it stops. No model is needed."""

import json
import os
import shutil

import pyarrow.parquet as parquet
import pytest

from dsr_toolkit.batch import store as module
from dsr_toolkit.batch.attempts import Attempts
from dsr_toolkit.batch.rows import answered, folder_of, table_bytes
from dsr_toolkit.batch.store import Finished, Store

SETTINGS = {"task": "reconstruct", "input": "scenes"}
ANSWER = {"frames": [], "points": 5, "glb": "Z2xi"}  # "glb" in base64


def plan(count: int) -> list[dict]:
    return [{"id": f"scene {number}", "inputs": {}, "parameters": {}} for number in range(count)]


def finished(chunk) -> Finished:
    """Every third item is an error, the others have a file."""
    found = []
    for item in chunk.items():
        wrong = int(item["id"].split()[1]) % 3 == 0
        pairs = [({"inputs": {}}, None if wrong else ANSWER)]
        found.append(answered("reconstruct", item["id"], pairs, ("internal", "no") if wrong else None, 0.1, "pi3", "r"))
    files = [(one.row["folder"], name, content) for one in found for name, content in one.files.items()]
    return Finished(chunk.number, table_bytes("reconstruct", [one.row for one in found]), files, len(found), 0)


def run(folder, count: int = 5, size: int = 3, resume: bool = True) -> list[int]:
    """Everything that is left; returns the chunks that were."""
    numbers = []
    with Store(folder, SETTINGS, size, resume) as store:
        if store.is_finished:
            store.clean()
            return numbers
        store.save()
        if not store.has_plan:
            store.plan(plan(count))
        for chunk in store.left():
            store.commit(finished(chunk))
            numbers.append(chunk.number)
        store.compact()
        store.finish()
    return numbers


def check(folder, count: int = 5) -> None:
    rows = parquet.read_table(folder / "results.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"scene {number}" for number in range(count)]
    for number, row in enumerate(rows):
        assert (row["error_code"] is None) == bool(number % 3)
        assert [(folder / row["folder"] / name).read_bytes() for name in row["files"]] == [b"glb"] * bool(number % 3)
    assert len(list((folder / "items").iterdir())) == sum(bool(number % 3) for number in range(count))
    assert sorted(path.name for path in folder.iterdir()) == ["batch.json", "items", "results.parquet"]


def test_a_run_leaves_a_row_per_item_in_the_order_of_the_input(tmp_path):
    assert run(tmp_path / "out", count=8, resume=False) == [0, 1, 2]
    check(tmp_path / "out", 8)
    report = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert (report["items"], report["done"], report["errors"], report["finished"]) == (8, 8, 3, True)


class Killed(BaseException):
    """As far as the files are concerned, the end of the process."""


def killed_at(number: int, monkeypatch, folder) -> bool:
    """Run until the call `number` that changes a file or a folder; whether there were so many."""
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)  # the power does not fail here
        for name in ("replace", "rename", "mkdir", "rmdir", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        try:
            run(folder)
        except Killed:
            return True
    return False


def test_whenever_it_is_killed_nothing_is_lost_and_nothing_is_there_twice(tmp_path, monkeypatch):
    number = 1
    while killed_at(number, monkeypatch, tmp_path / f"out-{number}"):
        folder = tmp_path / f"out-{number}"
        parts = folder / "parts"
        done = {int(path.name) for path in parts.glob("[0-9]*")} if parts.is_dir() else set()
        again = run(folder)
        assert not done & set(again), "what was done is done again"
        check(folder)
        assert run(folder) == []
        number += 1
    assert number > 20, "few calls were tried"


def test_a_run_is_killed_twice_and_ends_well(tmp_path, monkeypatch):
    for first in range(5, 30, 8):
        folder = tmp_path / f"out-{first}"
        killed_at(first, monkeypatch, folder)
        killed_at(6, monkeypatch, folder)
        run(folder)
        check(folder)


def test_an_interrupted_run_has_a_valid_table_of_what_it_did(tmp_path):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        store.save()
        store.plan(plan(8))
        for chunk in list(store.left())[1:2]:
            store.commit(finished(chunk))
        assert store.compact() == (3, 1)
    assert parquet.read_table(tmp_path / "out" / "results.parquet")["id"].to_pylist() == [
        "scene 3", "scene 4", "scene 5"
    ]  # fmt: skip
    assert run(tmp_path / "out") == [0, 2]
    check(tmp_path / "out", 8)


def test_the_input_may_change_once_its_items_are_listed(tmp_path):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        store.save()
        store.plan(plan(8))
    run(tmp_path / "out", count=100, size=50)
    check(tmp_path / "out", 8)


def test_another_run_or_other_files_are_refused(tmp_path):
    run(tmp_path / "out", resume=False)
    with pytest.raises(ValueError, match="--resume"):
        Store(tmp_path / "out", SETTINGS, 3, False)
    with pytest.raises(ValueError, match="input 'scenes'"):
        Store(tmp_path / "out", SETTINGS | {"input": "others"}, 3, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(ValueError, match="not empty"):
        Store(tmp_path / "mine", SETTINGS, 3, True)
    (tmp_path / "out" / "results.parquet").write_bytes(b"edited")
    with pytest.raises(ValueError, match="not what the run wrote"):
        Store(tmp_path / "out", SETTINGS, 3, True)


@pytest.mark.parametrize("link", [False, True])
def test_a_table_of_somebody_else_in_an_unfinished_run_is_not_overwritten(tmp_path, link):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        store.save()
    theirs = tmp_path / "out" / "results.parquet"
    theirs.symlink_to("nowhere") if link else theirs.write_bytes(b"mine")
    with pytest.raises(ValueError, match="not what the run wrote"):
        Store(tmp_path / "out", SETTINGS, 3, True)


def test_files_of_others_are_not_overwritten(tmp_path):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        store.save()
        store.plan(plan(8))
        theirs = tmp_path / "out" / folder_of("scene 1") / "mine.txt"
        theirs.parent.mkdir(parents=True)
        theirs.write_text("mine")
        with pytest.raises(ValueError, match="in the way"):
            store.commit(finished(next(store.left())))
    theirs.rename(tmp_path / "mine.txt")
    theirs.parent.rmdir()
    assert run(tmp_path / "out") == [1, 2], "what was answered is not lost"
    check(tmp_path / "out", 8)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with Store(tmp_path / "out", SETTINGS, 3, True):
        with pytest.raises(ValueError, match="another process"):
            Store(tmp_path / "out", SETTINGS, 3, True).__enter__()


def test_a_run_that_another_process_began_meanwhile_is_not_begun_anew(tmp_path):
    late = Store(tmp_path / "out", SETTINGS, 3, False)
    run(tmp_path / "out", resume=False)
    report = (tmp_path / "out" / "batch.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        late.__enter__()
    assert (tmp_path / "out" / "batch.json").read_bytes() == report
    late = Store(tmp_path / "other", SETTINGS, 3, True)
    run(tmp_path / "other")
    with late:
        assert late.is_finished


def test_a_folder_that_goes_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock, calls = module.fcntl.flock, []

    def first_removed(lock, how):
        if not calls:
            (tmp_path / "out").rmdir()
        calls.append(lock)
        flock(lock, how)

    monkeypatch.setattr(module.fcntl, "flock", first_removed)
    run(tmp_path / "out", resume=False)
    assert len(calls) == 2
    check(tmp_path / "out")


def test_files_of_others_in_parts_stay(tmp_path, capsys):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        store.save()
        store.plan(plan(5))
        store.commit(finished(next(store.left())))
    theirs = [tmp_path / "out" / "parts" / name for name in ("mine.txt", "00000000/mine.txt", "mine/00000001")]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert run(tmp_path / "out") == [1] and run(tmp_path / "out") == []
    assert all(path.read_text() == "mine" for path in theirs) and "they stay" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "parts").rglob("*") if path.is_file()].count("mine.txt") == 2
    assert not (tmp_path / "out" / "parts" / "plan.jsonl").exists()
    for path in theirs:
        path.unlink()
        path.parent.rmdir() if path.parent.name != "parts" else None
    assert run(tmp_path / "out") == []
    check(tmp_path / "out")


def test_a_run_that_ends_as_it_replaces_its_table_goes_on(tmp_path, monkeypatch):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        store.save()
        store.plan(plan(5))
        store.commit(finished(next(store.left())))
        store.compact()
        store.commit(finished(next(store.left())))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            replace = os.replace

            def killed(old, new):
                if str(new).endswith("results.parquet"):
                    raise Killed
                replace(old, new)

            patch.setattr(os, "replace", killed)
            store.compact()
        with monkeypatch.context() as patch, pytest.raises(Killed):  # and once more
            patch.setattr(os, "replace", killed)
            store.compact()
    assert run(tmp_path / "out") == []
    check(tmp_path / "out")


@pytest.mark.parametrize(
    ("items", "says"), [([], "no item"), ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "two items have the id 'a'")]
)
def test_items_must_be_there_and_have_ids_of_their_own(tmp_path, items, says):
    with Store(tmp_path / "out", SETTINGS, 3, False) as store:
        with pytest.raises(ValueError, match=says):
            store.plan(items)
        assert not store.has_plan
        store.discard()
    assert not (tmp_path / "out").exists()


def test_an_id_gives_a_folder_of_its_own_that_is_inside():
    names = ["a/b", "a_b", "../../etc/passwd", "..", ".", "a%2Fb", "ä" * 300, "ä" * 301, "x" * 119, " ", "nul\0"]
    folders = [folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder.count("/") == 1 and len(folder) < 140 for folder in folders)
    assert not any(folder.split("/")[1].startswith(".") for folder in folders)


def test_texts_that_no_file_takes_do_not_end_the_run():
    row = answered("ask", "1", [({"inputs": {"question": "\ud800?"}}, None)], ("internal", "\udcff"), 0.0, "m", "r").row
    assert table_bytes("ask", [row])


# ---- whose fault it is ---------------------------------------------------------------------


def test_an_item_that_ends_its_workers_is_found_and_given_up():
    attempts = Attempts()
    assert attempts.begin(4) == (False, [])
    assert attempts.begin(4) == (True, []), "its worker ended: the items come one by one"
    attempts.item(4, 0), attempts.item(4, 1)
    assert attempts.begin(4) == (True, []), "once may be an accident"
    attempts.item(4, 0), attempts.item(4, 1)
    assert attempts.begin(4) == (True, [1])
    attempts.item(4, 2)
    assert attempts.begin(4) == (True, [1]), "another item is at fault now"
    attempts.done(4)
    assert attempts.begin(4) == (False, [])


def test_what_is_written_at_last_is_there_whole(tmp_path, monkeypatch):
    module.write_file(tmp_path / "report", b"first")
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        module.write_file(tmp_path / "report", b"second")
    assert (tmp_path / "report").read_bytes() == b"first"


def test_a_folder_that_cannot_be_removed_stays_when_nothing_was_answered(tmp_path, monkeypatch):
    """The present one cannot, nor one where a disk is mounted."""
    monkeypatch.chdir(tmp_path)
    with Store(".", SETTINGS, 3, False) as store:
        store.save()
        store.discard()
    assert list(tmp_path.iterdir()) == []
