"""Both Q-Formers for a batch of 8 videos of 32 frames, full width.

Baseline: the published way to keep samples apart, all queries and all keys in one attention under a dense
block-diagonal mask.
"""

import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from benchmarks.dsr_models import GRID, TOKENS, full_width_config
from benchmarks.harness import alternate, assert_agreement, peak_memory, row
from modeling_dsr.dsr_geometry_selection import GeometrySelectionModule

NAME = "dsr.qformer_batch"
BATCH = 8


def build() -> tuple[GeometrySelectionModule, dict]:
    """A module with random weights, and its inputs."""
    torch.manual_seed(0)
    config = full_width_config(layers=1)
    with torch.device("meta"):
        module = GeometrySelectionModule(config)
    module.spatial_merger = nn.Identity()  # runs before the Q-Formers, token by token, on either side alike
    module = module.to_empty(device="cpu").eval()
    module.rotary_emb = type(module.rotary_emb)(config=config.text_config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 1.0 if name == "q_former_queries" else parameter.shape[1] ** -0.5)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    t, h, w = GRID[0], GRID[1] // 2, GRID[2] // 2
    cells = torch.stack(torch.meshgrid(torch.arange(t) * 2, torch.arange(h), torch.arange(w), indexing="ij")).flatten(1)
    text_lengths = torch.tensor([40 + 8 * i for i in range(BATCH)])
    inputs = dict(
        text_states=torch.randn(int(text_lengths.sum()), 3584),
        text_lengths=text_lengths,
        spatial_states=torch.randn(BATCH * TOKENS, 3584),
        spatial_lengths=torch.full((BATCH,), TOKENS),
        spatial_position_ids=cells.repeat(1, BATCH),
        group_question=torch.arange(BATCH),
    )
    return module, inputs


def dense_block_diagonal(module: GeometrySelectionModule, inputs: dict) -> torch.Tensor:
    """`[B·32, D]` queries against all keys of the batch; what belongs to other samples is masked with -inf."""
    batch, per_sample = len(inputs["text_lengths"]), module.num_queries
    queries = module.q_former_queries.repeat(batch, 1)
    query_positions = torch.arange(per_sample, device=queries.device).repeat(batch).expand(3, 1, -1)
    text_positions = torch.cat([torch.arange(n, device=queries.device) for n in inputs["text_lengths"].tolist()])
    text_positions = text_positions.expand(3, 1, -1)
    reads = (
        (module.q_former_1, inputs["text_states"], inputs["text_lengths"], text_positions),
        (
            module.q_former_2,
            inputs["spatial_states"],
            inputs["spatial_lengths"],
            inputs["spatial_position_ids"][:, None],
        ),
    )
    for layer, targets, lengths, positions in reads:
        mask = torch.full((len(queries), len(targets)), float("-inf"), dtype=queries.dtype, device=queries.device)
        start = 0
        for i, length in enumerate(lengths.tolist()):
            mask[i * per_sample : (i + 1) * per_sample, start : start + length] = 0.0
            start += length
        attention = layer.attn
        normed = layer.norm1(targets)
        query = attention.q_proj(layer.norm1(queries)).view(len(queries), -1, attention.head_dim).transpose(0, 1)
        key = attention.k_proj(normed).view(len(targets), -1, attention.head_dim).transpose(0, 1)
        value = attention.v_proj(normed).view(len(targets), -1, attention.head_dim).transpose(0, 1)
        cos, sin = module.rotary_emb(queries, query_positions)
        query = query * cos + rotate_half(query) * sin
        cos, sin = module.rotary_emb(queries, positions)
        key = key * cos + rotate_half(key) * sin
        key, value = (x.repeat_interleave(len(query) // len(x), dim=0) for x in (key, value))
        scores = query @ key.transpose(1, 2) * attention.scaling + mask
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        read = (weights @ value).transpose(0, 1).reshape(len(queries), -1)
        queries = queries + attention.o_proj(read)
        queries = queries + layer.mlp(layer.norm2(queries))
    return module.q_former_norm(queries).view(batch, per_sample, -1)


def setup(side: str):
    module, inputs = build()

    @torch.no_grad()
    def call():
        return dense_block_diagonal(module, inputs) if side == "baseline" else module(**inputs)[0]

    return call


def run() -> list[dict]:
    module, inputs = build()
    with torch.no_grad():
        baseline, ours = (lambda: dense_block_diagonal(module, inputs)), (lambda: module(**inputs)[0])  # noqa: F821
        assert_agreement(ours(), baseline(), 1e-4)
        times = alternate(baseline, ours, rounds=5)
    del module, inputs
    memory = [peak_memory("benchmarks.dsr_qformer_batch:setup", side) for side in ("baseline", "ours")]
    return [row(NAME, "time", *times, target=2.0), row(NAME, "memory", *memory, target=4.0)]
