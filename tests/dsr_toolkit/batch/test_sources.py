"""What the input of a batch may be, and the items that come of it. No model is needed."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dsr_toolkit.batch.columns import COLUMNS, ItemError
from dsr_toolkit.batch.sources import open_source


@pytest.fixture
def media(tmp_path) -> Path:
    """Files by name alone: sources open none of them."""
    for name in ("a.mp4", "b.png", "notes.txt", "room/1.jpg", "room/2.jpg", "room/deep/c.mov", ".hidden.png"):
        path = tmp_path / "media" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content of " + name.encode())
    return tmp_path / "media"


def items(task: str, name, **options) -> list[dict]:
    return list(open_source(task, str(name), **options).items())


def manifest(folder: Path, *lines) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_columns_are_the_inputs_of_the_endpoint():
    from dsr_toolkit.serving import handler_module

    for task, known in handler_module().TASKS.items():
        own = {"part"} if task == "cad" else set()  # any file of a part; the endpoint takes an STL or a mesh
        assert set(COLUMNS[task]) - own <= set(known.INPUTS)
        # A conversation says in another way what a row's columns say.
        assert set(known.INPUTS) - set(COLUMNS[task]) <= {"stl", "mesh", "messages"}


def test_a_row_names_files_beside_its_manifest_and_lists_its_questions(media):
    path = manifest(media, {"id": "one", "video": "a.mp4", "questions": ["Which?", "Where?"], "split": "test"})
    (item,) = items("ask", path)
    assert item["id"] == "one"
    assert item["inputs"] == {"video": str(media / "a.mp4"), "question": ["Which?", "Where?"]}


def test_a_single_image_is_a_list_of_one_and_a_row_has_parameters_of_its_own(media):
    (item,) = items("ask", manifest(media, {"image": "b.png", "question": "What?", "parameters": {"seed": 3}}))
    assert item["inputs"] == {"images": [str(media / "b.png")], "question": ["What?"]}
    assert item["parameters"] == {"seed": 3}


def test_a_row_without_an_id_is_called_by_its_number(media):
    rows = [{"id": 7, "image": "b.png", "phrases": ["a wall"]}, {"image": "b.png", "phrases": ["a door", "a wall"]}]
    assert [item["id"] for item in items("segment", manifest(media, *rows))] == ["7", "1"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "no JSON object"),
        ('{"video": 3, "question": "What?"}', "path of a file"),
        ('{"video": "https://example.org/a.mp4", "question": "What?"}', "addresses are not opened"),
        ('{"video": "a.mp4", "question": 5}', "must be a text"),
        ('{"images": ["b.png"], "image": "b.png", "question": "What?"}', "leave one out"),
        ('{"video": "a.mp4", "question": "What?", "parameters": [1]}', "must be an object"),
    ],
)
def test_a_row_that_says_nothing_is_an_item_with_an_error(media, line, says):
    good = {"id": "good", "video": "a.mp4", "question": "What?"}
    broken, found = items("ask", manifest(media, line, good))
    assert broken["error"][0] == "bad_request" and says in broken["error"][1]
    assert "inputs" in found


def test_a_csv_holds_lists_as_json(media):
    path = media / "rows.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "image", "phrases"], ["1", "b.png", '["a wall", "a door"]'], ["2", "b.png", "a, b"]])
        file.write("3,b.png\n")
    one, two, short = items("segment", path)
    assert one["inputs"] == {"image": str(media / "b.png"), "phrases": ["a wall", "a door"]}
    assert two["inputs"]["phrases"] == ["a, b"]
    assert "another number of cells" in short["error"][1]


def test_a_parquet_file_may_hold_the_files_themselves(media):
    rows = [{"id": str(i), "image": {"bytes": b"%d" % i, "path": None}, "phrase": "a wall"} for i in range(5)]
    rows.append({"id": "path", "image": {"bytes": None, "path": "b.png"}, "phrase": "a wall"})
    parquet.write_table(pa.Table.from_pylist(rows), media / "rows.parquet", row_group_size=2)
    source = open_source("segment", str(media / "rows.parquet"))
    found = list(source.items())
    assert found[3] == {"id": "3", "row": 3}, "what workers get is the number of the row"
    assert source.read(3)["inputs"] == {"image": b"3", "phrases": ["a wall"]}
    assert source.read(5)["inputs"]["image"] == str(media / "b.png")


def test_a_data_set_gives_its_files_as_they_are_stored(media):
    import datasets

    columns = {"id": datasets.Value("string"), "images": datasets.List(datasets.Image())}
    features = datasets.Features(columns | {"question": datasets.Value("string")})
    rows = [{"id": "x", "images": [{"bytes": b"no image at all", "path": None}], "question": "What?"}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(media / "saved"))
    source = open_source("ask", str(media / "saved"))
    assert list(source.items()) == [{"id": "x", "row": 0}]
    assert source.read(0)["inputs"] == {"images": [b"no image at all"], "question": ["What?"]}


def test_a_folder_gives_every_file_that_the_task_reads(media):
    source = open_source("ask", str(media))
    found = {item["id"]: item["inputs"] for item in source.items()}
    assert list(found) == ["a.mp4", "b.png", "room/1.jpg", "room/2.jpg", "room/deep/c.mov"]
    assert found["b.png"] == {"images": [str(media / "b.png")]} and source.left_out == ["notes.txt"]


def test_images_of_one_folder_are_one_scene(media):
    (media / "b.png").unlink()
    found = {item["id"]: item["inputs"] for item in items("reconstruct", media)}
    assert found["room"] == {"images": [str(media / "room" / name) for name in ("1.jpg", "2.jpg")]}
    assert set(found) == {"a.mp4", "room", "room/deep/c.mov"}


def test_a_folder_of_cameras_is_a_surround_scene(tmp_path):
    for name in ("CAM_FRONT.jpg", "CAM_BACK.jpg", "calibration.json"):
        (tmp_path / "streets" / "1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "streets" / "1" / name).write_text("{}")
    (item,) = items("scene", tmp_path / "streets")
    assert item["id"] == "1" and set(item["inputs"]["images"]) == {"CAM_FRONT", "CAM_BACK"}
    assert item["inputs"]["calibration"].endswith("calibration.json")


def test_a_glob_gives_what_it_matches(media):
    assert [item["id"] for item in items("ask", media / "**" / "*.jpg")] == ["1.jpg", "2.jpg"]
    with pytest.raises(ValueError, match="nothing matches"):
        items("ask", media / "*.webm")


def test_what_an_earlier_run_left_is_read_only_where_it_is_named(media, monkeypatch):
    run = media / "dsr-batch"
    (run / "items" / "b").mkdir(parents=True)
    (run / "items" / "b" / "mask.png").write_bytes(b"a mask")
    (media / "results").mkdir()  # of somebody else
    (media / "results" / "batch.json").write_text("{}")
    (media / "results" / "d.png").write_bytes(b"a picture")
    assert [item["id"] for item in items("segment", media)][:2] == ["b.png", "dsr-batch/items/b/mask.png"]
    (run / "batch.json").write_text(json.dumps({"task": "segment", "files": {}}))
    monkeypatch.chdir(media)
    theirs = ["b.png", "results/d.png", "room/1.jpg", "room/2.jpg"]
    for name in (media, ".", media / "**" / "*.[pj][np]g", "**/*.[pj][np]g"):
        source = open_source("segment", str(name))
        assert [item["id"] for item in source.items()] == theirs
        assert "dsr-batch (of an earlier run)" in source.left_out
    for name in (run, "dsr-batch", "dsr-batch/items", "dsr-batch/items/*/*.png", run / "items" / "*" / "mask.png"):
        (item,) = items("segment", name)
        assert item["inputs"]["image"] == str(run / "items" / "b" / "mask.png")


def test_a_name_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        open_source("ask", str(tmp_path / "nowhere.jsonl"))


def test_wrong_rows_of_a_table_are_told_when_they_are_read(media):
    parquet.write_table(pa.table({"image": ["ftp://host/a.png"]}), media / "rows.parquet")
    source = open_source("segment", str(media / "rows.parquet"))
    assert list(source.items()) == [{"id": "0", "row": 0}]
    with pytest.raises(ItemError, match="addresses"):
        source.read(0)


@pytest.mark.parametrize("glob", ["", "*.png"])
def test_numbers_in_names_have_their_order_and_litter_is_no_item(tmp_path, glob):
    for name in ("1.png", "2.png", "10.png", "._1.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"")
    source = open_source("segment", str(tmp_path / glob) if glob else str(tmp_path))
    assert [item["id"] for item in source.items()] == ["1.png", "2.png", "10.png"] and source.left_out == []
    if not glob:
        (scene,) = items("reconstruct", tmp_path)
        assert [Path(path).name for path in scene["inputs"]["images"]] == ["1.png", "2.png", "10.png"]
