"""Solids as files: binary STL, and STEP with a word about where it comes from."""

import numpy as np


def labelled_step(content: bytes, label: str | None) -> bytes:
    """The STEP file with the label as a comment behind its first line."""
    if not label:
        return content
    first, rest = content.split(b"\n", 1)
    return first + b"\n/* " + label.encode("ascii", "replace") + b" */\n" + rest


def stl_bytes(mesh, label: str | None) -> bytes:
    """A binary STL file; the label stands in its header of 80 bytes."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(mesh.faces), record)
    triangles["normal"] = mesh.face_normals()[0]
    triangles["corners"] = mesh.vertices[mesh.faces]
    header = (label or "binary STL").encode("ascii", "replace")[:80].ljust(80)
    return header + np.uint32(len(triangles)).tobytes() + triangles.tobytes()
