"""A page in which a part and its solid can be turned around: trimesh's viewer, one file that needs no network.

Chosen over three-cad-viewer with ocp-tessellate: it is there with an ordinary requirement, carries three.js in itself,
and shows meshes and clouds alike; edges of the exact solid are in the STEP file, for a CAD program.
"""

from __future__ import annotations

import html

import numpy as np

from modeling_dsr.cad_solids import TriangleMesh

INPUT_COLOR, RESULT_COLOR = (120, 155, 205, 255), (235, 190, 80, 255)
Z_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)  # three.js looks along -z, y up
GAP = 0.25  # between the two, of the wider one
MAX_POINTS = 50_000
LAMP = 1.75  # strength of the page's
FIELD_OF_VIEW, AZIMUTH, ELEVATION = 40.0, 25.0, 30.0  # degrees: of the camera, and of where it stands at first


def viewer_page(target, solid: TriangleMesh | None, title: str, lines: tuple[str, ...] = ()) -> str:
    """
    HTML that shows the input on the left and the solid on the right, in one frame.

    Args:
        target: `TriangleMesh` or cloud `[P, 3]`, or None.
        solid: or None.
        title, lines: text of others, which is escaped.
    """
    import trimesh
    from trimesh.viewer import scene_to_html

    shown = [(name, one) for name, one in (("input", target), ("solid", solid)) if one is not None]
    scene = trimesh.Scene()
    place = 0.0
    for name, one in shown:
        vertices = one.vertices if isinstance(one, TriangleMesh) else np.asarray(one)[:, :3]
        low, high = vertices.min(0), vertices.max(0)
        centred = vertices - (low + high) / 2 + (place + (high[0] - low[0]) / 2, 0, 0)
        place += (1 + GAP) * float(high[0] - low[0])
        color = INPUT_COLOR if name == "input" else RESULT_COLOR
        if isinstance(one, TriangleMesh):
            # Corners of their own for every face: flat shading, which shows edges.
            flat = trimesh.Trimesh(
                centred[one.faces].reshape(-1, 3), np.arange(3 * len(one.faces)).reshape(-1, 3), process=False
            )
            # A matt surface: glTF's own default is bare metal, nearly black without surroundings to reflect.
            paint = trimesh.visual.material.PBRMaterial(
                baseColorFactor=[*(value / 255 / LAMP for value in color[:3]), 1.0],
                metallicFactor=0.0,
                roughnessFactor=1.0,
            )
            flat.visual = trimesh.visual.TextureVisuals(material=paint)
            scene.add_geometry(flat, geom_name=name)
        else:
            some = centred[np.linspace(0, len(centred) - 1, min(len(centred), MAX_POINTS)).astype(int)]
            scene.add_geometry(trimesh.PointCloud(some, colors=np.tile(color, (len(some), 1))), geom_name=name)
    words = "".join(f"<div>{html.escape(line)}</div>" for line in (title, *lines))
    legend = " · ".join(
        f"{name} {'left' if number == 0 and len(shown) > 1 else 'right' if number else ''}".strip()
        for number, (name, _) in enumerate(shown)
    )
    style = "position:absolute;z-index:1;margin:12px;font:14px sans-serif;color:#222;pointer-events:none"
    header = f'<div style="{style}">{words}<div>{html.escape(legend)} — drag to turn, wheel to zoom</div></div>'
    if not shown:
        return f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"></head><body>{header}</body></html>\n'
    scene.apply_transform(Z_UP)
    _show_whole(scene)
    page = scene_to_html(scene).replace(
        "<title>trimesh: threejs viewer</title>", f"<title>{html.escape(title)}</title>"
    )
    return page.replace("<body>", f"<body>{header}", 1)


def _show_whole(scene) -> None:
    """A camera that looks at everything from the front and a little above, in a window that need not be wide."""
    import trimesh

    scene.apply_translation(-scene.bounds.mean(0))  # the page's lamp, which goes with the camera, shines at the origin
    low, high = scene.bounds
    distance = float(np.linalg.norm(high - low)) / 2 / np.sin(np.radians(FIELD_OF_VIEW / 2))
    azimuth, elevation = np.radians((AZIMUTH, ELEVATION))
    backward = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(backward, right), backward], 1)
    pose[:3, 3] = distance * backward
    # The nearest plane decides how finely depths are told apart: as far away as zooming allows.
    scene.camera = trimesh.scene.Camera(fov=(FIELD_OF_VIEW, FIELD_OF_VIEW), z_near=distance / 100, z_far=distance * 100)
    scene.camera_transform = pose
