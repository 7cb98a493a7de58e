"""Decoder of the scene Q-Former against torch's `nn.TransformerDecoder`: 512 queries, four scenes of six 21×21 maps."""

import torch
from torch import nn

from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row
from modeling_dsr.configuration_scene_qformer import SceneQFormerConfig
from modeling_dsr.scene_decoder import SceneDecoder

NAME = "scene.decoder"
TIME_TARGET, MEMORY_TARGET = 1.3, 1.1
BATCH, MEMORY_TOKENS = 4, 2646


def sides():
    """Calls of both sides with the same weights and inputs; both in evaluation mode without gradients."""
    torch.manual_seed(0)
    config = SceneQFormerConfig()
    layer = nn.TransformerDecoderLayer(
        config.embed_dims, config.num_heads, config.ffn_dims, config.dropout, batch_first=True
    )
    baseline = nn.TransformerDecoder(layer, config.num_decoder_layers)
    for parameter in baseline.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    config._attn_implementation = "sdpa"
    ours = SceneDecoder(config)
    ours.load_state_dict(baseline.state_dict())
    baseline, ours = baseline.to(device()).eval(), ours.to(device()).eval()
    queries = nn.Embedding(config.num_queries, config.embed_dims).to(device())
    memory = torch.randn(BATCH, MEMORY_TOKENS, config.embed_dims, device=device())

    def plain():
        with torch.no_grad():
            return baseline(tgt=queries.weight.unsqueeze(0).expand(BATCH, -1, -1), memory=memory)

    def library():
        with torch.no_grad():
            return ours(queries.weight.unsqueeze(0), memory, query_weights=(queries.weight,))[0]

    return {"baseline": plain, "ours": library}


def prepare(side: str):
    call = sides()[side]
    call()
    return call


def run() -> list[dict]:
    both = sides()
    assert_agreement(both["ours"](), both["baseline"](), atol=1e-4)
    peaks = [peak_memory("benchmarks.scene_decoder:prepare", side) for side in ("baseline", "ours")]
    return [
        row(NAME, "time", *alternate(both["baseline"], both["ours"], rounds=7), TIME_TARGET),
        row(NAME, "memory", *peaks, MEMORY_TARGET),
    ]
