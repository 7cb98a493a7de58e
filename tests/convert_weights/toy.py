"""A small architecture with one of everything that a recipe can say."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from convert_weights.recipe import (
    Plan,
    build_config,
    copy,
    drop,
    init,
    merge,
    normal,
    rename,
    split,
    transform,
    values,
    zeros,
)

SOURCES = (("toy",), ("toy", "patch"))
MODELS = {"ToyModel": "tests.convert_weights.toy"}


class ToyConfig(PreTrainedConfig):
    model_type = "toy_converter"
    width: int = 8
    layers: int = 2
    vocab_size: int = 10
    tie_word_embeddings: bool = True


class ToyBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)


class ToyModel(PreTrainedModel):
    config: ToyConfig
    config_class = ToyConfig
    _tied_weights_keys = {"head.weight": "embed.weight"}
    _keep_in_fp32_modules_strict = ["norm"]

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(ToyBlock(config.width) for _ in range(config.layers))
        self.twin = nn.ModuleList(ToyBlock(config.width) for _ in range(config.layers))
        self.adapter = nn.Linear(config.width, config.width, bias=False)
        self.patch = nn.Linear(config.width, config.width)
        self.queries = nn.Parameter(torch.zeros(4, config.width))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.long))
        self.register_buffer("scale", torch.zeros(3))
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head


def flatten_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """`[out, in, 1]` to `[out, in]`."""
    interrupt()
    return kernel.flatten(1)


def add_low_rank(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return weight + b @ a


def interrupt() -> None:
    """Tests put here what shall happen in the middle of a conversion."""


def plan(sources, overrides) -> Plan:
    toy = sources["toy"]
    vocab_size, width = toy.shape("emb.weight")
    layers = len(toy.match(r"blk\.\d+\.qkv\.weight"))
    config = build_config(ToyConfig, {"width": width, "layers": layers, "vocab_size": vocab_size}, overrides)
    return Plan(
        config=config,
        model_class=ToyModel,
        load={
            "toy": [
                rename(r"emb\.weight", "embed.weight"),
                rename(r"head\.weight", "head.weight"),
                split(r"blk\.(\d+)\.qkv\.(.+)", [rf"blocks.\1.{name}_proj.\2" for name in "qkv"]),
                rename(r"blk\.(\d+)\.norm\.(.+)", lambda m: f"blocks.{int(m[1])}.norm.{m[2]}"),
                transform(r"conv\.weight", "patch.weight", flatten_kernel),
                rename(r"conv\.bias", "patch.bias"),
                merge(r"ad\.base", ["ad.a", "ad.b"], "adapter.weight", add_low_rank),
                rename("steps", "steps"),
                drop(r"aux\..+", "only used in training"),
            ],
            **({"patch": [rename(r"(patch\..+)", r"\1", when_taken="replace")]} if "patch" in sources else {}),
        },
        fill=[
            copy(r"twin\.(.+)", r"blocks.\1"),
            init("queries", normal(0.5)),
            init("scale", values("thirds", torch.tensor([1 / 3, 2 / 3, 1.0]))),
            init("absent", zeros),
        ],
    )


def write_processor(sources, config, folder: Path) -> list[str]:
    (folder / "vocab.txt").write_text("one\ntwo\n")
    return ["toys have no processor"]


def checkpoint(width: int = 8, layers: int = 2, vocab_size: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in the layout that `plan` expects."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    state = {"emb.weight": random(vocab_size, width)}
    for i in range(layers):
        state |= {f"blk.{i}.qkv.weight": random(3 * width, width), f"blk.{i}.qkv.bias": random(3 * width)}
        state |= {f"blk.{i}.norm.weight": random(width), f"blk.{i}.norm.bias": random(width)}
    state |= {"conv.weight": random(width, width, 1), "conv.bias": random(width)}
    state |= {"ad.base": random(width, width), "ad.a": random(2, width), "ad.b": random(width, 2)}
    return state | {"steps": torch.tensor([1, 2, 3]), "aux.head.weight": random(3, width)}
