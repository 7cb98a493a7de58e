"""Views of a solid: a z-buffer in numpy with the published cameras."""

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from .cad_solids import TriangleMesh
from .frames import resize_image

# Published cameras: 500 × 500 pixels, 60°, target (0.5, 0.5, 0.5) of the unit cube, 0.9·√3 away, in these directions.
VIEW_DIRECTIONS = ((1, 1, 1), (-1, -1, -1), (-1, 1, -1), (1, -1, 1))
VIEW_DISTANCE = 0.9
VIEW_FOCAL_LENGTH = 433.0127  # of 500 pixels
VIEW_COLOR = (255, 255, 136)
VIEW_PIXELS, VIEW_BORDER = 128, 3
VIEW_PIXEL_LIMITS = (256 * 28 * 28, 1280 * 28 * 28)  # of the picture of all views, as the vision tower sees it
PIXELS_PER_PASS = 1 << 21  # pixels of triangles drawn at a time: about 300 MB


def render_mesh(
    mesh: TriangleMesh,
    direction=(1, 1, 1),
    pixels: int = VIEW_PIXELS,
    color: tuple[int, int, int] = VIEW_COLOR,
    smooth: bool = True,
    oversampling: int = 4,
    closed: bool = False,
) -> np.ndarray:
    """
    One view of a part in the unit cube: a z-buffer in numpy, which needs no display, driver or window system.

    The camera is that of the published training views. Their lighting (Open3D's) is only approximated: a light at the
    camera and one above it, white background.

    Args:
        mesh: in [0, 1]³.
        direction: in which the camera looks, from `VIEW_DISTANCE` times this before the centre. World +y points down.
        smooth: shade with vertex normals, as the published views do; else with face normals, which shows edges.
        oversampling: rays per pixel along either side.
        closed: the mesh is closed and its faces are counter-clockwise from outside: those that face away are left out,
            which changes nothing and is quicker.

    Returns:
        `[pixels, pixels, 3]` uint8.
    """
    size = pixels * oversampling
    covered, faces, weights = cast_rays(mesh, direction, size, closed)
    face_normals, areas = mesh.face_normals()
    axes = camera_axes(direction)
    if smooth:
        vertex_normals = np.zeros_like(mesh.vertices)
        for corner in range(3):
            np.add.at(vertex_normals, mesh.faces[:, corner], face_normals * areas[:, None])
        normals = np.einsum("pc,pcd->pd", weights, vertex_normals[mesh.faces[faces]])
    else:
        normals = face_normals[faces]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    facing = np.abs(normals @ axes[2])
    above = np.clip(-(normals @ axes[1]), 0, None)
    shade = 0.25 + 0.6 * facing + 0.15 * above
    pixel = covered // size // oversampling * pixels + covered % size // oversampling
    rays = np.bincount(pixel, minlength=pixels * pixels)[:, None]  # that meet the part
    light = np.bincount(pixel, weights=shade, minlength=pixels * pixels)[:, None]
    image = light * np.asarray(color, np.float64) + (oversampling**2 - rays) * 255.0
    image = (image / oversampling**2).reshape(pixels, pixels, 3)
    return image.astype(np.uint8)


def cast_rays(mesh: TriangleMesh, direction, size: int, closed: bool = False):
    """
    What the rays through the pixels of a view meet first; see [`render_mesh`].

    Returns:
        Of the pixels that see the part (`row * size + column`, ascending): these, the face that each sees, and where on
        it, as weights `[P, 3]` of its corners.
    """
    camera, screen, _ = project_points(mesh.vertices, direction, size)
    visible = (camera[mesh.faces, 2] > 1e-3).all(1)
    if closed:
        a, b, c = screen[mesh.faces].swapaxes(0, 1) - screen[mesh.faces[:, 0]]
        visible &= b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0] < 0
    face, weights = _rasterize(screen, 1 / np.maximum(camera[:, 2], 1e-6), mesh.faces[visible], size)
    covered = np.flatnonzero(face >= 0)  # the rest is paper, most of a picture
    return covered, np.flatnonzero(visible)[face[covered]], weights[covered]


def camera_axes(direction) -> np.ndarray:
    """Right, down and forward `[3, 3]` of the camera that looks along `direction`."""
    front = np.asarray(direction, np.float64)
    right = np.cross((0.0, 1.0, 0.0), front)
    return np.stack([axis / np.linalg.norm(axis) for axis in (right, np.cross(front, right), front)])


def project_points(points: np.ndarray, direction, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Points `[V, 3]` of the unit cube as the camera of [`render_mesh`] sees them.

    Returns:
        In the camera's frame `[V, 3]` (right, down, forward), on the picture `[V, 2]` in pixels, and the camera's axes.
    """
    axes = camera_axes(direction)
    camera = (points - (0.5 - VIEW_DISTANCE * np.asarray(direction, np.float64))) @ axes.T
    depth = np.maximum(camera[:, 2], 1e-6)
    screen = camera[:, :2] / depth[:, None] * (VIEW_FOCAL_LENGTH / 500 * pixels) + (pixels - 1) / 2
    return camera, screen, axes


def _rasterize(screen: np.ndarray, inverse_depth: np.ndarray, faces: np.ndarray, size: int):
    """
    Nearest face of every pixel.

    Args:
        screen: `[V, 2]` pixels. inverse_depth: `[V]`. faces: `[F, 3]`.

    Returns:
        Face of each pixel `[size²]`, -1 for none, and its perspective-correct corner weights `[size², 3]`.
    """
    a, b, c = screen[faces].swapaxes(0, 1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    top = np.ceil(screen[faces, 1].min(1)).clip(0, size).astype(np.int64)
    bottom = np.floor(screen[faces, 1].max(1)).clip(-1, size - 1).astype(np.int64)
    heights = np.where(np.abs(area) > 1e-12, bottom - top + 1, 0).clip(0)

    # One entry per face and row. A corner's weight is linear along the row: slope · x + start; where all three are
    # positive the face covers it.
    face = np.repeat(np.arange(len(faces)), heights)
    y = top[face] + _count_within(heights)
    ax, ay, doubled = a[face, 0], a[face, 1], area[face]
    slope_b = (c[face, 1] - ay) / doubled
    slope_c = (ay - b[face, 1]) / doubled
    start_b = -slope_b * ax - (y - ay) * (c[face, 0] - ax) / doubled
    start_c = -slope_c * ax + (y - ay) * (b[face, 0] - ax) / doubled
    left, right = np.zeros(len(face)), np.full(len(face), size - 1.0)
    for slope, start in ((slope_b, start_b), (slope_c, start_c), (-slope_b - slope_c, 1 - start_b - start_c)):
        with np.errstate(divide="ignore", invalid="ignore"):
            root = -start / slope
        left = np.where(slope > 0, np.maximum(left, root), left)
        right = np.where(slope < 0, np.minimum(right, root), right)
        right = np.where((slope == 0) & (start < 0), -1.0, right)
    first = np.ceil(left - 1e-9).astype(np.int64)
    widths = (np.floor(right + 1e-9).astype(np.int64) - first + 1).clip(0)

    buffer = np.zeros(size * size)
    nearest = np.full(size * size, -1, np.int64)
    corner_weights = np.zeros((size * size, 3))
    for begin, end in _passes(widths.cumsum()):
        span = np.repeat(np.arange(begin, end), widths[begin:end])
        x = first[span] + _count_within(widths[begin:end])
        weight_b = slope_b[span] * x + start_b[span]
        weight_c = slope_c[span] * x + start_c[span]
        pixel, index = y[span] * size + x, face[span]
        corners = np.stack([1 - weight_b - weight_c, weight_b, weight_c], 1) * inverse_depth[faces[index]]
        nearness = corners.sum(1)
        np.maximum.at(buffer, pixel, nearness)
        won = nearness == buffer[pixel]
        nearest[pixel[won]] = index[won]
        corner_weights[pixel[won]] = corners[won] / nearness[won, None]
    return nearest, corner_weights


def _count_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … within each of consecutive groups: lengths [2, 3] → [0, 1, 0, 1, 2]."""
    starts = lengths.cumsum() - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _passes(ends: np.ndarray):
    """Ranges of spans whose pixels fit one pass, each at least one span."""
    start, done = 0, 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, done + PIXELS_PER_PASS, side="right")), start + 1)
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def compose_views(views) -> Image.Image:
    """One, two (side by side) or four (2 × 2) views as one picture, each with a black border of 3 pixels."""
    views = [np.asarray(view.convert("RGB") if isinstance(view, Image.Image) else view, np.uint8) for view in views]
    if len(views) not in (1, 2, 4) or any(view.ndim != 3 or view.shape != views[0].shape for view in views):
        raise ValueError(
            f"A part is shown by 1, 2 or 4 RGB views of one size, got {len(views)}: {[view.shape for view in views]}."
        )
    framed = [np.pad(view, ((VIEW_BORDER, VIEW_BORDER), (VIEW_BORDER, VIEW_BORDER), (0, 0))) for view in views]
    rows = [np.concatenate(framed[i : i + 2], axis=1) for i in range(0, len(framed), 2)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def resize_to_multiple(
    picture: Image.Image, multiple: int, min_pixels: int = 0, max_pixels: int = 1 << 62
) -> Image.Image:
    """Bicubic resize to sides that are multiples, with an area within the limits."""
    height, width = smart_resize(picture.height, picture.width, multiple, min_pixels, max_pixels)
    return resize_image(picture, (width, height), Image.Resampling.BICUBIC)


def encode_views(
    picture: Image.Image,
    image_processor,
    pixel_limits: tuple[int, int] = VIEW_PIXEL_LIMITS,
    coordinates: bool = False,
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """
    A picture of views as Cadrille reads it: a video of two equal frames, resized twice with Pillow, as published.

    Args:
        pixel_limits: smallest and largest area that the vision tower gets.
        coordinates: not published: the second frame shows [`coordinate_picture`] instead.

    Returns:
        Patches `[L, 1176]` and grid (time, rows, columns): 1 × 32 × 32 for the published 268 × 268 pixels.
    """
    multiple = image_processor.patch_size * image_processor.merge_size
    picture = resize_to_multiple(resize_to_multiple(picture, multiple), multiple, *pixel_limits)
    encoded = image_processor(images=[picture], do_resize=False, return_tensors="pt")
    if coordinates:
        shown = image_processor(images=[coordinate_picture(picture.size)], do_resize=False, return_tensors="pt")
        layout = (-1, 3, image_processor.temporal_patch_size, image_processor.patch_size**2)
        encoded["pixel_values"].view(layout)[:, :, 1] = shown["pixel_values"].view(layout)[:, :, 1]
    return encoded["pixel_values"], tuple(encoded["image_grid_thw"][0].tolist())


def coordinate_picture(size: tuple[int, int]) -> Image.Image:
    """Where each pixel lies: red grows from left to right, green from top to bottom, both from 0 to 255."""
    columns, rows = (np.linspace(0, 255, side) for side in size)
    picture = np.full((size[1], size[0], 3), 128, np.uint8)
    picture[..., 0], picture[..., 1] = columns.round(), rows.round()[:, None]
    return Image.fromarray(picture)


def stack_views(views: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches `[B, L, 1176]` and grids `[B, 3]` of a batch, zeros in rows without views."""
    grids = {grid for grid in (view[1] for view in views if view is not None)}
    if len(grids) > 1:
        raise ValueError(f"The pictures of a batch must have one size, got grids {sorted(grids)}. Resize them alike.")
    pattern = next(patches for patches, _ in (view for view in views if view is not None))
    patches = torch.stack([torch.zeros_like(pattern) if view is None else view[0] for view in views])
    return patches, torch.tensor([[0, 0, 0] if view is None else list(view[1]) for view in views])
