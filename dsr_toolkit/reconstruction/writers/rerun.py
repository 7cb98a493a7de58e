"""scene.rrd: a recording that the Rerun viewer plays: images, depth, cameras and points on a timeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..views import View
from .base import FRUSTUM, About, PointSample, cloud


class RerunWriter:
    """
    scene.rrd. Timelines: "frame", and "time" in seconds where the images come from a video. Entities: world/camera
        (pose,
    pinhole), world/camera/image, world/camera/depth, world/way (the cameras so far) and world/points.
    """

    def __init__(self, folder: Path, max_points: int, about: About):
        import rerun

        self.rerun, self.about, self.path = rerun, about, folder / "scene.rrd"
        self.recording = rerun.RecordingStream("dsr_reconstruct", recording_id=None)
        self.recording.save(self.path)
        self.recording.send_recording_name(about.title)
        self.recording.log("world", rerun.ViewCoordinates.RDF, static=True)
        self.sample, self.count, self.way = PointSample(max_points), 0, []

    def add(self, view: View) -> None:
        rerun, recording = self.rerun, self.recording
        recording.set_time("frame", sequence=self.count)
        if self.about.seconds:
            recording.set_time("time", duration=view.time)
        camera, (height, width) = view.camera_to_world, view.depth.shape
        size = FRUSTUM * float(np.median(view.depth[view.mask])) if view.mask.any() else None
        recording.log("world/camera", rerun.Transform3D(translation=camera[:3, 3], mat3x3=camera[:3, :3]))
        pinhole = rerun.Pinhole(
            image_from_camera=view.intrinsics, width=width, height=height, camera_xyz=rerun.ViewCoordinates.RDF,
            image_plane_distance=size,
        )  # fmt: skip
        recording.log("world/camera", pinhole)
        recording.log("world/camera/image", rerun.Image(view.image).compress(jpeg_quality=85))
        recording.log("world/camera/depth", rerun.DepthImage(np.where(view.mask, view.depth, 0), meter=1.0))
        recording.log("world/name", rerun.TextDocument(view.name))
        self.way.append(camera[:3, 3])
        if len(self.way) > 1:
            recording.log(f"world/way/{self.count:06d}", rerun.LineStrips3D([self.way[-2:]]))
        self.sample.add(*cloud(view))
        self.count += 1

    def finish(self) -> list[Path]:
        points, colours, _ = self.sample.points()
        self.recording.log("world/points", self.rerun.Points3D(points, colors=colours), static=True)
        self.recording.flush()
        self.recording.disconnect()
        return [self.path]
