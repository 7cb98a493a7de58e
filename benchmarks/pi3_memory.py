"""Peak memory of π³ on 24 frames: frames in chunks and streamed heads, against everything at once.

Baseline: `benchmarks/pi3_plain.py`, with the attention kernels that the published code allows in float32, of which the
CPU has the one that writes out all scores (`memory`), and with torch's own choice of kernel (`memory_vs_sdpa`).
"""

import torch

from benchmarks.harness import assert_agreement, device, peak_memory, row
from benchmarks.pi3_plain import plain_model
from modeling_dsr.configuration_pi3 import Pi3Config
from modeling_dsr.modeling_pi3 import Pi3Model

NAME = "pi3.memory"
FRAMES, SIDE, WIDTH = 24, 224, 192  # 256 patches per frame


def make_model() -> Pi3Model:
    torch.manual_seed(0)
    config = Pi3Config(
        encoder_config=dict(hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=3, image_size=SIDE),
        num_decoder_layers=6,
        num_attention_heads=3,
        head_hidden_size=WIDTH,
        head_num_attention_heads=3,
        head_num_layers=2,
        point_dim=WIDTH,
        camera_dim=WIDTH // 2,
        layer_scale_init=0.5,
    )
    return Pi3Model(config).eval().to(device())


def make_images() -> torch.Tensor:
    return torch.rand(1, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(device())


def prepare(side: str):
    """The call to measure: `"ours"`, or the plain way with `"published"` or `"default"` kernels."""
    model, images = make_model(), make_images()
    sides = {"ours": model}
    if side != "ours":
        sides[side] = plain_model(model)
        sides[side].choose_kernels(side)

    @torch.no_grad()
    def call():
        return sides[side](images)

    # Libraries make their threads and work spaces in the first call; one frame is enough for them.
    with torch.no_grad():
        model(images[:, :1])
    return call


@torch.no_grad()
def check() -> None:
    model, images = make_model(), make_images()[:, :5]
    ours, plain = model(images), plain_model(model)
    for choice in ("published", "default"):
        plain.choose_kernels(choice)
        for name, value in plain(images).items():
            assert_agreement(ours[name], value, atol=1e-4)


def run() -> list[dict]:
    check()
    ours = peak_memory(f"{__name__}:prepare", "ours")
    rows = []
    for metric, choice, target in (("memory", "published", 12), ("memory_vs_sdpa", "default", 2)):
        rows.append(row(NAME, metric, peak_memory(f"{__name__}:prepare", choice), ours, target))
    return rows
