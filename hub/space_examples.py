"""Example inputs of the Space, drawn when it starts: a video, pictures of a room, a part, a street seen by six
cameras."""

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (320, 240)
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
YAWS = (55, 0, -55, 110, 180, -110)  # degrees to the left of forward
# Boxes of the street: forward, left, height, colour; in metres.
BOXES = (
    (12, 0, 1.5, "crimson"),
    (9, 7, 4, "gray"),
    (6, -6, 1.6, "royalblue"),
    (-9, 1, 3, "orange"),
    (-8, -10, 8, "tan"),
)
PROGRAM = "import cadquery as cq\n\nr = cq.Workplane().box(40, 30, 8).faces('>Z').workplane().hole(12)\n"


def write(folder: Path) -> dict:
    """Writes the files; returns their paths by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    views = [folder / f"room-{number}.png" for number in range(3)]
    for number, path in enumerate(views):
        room(number * 0.12).save(path)
    street_images = {}
    for name, yaw in zip(CAMERAS, YAWS):
        street_images[name] = folder / f"{name}.png"
        street(np.deg2rad(yaw)).save(street_images[name])
    (folder / "calibration.json").write_text(json.dumps(calibration()), encoding="utf-8")
    (folder / "part.stl").write_bytes(stl_of_a_step())
    return {
        "video": video(folder / "room.mp4"),
        "room": views,
        "street": street_images,
        "calibration": folder / "calibration.json",
        "part": folder / "part.stl",
    }


def room(shift: float) -> Image.Image:
    """A red ball and a blue box on a floor, seen from further right with growing `shift`."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, (205, 212, 220))
    pen = ImageDraw.Draw(image)
    horizon = height * 0.45
    for row in range(10):  # a floor of tiles, in perspective
        near, far = height * (0.55 / (row + 1)), height * (0.55 / (row + 2))
        for column in range(-8, 8):
            corners = [
                ((column + side - 8 * shift) * depth * 0.7 + width / 2, horizon + depth)
                for side, depth in ((0, near), (1, near), (1, far), (0, far))
            ]
            pen.polygon(corners, fill=(150, 130, 110) if (row + column) % 2 else (185, 165, 140))
    left = width * (0.58 - 0.5 * shift)
    pen.rectangle((left, height * 0.38, left + 70, height * 0.68), fill=(50, 90, 190))
    pen.polygon(
        [(left, height * 0.38), (left + 16, height * 0.32), (left + 86, height * 0.32), (left + 70, height * 0.38)],
        fill=(80, 120, 220),
    )
    x, y = width * (0.3 - 0.9 * shift), height * 0.66
    pen.ellipse((x - 26, y - 26, x + 26, y + 26), fill=(200, 40, 40))
    pen.ellipse((x - 14, y - 18, x - 4, y - 8), fill=(240, 150, 150))
    return image


def video(path: Path) -> Path:
    """Two seconds in the room."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(24):
            frame = av.VideoFrame.from_image(room(0.25 * number / 24))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def stl_of_a_step() -> bytes:
    """A binary STL file of a step-shaped part: an L of six corners, drawn out."""
    outline = np.array([[0, 0], [40, 0], [40, 10], [15, 10], [15, 30], [0, 30]], float)
    low, high = (np.column_stack([outline, np.full(6, z)]) for z in (0.0, 20.0))
    triangles = []
    for i in range(6):
        j = (i + 1) % 6
        triangles += [(low[i], low[j], high[j]), (low[i], high[j], high[i])]
    for a, b, c in ((0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5)):
        triangles += [(low[a], low[c], low[b]), (high[a], high[b], high[c])]
    record = np.zeros(
        len(triangles), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    )
    record["corners"] = np.array(triangles)
    return b"a step".ljust(80) + struct.pack("<I", len(record)) + record.tobytes()


def calibration() -> dict:
    """Per camera intrinsics in pixels and extrinsics camera → vehicle (forward, left, up)."""
    cameras = {}
    for name, yaw in zip(CAMERAS, np.deg2rad(YAWS)):
        pose = np.eye(4)
        forward, left = (np.cos(yaw), np.sin(yaw), 0), (-np.sin(yaw), np.cos(yaw), 0)
        pose[:3, :3] = np.column_stack([-np.array(left), (0, 0, -1), forward])
        pose[:3, 3] = 1.2 * np.cos(yaw), 0.7 * np.sin(yaw), 1.6
        cameras[name] = {
            "intrinsics": [[200, 0, SIZE[0] / 2], [0, 200, SIZE[1] / 2], [0, 0, 1]],
            "extrinsics": pose.tolist(),
        }
    return cameras


def street(yaw: float) -> Image.Image:
    """What a camera that is turned by `yaw` to the left sees."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, (150, 190, 230))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height / 2, width, height), fill=(105, 120, 95))
    for forward, left, tall, colour in sorted(BOXES, key=lambda box: -np.hypot(*box[:2])):
        depth = forward * np.cos(yaw) + left * np.sin(yaw)
        side = -forward * np.sin(yaw) + left * np.cos(yaw)
        if depth > 1:
            x, ground, scale = width / 2 - 200 * side / depth, height / 2 + 200 * 1.6 / depth, 200 / depth
            pen.rectangle((x - scale, ground - scale * tall, x + scale, ground), fill=colour, outline="black")
    return image
