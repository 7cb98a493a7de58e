"""Peak memory of π³ on 24 frames: frames in chunks and streamed heads, against everything at once.

The baseline computes as the published code does: all frames pass the encoder, every block and every head together,
rotary tables are gathered for every token of every frame, and attention is restricted to the kernels that the published
code allows in float32, of which the CPU has the one that writes out all scores (`memory`). `memory_vs_sdpa` is the same
code with torch's own choice of kernel.
"""

from contextlib import nullcontext

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import assert_agreement, device, peak_memory, row
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


# --------------------------------------------------------------------------------------
# The plain way
# --------------------------------------------------------------------------------------


def plain_rope(tokens: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions of `[B, heads, L, d]` by tables looked up for each of the `[B, L, 2]` positions."""
    half = tokens.shape[-1] // 2
    frequencies = base ** (-torch.arange(0, half, 2, device=tokens.device).float() / half)
    angles = torch.arange(int(positions.max()) + 1, device=tokens.device).float().unsqueeze(1) * frequencies
    angles = torch.cat([angles, angles], -1)
    cos, sin = angles.cos(), angles.sin()
    rotated = []
    for axis, part in enumerate(tokens.chunk(2, dim=-1)):
        index = positions[..., axis]
        first, second = part.chunk(2, dim=-1)
        turned = torch.cat([-second, first], -1)
        rotated.append(part * F.embedding(index, cos)[:, None] + turned * F.embedding(index, sin)[:, None])
    return torch.cat(rotated, -1)


def plain_block(block, tokens: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    attention = block.attn
    batch, length, width = tokens.shape
    qkv = attention.qkv(block.norm1(tokens)).reshape(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = plain_rope(query, positions, base), plain_rope(key, positions, base)
    attended = F.scaled_dot_product_attention(query, key, value)
    tokens = tokens + block.ls1(attention.proj(attended.transpose(1, 2).reshape(batch, length, width)))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def plain_decoder(decoder, features: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    tokens = decoder.projects(features)
    for block in decoder.blocks:
        tokens = plain_block(block, tokens, positions, base)
    return decoder.linear_out(tokens)


def plain_dense(head, tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    maps = head.proj(tokens).transpose(1, 2).reshape(len(tokens), -1, rows, columns)
    return F.pixel_shuffle(maps, head.patch_size).permute(0, 2, 3, 1)


def plain_forward(model: Pi3Model, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """π³'s forward pass with nothing in chunks."""
    config = model.config
    batch, frames, _, height, width = images.shape
    rows, columns = height // config.patch_size, width // config.patch_size
    pixels = ((images - model.image_mean) / model.image_std).reshape(batch * frames, 3, height, width)
    tokens = model.encoder(pixels).last_hidden_state[:, 1 + config.encoder_config.num_register_tokens :]
    registers = config.num_register_tokens
    tokens = torch.cat([model.register_token[0].expand(batch * frames, -1, -1), tokens], 1)
    length = tokens.shape[1]
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(images.device) + 1
    positions = torch.cat([grid.new_zeros(registers, 2), grid]).expand(batch * frames, -1, -1)
    kept = []
    for index, block in enumerate(model.decoder):
        count = 1 if index % 2 == 0 else frames
        shaped, places = (x.reshape(-1, count * length, x.shape[-1]) for x in (tokens, positions))
        tokens = plain_block(block, shaped, places, config.rope_base).reshape(batch * frames, length, -1)
        kept = [*kept, tokens][-2:]
    features = torch.cat(kept, -1)
    point, conf, camera = (
        plain_decoder(decoder, features, positions, config.rope_base)[:, registers:]
        for decoder in (model.point_decoder, model.conf_decoder, model.camera_decoder)
    )
    maps = plain_dense(model.point_head, point, rows, columns).reshape(batch, frames, height, width, 3)
    xy, z = maps.split([2, 1], -1)
    z = z.exp()
    local_points = torch.cat([xy * z, z], -1)
    conf = plain_dense(model.conf_head, conf, rows, columns).reshape(batch, frames, height, width, 1)
    poses = model.camera_head(camera).reshape(batch, frames, 4, 4)
    homogeneous = torch.cat([local_points, torch.ones_like(z)], -1)
    points = torch.einsum("bnij,bnhwj->bnhwi", poses, homogeneous)[..., :3]
    return {"points": points, "local_points": local_points, "conf": conf, "camera_poses": poses}


def kernels(choice: str):
    """`"published"`: what the published code allows in float32; `"default"`: torch's own choice."""
    return sdpa_kernel([SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION]) if choice == "published" else nullcontext()


# --------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------


def prepare(side: str):
    """The call to measure: `"ours"`, or the plain way with `"published"` or `"default"` kernels."""
    model, images = make_model(), make_images()

    @torch.no_grad()
    def call():
        if side == "ours":
            return model(images)
        with kernels(side):
            return plain_forward(model, images)

    # Libraries make their threads and work spaces in the first call; one frame is enough for them.
    with torch.no_grad():
        model(images[:, :1])
    return call


@torch.no_grad()
def check() -> None:
    model, images = make_model(), make_images()[:, :5]
    ours = model(images)
    for choice in ("published", "default"):
        with kernels(choice):
            plain = plain_forward(model, images)
        for name, value in plain.items():
            assert_agreement(ours[name], value, atol=1e-4)


def run() -> list[dict]:
    check()
    ours = peak_memory(f"{__name__}:prepare", "ours")
    rows = []
    for metric, choice, target in (("memory", "published", 12), ("memory_vs_sdpa", "default", 2)):
        rows.append(row(NAME, metric, peak_memory(f"{__name__}:prepare", choice), ours, target))
    return rows
