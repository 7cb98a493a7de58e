"""Pure functions on maps of depth, points and rays."""

import torch

FOCAL_ESTIMATES = ("median", "regression")
LEAST_PAIRS = 0.2  # part of the pixels that must have their mirror image in the mask


def recover_intrinsics(
    rays: torch.Tensor,
    center_principal_point: bool = False,
    ndc: bool = False,
    method: str = "median",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Pinhole intrinsics that explain rays best, each axis on its own.

    A ray's x/z is (u - cx) / fx. Pixels are exact and rays are not, so the slope of x/z over u is estimated, and its
    inverse is the focal length.

    Args:
        rays: `[..., H, W, 3]` directions or camera-frame points.
        center_principal_point: hold the principal point in the middle of the pixel centres.
        ndc: in units in which the pixel centres span -1 … 1, not in pixels.
        method: `"median"`: least absolute error of x/z (the weighted median of its slope over u, between pixels that
            mirror each other about the centre; with a free principal
            point the median slope between pixels half an image apart, after H. Theil and P. K. Sen), which neither
            noise nor single rays of any length move. `"regression"`: least squares of u over x/z as published for π³,
            which a few large rays pull down; it knows no mask and is not finite where a ray is not.
        mask: `[..., H, W]`, pixels to trust; of a frame without any, all finite rays that look ahead count.

    Returns:
        `[..., 3, 3]`; pixel centres lie at whole numbers. With `"median"` always finite: rays that explain no camera
        (none finite, or a focal length that is not positive) get the focal length max(H, W), about 53° of view.
    """
    if method not in FOCAL_ESTIMATES:
        raise ValueError(f"`method` must be one of {FOCAL_ESTIMATES}, got {method!r}.")
    height, width = rays.shape[-3:-1]
    z = rays[..., 2].abs() + 1e-10
    columns, rows = (torch.arange(n, device=rays.device, dtype=rays.dtype) for n in (width, height))
    units = [1.0, 1.0]
    if ndc:
        units = [2 / max(n - 1, 1) for n in (width, height)]
        columns, rows = columns * units[0] - 1, rows * units[1] - 1
    known = torch.ones_like(z, dtype=torch.bool)
    if method == "median":
        known = rays.isfinite().all(-1) & (rays[..., 2] > 0)
        trusted = known if mask is None else known & mask
        known = torch.where(trusted.any(-1, keepdim=True).any(-2, keepdim=True), trusted, known)
    found = []
    # Each axis as one along which pixels run in the last dimension.
    for ray, pixel, valid, unit in (
        (rays[..., 0] / z, columns, known, units[0]),
        ((rays[..., 1] / z).mT, rows, known.mT, units[1]),
    ):
        if method == "regression":
            found.append(_regressed_axis(ray, pixel, center_principal_point))
        else:
            found.append(_median_axis(ray, pixel, valid, center_principal_point, max(height, width) * unit))
    (fx, cx), (fy, cy) = found
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    matrix = [torch.stack(row, -1) for row in ((fx, zero, cx), (zero, fy, cy), (zero, zero, one))]
    return torch.stack(matrix, -2)


def _regressed_axis(ray: torch.Tensor, pixel: torch.Tensor, centered: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal length and principal point of `ray` `[..., m, n]` over `pixel` `[n]`: pixel = f · ray + c, least squares in
    pixels."""
    pixel = pixel.expand(ray.shape[-2:]).flatten()
    ray = ray.flatten(-2)
    if centered:
        center = (pixel.min() + pixel.max()) / 2
        focal = (ray * (pixel - center)).sum(-1) / ray.square().sum(-1)
        return focal, center.expand_as(focal)
    offset = ray - ray.mean(-1, keepdim=True)
    focal = (offset * (pixel - pixel.mean())).sum(-1) / offset.square().sum(-1)
    return focal, pixel.mean() - focal * ray.mean(-1)


def _median_axis(
    ray: torch.Tensor, pixel: torch.Tensor, valid: torch.Tensor, centered: bool, default: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`_regressed_axis`], ray = (pixel - c) / f with the least absolute error in rays over `valid` `[..., m,
    n]`."""
    center = (pixel[0] + pixel[-1]) / 2
    ray = torch.where(valid, ray, torch.nan)
    if centered:
        # Pixels that mirror each other about the centre, so that rays which are all shifted alike shift nothing; where
        # a mask leaves no such pairs, each pixel by itself.
        offset = (pixel - center).expand_as(ray)
        both = valid & valid.flip(-1)
        pairs = _weighted_median(((ray - ray.flip(-1)) / (2 * offset)).flatten(-2), (offset.abs() * both).flatten(-2))
        alone = _weighted_median((ray / offset).flatten(-2), (offset.abs() * valid).flatten(-2))
        slope = torch.where(both.sum((-1, -2)) > valid.sum((-1, -2)) * LEAST_PAIRS, pairs, alone)
    else:
        half = len(pixel) // 2
        step = (pixel[half] - pixel[0]) if half else torch.ones_like(center)
        slope = ((ray[..., half:] - ray[..., : len(pixel) - half]) / step).flatten(-2).nanmedian(-1).values
    usable = slope.isfinite() & (slope > 1e-6 / default)
    focal = torch.where(usable, 1 / slope, default)
    if centered:
        return focal, center.expand_as(focal)
    shift = (ray - pixel / focal[..., None, None]).flatten(-2).nanmedian(-1).values
    return focal, torch.where(usable, -shift * focal, center)


def _weighted_median(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Median along the last axis where each value counts `weights` ≥ 0 times; NaN without any weight."""
    values = torch.where(weights > 0, values, torch.inf)
    values, order = values.sort(-1)
    total = weights.gather(-1, order).double().cumsum(-1)
    at = (total < total[..., -1:] / 2).sum(-1, keepdim=True).clamp_max(values.shape[-1] - 1)
    median = values.gather(-1, at).squeeze(-1)
    return torch.where(total[..., -1] > 0, median, torch.nan)


def depth_edge(depth: torch.Tensor, tolerance: float = 0.03, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels of `[..., H, W]` whose valid 3×3 neighbourhood spans more than `tolerance` of their depth."""
    mask = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask
    highest = _max_pool(torch.where(mask, depth, -torch.inf))
    lowest = -_max_pool(torch.where(mask, -depth, -torch.inf))
    return ((highest - lowest) / depth).nan_to_num() > tolerance


def points_to_normals(points: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Unit normals of point maps, from the four pairs of neighbours around each pixel.

    Args:
        points: `[..., H, W, 3]`. mask: `[..., H, W]`, valid pixels.

    Returns:
        Normals `[..., H, W, 3]`, zero where there are none, and where there are some `[..., H, W]`.
    """
    valid = points.isfinite().all(-1)
    valid = valid if mask is None else valid & mask
    points = torch.where(valid.unsqueeze(-1), points, 0.0)
    padded = torch.nn.functional.pad(points, (0, 0, 1, 1, 1, 1))
    known = torch.nn.functional.pad(valid, (1, 1, 1, 1))
    height, width = valid.shape[-2:]
    steps = ((0, 1), (1, 0), (2, 1), (1, 2))  # up, left, down, right
    edges = [padded[..., y : y + height, x : x + width, :] - points for y, x in steps]
    there = [known[..., y : y + height, x : x + width] for y, x in steps]
    total, any_valid = torch.zeros_like(points), torch.zeros_like(valid)
    for i in range(4):
        both = valid & there[i] & there[(i + 1) % 4]
        normal = torch.nn.functional.normalize(torch.linalg.cross(edges[i], edges[(i + 1) % 4]), dim=-1)
        total = total + normal * both.unsqueeze(-1)
        any_valid = any_valid | both
    return torch.nn.functional.normalize(total, dim=-1), any_valid


def normal_edge(normals: torch.Tensor, tolerance: float = 5.0, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels of `[..., H, W, 3]` near a bend: somewhere in 3×3, normals of neighbours differ by more than `tolerance`
    degrees."""
    height, width = normals.shape[-3:-1]
    mask = torch.ones(normals.shape[:-1], dtype=torch.bool, device=normals.device) if mask is None else mask
    flat = normals.reshape(-1, height, width, 3).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(flat, (1, 1, 1, 1), mode="replicate")
    known = torch.nn.functional.pad(mask.reshape(-1, 1, height, width).float(), (1, 1, 1, 1), mode="replicate") > 0.5
    largest = flat.new_zeros(len(flat), height, width)
    for y in range(3):
        for x in range(3):
            cosine = (flat * padded[..., y : y + height, x : x + width]).sum(1)
            angle = cosine.clamp(-1, 1).acos()
            largest = torch.maximum(largest, torch.where(known[:, 0, y : y + height, x : x + width], angle, 0.0))
    return (_max_pool(largest.view(normals.shape[:-1])).rad2deg() > tolerance) & mask


def depth_normal_edge(points: torch.Tensor, tolerance: float = 0.03, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels of camera-frame point maps `[..., H, W, 3]` where both depth and normals jump: see the two functions
    above."""
    valid = points.isfinite().all(-1) & (points[..., 2] > 0)
    valid = valid if mask is None else valid & mask
    normals, known = points_to_normals(points, valid)
    return depth_edge(points[..., 2], tolerance, valid) & normal_edge(normals, mask=known)


def _max_pool(maps: torch.Tensor) -> torch.Tensor:
    """Largest value in the 3×3 window of each pixel of `[..., H, W]`."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return torch.nn.functional.max_pool2d(flat, 3, stride=1, padding=1).view(maps.shape)
