"""A training step of DSR in its second epoch: features of the frozen towers from the cache, against computing them.

Published preset: the towers are frozen, mergers, Geometry Selection Module and language model train. One video of 16
frames per step. Two rows: the model alone, given pixels on both sides; and the step with its row, for which the cache
leaves the video closed and the baseline opens, resizes and cuts it.

What the cache can save is bounded: the towers run forward, the language model forward and backward. The proportion of
the two is the published one here (`python -m benchmarks.train_feature_cache` computes it from the sizes), so the model
alone cannot be quicker than by 1.2.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor

from benchmarks import harness
from benchmarks.dsr_models import TOKEN_IDS, small_config
from benchmarks.harness import alternate, row
from dsr_toolkit.tiny import hub_folder
from dsr_toolkit.training.feature_cache import FeatureCache
from dsr_toolkit.worlds.space.export import write_video
from modeling_dsr.configuration_dsr import DSRConfig
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

NAME = "train.feature_cache"
TARGET = 3.0
FRAMES, HEIGHT, WIDTH = 16, 168, 308
GRID = (FRAMES // 2, HEIGHT // 14, WIDTH // 14)
WORDS = 40
PUBLISHED_GRID, PUBLISHED_WORDS = (16, 24, 44), 100  # 32 frames of a 16:9 video
SECONDS = 30.0  # of a row, after which no more rounds begin


def small_published() -> DSRConfig:
    """A small model whose towers have the published share of a step's work, with the tokens of the tiny processor."""
    tiny = AutoConfig.from_pretrained(hub_folder("dsr"))
    tokens = {name: value for name, value in tiny.to_dict().items() if name in TOKEN_IDS}
    return small_config(vision_layers=3, geometry_layers=2, vocabulary=tiny.text_config.vocab_size, **tokens)


def work(config: DSRConfig, grid: tuple[int, int, int], words: int) -> dict[str, float]:
    """Multiplications and additions of one forward pass: of both frozen towers, and of the language model."""
    vision, geometry, text = config.vision_config, config.geometry_config, config.text_config
    t, h, w = grid
    patches, width = t * h * w, vision.hidden_size
    inside = (vision.window_size // vision.patch_size) ** 2
    seen = [h * w if layer in vision.fullatt_block_indexes else inside for layer in range(vision.depth)]
    dense = 4 * width**2 + 3 * width * vision.intermediate_size
    found = {"vision tower": sum(patches * (2 * dense + 4 * length * width) for length in seen)}
    tokens, width = h * w + 1 + geometry.num_register_tokens, geometry.hidden_size
    dense = (4 + 2 * geometry.mlp_ratio) * width**2
    found["geometry encoder"] = 2 * t * tokens * geometry.num_hidden_layers * (2 * dense + 4 * tokens * width)
    length, width = patches // 4 + config.num_geometry_tokens + words, text.hidden_size
    shared = width * text.num_key_value_heads // text.num_attention_heads
    dense = 2 * width**2 + 2 * width * shared + 3 * width * text.intermediate_size
    layers = text.num_hidden_layers * (2 * dense + 2 * length * width)
    found["language model"] = length * (layers + 2 * width * text.vocab_size)
    return found


def bounds(found: dict[str, float]) -> dict[str, float]:
    """The most that a cache of both towers can save, as time with towers over time without, if work is time."""
    towers, model = found["vision tower"] + found["geometry encoder"], found["language model"]
    return {"all of it trains": 1 + towers / (3 * model), "an adapter trains": 1 + towers / (2 * model)}


def run() -> list[dict]:
    torch.manual_seed(0)
    plain = DSRForConditionalGeneration(small_published()).freeze("published").train()
    cached = DSRForConditionalGeneration(plain.config).freeze("published").train()
    cached.load_state_dict(plain.state_dict())
    processor = AutoProcessor.from_pretrained(hub_folder("dsr"))
    collate = processor.training_collator(num_frames=FRAMES, min_pixels=HEIGHT * WIDTH, max_pixels=HEIGHT * WIDTH)

    def step(model, batch) -> float:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        return loss.item()

    seconds = min(SECONDS, harness.ROW_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        clip = {"video": str(moving_waves(Path(folder) / "clip.mp4")), "question": "x" * WORDS, "answer": "A"}
        cache = FeatureCache(Path(folder) / "features")
        cache.attach(cached)
        known, pixels = cache.collator(collate), collate([clip])
        assert tuple(pixels["video_grid_thw"][0].tolist()) == GRID

        def with_row(model, reads) -> float:
            batch = reads([clip])
            with cache.reading(batch):
                return step(model, batch)

        with_row(cached, known)  # the first epoch fills it
        losses = [step(plain, pixels), step(cached, pixels), with_row(cached, known)]
        assert max(losses) - min(losses) < 1e-4, f"the losses differ: {losses}"
        bare = alternate(lambda: step(plain, pixels), lambda: step(cached, pixels), rounds=5, warmup=0, seconds=seconds)
        whole = alternate(
            lambda: with_row(plain, collate), lambda: with_row(cached, known), rounds=5, warmup=0, seconds=seconds
        )
    return [row(NAME, "step time, model alone", *bare, None), row(NAME, "step time with its row", *whole, TARGET)]


def moving_waves(path: Path) -> Path:
    """A video of twice as many frames as are looked at, in four times the size."""
    y, x = np.mgrid[: 2 * HEIGHT, : 2 * WIDTH] / 20
    frames = [np.stack([np.sin(x + moment / 4), np.cos(y - moment / 5), np.sin(x + y)], -1) for moment in range(32)]
    return write_video(SimpleNamespace(images=np.uint8(127 + 100 * np.stack(frames)), fps=8), path)


if __name__ == "__main__":
    published = DSRConfig(
        text_config={"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                     "num_attention_heads": 28, "num_key_value_heads": 4},
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420,
                       "fullatt_block_indexes": [7, 15, 23, 31]},
    )  # fmt: skip
    for name, found in (
        ("published, 7B", work(published, PUBLISHED_GRID, PUBLISHED_WORDS)),
        ("here", work(small_published(), GRID, WORDS)),
    ):
        parts = ", ".join(f"{part} {value / 1e9:,.0f}" for part, value in found.items())
        limits = ", ".join(f"{value:.2f} if {what}" for what, value in bounds(found).items())
        print(f"{name}: 10⁹ operations of a forward pass: {parts}. Bound of a step: {limits}.")
