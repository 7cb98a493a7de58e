"""Cameras are looked at with the precision that they have."""

import pytest
import torch

from modeling_dsr.pose import check_cameras


def test_autocast_does_not_blur_what_is_a_rotation():
    rotation, _ = torch.linalg.qr(torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(0)))
    rotation = rotation * torch.linalg.det(rotation).sign()[:, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        check_cameras(rotation, None)
        with pytest.raises(ValueError, match="8 of 8 cameras"):
            check_cameras(1.002 * rotation, None)
