"""Files that people open, written view by view: memory holds one view and, where a format needs it, a bounded sample of
points.

A writer takes a folder, gets every [`View`] in order through `add`, and completes its files in `finish`, which returns
their paths.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures import heat_colours
from .views import View

MOVING = np.array([240, 70, 40])  # the colour that marks what moves by itself
MOVING_FROM = 0.5  # dynamic mask
FRUSTUM = 0.1  # depth of a drawn camera, in median depths of the first view
VIDEO_RATE = 10  # frames per second


def cloud(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trusted points `[n, 3]`, their colours uint8 `[n, 3]`, tinted where they move, and whether they do, bool
    `[n]`."""
    points, colours = view.points[view.mask], view.image[view.mask]
    moving = np.zeros(len(points), bool) if view.dynamic is None else view.dynamic[view.mask] > MOVING_FROM
    tinted = (0.35 * colours + 0.65 * MOVING).astype(np.uint8)
    return points, np.where(moving[:, None], tinted, colours), moving


class PointSample:
    """An even random sample of at most `limit` points of a stream of any length."""

    def __init__(self, limit: int, seed: int = 0):
        self.limit, self.generator = limit, np.random.default_rng(seed)
        self.kept = [(np.zeros(0), np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, bool))]
        self.size = 0

    def add(self, points: np.ndarray, colours: np.ndarray, moving: np.ndarray) -> None:
        self.kept.append((self.generator.random(len(points)), points, colours, moving))
        self.size += len(points)
        if self.size > 2 * self.limit:
            self._shrink()

    def _shrink(self) -> None:
        """Keep the points with the smallest lots: whichever points come later, each has had the same chance."""
        columns = [np.concatenate(values) for values in zip(*self.kept)]
        if len(columns[0]) > self.limit:
            chosen = np.sort(np.argpartition(columns[0], self.limit)[: self.limit])
            columns = [values[chosen] for values in columns]
        self.kept, self.size = [tuple(columns)], len(columns[0])

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points, colours and which of them move, in the order in which they came."""
        self._shrink()
        return self.kept[0][1:]


class PlyWriter:
    """cloud.ply, binary: every trusted point with its colour and whether it moves."""

    RECORD = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("moving", "u1")])

    def __init__(self, folder: Path, max_points: int):
        self.path, self.count = folder / "cloud.ply", 0
        self.file = open(self.path, "wb")
        self.file.write(self._header())

    def _header(self) -> bytes:
        # The number comes last and is padded, so that the header keeps its length.
        properties = [f"property float {axis}" for axis in "xyz"]
        properties += [f"property uchar {name}" for name in ("red", "green", "blue", "moving")]
        lines = [
            "ply",
            "format binary_little_endian 1.0",
            f"element vertex {self.count:<20d}",
            *properties,
            "end_header",
        ]
        return ("\n".join(lines) + "\n").encode()

    def add(self, view: View) -> None:
        points, colours, moving = cloud(view)
        records = np.empty(len(points), self.RECORD)
        records["xyz"], records["rgb"], records["moving"] = points, colours, moving
        self.file.write(records.tobytes())
        self.count += len(points)

    def finish(self) -> list[Path]:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()
        return [self.path]


class TumWriter:
    """trajectory.tum: a line per view, `time tx ty tz qx qy qz qw`, camera-to-world."""

    def __init__(self, folder: Path, max_points: int):
        self.path = folder / "trajectory.tum"
        self.file = open(self.path, "w", encoding="utf-8")

    def add(self, view: View) -> None:
        w, x, y, z = quaternion(view.camera_to_world[:3, :3])
        numbers = [view.time, *view.camera_to_world[:3, 3], x, y, z, w]
        self.file.write(" ".join(f"{number:.9g}" for number in numbers) + "\n")

    def finish(self) -> list[Path]:
        self.file.close()
        return [self.path]


class ColmapWriter:
    """
    colmap/images and colmap/sparse/0: a text model that COLMAP and its many readers open, with the images it speaks of.

    One PINHOLE camera per image. COLMAP counts the first pixel's centre as (0.5, 0.5). Points have no tracks.
    """

    def __init__(self, folder: Path, max_points: int):
        self.folder, self.count, self.sample = folder / "colmap", 0, PointSample(max_points)
        self.sparse = self.folder / "sparse" / "0"
        self.sparse.mkdir(parents=True)
        (self.folder / "images").mkdir()
        self.cameras, self.images = (
            open(self.sparse / name, "w", encoding="utf-8") for name in ("cameras.txt", "images.txt")
        )

    def add(self, view: View) -> None:
        self.count += 1
        height, width = view.depth.shape
        (fx, _, cx), (_, fy, cy), _ = view.intrinsics
        self.cameras.write(f"{self.count} PINHOLE {width} {height} {fx:.9g} {fy:.9g} {cx + 0.5:.9g} {cy + 0.5:.9g}\n")
        camera_from_world = np.linalg.inv(view.camera_to_world)
        numbers = " ".join(f"{x:.9g}" for x in (*quaternion(camera_from_world[:3, :3]), *camera_from_world[:3, 3]))
        name = f"{self.count:06d}-{Path(view.name).stem}.png".replace(" ", "_")
        self.images.write(f"{self.count} {numbers} {self.count} {name}\n\n")  # the empty line: no observed points
        Image.fromarray(view.image).save(self.folder / "images" / name)
        self.sample.add(*cloud(view))

    def finish(self) -> list[Path]:
        self.cameras.close()
        self.images.close()
        points, colours, _ = self.sample.points()
        with open(self.sparse / "points3D.txt", "w", encoding="utf-8") as file:
            for number, (point, colour) in enumerate(zip(points.tolist(), colours.tolist()), 1):
                file.write("{} {:.9g} {:.9g} {:.9g} {} {} {} 0\n".format(number, *point, *colour))
        return [self.folder]


class NpzWriter:
    """geometry.npz: the fields of [`View`], stacked over the views (`names` and `times` among them)."""

    FIELDS = ("image", "points", "depth", "confidence", "mask", "camera_to_world", "intrinsics", "dynamic")

    def __init__(self, folder: Path, max_points: int):
        self.path, self.arrays, self.shape, self.count = folder / "geometry.npz", {}, None, 0
        self.names, self.times = [], []

    def add(self, view: View) -> None:
        self.shape = self.shape or view.depth.shape
        if view.depth.shape != self.shape:
            raise ValueError(
                f"npz stacks the maps of all images, but {view.name} has {view.depth.shape[1]}×{view.depth.shape[0]} "
                f"pixels and the first {self.shape[1]}×{self.shape[0]}. Leave npz out of --format, or give images of "
                "one size."
            )
        for name in self.FIELDS:
            if (value := getattr(view, name)) is not None:
                if name not in self.arrays:
                    self.arrays[name] = (
                        open(self.path.with_suffix(f".{name}.npy"), "w+b"),
                        value.dtype.str,
                        value.shape,
                    )
                    self.arrays[name][0].write(self._header(value.dtype.str, value.shape))
                self.arrays[name][0].write(np.ascontiguousarray(value).tobytes())
        self.count += 1
        self.names.append(view.name)
        self.times.append(view.time)

    def _header(self, dtype: str, shape: tuple[int, ...]) -> bytes:
        """Of `.npy`, version 1.0, always 256 bytes long, so that the number of views can be filled in at the end."""
        text = repr({"descr": dtype, "fortran_order": False, "shape": (self.count, *shape)})
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", 246) + text.ljust(245).encode() + b"\n"

    def finish(self) -> list[Path]:
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, (file, dtype, shape) in self.arrays.items():
                file.seek(0)
                file.write(self._header(dtype, shape))
                file.close()
                archive.write(file.name, f"{name}.npy")
                Path(file.name).unlink()
            for name, values in (("names", np.array(self.names)), ("times", np.array(self.times))):
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, values)
        return [self.path]


class VideoWriter:
    """depth.mp4, and dynamic.mp4 where the model tells what moves: colours, near or moving is light. H.264."""

    def __init__(self, folder: Path, max_points: int):
        self.folder, self.streams, self.range = folder, {}, None

    def add(self, view: View) -> None:
        nearness = np.where(view.depth > 0, 1 / np.maximum(view.depth, 1e-6), 0)
        if self.range is None:  # one scale for the whole video
            seen = nearness[view.mask] if view.mask.any() else nearness
            self.range = np.percentile(seen, [2, 98])
        low, high = self.range
        self._write("depth", np.clip((nearness - low) / max(high - low, 1e-12), 0, 1))
        if view.dynamic is not None:
            self._write("dynamic", view.dynamic)

    def _write(self, name: str, level: np.ndarray) -> None:
        import av

        height, width = (side + side % 2 for side in level.shape)  # H.264 halves the resolution of colour
        if name not in self.streams:
            container = av.open(str(self.folder / f"{name}.mp4"), "w")
            stream = container.add_stream("libx264", rate=VIDEO_RATE, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            self.streams[name] = container, stream
        container, stream = self.streams[name]
        picture = Image.fromarray(heat_colours(level).astype(np.uint8)).resize((stream.width, stream.height))
        for packet in stream.encode(av.VideoFrame.from_image(picture)):
            container.mux(packet)

    def finish(self) -> list[Path]:
        for container, stream in self.streams.values():
            for packet in stream.encode():
                container.mux(packet)
            container.close()
        return [self.folder / f"{name}.mp4" for name in self.streams]


class SceneWriter:
    """
    scene.glb, a sample of the points with every camera as a frustum, and scene.html, the same in a page that needs no
    network.

    Everything hangs below the node "opencv", in the world frame of the views; its own matrix puts the first camera
    upright at glTF's origin, where y points up. Nodes: "points", "moving" if anything moves, and "camera_000000" and so
    on, whose matrices are camera-to-world. Cameras run from dark to light in time.
    """

    def __init__(self, folder: Path, max_points: int, formats: tuple[str, ...] = ("glb", "html")):
        self.folder, self.formats, self.sample = folder, formats, PointSample(max_points)
        self.cameras, self.depth = [], None

    def add(self, view: View) -> None:
        self.sample.add(*cloud(view))
        self.cameras.append((view.camera_to_world, view.intrinsics, view.depth.shape))
        if self.depth is None and view.mask.any():
            self.depth = float(np.median(view.depth[view.mask]))

    def scene(self):
        """The whole as a `trimesh.Scene`."""
        import trimesh
        from trimesh.path.entities import Line

        scene = trimesh.Scene(base_frame="world")
        upright = np.diag([1.0, -1.0, -1.0, 1.0]) @ np.linalg.inv(self.cameras[0][0])
        scene.graph.update("opencv", "world", matrix=upright)
        points, colours, moving = self.sample.points()
        for name, chosen in (("points", ~moving), ("moving", moving)):
            if chosen.any():
                part = trimesh.PointCloud(points[chosen], colors=colours[chosen])
                scene.add_geometry(part, node_name=name, geom_name=name, parent_node_name="opencv")
        for number, (camera_to_world, intrinsics, shape) in enumerate(self.cameras):
            lines = frustum_lines(intrinsics, shape, FRUSTUM * abs(self.depth or 1.0))
            colour = heat_colours(np.array(number / max(len(self.cameras) - 1, 1)))
            # Put together here: trimesh joins loose lines with scipy.
            edges = [Line([2 * edge, 2 * edge + 1]) for edge in range(len(lines))]
            frustum = trimesh.path.Path3D(edges, lines.reshape(-1, 3), process=False)
            frustum.colors = np.tile([*colour.astype(np.uint8), 255], (len(edges), 1))
            name = f"camera_{number:06d}"
            scene.add_geometry(
                frustum, node_name=name, geom_name=name, parent_node_name="opencv", transform=camera_to_world
            )
        # The page turns about the middle of everything: seen from behind and above the first camera.
        low, high = scene.bounds
        scene.camera_transform = look_at((low + high) / 2, np.array([0.25, 0.4, 1.0]), 0.9 * np.linalg.norm(high - low))
        return scene

    def finish(self) -> list[Path]:
        scene, written = self.scene(), []
        if "glb" in self.formats:
            written.append(self.folder / "scene.glb")
            written[-1].write_bytes(scene.export(file_type="glb"))
        if "html" in self.formats:
            from trimesh.viewer import scene_to_html

            written.append(self.folder / "scene.html")
            written[-1].write_text(scene_to_html(scene), encoding="utf-8")
        return written


def frustum_lines(intrinsics: np.ndarray, shape: tuple[int, int], depth: float) -> np.ndarray:
    """Edges `[8, 2, 3]` of a camera's view up to `depth`, in its own frame."""
    height, width = shape
    (fx, _, cx), (_, fy, cy), _ = intrinsics
    x, y = (np.array([-0.5, width - 0.5]) - cx) / fx * depth, (np.array([-0.5, height - 0.5]) - cy) / fy * depth
    corners = np.array([[x[0], y[0], depth], [x[1], y[0], depth], [x[1], y[1], depth], [x[0], y[1], depth]])
    return np.concatenate(
        [np.stack([np.zeros_like(corners), corners], 1), np.stack([corners, np.roll(corners, -1, 0)], 1)]
    )


def look_at(target: np.ndarray, direction: np.ndarray, distance: float) -> np.ndarray:
    """Pose `[4, 4]` of a glTF camera (it looks along −z, y is up) that sees `target` from `direction`."""
    back = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, target + distance * back], -1)
    return pose


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """w, x, y, z of a rotation matrix."""
    import torch

    from modeling_dsr.pose import matrix_to_quaternion

    x, y, z, w = matrix_to_quaternion(torch.from_numpy(rotation)).tolist()
    return np.array([w, x, y, z])


WRITERS = {
    "ply": PlyWriter,
    "npz": NpzWriter,
    "colmap": ColmapWriter,
    "depth-video": VideoWriter,
    "tum": TumWriter,
}
FORMATS = ("glb", "html", *WRITERS)


def open_writers(folder: Path, formats: tuple[str, ...], max_points: int) -> list:
    """The writers of `formats` (of `FORMATS`) in `folder`, which exists."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"--format takes {', '.join(FORMATS)}, separated by commas; got {', '.join(unknown) or 'none'}."
        )
    writers = [WRITERS[name](folder, max_points) for name in WRITERS if name in formats]
    if views := tuple(name for name in ("glb", "html") if name in formats):
        writers.append(SceneWriter(folder, max_points, views))
    return writers
