"""A whole multi-view model against the number of images, with dense, dilated, landmark and memory-bank global
attention.

Draws `mv_whole.png` beside this file. The rows compare each strategy with dense attention at the largest number of
images.
"""

from pathlib import Path

import torch

from benchmarks.harness import device, machine, row, timed
from modeling_dsr.configuration_page4d import Page4DConfig
from modeling_dsr.modeling_page4d import Page4DModel

NAME = "mv.whole"
PICTURE = Path(__file__).with_suffix(".png")
VIEWS, TIMES, SIDE = 4, (1, 2, 4, 8, 16, 24), 168  # 149 tokens per image
STRATEGIES = ("dense", "dilated", "landmark", "memory_bank")
LAYERS = (4, 5)


def make(strategy: str) -> Page4DModel:
    torch.manual_seed(0)
    config = Page4DConfig(
        encoder_config=dict(num_hidden_layers=1, num_attention_heads=2),
        img_size=SIDE,
        embed_dim=128,
        depth=6,
        num_heads=2,
        dual_stream_layers=[2, 3],
        enable_sparse_global=True,
        sparse_global_layers=LAYERS,
        sparse_strategy="landmark" if strategy == "dense" else strategy,
        spatial_mask_variant=None,
        camera_depth=1,
        camera_num_heads=4,
        dpt_layers=[0, 2, 4, 5],
        dpt_features=16,
        dpt_out_channels=[16, 16, 16, 16],
    )
    model = Page4DModel(config).eval().to(device())
    if strategy == "dense":
        model.multiview._sparse = dense
    return model


def dense(block, tokens, rope, given, memory, batch):
    """What the sparse layers replace: every token sees every token."""
    return block(tokens.flatten(1, 3), rope=rope).view_as(tokens), memory


@torch.no_grad()
def run() -> list[dict]:
    models = {name: make(name) for name in STRATEGIES}
    seconds = {name: [] for name in STRATEGIES}
    for times in TIMES:
        images = torch.rand(1, times, VIEWS, 3, SIDE, SIDE, device=device())
        rounds = [[timed(lambda m=model: m(images)) for model in models.values()] for _ in range(4)]
        for name, values in zip(STRATEGIES, zip(*rounds[1:])):
            seconds[name].append(min(values))
    draw([VIEWS * times for times in TIMES], seconds)
    largest = {name: values[-1] for name, values in seconds.items()}
    return [row(NAME, f"time_{name}", largest["dense"], largest[name], None) for name in STRATEGIES[1:]]


def draw(images: list[int], seconds: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, values in seconds.items():
        axes.plot(images, values, marker="o", label=name.replace("_", " "))
    axes.set(xscale="log", yscale="log", xlabel="images (times × views)", ylabel="seconds per forward")
    axes.set_xticks(images, [str(count) for count in images])
    axes.set_title(f"{SIDE}×{SIDE}, {len(LAYERS)} of 6 layers global; {machine()}", fontsize=6)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(PICTURE, dpi=110)
    pyplot.close(figure)
