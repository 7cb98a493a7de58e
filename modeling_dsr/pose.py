"""Camera algebra. Pure functions; OpenCV axes (x right, y down, z forward), extrinsics are camera-from-world."""

import torch


def quaternion_to_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Rotation `[..., 3, 3]` of a quaternion `[..., 4]` (x, y, z, w) of any length but zero."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    rows = [
        torch.stack([1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)], -1),
        torch.stack([s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)], -1),
        torch.stack([s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def matrix_to_quaternion(rotation: torch.Tensor) -> torch.Tensor:
    """
    Unit quaternion `[..., 4]` (x, y, z, w) with w ≥ 0 of a rotation `[..., 3, 3]`.

    The rotation gives four times the products of the quaternion's components, a 4×4 table; the row of its largest
    diagonal entry (at least 1 for a rotation) is the quaternion times a number far from zero.
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in rotation.unbind(-2))
    table = torch.stack(
        [
            torch.stack([1 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12], -1),
            torch.stack([m01 + m10, 1 - m00 + m11 - m22, m12 + m21, m02 - m20], -1),
            torch.stack([m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01], -1),
            torch.stack([m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22], -1),
        ],
        -2,
    )
    squares, best = table.diagonal(dim1=-2, dim2=-1).max(-1, keepdim=True)
    row = table.gather(-2, best.unsqueeze(-1).expand(*best.shape, 4)).squeeze(-2)
    # The floor only matters for matrices that are no rotations.
    quaternion = row / (2 * squares.clamp_min(0.01).sqrt())
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def decode_pose(pose_enc: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Extrinsics `[..., 3, 4]` and intrinsics `[..., 3, 3]` (pixels, principal point in the middle) of pose encodings.

    Args:
        pose_enc: `[..., 9]`: translation, quaternion (x, y, z, w), vertical and horizontal field of view in radians.
        image_size: (height, width) in pixels.
    """
    translation, quaternion, fov = pose_enc.float().split([3, 4, 2], dim=-1)
    extrinsics = torch.cat([quaternion_to_matrix(quaternion), translation.unsqueeze(-1)], -1)
    height, width = image_size
    fov_h, fov_w = fov.unbind(-1)
    fy, fx = (height / 2) / torch.tan(fov_h / 2), (width / 2) / torch.tan(fov_w / 2)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [
        torch.stack([fx, zero, one * (width / 2)], -1),
        torch.stack([zero, fy, one * (height / 2)], -1),
        torch.stack([zero, zero, one], -1),
    ]
    return extrinsics, torch.stack(rows, -2)


def decode_matrix_pose(pose_enc: torch.Tensor) -> torch.Tensor:
    """
    Extrinsics `[..., 3, 4]` of pose encodings `[..., 12]`: a 3×3 matrix by rows, whose nearest rotation counts, and a
    translation.
    """
    matrix, translation = pose_enc.float().split([9, 3], dim=-1)
    matrix = matrix.unflatten(-1, (3, 3))
    broken = ~matrix.isfinite().all(-1).all(-1)[..., None, None]  # stays NaN instead of ending the decomposition
    left, _, right = torch.linalg.svd(torch.where(broken, torch.eye(3).to(matrix), matrix))
    sign = torch.linalg.det(left @ right)
    last = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
    rotation = ((left * last.unsqueeze(-2)) @ right).masked_fill(broken, torch.nan)
    return torch.cat([rotation, translation.unsqueeze(-1)], -1)


def encode_pose(extrinsics: torch.Tensor, intrinsics: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """
    The inverse of [`decode_pose`]; the principal point has no place in the encoding and is left out.

    Args:
        extrinsics: `[..., 3, 4]` or `[..., 4, 4]`. intrinsics: `[..., 3, 3]` in pixels. image_size: (height, width).
    """
    height, width = image_size
    fov_h = 2 * torch.atan((height / 2) / intrinsics[..., 1, 1])
    fov_w = 2 * torch.atan((width / 2) / intrinsics[..., 0, 0])
    quaternion = matrix_to_quaternion(extrinsics[..., :3, :3])
    return torch.cat([extrinsics[..., :3, 3], quaternion, torch.stack([fov_h, fov_w], -1)], -1).float()


def invert_rigid(pose: torch.Tensor) -> torch.Tensor:
    """`[Rᵀ | -Rᵀt]` of rigid transforms `[..., 3, 4]` or `[..., 4, 4]`, in the shape they came in."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    top = torch.cat([rotation, -rotation @ pose[..., :3, 3:]], -1)
    return top if pose.shape[-2] == 3 else torch.cat([top, pose[..., 3:, :]], -2)


def to_homogeneous(pose: torch.Tensor) -> torch.Tensor:
    """`[..., 3, 4]` or `[..., 4, 4]` to `[..., 4, 4]`."""
    if pose.shape[-2] == 4:
        return pose
    bottom = torch.zeros_like(pose[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([pose, bottom], -2)


def transform_points(pose: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Apply rigid transforms `[..., 3, 4]` or `[..., 4, 4]` to point maps `[..., H, W, 3]`."""
    rotation, translation = pose[..., :3, :3], pose[..., None, :3, 3]
    return (points.flatten(-3, -2) @ rotation.transpose(-1, -2) + translation).unflatten(-2, points.shape[-3:-1])


def unproject_depth(
    depth: torch.Tensor, intrinsics: torch.Tensor, extrinsics: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Points `[..., H, W, 3]` of depth maps, in camera coordinates, or in the world's when extrinsics are given.

    Pixel centres lie at whole numbers: the first is (0, 0).

    Args:
        depth: `[..., H, W]`. intrinsics: `[..., 3, 3]` in pixels. extrinsics: `[..., 3, 4]` or `[..., 4, 4]`.
    """
    height, width = depth.shape[-2:]
    u = torch.arange(width, device=depth.device, dtype=depth.dtype)
    v = torch.arange(height, device=depth.device, dtype=depth.dtype).unsqueeze(-1)
    fx, fy, cx, cy = (intrinsics[..., i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    points = torch.stack([(u - cx) * depth / fx, (v - cy) * depth / fy, depth], -1)
    return points if extrinsics is None else transform_points(invert_rigid(extrinsics), points)


def rotation_error(rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest entry of |RRᵀ - I|, and det R, of `[..., 3, 3]`: 0 and 1 of a rotation."""
    # Not as a matrix product, which autocast would round to bfloat16.
    product = (rotation.unsqueeze(-2) * rotation.unsqueeze(-3)).sum(-1)
    error = (product - torch.eye(3, device=rotation.device, dtype=rotation.dtype)).abs().amax((-1, -2))
    # The determinant as a triple product: `torch.det` reads pivots back from the device.
    return error, (rotation[..., 0, :] * torch.linalg.cross(rotation[..., 1, :], rotation[..., 2, :])).sum(-1)


def check_cameras(extrinsics: torch.Tensor | None, intrinsics: torch.Tensor | None, tolerance: float = 1e-3) -> None:
    """
    Raise a ValueError unless cameras are usable: finite numbers, orthonormal rotations of determinant 1, positive focal
    lengths. Reads one number back from the device.
    """
    problems = []
    if extrinsics is not None:
        error, determinant = rotation_error(extrinsics[..., :3, :3].float())
        finite = extrinsics.isfinite().all(-1).all(-1)
        problems += [~finite, ~((error <= tolerance) & (determinant > 0))]
    if intrinsics is not None:
        focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)
        problems += [~intrinsics.isfinite().all(-1).all(-1), ~(focal > 0).all(-1)]
    kinds = ["`extrinsics` holds values that are not finite"] if extrinsics is not None else []
    kinds += ["`extrinsics` holds a 3×3 block that is not a rotation"] if extrinsics is not None else []
    kinds += ["`intrinsics` holds values that are not finite"] if intrinsics is not None else []
    kinds += ["`intrinsics` holds a focal length that is not positive"] if intrinsics is not None else []
    counts = torch.stack([problem.sum() for problem in problems]).tolist() if problems else []
    for kind, count in zip(kinds, counts):
        if count:
            raise ValueError(
                f"{kind} ({int(count)} of {problems[0].numel()} cameras). Expected rigid camera-from-world transforms "
                "[R | t] (R orthonormal, det R = 1, no scale) and intrinsics in pixels; leave out frames without a "
                "camera."
            )


def intrinsics_problem(matrices: torch.Tensor | list) -> str:
    """What is wrong with intrinsics `[n, 3, 3]` in pixels, in words, or ""."""
    matrices = torch.as_tensor(matrices, dtype=torch.float64)
    not_finite = ~matrices.isfinite().flatten(1).all(1)
    focal = torch.stack([matrices[:, 0, 0], matrices[:, 1, 1]], 1)
    index = _first(not_finite)
    if index is not None:
        found = matrices[index].tolist()
        return (
            f"hold numbers that are not finite in matrix {index}: {found}. Leave out or mask frames without intrinsics."
        )
    index = _first(~(focal > 0).all(1))
    if index is not None:
        found = matrices[index].tolist()
        return (
            f"hold a focal length that is not positive in matrix {index}: {found}. Expected pixels, [[fx, 0, cx], …]."
        )
    return ""


def pose_problem(matrices: torch.Tensor | list, tolerance: float = 1e-2) -> str:
    """What makes camera-to-world matrices `[n, 4, 4]` not rigid, in words, or ""."""
    cure = "Expected camera-to-world [R | t; 0 0 0 1] with a rotation R: divide scales out, mask frames without a pose."
    matrices = torch.as_tensor(matrices, dtype=torch.float64)
    index = _first(~matrices.isfinite().flatten(1).all(1))
    if index is not None:
        return f"hold numbers that are not finite in matrix {index}: {matrices[index].tolist()}. {cure}"
    error, determinant = rotation_error(matrices[:, :3, :3])
    bottom = (matrices[:, 3] - matrices.new_tensor([0, 0, 0, 1])).abs().amax(1)
    index = _first((error > tolerance) | (determinant < 0) | (bottom > tolerance))
    if index is None:
        return ""
    return (
        f"hold a matrix that is not rigid: number {index} has |RRᵀ - I| up to {float(error[index]):.2g}, det R "
        f"{float(determinant[index]):.3g} and last row {matrices[index, 3].tolist()}. {cure}"
    )


def _first(wrong: torch.Tensor) -> int | None:
    """
    The first place of `[n]`, on the CPU, where something is wrong. Asked of numpy: no operator that a device waits for.
    """
    found = wrong.numpy()
    return int(found.argmax()) if found.any() else None
