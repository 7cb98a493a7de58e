"""Models of a few thousand weights that see frames of 28×42 pixels, in folders that the command loads."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.processing_geometry import GeometryProcessor
from tests.modeling_dsr.pi3_samples import tiny_config


def _saved(variant, folder):
    torch.manual_seed(0)
    Pi3Model(tiny_config(variant)).save_pretrained(folder)
    GeometryProcessor(pixel_limit=28 * 42).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def quick_pi3(tmp_path_factory) -> str:
    return _saved("pi3", tmp_path_factory.mktemp("quick-pi3"))


@pytest.fixture(scope="session")
def quick_pi3x(tmp_path_factory) -> str:
    return _saved("pi3x", tmp_path_factory.mktemp("quick-pi3x"))


@pytest.fixture
def photos(tmp_path):
    """Six photographs of 60×40 pixels, 0.png … 5.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(generator.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
    return folder
