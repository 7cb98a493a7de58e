"""The names of the formats, which the command line lists without loading what writes them."""

from ..extras import needs

# Module of `writers`, and its writer.
WRITERS = {
    "glb": ("glb", "GlbWriter"),
    "html": ("page", "PageWriter"),
    "ply": ("tables", "PlyWriter"),
    "npz": ("arrays", "NpzWriter"),
    "colmap": ("colmap", "ColmapWriter"),
    "colmap-text": ("colmap", "ColmapWriter"),
    "nerfstudio": ("nerfstudio", "NerfstudioWriter"),
    "rrd": ("rerun", "RerunWriter"),
    "depth-video": ("video", "VideoWriter"),
    "tum": ("tables", "TumWriter"),
}
FORMATS = tuple(WRITERS)


def check_formats(formats: tuple[str, ...]) -> None:
    """Raise a ValueError or ImportError unless the writers of all `formats` can be opened."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"--format takes {', '.join(FORMATS)} or all, with commas; got {', '.join(unknown) or 'nothing'}."
        )
    if "rrd" in formats:
        needs("view", "The format rrd")
