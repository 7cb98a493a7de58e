"""Samples of a nuScenes folder in the layout of its devkit, which is not needed to read them.

nuscenes/
    v1.0-mini/  scene.json sample.json sample_data.json calibrated_sensor.json sensor.json ego_pose.json
    samples/CAM_FRONT/….jpg …
"""

import json
from functools import cached_property
from pathlib import Path

import numpy as np

from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS

from ..quaternions import rotation_of

TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "sensor", "ego_pose")


def rigid(rotation, translation) -> np.ndarray:
    """`[4, 4]` float32 from a quaternion (w, x, y, z) and metres."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3], matrix[:3, 3] = rotation_of(rotation), translation
    return matrix


class NuScenes:
    """
    Args:
        root: the folder above `samples`.
        version: the folder with the tables; default the only one there.
    """

    def __init__(self, root: str | Path, version: str | None = None):
        self.root = Path(root)
        found = sorted(path.name for path in self.root.glob("v1.0-*") if path.is_dir())
        if version is None and len(found) != 1:
            raise ValueError(f"{self.root} must hold one folder v1.0-…, or `version` say which; found {found}.")
        self.tables = self.root / (version or found[0])
        missing = [name for name in TABLES if not (self.tables / f"{name}.json").is_file()]
        if missing:
            raise ValueError(f"{self.tables} lacks the tables {missing}; it must be as nuScenes publishes it.")

    def _table(self, name: str) -> list[dict]:
        return json.loads((self.tables / f"{name}.json").read_text(encoding="utf-8-sig"))

    @cached_property
    def _sensors(self) -> dict[str, dict]:
        """Calibrated sensors by token, with the name of their camera; other sensors left out."""
        channels = {row["token"]: row["channel"] for row in self._table("sensor")}
        rows = ({**row, "channel": channels[row["sensor_token"]]} for row in self._table("calibrated_sensor"))
        return {row["token"]: row for row in rows if row["channel"] in SCENE_CAMERAS}

    @cached_property
    def _images(self) -> dict[str, dict[str, dict]]:
        """Key frames by sample and camera."""
        images: dict[str, dict[str, dict]] = {}
        for row in self._table("sample_data"):
            sensor = self._sensors.get(row["calibrated_sensor_token"])
            if row["is_key_frame"] and sensor is not None:
                images.setdefault(row["sample_token"], {})[sensor["channel"]] = row
        return images

    @cached_property
    def _ego_poses(self) -> dict[str, dict]:
        return {row["token"]: row for row in self._table("ego_pose")}

    def scene_names(self) -> list[str]:
        """In the order of the table; of the mini version the published code trains on the first 8 and tests on the last
        2."""
        return [row["name"] for row in self._table("scene")]

    def samples(self, scene_names=None) -> list[str]:
        """Tokens of the samples of these scenes (default all), in the order of the table."""
        names = {row["token"]: row["name"] for row in self._table("scene")}
        unknown = sorted(set(scene_names or ()) - set(names.values()))
        if unknown:
            raise ValueError(f"`scene_names` {unknown} are not in {self.tables}.")
        rows = self._table("sample")
        return [row["token"] for row in rows if scene_names is None or names[row["scene_token"]] in scene_names]

    def read(self, sample_token: str) -> dict:
        """
        One sample as `SceneQFormerProcessor` takes it.

        Returns:
            `images` (paths), `cam_intrinsics` `[3, 3]` in pixels and `cam_extrinsics` `[4, 4]` camera → vehicle by
            camera name; `ego_pose` `[4, 4]` vehicle → world at the front camera's time; `sample_token`.
        """
        rows = self._images.get(sample_token, {})
        missing = [name for name in SCENE_CAMERAS if name not in rows]
        if missing:
            raise ValueError(f"Sample {sample_token!r} has no key frame of {missing} in {self.tables}.")
        sensors = {name: self._sensors[rows[name]["calibrated_sensor_token"]] for name in SCENE_CAMERAS}
        pose = self._ego_poses[rows["CAM_FRONT"]["ego_pose_token"]]
        return {
            "images": {name: self.root / rows[name]["filename"] for name in SCENE_CAMERAS},
            "cam_intrinsics": {
                name: np.array(sensor["camera_intrinsic"], dtype=np.float32) for name, sensor in sensors.items()
            },
            "cam_extrinsics": {
                name: rigid(sensor["rotation"], sensor["translation"]) for name, sensor in sensors.items()
            },
            "ego_pose": rigid(pose["rotation"], pose["translation"]),
            "sample_token": sample_token,
        }
