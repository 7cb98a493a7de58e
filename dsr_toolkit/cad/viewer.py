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
            flat.visual.face_colors = color
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
    page = scene_to_html(scene).replace(
        "<title>trimesh: threejs viewer</title>", f"<title>{html.escape(title)}</title>"
    )
    return page.replace("<body>", f"<body>{header}", 1)
