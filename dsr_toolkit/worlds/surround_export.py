"""Samples of the surround world as files: a nuScenes folder, or the folder of one scene that `dsr scene` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..quaternions import quaternion_of
from .surround import SurroundSample
from .surround_scene import KINDS
from .world import new_folder

# Names of nuScenes' categories.
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "pedestrian": "human.pedestrian.adult",
    "cone": "movable_object.trafficcone",
    "building": "static_object.building",  # not in nuScenes, whose buildings have no boxes
}
VERSION = "v1.0-mini"


def write_scene(sample: SurroundSample, folder: str | Path) -> Path:
    """A folder as `dsr scene` reads it: CAMERA.png for each camera and calibration.json."""
    folder = new_folder(folder)
    for name, image in sample.images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    cameras = {
        name: {"intrinsics": camera.intrinsics.tolist(), "extrinsics": camera.extrinsics.tolist()}
        for name, camera in sample.cameras.items()
    }
    (folder / "calibration.json").write_text(json.dumps(cameras, indent=1) + "\n", encoding="utf-8")
    return folder


def write_nuscenes(samples: Iterable[SurroundSample], root: str | Path, version: str = VERSION) -> Path:
    """
    A folder in nuScenes' layout, each sample a scene of its own, with all tables that the devkit asks for.

    Beside them, what nuScenes keeps elsewhere: `questions.json` (`sample_token`, `type`, `question`, `answer`,
    `options`) and `map_elements.json` (`sample_token`, `label`: 0 divider, 1 crossing, 2 boundary; `points` [20, 2],
    metres, LiDAR frame).

    Args:
        root: a folder that does not exist yet, or is empty.
    """
    root = new_folder(root)
    tables: dict[str, list[dict]] = {
        name: []
        for name in (
            *("calibrated_sensor", "ego_pose", "scene", "sample", "sample_data", "instance", "sample_annotation"),
            *("questions", "map_elements"),
        )
    }
    for sample in samples:
        _add_sample(tables, sample, root)
    names = sorted({row["sensor_token"] for row in tables["calibrated_sensor"]})
    tables |= {
        "sensor": [{"token": name, "channel": name, "modality": "camera"} for name in names],
        "category": [
            {"token": kind, "name": CATEGORIES[kind], "description": f"a {kind}"} for kind in (*KINDS, "building")
        ],
        "attribute": [],
        "visibility": [{"token": "4", "level": "v80-100", "description": "visibility of whole object is not known"}],
        "log": [{"token": "log", "logfile": "", "vehicle": "surround", "date_captured": "", "location": "surround"}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": ""}],
    }
    (root / version).mkdir()
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    return root


def _add_sample(tables: dict[str, list[dict]], sample: SurroundSample, root: Path) -> None:
    token = f"surround-{sample.seed}-{sample.index}"
    time = 1_000_000 * sample.index  # microseconds
    tables["scene"].append(
        {
            "token": token,
            "name": token,
            "description": f"surround world, seed {sample.seed}, sample {sample.index}",
            "log_token": "log",
            "nbr_samples": 1,
            "first_sample_token": token,
            "last_sample_token": token,
        }
    )
    tables["sample"].append({"token": token, "scene_token": token, "timestamp": time, "prev": "", "next": ""})
    # The car stands at the origin of the world.
    tables["ego_pose"].append(
        {"token": token, "timestamp": time, "rotation": [1.0, 0, 0, 0], "translation": [0.0, 0, 0]}
    )
    for name, image in sample.images.items():
        camera, place = sample.cameras[name], f"samples/{name}/{token}.png"
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / place)
        tables["calibrated_sensor"].append(
            {
                "token": f"{token}-{name}",
                "sensor_token": name,
                "translation": camera.extrinsics[:3, 3].tolist(),
                "rotation": quaternion_of(camera.extrinsics[:3, :3]).tolist(),
                "camera_intrinsic": camera.intrinsics.tolist(),
            }
        )
        tables["sample_data"].append(
            {
                "token": f"{token}-{name}",
                "sample_token": token,
                "ego_pose_token": token,
                "calibrated_sensor_token": f"{token}-{name}",
                "timestamp": time,
                "fileformat": "png",
                "is_key_frame": True,
                "height": image.shape[0],
                "width": image.shape[1],
                "filename": place,
                "prev": "",
                "next": "",
            }
        )
    for number, box in enumerate(sample.boxes):
        name = f"{token}-{number}"
        tables["instance"].append(
            {
                "token": name,
                "category_token": box.kind,
                "nbr_annotations": 1,
                "first_annotation_token": name,
                "last_annotation_token": name,
            }
        )
        length, width, height = box.size
        tables["sample_annotation"].append(
            {
                "token": name,
                "sample_token": token,
                "instance_token": name,
                "visibility_token": "4",
                "attribute_tokens": [],
                "translation": list(box.centre),
                "size": [width, length, height],
                "rotation": [np.cos(box.yaw / 2), 0.0, 0.0, np.sin(box.yaw / 2)],
                "num_lidar_pts": 0,
                "num_radar_pts": 0,
                "prev": "",
                "next": "",
            }
        )
    for question in sample.questions:
        tables["questions"].append(
            {
                "sample_token": token,
                "type": question.type,
                "question": question.text,
                "answer": question.answer,
                "options": question.options,
            }
        )
    for element in sample.elements(20):
        tables["map_elements"].append(
            {"sample_token": token, "label": element["label"], "points": element["points"].tolist()}
        )
