"""π³ at its published size (958,697,762 parameters, random weights) on three frames: time and peak memory of a call.

Baseline: `benchmarks/pi3_plain.py` on the same weights, or the published class with `--original CLONE_OF_Pi3`.
Never slower than it by more than 2 %, in half of its memory above the weights.
"""

from __future__ import annotations

from transformers.initialization import no_init_weights

from benchmarks import full_geometry
from benchmarks.full_models import import_original, make_model
from benchmarks.harness import device
from benchmarks.pi3_plain import plain_model, published_weights
from modeling_dsr.configuration_pi3 import Pi3Config
from modeling_dsr.modeling_pi3 import Pi3Model

NAME = "full.pi3"
TARGETS = {"time": 0.98, "memory": 2.0}
SMALL = dict(
    encoder_config=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=84),
    num_decoder_layers=4,
    num_attention_heads=2,
    head_hidden_size=64,
    head_num_attention_heads=2,
    head_num_layers=1,
    point_dim=64,
    camera_dim=32,
)
SIZES = {
    "small": dict(config=SMALL, frames=9, height=112, width=112),
    "cpu": dict(config={}, frames=3, height=224, width=224),
    "gpu": dict(config={}, frames=48, height=392, width=518),
}
AGREEMENT = {"small": 1e-4, "cpu": 1e-3, "gpu": 5e-2}  # of the largest value; bfloat16 on a GPU
OUTPUTS = ("points", "local_points", "conf", "camera_poses")


def build(size: str, original: str | None = None):
    """Our model, the baseline on the same weights, and images."""
    images = full_geometry.images(SIZES[size])
    model = make_model(Pi3Model, Pi3Config(**SIZES[size]["config"]))
    if original is None:
        return model, plain_model(model), images
    with no_init_weights():
        baseline = import_original(original, "pi3.models.pi3", "Pi3")()
    baseline.load_state_dict(published_weights(model), assign=True)
    return model, baseline.to(device()).eval(), images


def run(size: str = "cpu", original: str | None = None) -> list[dict]:
    return full_geometry.run(__name__, NAME, TARGETS, AGREEMENT[size], OUTPUTS, size, original)
