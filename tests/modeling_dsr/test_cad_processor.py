"""Processors of Cadrille and CAD-Recode: parts to inputs, answers to programs."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from dsr_toolkit.tiny import build
from modeling_dsr.cad_files import load_mesh
from modeling_dsr.cad_solids import TriangleMesh, farthest_point_sample, sample_surface
from modeling_dsr.cad_views import VIEW_DIRECTIONS, compose_views, encode_views, render_mesh
from modeling_dsr.processing_cadrille import answer_labels
from tests.modeling_dsr.cad_samples import CUBE_CORNERS, CUBE_FACES, box

PROGRAM = "import cadquery as cq\nr = cq.Workplane().box(1, 1, 1)"


@pytest.fixture(scope="module")
def cadrille(tmp_path_factory):
    return AutoProcessor.from_pretrained(build("cadrille", tmp_path_factory.mktemp("cadrille")))


@pytest.fixture(scope="module")
def cad_recode(tmp_path_factory):
    return AutoProcessor.from_pretrained(build("cad_recode", tmp_path_factory.mktemp("cad_recode")))


# --------------------------------------------------------------------------------------
# Meshes
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["stl", "ply", "obj"])
def test_mesh_files_are_read(tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh")
    path = tmp_path / f"box.{suffix}"
    trimesh.Trimesh(box(4, 2, 1).vertices, CUBE_FACES).export(path)
    mesh = load_mesh(path)
    np.testing.assert_allclose(mesh.bounds, [[0, 0, 0], [4, 2, 1]])
    assert mesh.face_normals()[1].sum() == pytest.approx(2 * (8 + 4 + 2))


def test_step_files_are_read(tmp_path):
    cadquery = pytest.importorskip("cadquery")
    path = tmp_path / "box.step"
    cadquery.exporters.export(cadquery.Workplane().box(4, 2, 1), str(path))
    np.testing.assert_allclose(load_mesh(path).bounds, [[-2, -1, -0.5], [2, 1, 0.5]], atol=1e-6)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("broken.step", "ISO-10303-21;\nnonsense", "cannot be read as STEP|empty mesh"),
        ("broken.stl", "solid nothing\nendsolid nothing", "no whole number of faces|empty"),
        ("empty.obj", "", "cannot be read as OBJ|empty"),
        ("part.txt", "x", "no mesh file"),
    ],
)
def test_files_that_hold_no_mesh_are_refused_by_name(tmp_path, name, content, message):
    pytest.importorskip("cadquery")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_mesh(tmp_path / name)
    assert name in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no mesh file"):
        load_mesh(tmp_path / "none.stl")


@pytest.mark.parametrize(
    "vertices, faces, message",
    [
        (np.empty((0, 3)), np.empty((0, 3)), "empty"),
        (CUBE_CORNERS, np.empty((0, 3)), "empty"),
        (CUBE_CORNERS * np.nan, CUBE_FACES, "NaN"),
        (CUBE_CORNERS, [[0, 1, 8]], "refer to vertices"),
        (CUBE_CORNERS[:, :2], CUBE_FACES, "needs `vertices`"),
    ],
)
def test_meshes_that_enclose_nothing_are_refused(vertices, faces, message):
    with pytest.raises(ValueError, match=message):
        TriangleMesh(vertices, faces)


def test_surface_samples_spread_by_area():
    points, normals = sample_surface(box(10, 1, 1), 20000, np.random.default_rng(0))
    ends = (points[:, 0] == 0) | (points[:, 0] == 10)
    assert ends.mean() == pytest.approx(2 / 42, abs=0.01)
    assert np.allclose(np.abs(normals).max(1), 1)


# --------------------------------------------------------------------------------------
# Sampling
# --------------------------------------------------------------------------------------


def plain_farthest_points(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        distances = ((points[:, None] - points[chosen]) ** 2).sum(-1).min(1)
        chosen.append(int(distances.argmax()))
    return chosen


def test_farthest_points_equal_the_definition():
    points = torch.rand(3, 60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[0, 7] = points[0, 0]  # a duplicate
    found = farthest_point_sample(points, 12)
    assert found.tolist() == [plain_farthest_points(cloud.numpy(), 12) for cloud in points]


def test_too_few_points_cannot_be_sampled():
    with pytest.raises(ValueError, match="between 1 and the 5 points"):
        farthest_point_sample(torch.zeros(1, 5, 3), 6)


# --------------------------------------------------------------------------------------
# Normalisation
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "normalization, low, high",
    [
        ("fit", [-1, -0.5, -0.25], [1, 0.5, 0.25]),
        ("unit_cube", [-1, -1, -1], [7, 3, 1]),
        ("program", [0, 0, 0], [0.04, 0.02, 0.01]),
        ("none", [0, 0, 0], [4, 2, 1]),
    ],
)
def test_every_normalisation_follows_its_definition(cadrille, normalization, low, high):
    np.testing.assert_allclose(cadrille.place_mesh(box(4, 2, 1), normalization).bounds, [low, high])


def test_an_unknown_normalisation_is_refused(cadrille):
    with pytest.raises(ValueError, match="`normalization` must be one of"):
        cadrille(meshes=box(1, 1, 1), normalization="metres")


@pytest.mark.parametrize("size, warned", [(1000.0, True), (0.001, True), (200.0, False), (1.0, False)])
def test_a_scale_beyond_a_hundred_warns_of_units(cadrille, size, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cadrille(meshes=box(size, size, size))
    assert any("millimetres" in str(warning.message) for warning in caught) == warned


def test_a_flat_point_is_refused(cadrille):
    with pytest.raises(ValueError, match="no extent"):
        cadrille(point_clouds=np.zeros((300, 3)))


# --------------------------------------------------------------------------------------
# Cadrille
# --------------------------------------------------------------------------------------


def test_point_prompt_is_the_published_one(cadrille):
    inputs = cadrille(meshes=box(4, 2, 1))
    text = cadrille.tokenizer.decode(inputs["input_ids"][0])
    assert text == "<|endoftext|>" * 256 + (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nGenerate cadquery "
        "code<|im_end|>\n<|im_start|>assistant\n"
    )
    assert inputs["point_clouds"].shape == (1, 256, 3) and inputs["point_clouds"].abs().max() <= 1
    assert inputs["is_pc"].tolist() == [True] and inputs["is_img"].tolist() == [False]


def test_view_prompt_is_the_published_one(cadrille):
    inputs = cadrille(meshes=box(1, 1, 1), modality="views")
    text = cadrille.tokenizer.decode(inputs["input_ids"][0])
    assert "<|im_start|>user\n<|vision_start|>" + "<|video_pad|>" * 256 + "<|vision_end|>Generate cadquery code" in text
    assert inputs["pixel_values_videos"].shape == (1, 1024, 1176)
    assert inputs["video_grid_thw"].tolist() == [[1, 32, 32]]


def test_a_batch_mixes_points_views_and_text(cadrille):
    views = [Image.new("RGB", (128, 128), (i, 0, 0)) for i in range(4)]
    inputs = cadrille(
        meshes=[box(1, 2, 3), None, None], images=[None, views, None], text=[None, None, "A plate with a hole"]
    )
    assert inputs["is_pc"].tolist() == [True, False, False] and inputs["is_img"].tolist() == [False, True, False]
    assert inputs["point_clouds"][1:].abs().sum() == 0 and inputs["video_grid_thw"].tolist() == [
        [0] * 3,
        [1, 32, 32],
        [0] * 3,
    ]
    assert inputs["attention_mask"][2].sum() < inputs["attention_mask"][0].sum()
    assert inputs["attention_mask"][2, -1] == 1  # padded on the left
    assert "A plate with a hole" in cadrille.tokenizer.decode(inputs["input_ids"][2])


def test_labels_cover_the_answer_and_its_end(cadrille):
    inputs = cadrille(
        meshes=[box(1, 1, 1), box(1, 2, 1)], programs=[PROGRAM, PROGRAM + "\n# longer"], padding_side="right"
    )
    for i, program in enumerate((PROGRAM, PROGRAM + "\n# longer")):
        learnt = inputs["input_ids"][i][inputs["labels"][i] != -100]
        assert cadrille.tokenizer.decode(learnt) == f"\n{program}<|im_end|>"
    assert inputs["attention_mask"][0, 0] == 1


def test_labels_of_a_header_of_several_tokens():
    ids = [1, 5, 6, 30, 31, 2, 9, 1, 5, 7, 40, 2]
    assert answer_labels(ids, 1, [5, 6], 2) == [-100, -100, -100, 30, 31, 2] + [-100] * 6


def test_noise_is_in_units_of_the_model(cadrille):
    clean = cadrille(meshes=box(1, 1, 1))["point_clouds"]
    noisy = cadrille(meshes=box(1, 1, 1), noise_std=0.01, noise_probability=1.0)["point_clouds"]
    assert (noisy - clean).std() == pytest.approx(0.01, rel=0.1)
    assert torch.equal(cadrille(meshes=box(1, 1, 1), noise_std=0.01, noise_probability=0.0)["point_clouds"], clean)


def test_seeds_decide_the_samples(cadrille):
    def points(seed):
        return cadrille(meshes=box(1, 1, 1), seed=seed)["point_clouds"]

    assert torch.equal(points(1), points(1)) and not torch.equal(points(1), points(2))


def test_programs_come_back_without_special_tokens(cadrille):
    prompt = cadrille(text="x")["input_ids"]
    answer = torch.tensor([cadrille.tokenizer(PROGRAM + "<|im_end|>")["input_ids"]])
    assert cadrille.decode_programs(torch.cat([prompt, answer], 1), prompt.shape[1]) == [PROGRAM]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Nothing was given"),
        ({"point_clouds": np.full((300, 3), np.nan)}, "NaN"),
        ({"point_clouds": np.random.rand(100, 3)}, "fewer points than placeholders"),
        ({"point_clouds": [np.random.rand(300, 2)]}, r"\[points, 3\]"),
        ({"meshes": [box(1, 1, 1)], "images": [Image.new("RGB", (9, 9))]}, "one of them at a time"),
        ({"meshes": [box(1, 1, 1)], "text": ["a", "b"]}, "entries"),
        ({"meshes": box(1, 1, 1), "modality": "voxels"}, "modality"),
        ({"images": [[Image.new("RGB", (9, 9))] * 3]}, "1, 2 or 4"),
        ({"images": [Image.new("RGB", (268, 268)), Image.new("RGB", (268, 600))]}, "one size"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(cadrille, arguments, message):
    with pytest.raises(ValueError, match=message):
        cadrille(**arguments)


# --------------------------------------------------------------------------------------
# CAD-Recode
# --------------------------------------------------------------------------------------


def test_cad_recode_prompt_is_the_published_one(cad_recode):
    inputs = cad_recode(meshes=box(4, 2, 1))
    ids = cad_recode.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert inputs["input_ids"][0].tolist() == [ids[0]] * 256 + [ids[1]]
    assert inputs["attention_mask"].min() == 1 and inputs["point_token_mask"].sum() == 256
    assert inputs["point_cloud"].shape == (1, 256, 3)


def test_cad_recode_labels_cover_program_and_end(cad_recode):
    inputs = cad_recode(meshes=[box(1, 1, 1)] * 2, programs=[PROGRAM, PROGRAM * 2], padding_side="right")
    learnt = inputs["input_ids"][0][inputs["labels"][0] != -100]
    assert cad_recode.tokenizer.decode(learnt) == PROGRAM + "<|endoftext|>"


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|endoftext|><|im_end|><|im_end|>", ""])
def test_cad_recode_programs_come_back_whole(cad_recode, end):
    """Without an end too: nothing is cut off."""
    answer = torch.tensor([cad_recode.tokenizer("<|im_start|>" + PROGRAM + end)["input_ids"]])
    assert cad_recode.decode_programs(answer) == [PROGRAM]


def test_first_version_reads_sorted_points_with_normals(cad_recode):
    first = type(cad_recode)(cad_recode.tokenizer, point_channels=6, point_sampling="random_sorted", program_range=50.0)
    cloud = first(meshes=box(4, 2, 1))["point_cloud"][0]
    assert cloud.shape == (256, 6)
    assert (cloud[1:, 2] >= cloud[:-1, 2]).all()
    np.testing.assert_allclose(cloud[:, 3:].norm(dim=1), 1, atol=1e-5)


# --------------------------------------------------------------------------------------
# Views
# --------------------------------------------------------------------------------------


def silhouette(mesh: TriangleMesh, direction) -> np.ndarray:
    return (render_mesh(mesh, direction) < 250).any(-1)


@pytest.mark.parametrize("direction", VIEW_DIRECTIONS)
def test_a_point_of_the_part_lies_where_the_camera_projects_it(direction):
    """The published camera: 0.9·direction away, 433.01 pixels of 500, world +y down."""
    where = np.array([0.8, 0.3, 0.65])
    small = TriangleMesh((CUBE_CORNERS - 0.5) * 0.04 + where, CUBE_FACES)
    front = np.array(direction, float)
    right = np.cross([0, 1, 0], front)
    down = np.cross(front, right)
    ray = where - (0.5 - 0.9 * front)
    forward = ray @ front / np.linalg.norm(front)
    expected = [
        (ray @ axis / np.linalg.norm(axis) / forward * 433.0127 / 500 + 0.5) * 128 - 0.5 for axis in (right, down)
    ]
    rows, columns = silhouette(small, direction).nonzero()
    assert [columns.mean(), rows.mean()] == pytest.approx(expected, abs=0.6)
    high = TriangleMesh((CUBE_CORNERS - 0.5) * 0.04 + [0.5, 0.9, 0.5], CUBE_FACES)
    assert silhouette(high, direction).nonzero()[0].mean() > 64  # +y points down


def test_nearer_faces_hide_those_behind():
    near = TriangleMesh(CUBE_CORNERS * 0.2 + 0.1, CUBE_FACES)  # towards the camera that looks along (1, 1, 1)
    behind = TriangleMesh(CUBE_CORNERS * 0.05 + [0.8, 0.77, 0.8], CUBE_FACES)
    both = TriangleMesh(
        np.concatenate([near.vertices, behind.vertices]), np.concatenate([near.faces, behind.faces + 8])
    )
    assert np.array_equal(render_mesh(both, (1, 1, 1), smooth=False), render_mesh(near, (1, 1, 1), smooth=False))
    assert not np.array_equal(
        render_mesh(both, (-1, -1, -1), smooth=False), render_mesh(near, (-1, -1, -1), smooth=False)
    )


def test_a_hole_is_seen_through():
    ring = [
        [np.cos(a) * r + 0.5, np.sin(a) * r + 0.5, z]
        for z in (0.45, 0.55)
        for r in (0.2, 0.4)
        for a in np.arange(24) / 12 * np.pi
    ]
    quads = []
    for i in range(24):
        j = (i + 1) % 24
        inner, outer, inner_top, outer_top = (lambda k, n=n: 24 * n + k for n in range(4))
        quads += [(inner(i), outer(i), outer(j), inner(j)), (inner_top(j), outer_top(j), outer_top(i), inner_top(i))]
        quads += [(outer(i), outer_top(i), outer_top(j), outer(j)), (inner(j), inner_top(j), inner_top(i), inner(i))]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    picture = silhouette(TriangleMesh(np.array(ring), np.array(faces)), (0, 1e-6, 1))
    assert picture[64, 64 + 28] and not picture[64, 64]


def test_faces_that_look_away_change_no_picture():
    part = box(0.5, 0.9, 0.7).moved(1.0, 0.5 - box(0.5, 0.9, 0.7).vertices.mean(0))
    for direction in VIEW_DIRECTIONS:
        for smooth in (True, False):
            whole = render_mesh(part, direction, smooth=smooth, oversampling=1)
            assert (whole == render_mesh(part, direction, smooth=smooth, oversampling=1, closed=True)).all()
            assert (whole < 255).any()


def test_the_second_frame_may_show_where_a_pixel_lies(cadrille):
    picture = Image.new("RGB", (280, 140), (200, 100, 50))
    limits = (28 * 28, 280 * 140)
    plain, grid = encode_views(picture, cadrille.image_processor, limits)
    told, same = encode_views(picture, cadrille.image_processor, limits, coordinates=True)
    assert grid == same == (1, 10, 20)
    frames = told.view(-1, 3, 2, 14, 14)
    assert torch.equal(frames[:, :, 0], plain.view(-1, 3, 2, 14, 14)[:, :, 0])
    # Patches come in the order in which 2 × 2 of them are merged.
    red, green, blue = (frames[:, channel, 1].mean((1, 2)).view(5, 10, 2, 2) for channel in range(3))
    assert (red[0, :, 0, 0].diff() > 0).all() and red[:, 0, :, 0].std() < 1e-5
    assert (green[:, 0, 0, 0].diff() > 0).all() and green[0, :, 0, :].std() < 1e-5
    assert blue.std() < 1e-5


def test_views_are_composed_with_borders():
    views = [np.full((128, 128, 3), i, np.uint8) for i in (10, 20, 30, 40)]
    picture = np.asarray(compose_views(views))
    assert picture.shape == (268, 268, 3)
    assert [picture[y, x, 0] for y, x in ((64, 64), (64, 200), (200, 64), (200, 200))] == [10, 20, 30, 40]
    assert picture[:3].max() == 0 and picture[131:137].max() == 0 and picture[:, -3:].max() == 0
    assert compose_views(views[:2]).size == (268, 134) and compose_views(views[:1]).size == (134, 134)
