"""Rotations of NumPy as quaternions (w, x, y, z), as nuScenes and COLMAP order them; `modeling_dsr.pose` computes."""

import numpy as np


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion `[4]` (w, x, y, z) with w ≥ 0 of a rotation `[3, 3]`."""
    import torch

    from modeling_dsr.pose import matrix_to_quaternion

    x, y, z, w = matrix_to_quaternion(torch.tensor(rotation, dtype=torch.float64)).tolist()
    return np.array([w, x, y, z])


def rotation_of(quaternion) -> np.ndarray:
    """Rotation `[3, 3]` of a quaternion (w, x, y, z); its length does not matter."""
    import torch

    from modeling_dsr.pose import quaternion_to_matrix

    w, x, y, z = quaternion
    return quaternion_to_matrix(torch.tensor([x, y, z, w], dtype=torch.float64)).numpy()
