"""What people have as meshes and clouds, read rightly by the one reader."""

import numpy as np
import pytest
import torch

from modeling_dsr.cad_files import load_cloud, load_mesh, load_part, read_stl
from modeling_dsr.cad_solids import TriangleMesh

trimesh = pytest.importorskip("trimesh")

BOX = trimesh.creation.box((2, 3, 4))
POINTS = np.random.default_rng(0).random((300, 3)) * [20, 30, 10]


def stl_bytes() -> bytes:
    return trimesh.exchange.stl.export_stl(BOX)


@pytest.mark.parametrize("tail", [b"", b"x", b"\0" * 49])
def test_a_binary_stl_may_end_in_something_else(tmp_path, tail):
    (tmp_path / "a.stl").write_bytes(stl_bytes() + tail)
    assert np.allclose(load_mesh(tmp_path / "a.stl").bounds, BOX.bounds)


def test_a_binary_stl_whose_header_says_solid(tmp_path):
    (tmp_path / "a.stl").write_bytes(b"solid by someone".ljust(80, b" ") + stl_bytes()[80:])
    assert len(load_mesh(tmp_path / "a.stl").faces) == len(BOX.faces)


@pytest.mark.parametrize("name", ["plate", "Tür", "部品"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le"][:2])
def test_an_ascii_stl_with_a_name_in_any_script(tmp_path, name, encoding):
    text = trimesh.exchange.stl.export_stl_ascii(BOX).replace("solid", f"solid {name}", 1)
    (tmp_path / "a.stl").write_bytes(text.encode(encoding))
    assert np.allclose(load_mesh(tmp_path / "a.stl").bounds, BOX.bounds)
    vertices, faces = read_stl(text.encode(encoding))
    assert vertices.shape == (36, 3) and faces.shape == (12, 3)


@pytest.mark.parametrize("content", [b"", b"solid nothing\nendsolid", b"abc", stl_bytes()[:300]])
def test_no_stl_is_named(tmp_path, content):
    (tmp_path / "a.stl").write_bytes(content)
    with pytest.raises(ValueError, match="a.stl"):
        load_mesh(tmp_path / "a.stl")


def test_faces_that_are_no_numbers_are_left_out_and_said(tmp_path):
    content = bytearray(stl_bytes())
    content[84 + 12 : 84 + 16] = np.float32("nan").tobytes()
    (tmp_path / "a.stl").write_bytes(content)
    with pytest.warns(UserWarning, match="1 of 12 faces"):
        mesh = load_mesh(tmp_path / "a.stl")
    assert len(mesh.faces) == 11


def test_a_vertex_of_no_face_has_no_say_in_the_size():
    mesh = TriangleMesh(np.vstack([BOX.vertices, [[1e6, 0, 0]]]), BOX.faces)
    assert np.allclose(mesh.bounds, BOX.bounds)


TEXTS = {
    "spaces.xyz": ("", " ", "utf-8"),
    "commas.csv": ("x,y,z\n", ",", "utf-8"),
    "bom.xyz": ("", " ", "utf-8-sig"),
    "cloudcompare.asc": ("//X Y Z\n300\n", " ", "utf-8"),
    "comments.txt": ("# a scan\n", "\t", "utf-8"),
    "semicolons.txt": ("", ";", "utf-8"),
    "count.pts": ("300\n", " ", "utf-8"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_clouds_as_people_write_them(tmp_path, name):
    head, mark, encoding = TEXTS[name]
    lines = [mark.join(f"{value:.6f}" for value in point) for point in POINTS]
    (tmp_path / name).write_text(head + "\n".join(lines) + "\n", encoding=encoding)
    assert np.allclose(load_cloud(tmp_path / name), POINTS, atol=1e-6)
    assert isinstance(load_part(tmp_path / name), np.ndarray)


def test_a_ply_of_points_is_a_cloud_and_one_of_faces_a_mesh(tmp_path):
    trimesh.PointCloud(POINTS).export(tmp_path / "points.ply")
    BOX.export(tmp_path / "box.ply")
    assert load_part(tmp_path / "points.ply").shape == (300, 3)
    assert isinstance(load_part(tmp_path / "box.ply"), TriangleMesh)
    with pytest.raises(ValueError, match="it is a cloud"):
        load_mesh(tmp_path / "points.ply")


@pytest.mark.parametrize("text", ["1 2\n3 4\n", "1 2 3\n4 5\n", "1 2 3\nfour 5 6\n", "", "name\n"])
def test_no_cloud_is_named(tmp_path, text):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(ValueError, match="a.xyz"):
        load_cloud(tmp_path / "a.xyz")


@pytest.mark.parametrize("mark", [" ", ";", "\t"])
def test_commas_inside_numbers_are_decimal(tmp_path, mark):
    lines = [mark.join(f"{value:.6f}".replace(".", ",") for value in point) for point in POINTS]
    (tmp_path / "a.xyz").write_text("\n".join(lines))
    assert np.allclose(load_cloud(tmp_path / "a.xyz"), POINTS, atol=1e-6)


def test_points_that_are_no_numbers_are_left_out_and_said(tmp_path):
    (tmp_path / "a.xyz").write_text("nan nan nan\n1 2 3\n4 5 6\ninf 0 0\n")
    with pytest.warns(UserWarning, match="2 of 4 points"):
        assert load_cloud(tmp_path / "a.xyz").tolist() == [[1, 2, 3], [4, 5, 6]]
    np.save(tmp_path / "b.npy", np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="b.npy.*no point"):
        load_cloud(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="c.npy"):
        load_cloud(tmp_path / "c.npy")


def test_a_part_far_from_the_origin_keeps_its_shape(cad_processor, tmp_path):
    here = cad_processor(point_clouds=[POINTS], seed=0)
    far = cad_processor(point_clouds=[POINTS + [500_000.0, 5_400_000.0, 300.0]], seed=0)
    clouds = [next(value for name, value in one.items() if "point_cloud" in name) for one in (here, far)]
    torch.testing.assert_close(clouds[0], clouds[1], atol=1e-5, rtol=0)
