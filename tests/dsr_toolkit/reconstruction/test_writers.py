"""What the files of a reconstruction hold, read back by the libraries that people open them with."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import trimesh
from PIL import Image

from dsr_toolkit.reconstruction.depth_scale import DepthScale
from dsr_toolkit.reconstruction.pictures import Overview, _legible
from dsr_toolkit.reconstruction.writers import FORMATS, About, PointSample, Spread, open_writers
from dsr_toolkit.reconstruction.writers.glb import linear, srgb
from tests.dsr_toolkit.reconstruction.tours import winding

HEIGHT, WIDTH = 6, 8


def write(folder, views, formats, about=About(), max_points=10_000):
    writers = open_writers(folder, formats, max_points, about)
    for view in views:
        for writer in writers.values():
            writer.add(view)
    return [path for writer in writers.values() for path in writer.finish()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, views = tmp_path_factory.mktemp("files"), winding(5)
    assert all(path.exists() for path in write(folder, views, FORMATS))
    return folder, views


def trusted(views) -> np.ndarray:
    return np.concatenate([view.points[view.mask] for view in views])


def same_points(found, expected) -> bool:
    order = lambda points: points[np.lexsort(np.round(points, 3).T)]  # noqa: E731
    return found.shape == expected.shape and np.allclose(
        order(np.asarray(found)), order(np.asarray(expected)), atol=1e-4
    )


# ---- glTF ------------------------------------------------------------------------------


def test_glb_holds_points_and_cameras(written):
    folder, views = written
    scene = trimesh.load(folder / "scene.glb")
    below = np.linalg.inv(scene.graph["opencv"][0])
    clouds = [scene.geometry[name].vertices for name in ("points", "moving")]
    assert same_points(np.concatenate(clouds), trusted(views))
    assert len(clouds[1]) == sum((view.mask & (view.dynamic > 0.5)).sum() for view in views)
    for number, view in enumerate(views):
        pose, name = scene.graph[f"camera_{number:06d}"]
        assert np.allclose(below @ pose, view.camera_to_world, atol=1e-4)
        # The far corners of the frustum are the corners of the image.
        lines = scene.geometry[name].vertices
        far = lines[lines[:, 2] > 0] @ view.intrinsics.T
        pixels = far[:, :2] / far[:, 2:]
        assert np.allclose(pixels.min(0), -0.5, atol=1e-3)
        assert np.allclose(pixels.max(0), [WIDTH - 0.5, HEIGHT - 0.5], atol=1e-3)


def test_glb_colours_are_linear_light(written):
    """glTF 2.0, 3.7.2.1: COLOR_0 is linear. Bytes of the image as they are came out at 139 instead of 74."""
    folder, views = written
    cloud = trimesh.load(folder / "scene.glb").geometry["points"]
    levels = linear(np.concatenate([view.image[view.mask & (view.dynamic <= 0.5)] for view in views]))
    order = lambda colours: colours[np.lexsort(colours.T)]  # noqa: E731
    assert np.abs(order(cloud.colors[:, :3].astype(int)) - order(np.round(255 * levels).astype(int))).max() <= 1
    assert linear(np.array([0, 255])).tolist() == [0, 1] and linear(np.array(188)) == pytest.approx(0.5, abs=0.01)
    assert (srgb(linear(np.arange(256))) == np.arange(256)).all()


@pytest.mark.slow
def test_a_conforming_viewer_shows_the_bytes_of_the_image(tmp_path, page):
    """three.js, which trimesh carries, told to show sRGB as glTF's viewers do."""
    from trimesh.viewer import scene_to_html

    view = winding(1, height=40, width=60)[0]
    flat = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 40)), -1)
    points = np.concatenate([flat, np.full((40, 60, 1), 2.0)], -1).astype(np.float32)
    view = replace(
        view, image=np.full_like(view.image, 74), points=points, mask=np.ones((40, 60), bool), dynamic=None,
        camera_to_world=np.eye(4),
    )  # fmt: skip
    write(tmp_path, [view], ("glb",))
    (tmp_path / "viewer.html").write_text(scene_to_html(trimesh.Scene(trimesh.PointCloud(np.eye(3)))))
    page.goto((tmp_path / "viewer.html").as_uri())
    import base64

    pixel = page.evaluate(
        """(content) => new Promise((done) => new THREE.GLTFLoader().load("data:text/plain;base64," + content, (gltf) =>
            { const renderer = new THREE.WebGLRenderer({ preserveDrawingBuffer: true });
            renderer.outputEncoding = THREE.sRGBEncoding;
            renderer.setSize(64, 64);
            const scene = new THREE.Scene(), camera = new THREE.PerspectiveCamera(20, 1, 0.1, 10);
            gltf.scene.traverse((o) => { if (o.isPoints) { o.material.size = 9; o.material.sizeAttenuation = false; }
            }); scene.add(gltf.scene);
            renderer.render(scene, camera);
            const gl = renderer.getContext(), out = new Uint8Array(4);
            gl.readPixels(32, 32, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, out);
            done(Array.from(out));
        }))""",
        base64.b64encode((tmp_path / "scene.glb").read_bytes()).decode(),
    )
    assert np.abs(np.array(pixel[:3]) - 74).max() <= 1


def test_scenes_of_different_times_stand_in_one_place(tmp_path):
    """Files of two times, opened together, lie on one another: they share one root."""
    views, roots = winding(4), []
    about = About(root=views[0].camera_to_world)
    for name, some in (("one", views[:2]), ("other", views[2:])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, some, ("glb",), about)
        scene = trimesh.load(tmp_path / name / "scene.glb")
        roots.append(scene.graph["opencv"][0])
        assert np.allclose(
            np.linalg.inv(roots[-1]) @ scene.graph["camera_000000"][0], some[0].camera_to_world, atol=1e-4
        )
    assert np.allclose(roots[0], roots[1])


# ---- tables, arrays, videos --------------------------------------------------------------


def test_ply_holds_points_and_colours(written):
    folder, views = written
    cloud = trimesh.load(folder / "cloud.ply")
    assert np.allclose(cloud.vertices, trusted(views), atol=1e-6)
    still = np.concatenate([view.dynamic[view.mask] < 0.5 for view in views])
    colours = np.concatenate([view.image[view.mask] for view in views])
    assert np.array_equal(cloud.colors[still, :3], colours[still])
    assert np.array_equal(cloud.metadata["_ply_raw"]["vertex"]["data"]["moving"] == 0, still)


def test_tum_trajectory_reads_back(written):
    from evo.tools import file_interface

    folder, views = written
    trajectory = file_interface.read_tum_trajectory_file(str(folder / "trajectory.tum"))
    assert np.allclose(trajectory.timestamps, [view.time for view in views])
    assert np.allclose(trajectory.poses_se3, [view.camera_to_world for view in views], atol=1e-4)


def test_times_keep_all_their_digits(tmp_path):
    """Recordings count microseconds since 1970; nine digits are 10 s."""
    from evo.tools import file_interface

    times = [1305031102.175304, 1305031102.211214, 1305031102.243211]
    write(tmp_path, [replace(view, time=time) for view, time in zip(winding(3), times)], ("tum",))
    assert file_interface.read_tum_trajectory_file(str(tmp_path / "trajectory.tum")).timestamps.tolist() == times


def test_npz_holds_everything(written):
    folder, views = written
    with np.load(folder / "geometry.npz") as file:
        for name in ("image", "points", "depth", "confidence", "mask", "camera_to_world", "intrinsics", "dynamic"):
            assert np.array_equal(file[name], np.stack([getattr(view, name) for view in views])), name
        assert file["names"].tolist() == [view.name for view in views]
        assert np.allclose(file["times"], [view.time for view in views])


def test_npz_holds_images_of_two_sizes(tmp_path):
    views = [winding(1)[0], winding(1, height=HEIGHT + 2)[0]]
    write(tmp_path, views, ("npz",))
    with np.load(tmp_path / "geometry.npz") as file:
        for number, view in enumerate(views):
            for name in ("image", "points", "depth", "confidence", "mask", "dynamic"):
                assert np.array_equal(file[f"{name}_{number:06d}"], getattr(view, name)), name
        assert file["camera_to_world"].shape == (2, 4, 4) and len(file["names"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["geometry.npz"]


def test_videos_have_a_frame_per_view(written):
    folder, views = written
    for name in ("depth", "dynamic"):
        with av.open(str(folder / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == len(views) and frames[0].shape == (HEIGHT, WIDTH, 3)
    assert np.corrcoef(frames[0].mean(-1).ravel(), views[0].dynamic.ravel())[0, 1] > 0.5


def test_depth_plays_at_the_rate_of_its_video(tmp_path):
    """Every tenth frame of 30 per second is 3 per second; a pause stays a pause."""
    times = [4.0, 4 + 1 / 3, 4 + 2 / 3, 7.0]
    views = [replace(view, time=time, dynamic=None) for view, time in zip(winding(4), times)]
    write(tmp_path, views, ("depth-video",), About(seconds=True))
    with av.open(str(tmp_path / "depth.mp4")) as container:
        moments = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert np.allclose(moments, np.array(times) - 4, atol=1e-3)


# ---- COLMAP, nerfstudio, Rerun -----------------------------------------------------------


@pytest.mark.parametrize("form", ["colmap", "colmap-text"])
def test_colmap_model_reads_back(form, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    views = winding(5)
    write(tmp_path, views, (form,))
    suffixes = {path.suffix for path in (tmp_path / "colmap" / "sparse" / "0").iterdir()}
    assert suffixes == {".bin" if form == "colmap" else ".txt"}
    model = pycolmap.Reconstruction(str(tmp_path / "colmap" / "sparse" / "0"))
    assert model.num_images() == 5 and model.num_cameras() == 1  # the intrinsics agree
    for number, view in enumerate(views, 1):
        image = model.image(number)
        world_to_camera = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        assert np.allclose(np.linalg.inv(world_to_camera), view.camera_to_world, atol=1e-4)
        camera, k = model.camera(image.camera_id), view.intrinsics
        assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", WIDTH, HEIGHT)
        assert np.allclose(camera.params, [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "colmap" / "images" / image.name)), view.image)
    assert same_points(np.stack([point.xyz for point in model.points3D.values()]), trusted(views))


def test_cameras_that_differ_stay_apart(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    views = winding(3)
    other = views[1].intrinsics * [[1.1, 1, 1], [1, 1.1, 1], [1, 1, 1]]
    write(tmp_path, [views[0], replace(views[1], intrinsics=other), winding(1, height=8)[0]], ("colmap",))
    model = pycolmap.Reconstruction(str(tmp_path / "colmap" / "sparse" / "0"))
    assert [model.image(number).camera_id for number in (1, 2, 3)] == [1, 2, 3]
    assert model.camera(2).params[0] == pytest.approx(1.1 * views[0].intrinsics[0, 0])


ROOM = Path(__file__).resolve().parents[4] / "shared" / "samples" / "room"


def wall(count=4):
    """Views of one textured wall, from a camera that moves aside: where everything is, is known."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    generator, height, width, focal = np.random.default_rng(0), 120, 160, 150.0
    texture = gaussian_filter(generator.uniform(0, 255, (400, 400)), 1.5)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    v, u = np.mgrid[:height, :width]
    views, template = [], winding(1)[0]
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    for number in range(count):
        camera = np.eye(4)
        camera[0, 3] = 0.12 * number
        depth = np.full((height, width), 2.0, np.float32)
        points = np.stack(
            [(u - intrinsics[0, 2]) / focal * 2 + camera[0, 3], (v - intrinsics[1, 2]) / focal * 2, depth], -1
        )
        grey = map_coordinates(texture, [points[..., 1] * 90 + 200, points[..., 0] * 90 + 200], order=3, mode="reflect")
        image = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, -1)
        ones = np.ones_like(depth)
        views.append(
            replace(
                template, image=image, points=points.astype(np.float32), depth=depth, confidence=ones, mask=ones > 0,
                camera_to_world=camera, intrinsics=intrinsics, dynamic=None, name=f"{number}.png",
            )
        )  # fmt: skip
    return views


def test_tracks_lie_where_the_images_show_their_points():
    from dsr_toolkit.reconstruction.writers.tracks import TrackBuilder

    builder, seen = TrackBuilder(), []
    views = wall()
    wrong = replace(views[3], intrinsics=views[3].intrinsics + [[0, 0, 1.5], [0, 0, 0], [0, 0, 0]])
    for view in [
        *views[:3],
        wrong,
    ]:  # geometry expects points 1.5 pixels aside in the last view; the image knows better
        seen.append(builder.add(view))
    points, _, counts = builder.points()
    assert (counts == 4).sum() > 20
    for view, (pixels, tracks) in zip(views, seen):
        local = points[tracks] - view.camera_to_world[:3, 3]
        place = (local @ view.intrinsics.T)[:, :2] / local[:, 2:]
        assert np.median(np.linalg.norm(place - pixels, axis=1)) < 0.6  # points are those of whole pixels
    first, last = dict(zip(seen[0][1], seen[0][0])), dict(zip(seen[3][1], seen[3][0]))
    shifts = np.array([last[track] - first[track] for track in first.keys() & last.keys()])
    assert np.allclose(np.median(shifts, 0), [-27, 0], atol=0.1)  # 0.36 of 2 metres at a focal length of 150


def test_what_a_mask_leaves_out_is_in_no_track():
    """The place of a point moves when patches are aligned: what counts is the pixel where it ends."""
    from dsr_toolkit.reconstruction.writers.tracks import TrackBuilder

    builder = TrackBuilder()
    for number, view in enumerate(wall(3)):
        stripes, camera = np.ones_like(view.mask), view.camera_to_world.copy()
        if number:  # points are expected a pixel beside where they are, in a column that counts or one that does not
            stripes[:, ::2] = False
            camera[0, 3] += 2 / 150
        pixels, tracks = builder.add(replace(view, mask=stripes, camera_to_world=camera))
        column, row = np.round(pixels).astype(int).T
        assert len(tracks) and stripes[row, column].all()


NAMES = (
    "with space.jpg",
    "# 1.png",
    "two\nlines.png",
    "tab\there.png",
    "ünï 日本.png",
    "no text \udcff.png",
    "x" * 240,
)


@pytest.mark.parametrize("form", ["colmap", "colmap-text", "nerfstudio"])
def test_names_that_readers_stumble_over_are_renamed_with_a_table(form, tmp_path):
    """COLMAP's text ends a name at its first space."""
    import csv

    from dsr_toolkit.reconstruction.known import read_cameras

    views = [replace(winding(1)[0], name=name) for name in NAMES]
    write(tmp_path, views, (form,))
    folder = tmp_path / form.split("-")[0]
    if form != "nerfstudio":
        pycolmap = pytest.importorskip("pycolmap")
        model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
        names = [model.image(number).name for number in range(1, len(NAMES) + 1)]
    else:
        frames = json.loads((folder / "transforms.json").read_text())["frames"]
        names = [Path(frame["file_path"]).name for frame in frames]
    assert sorted(path.name for path in (folder / "images").iterdir()) == names
    assert names[0] == "000001-with_space.png" and names[4] == "000005-ünï_日本.png"
    with open(folder / "names.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["image"], row["name"]) for row in table] == list(zip(names, NAMES))
    known = read_cameras(folder)
    assert all(known.camera(view, number).pose is not None for number, view in enumerate(views))


def test_bundle_adjustment_starts_from_the_tracks(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    generator, views = np.random.default_rng(0), wall()
    shaken = []
    for view in views:
        camera = view.camera_to_world.copy()
        camera[:3, 3] += generator.normal(0, 0.003, 3)
        shaken.append(replace(view, camera_to_world=camera))
    write(tmp_path, shaken, ("colmap",), max_points=1)
    model = pycolmap.Reconstruction(str(tmp_path / "colmap" / "sparse" / "0"))
    assert model.compute_mean_track_length() > 2
    model.update_point_3d_errors()
    before = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 0.5 * before


@pytest.mark.slow
@pytest.mark.skipif(not ROOM.is_dir(), reason="needs the sample of a room with true cameras and depth")
def test_bundle_adjustment_of_a_true_room_lowers_the_reprojection_error(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    from dsr_toolkit.datasets.geometry import find_sequences
    from tests.dsr_toolkit.reconstruction.tours import views_of_truth

    (sequence,) = find_sequences(ROOM)
    write(tmp_path, views_of_truth(sequence), ("colmap",), max_points=1)
    model = pycolmap.Reconstruction(str(tmp_path / "colmap" / "sparse" / "0"))
    assert sum(point.track.length() > 1 for point in model.points3D.values()) > 100
    model.update_point_3d_errors()
    before = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() <= before < 0.5


def test_nerfstudio_transforms_point_where_the_cameras_look(written):
    folder, views = written
    document = json.loads((folder / "nerfstudio" / "transforms.json").read_text())
    assert document["camera_model"] == "OPENCV"
    points = np.asarray(trimesh.load(folder / "nerfstudio" / document["ply_file_path"]).vertices)
    assert same_points(points, trusted(views))
    for frame, view in zip(document["frames"], views, strict=True):
        matrix, k = np.array(frame["transform_matrix"]), view.intrinsics
        assert np.allclose(matrix[:3, 3], view.camera_to_world[:3, 3])
        assert np.allclose(-matrix[:3, 2], view.camera_to_world[:3, 2])  # OpenGL's cameras look along -z
        assert np.allclose(-matrix[:3, 1], view.camera_to_world[:3, 1])  # and their y points up
        assert (frame["w"], frame["h"]) == (WIDTH, HEIGHT) and frame["fl_x"] == k[0, 0]
        assert frame["cx"] == k[0, 2] + 0.5 and frame["cy"] == k[1, 2] + 0.5
        shown = Image.open(folder / "nerfstudio" / frame["file_path"])
        assert np.array_equal(np.asarray(shown), view.image)


def test_rerun_recording_has_a_timeline(written):
    reader = pytest.importorskip("rerun.chunk", reason="needs the [view] extra: rerun-sdk").RrdReader
    folder, views = written
    rows: dict[str, int] = {}
    for chunk in reader(str(folder / "scene.rrd")).stream():
        rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + chunk.num_rows
        if chunk.entity_path.startswith("/world/camera"):
            assert "frame" in chunk.timeline_names
    assert rows["/world/points"] == 1 and rows["/world/camera/image"] == rows["/world/camera/depth"] == len(views)


# ---- what nothing may break ---------------------------------------------------------------


def test_nothing_that_is_not_finite_is_written_in_any_format(tmp_path):
    views = winding(2)
    points, depth = views[0].points.copy(), views[0].depth.copy()
    points[2, 3], depth[1, 1] = np.inf, np.nan
    confidence = views[0].confidence.copy()
    confidence[4, 4] = np.nan
    broken = replace(views[0], points=points, depth=depth, confidence=confidence, mask=np.ones_like(views[0].mask))
    kept = broken.finite()
    assert kept.mask.sum() == kept.mask.size - 3 and views[1].finite() is views[1]
    write(tmp_path, [kept, views[1]], FORMATS)
    scene = trimesh.load(tmp_path / "scene.glb")
    assert all(np.isfinite(geometry.vertices).all() for geometry in scene.geometry.values())
    assert np.isfinite(trimesh.load(tmp_path / "cloud.ply").vertices).all()
    with np.load(tmp_path / "geometry.npz") as file:
        assert all(np.isfinite(file[name]).all() for name in ("points", "depth", "confidence", "intrinsics"))
    for path in tmp_path.rglob("*"):
        if path.suffix in (".txt", ".json", ".tum", ".html"):
            text = path.read_text().split("<script>")[0]
            assert (
                "nan" not in text.replace("nanm", "").lower().split() and "Infinity" not in text and "NaN" not in text
            )
    np.testing.assert_array_equal(kept.points[2, 3], 0)


def test_known_cameras_in_millimetres_may_look_far(tmp_path):
    """Half of float's bits end at 65504, which is 65 m."""
    (view,) = winding(1)
    far = replace(view, points=view.points * 1e5, depth=view.depth * 1e5)
    write(tmp_path, [far], ("html",))
    page = (tmp_path / "scene.html").read_text()
    low, high = json.loads(page.split('"depth":', 2)[-1].split("]")[0] + "]")
    assert 65504 < low < high < np.inf


def test_the_sample_of_points_is_bounded_and_even():
    sample = PointSample(1000)
    for number in range(40):
        points = np.full((500, 3), number, np.float32)
        sample.add(points, np.zeros((500, 3), np.uint8), np.zeros(500, bool))
        assert sample.size <= 2500
    points = sample.points()[0][:, 0]
    assert len(points) == 1000 and np.all(np.diff(points) >= 0)
    assert abs(points.mean() - 19.5) < 1.5 and len(np.unique(points)) == 40


def test_of_a_stream_of_any_length_a_few_are_kept_evenly():
    spread = Spread(10)
    for number in range(1000):
        spread.add(number)
    kept = spread.chosen()
    assert len(kept) == 10 and kept[0] == 0 and kept[-1] > 850
    assert max(np.diff(kept)) < 2 * min(np.diff(kept)) + 1


def test_formats_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="obj"):
        open_writers(tmp_path, ("glb", "obj"), 10)
    assert not list(tmp_path.iterdir())


# ---- pictures ----------------------------------------------------------------------------


def test_depths_of_all_images_have_one_scale_with_numbers():
    scale = DepthScale.of([np.array([[1.0, 0], [2, 2]]), np.array([[4.0, 4], [0, 4]])])
    assert scale.near == pytest.approx(1, abs=0.2) and scale.far == pytest.approx(4, abs=0.1)
    assert scale.colours(np.array([[0.0]])).tolist() == [[[200, 200, 200]]]
    near, far = scale.level(np.array([1.0, 4.0]))
    assert near > 0.95 and far < 0.05
    levels, depths = zip(*scale.ticks())
    assert np.allclose(scale.level(np.array(depths)), levels)


def test_numbers_of_depths_that_hardly_differ_are_told_apart():
    labels = [label for _, label in DepthScale(0.998, 1.01).labels()]
    assert labels[0] == "1.01" and len(set(labels)) == 4
    assert [label for _, label in DepthScale(1.0, 4.0).labels()] == ["4", "2", "1.33", "1"]
    assert [label for _, label in DepthScale(0.01, 300.0).labels()] == ["300", "0.03", "0.015", "0.01"]


def test_names_in_the_overview_are_written_in_letters_that_its_font_has():
    assert _legible("für 日本 e\u0301.png") == "fur ?? e.png"


def test_a_near_and_a_far_image_of_the_overview_have_different_colours():
    """Each image's own scale made a wall at one metre look like one at ten."""
    views = winding(2, height=40, width=60)
    same = dict(mask=np.ones((40, 60), bool), dynamic=None)
    near = replace(views[0], depth=np.full((40, 60), 1.0, np.float32), **same)
    far = replace(views[1], depth=np.full((40, 60), 10.0, np.float32), **same)
    overview = Overview("metres")
    overview.add(near)
    overview.add(far)
    sheet = np.asarray(overview.picture()).astype(int)
    row = 16 + (147 + 20) + 20 + 70  # the middle of the row of depths
    assert sheet[row, 16 + 110].sum() > sheet[row, 16 + 228 + 110].sum() + 200


# ---- the page ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_shows_the_scene_without_a_network(tmp_path, page):
    views = winding(5, height=60, width=80)
    write(tmp_path, views, ("html",), About("A <winding> way", "metres"))
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "scene.html").as_uri())
    page.wait_for_function("scene.ready")
    assert not problems and not [url for url in requests if url.startswith("http")]
    assert page.title() == page.locator("h1").inner_text() == "A <winding> way"
    text = page.locator("body").inner_text()
    assert "5 cameras" in text and "lengths in metres" in text and "drag" in text and "turn the scene" in text
    assert page.locator("nav img").count() == 5 and page.locator("#depth").get_attribute("src").startswith("data:image")

    drawn = lambda: page.evaluate(  # noqa: E731
        """() => { scene.draw(); const c = document.querySelector("canvas"), gl = c.getContext("webgl2");
        const p = new Uint8Array(4 * c.width * c.height); gl.readPixels(0, 0, c.width, c.height, gl.RGBA,
        gl.UNSIGNED_BYTE, p); let n = 0; for (let i = 0; i < p.length; i += 4) n += p[i] < 245 || p[i + 2] < 243;
        return n; }"""
    )
    everything = drawn()
    assert everything > 2000
    for layer in ("points", "moving", "cameras", "images", "way"):
        page.locator(f"[data-layer={layer}]").uncheck()
    assert drawn() == 0
    page.locator("[data-layer=images]").check()  # thumbnails on their frustums
    assert 20 < drawn() < everything
    page.locator("[data-layer=points]").check()

    page.keyboard.press("ArrowRight")  # look through the second camera: its own points lie where its pixels are
    assert "2 of 5" in page.locator("#name").inner_text()
    expected = views[1].points[views[1].mask & (views[1].dynamic <= 0.5)]
    assert drawn() > 0.5 * len(expected)
    before = page.locator("canvas").bounding_box()
    page.mouse.move(before["x"] + 300, before["y"] + 300)
    page.mouse.down()
    page.mouse.move(before["x"] + 400, before["y"] + 320)
    page.mouse.up()
    page.mouse.wheel(0, 300)
    page.get_by_role("button", name="From outside").click()
    assert not problems and drawn() > 500
