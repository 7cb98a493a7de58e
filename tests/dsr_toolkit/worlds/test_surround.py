"""The surround world: its geometry against itself, its questions against the scene and against guessing."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from dsr_toolkit.datasets.nuscenes import NuScenes
from dsr_toolkit.worlds import contact_sheet, make_world
from dsr_toolkit.worlds.surround import SurroundWorld, project
from dsr_toolkit.worlds.surround_export import write_nuscenes, write_scene
from dsr_toolkit.worlds.surround_questions import DIRECTIONS, TYPES, ask, named_things
from dsr_toolkit.worlds.surround_scene import (
    BOUNDARY,
    CAMERA_YAWS,
    CROSSING,
    DIVIDER,
    POINT_RANGE,
)
from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS, SceneMapConfig


@pytest.fixture(scope="module")
def samples():
    return [SurroundWorld(11)[index] for index in range(20)]


@pytest.fixture(scope="module")
def surroundings():
    """Without pictures, these are quick to draw."""
    world = SurroundWorld(12)
    return [world.scene(index)[0] for index in range(4000)]


def points_of_pixels(sample, camera: int) -> np.ndarray:
    """`[H, W, 3]` in the vehicle frame: pixel centres, taken back through depth and calibration."""
    view = list(sample.cameras.values())[camera]
    height, width = sample.depth.shape[1:]
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(view.intrinsics).T
    depth = np.where(np.isfinite(sample.depth[camera]), sample.depth[camera], 1.0).astype(float)
    return (rays * depth[..., None]) @ view.extrinsics[:3, :3].T + view.extrinsics[:3, 3]


# ---- geometry ----------------------------------------------------------------------------


def test_every_pixel_of_a_thing_lies_on_it(samples):
    """Its point, taken into the axes of the box, is inside of it; and the box's outline holds the pixel to 1e-3 px."""
    pixels = 0
    for sample in samples:
        for camera, view in enumerate(sample.cameras.values()):
            points = points_of_pixels(sample, camera)
            for number, box in enumerate(sample.boxes):
                seen = points[sample.instance[camera] == number]
                if not len(seen):
                    continue
                local = (seen - box.centre) @ box.turn()
                # A pixel is 1 / focal of the depth wide; a thousandth of that is the tolerance.
                slack = 1e-3 * project(seen, view)[1] / view.intrinsics[0, 0]
                assert (np.abs(local) <= np.array(box.size) / 2 + slack[:, None]).all()
                corners, depth = project(box.corners(), view)
                if (depth > 0).all():
                    found, _ = project(seen, view)
                    assert (found >= corners.min(0) - 1e-3).all() and (found <= corners.max(0) + 1e-3).all()
                pixels += len(seen)
    assert pixels > 20_000


def test_depth_of_the_first_surface_by_another_way(samples):
    """A box without overhang (a building) is met where its six planes say, ray by ray."""
    compared = 0
    for sample in samples:
        for camera, view in enumerate(sample.cameras.values()):
            for number, box in enumerate(sample.boxes):
                rows, columns = np.nonzero(sample.instance[camera] == number)
                if box.kind != "building" or not len(rows):
                    continue
                middle = len(rows) // 2
                pixel = np.array([columns[middle] + 0.5, rows[middle] + 0.5, 1.0])
                ray = view.extrinsics[:3, :3] @ np.linalg.inv(view.intrinsics) @ pixel
                start = view.extrinsics[:3, 3]
                hits = []
                for axis in range(3):
                    for side in (-1, 1):
                        normal = box.turn()[:, axis] * side
                        reach = (box.size[axis] / 2 - normal @ (start - box.centre)) / (normal @ ray)
                        local = box.turn().T @ (start + reach * ray - box.centre)
                        if reach > 0 and (np.abs(local) <= np.array(box.size) / 2 + 1e-9).all():
                            hits.append(reach)
                assert sample.depth[camera, rows[middle], columns[middle]] == pytest.approx(min(hits), rel=1e-5)
                compared += 1
    assert compared > 10


def test_ground_pixels_go_back_to_their_pixel(samples):
    for sample in samples[:5]:
        for camera, view in enumerate(sample.cameras.values()):
            ground = (sample.instance[camera] < 0) & np.isfinite(sample.depth[camera]) & (sample.depth[camera] < 60)
            points = points_of_pixels(sample, camera)[ground]
            points[:, 2] = 0.0  # exactly on the ground
            found, _ = project(points, view)
            rows, columns = np.nonzero(ground)
            assert np.abs(found - np.stack([columns, rows], -1) - 0.5).max() < 1e-3


def test_map_lines_lie_under_their_paint(samples):
    """Where a boundary's points fall into a picture, unhidden and near, the picture is yellow."""
    yellow = []
    for sample in [SurroundWorld(5, height=256, width=448)[index] for index in range(6)]:
        for element in sample.elements(60):
            if element["label"] != BOUNDARY:
                continue
            x, y = element["points"].T
            ground = np.stack([y, -x, 0 * x], -1)  # LiDAR frame → vehicle frame
            for camera, (name, view) in enumerate(sample.cameras.items()):
                pixels, depth = project(ground, view)
                inside = (depth > 2) & (depth < 12) & (pixels > 0).all(-1) & (pixels < (448, 256)).all(-1)
                for u, v in np.floor(pixels[inside]).astype(int):
                    if sample.instance[camera, v, u] < 0:
                        red, _, blue = sample.images[name][v, u].astype(int)
                        yellow.append(red - blue > 40)
    assert len(yellow) > 200 and np.mean(yellow) > 0.99


def test_road_coordinates_are_inverse_to_each_other(surroundings):
    for scene in surroundings[:50]:
        along, left = np.meshgrid(np.linspace(-20, 20, 9), np.linspace(-12, 12, 7))
        points = scene.road.point(along, left)
        back = scene.road.along(points[..., 0], points[..., 1])
        assert np.abs(back[0] - along).max() < 1e-6 and np.abs(back[1] - left).max() < 1e-6


def test_map_elements_are_what_the_map_head_takes(surroundings):
    """As many lines as lanes and one, crossings closed, all within the head's range, points at equal distances."""
    assert tuple(SceneMapConfig().point_range) == POINT_RANGE and SceneMapConfig().closed_classes == (CROSSING,)
    low, high = np.array(POINT_RANGE[:2]), np.array(POINT_RANGE[2:])
    for scene in surroundings[:300]:
        elements = scene.road.elements(20)
        labels = Counter(element["label"] for element in elements)
        assert labels[DIVIDER] == scene.road.lanes - 1 and labels[BOUNDARY] == 2
        assert labels[CROSSING] == (scene.road.crossing is not None)
        for element in elements:
            points = element["points"]
            assert points.shape == (20, 2) and (points >= low).all() and (points <= high).all()
            if element["label"] != CROSSING:
                steps = np.linalg.norm(np.diff(points, axis=0), axis=-1)
                assert steps.max() < steps.min() * 1.01 and steps.sum() > 20


def test_things_never_touch(surroundings):
    for scene in surroundings[:500]:
        places = np.array([thing.centre[:2] for thing in scene.things]).reshape(-1, 2)
        reach = np.array([np.hypot(*thing.size[:2]) / 2 for thing in scene.things])
        apart = np.linalg.norm(places[:, None] - places, axis=-1) - reach[:, None] - reach
        assert (apart + 1e9 * np.eye(len(places)) > 0).all()


def test_calibration_is_of_the_models_cameras(samples):
    assert tuple(CAMERA_YAWS) == SCENE_CAMERAS == tuple(samples[0].images)
    for name, camera in samples[0].cameras.items():
        ahead = camera.extrinsics[:3, 2]
        yaw = np.degrees(np.arctan2(ahead[1], ahead[0]))
        assert abs((yaw - CAMERA_YAWS[name] + 180) % 360 - 180) < 4
        assert np.allclose(camera.extrinsics[:3, :3] @ camera.extrinsics[:3, :3].T, np.eye(3))


# ---- questions ---------------------------------------------------------------------------


def test_answers_are_true(samples, surroundings):
    """Answers recomputed from the finished scene: positions, names and the road's own lines."""
    asked = Counter()
    for number, scene in enumerate(surroundings[:1500]):
        things = {name: thing for name, thing in named_things(scene)}
        kinds = Counter(box.kind for box in scene.boxes)
        for question in ask(scene, np.random.default_rng(number)):
            asked[question.type] += 1
            words, answer = question.text.rstrip("?").split(), question.answer
            assert answer in question.options
            named = [thing for name, thing in things.items() if name in question.text]
            if question.type == "count":
                kind = next(kind for kind in kinds | {word[:-1]: 0 for word in words} if f"{kind}s" in words)
                assert answer == ("zero", "one", "two")[kinds[kind]]
            elif question.type == "lanes":
                assert answer == ("two", "three", "four")[len(scene.road.line_offsets()) - 3]
            elif question.type == "lane":
                offsets = scene.road.line_offsets()
                beside = (
                    (offsets > 0).sum() - 1,
                    (offsets < 0).sum() - 1,
                )  # dividers or lanes to the left, to the right
                assert answer == ("left" if beside[0] == 0 else "right" if beside[1] == 0 else "middle")
            elif question.type == "bend":
                aside = scene.road.point(20.0, 0.0)[1] - 20 * np.tan(scene.road.heading)
                assert answer == ("left" if aside > 2 else "right" if aside < -2 else "straight")
            elif question.type == "direction":
                unit = np.array(named[0].centre[:2]) / named[0].distance
                cosines = {
                    name: unit @ [np.cos(np.radians(yaw)), np.sin(np.radians(yaw))] for name, yaw in DIRECTIONS.items()
                }
                assert answer == max(cosines, key=cosines.get)
            elif question.type == "colour":
                assert kinds[words[-1]] == 1 or any(kinds[word] == 1 for word in words)
                assert answer in {thing.colour for thing in scene.things if thing.kind in words}
            elif question.type == "distance":
                exact = named[0].distance
                assert answer == (
                    "under 10 metres" if exact < 10 else "over 15 metres" if exact > 15 else "10 to 15 metres"
                )
            elif question.type == "nearer":
                assert things[answer].distance == min(things[name].distance for name in question.options)
            elif question.type == "side":
                assert (answer == "left") == (scene.buildings[0].azimuth > 0)
            elif question.type == "crossing":
                ahead = {None: "none"}.get(scene.road.crossing) or ("ahead" if scene.road.crossing > 0 else "behind")
                assert answer == ahead
    assert set(asked) == set(TYPES) and min(asked.values()) > 300


def test_the_camera_of_the_answer_shows_the_thing(samples):
    """Of all cameras, the one that an answer names has most of the thing's pixels, where nothing hides it."""
    for sample in samples:
        for name, thing in named_things(sample.surroundings):
            questions = [q for q in sample.questions if q.type == "direction" and f" {name}?" in q.text]
            for question in questions:
                number = sample.boxes.index(thing)
                pixels = {camera: (sample.instance[view] == number).sum() for view, camera in enumerate(sample.cameras)}
                assert pixels["CAM_" + question.answer.upper().replace(" ", "_")] > 0


def test_text_alone_is_at_chance(surroundings):
    """
    Who knows by heart the commonest answer to every wording, learnt from half of the scenes, is right on the other half
    as often as who guesses, within three standard deviations, for each type.
    """
    learnt = defaultdict(Counter)
    right, expected, variance = Counter(), Counter(), Counter()
    for number, scene in enumerate(surroundings):
        for question in ask(scene, np.random.default_rng([7, number])):
            if number < len(surroundings) // 2:
                learnt[question.text][question.answer] += 1
            else:
                known = learnt[question.text]
                guess = known.most_common(1)[0][0] if known else question.options[0]
                right[question.type] += guess == question.answer
                expected[question.type] += question.chance
                variance[question.type] += question.chance * (1 - question.chance)
                assert question.chance <= 0.5
    for kind in TYPES:
        assert abs(right[kind] - expected[kind]) < 3 * variance[kind] ** 0.5, kind


def test_each_answer_is_equally_frequent(surroundings):
    """Per type, over the places of the options: a lean to some answer would show here."""
    counts = defaultdict(Counter)
    for number, scene in enumerate(surroundings):
        for question in ask(scene, np.random.default_rng([8, number])):
            counts[question.type][question.options.index(question.answer)] += 1
    for kind, found in counts.items():
        total, options = found.total(), len(found)
        deviation = (total * (1 / options) * (1 - 1 / options)) ** 0.5
        assert max(abs(count - total / options) for count in found.values()) < 3.5 * deviation, (kind, found)


def test_unknown_types_are_named(surroundings):
    with pytest.raises(ValueError, match=r"`types` must be among .*got \['weather'\]"):
        ask(surroundings[0], np.random.default_rng(0), ["weather"])


# ---- the same everywhere, quickly --------------------------------------------------------


def test_sample_depends_on_seed_and_index_alone(samples):
    again = SurroundWorld(11)[7]
    assert again.questions == samples[7].questions and again.surroundings == samples[7].surroundings
    assert all((again.images[name] == image).all() for name, image in samples[7].images.items())
    assert again.surroundings != SurroundWorld(12)[7].surroundings != samples[8].surroundings


def test_size_changes_the_picture_and_not_the_scene(samples):
    large = make_world("surround", 11, height=96, width=160)[3]
    assert large.images["CAM_BACK"].shape == (96, 160, 3) and large.surroundings == samples[3].surroundings
    assert large.cameras["CAM_BACK"].extrinsics.tolist() == samples[3].cameras["CAM_BACK"].extrinsics.tolist()
    with pytest.raises(ValueError, match="at least 16 pixels, got 8 and 112"):
        SurroundWorld(0, height=8)


# ---- files -------------------------------------------------------------------------------


def test_nuscenes_reader_reads_the_export(samples, tmp_path):
    dataset = NuScenes(write_nuscenes(samples[:2], tmp_path / "nuscenes"))
    assert dataset.samples() == ["surround-11-0", "surround-11-1"]
    read = dataset.read("surround-11-1")
    for name, camera in samples[1].cameras.items():
        assert np.abs(read["cam_extrinsics"][name] - camera.extrinsics).max() < 1e-6
        assert np.abs(read["cam_intrinsics"][name] - camera.intrinsics).max() < 1e-4
        assert read["images"][name].is_file()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        write_nuscenes(samples[:1], tmp_path / "nuscenes")


def test_scene_folder_is_what_dsr_scene_reads(samples, tmp_path):
    from dsr_toolkit.commands.scene import read_scene

    scene = read_scene(write_scene(samples[0], tmp_path / "street"))
    assert set(scene["images"]) == set(SCENE_CAMERAS)
    assert np.allclose(scene["cam_extrinsics"]["CAM_BACK"], samples[0].cameras["CAM_BACK"].extrinsics)


def test_contact_sheet_shows_the_sample(samples):
    sheet = contact_sheet("surround", samples[0])
    assert sheet.width > 600 and sheet.height > 300
    assert len(sheet.getcolors(1 << 20)) > 1000
    assert sheet.tobytes() != contact_sheet("surround", samples[1]).tobytes()
