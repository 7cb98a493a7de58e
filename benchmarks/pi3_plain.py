"""π³ in the plain way of its published code and under its published names: the baseline to beat.

All frames pass the encoder, every block and every head together; rotary tables are looked up for every token of every
frame; attention is restricted to the kernels that the published code allows in float32 (on a CPU the one that writes
out all scores). `PlainPi3` starts as the published class does, module by module with random numbers, and takes a
published file by `load_state_dict`.
"""

import copy
import re
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_dsr.configuration_pi3 import Pi3Config

NORM_EPS, QK_NORM_EPS = 1e-6, 1e-5


def kernels(choice: str, dtype: torch.dtype = torch.float32):
    """`"published"`: what the published code allows; `"default"`: torch's own choice."""
    if choice != "published":
        return nullcontext()
    if dtype == torch.bfloat16 and torch.cuda.is_available():
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    return sdpa_kernel([SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION])


def rotate(tokens: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions of `[B, heads, L, d]` by tables looked up for each of the `[B, L, 2]` positions."""
    half = tokens.shape[-1] // 2
    frequencies = base ** (-torch.arange(0, half, 2, device=tokens.device).float() / half)
    angles = torch.arange(int(positions.max()) + 1, device=tokens.device).float().unsqueeze(1) * frequencies
    angles = torch.cat([angles, angles], -1)
    cos, sin = angles.cos().to(tokens.dtype), angles.sin().to(tokens.dtype)
    rotated = []
    for axis, part in enumerate(tokens.chunk(2, dim=-1)):
        index = positions[..., axis]
        first, second = part.chunk(2, dim=-1)
        turned = torch.cat([-second, first], -1)
        rotated.append(part * F.embedding(index, cos)[:, None] + turned * F.embedding(index, sin)[:, None])
    return torch.cat(rotated, -1)


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(width // heads, QK_NORM_EPS) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.choice = "published"

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None, base: float) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        if positions is not None:
            query, key = rotate(query, positions, base), rotate(key, positions, base)
        with kernels(self.choice, query.dtype):
            x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class PlainMLP(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PlainScale(nn.Module):
    def __init__(self, width: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, scale: float | None = None, qk_norm: bool = False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attn, self.mlp = PlainAttention(width, heads, qk_norm), PlainMLP(width, inner)
        self.ls1, self.ls2 = (nn.Identity() if scale is None else PlainScale(width, scale) for _ in range(2))

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None, base: float = 0.0) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), positions, base))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PlainEncoder(nn.Module):
    """DINOv2 with registers: patch tokens `[n, P, C]` of normalised images `[n, 3, H, W]`."""

    def __init__(self, config):
        super().__init__()
        width, self.side = config.hidden_size, config.image_size // config.patch_size
        self.patch_size = config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, config.patch_size, config.patch_size)})
        inner = int(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.num_attention_heads, inner, scale=1.0) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positions(self, height: int, width: int) -> torch.Tensor:
        """The table of positions for images of that size."""
        rows, columns = height // self.patch_size, width // self.patch_size
        if rows == columns == self.side:
            return self.pos_embed
        table = self.pos_embed[:, 1:].float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions(*images.shape[-2:])
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.register_tokens.shape[1] :]


class PlainDecoder(nn.Module):
    """The transformer of a head, inside each frame."""

    def __init__(self, config: Pi3Config, out_width: int):
        super().__init__()
        width = config.head_hidden_size
        self.projects = nn.Linear(2 * config.hidden_size, width)
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.head_num_attention_heads, int(width * config.mlp_ratio))
            for _ in range(config.head_num_layers)
        )
        self.linear_out = nn.Linear(width, out_width)

    def forward(self, features: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
        x = self.projects(features)
        for block in self.blocks:
            x = block(x, positions, base)
        return self.linear_out(x)


class PlainPixels(nn.Module):
    def __init__(self, width: int, channels: int, patch_size: int):
        super().__init__()
        self.patch_size, self.proj = patch_size, nn.Linear(width, channels * patch_size**2)

    def forward(self, tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        maps = self.proj(tokens).transpose(1, 2).reshape(len(tokens), -1, rows, columns)
        return F.pixel_shuffle(maps, self.patch_size).permute(0, 2, 3, 1)


class PlainResidual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.res_conv1, self.res_conv2, self.res_conv3 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.res_conv3(self.res_conv2(self.res_conv1(x).relu()).relu()).relu()


class PlainCamera(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.res_conv = nn.ModuleList(PlainResidual(width) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t, self.fc_rot = nn.Linear(width, 3), nn.Linear(width, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for block in self.res_conv:
            tokens = block(tokens)
        frame = self.more_mlps(tokens.mean(1))
        u, _, vh = torch.linalg.svd(F.normalize(self.fc_rot(frame).view(-1, 3, 3), dim=-1))
        signs = torch.diag_embed(torch.stack([torch.ones(len(u), device=u.device)] * 2 + [torch.det(u @ vh)], -1))
        pose = torch.eye(4, device=u.device).repeat(len(u), 1, 1)
        pose[:, :3, :3], pose[:, :3, 3] = u @ signs @ vh, self.fc_t(frame)
        return pose


class PlainPi3(nn.Module):
    """π³'s forward pass with nothing in chunks, of images `[B, N, 3, H, W]` in [0, 1]."""

    def __init__(self, config: Pi3Config = Pi3Config()):
        super().__init__()
        self.config, width = config, config.hidden_size
        self.encoder = PlainEncoder(config.encoder_config)
        inner = int(width * config.mlp_ratio)
        self.decoder = nn.ModuleList(
            PlainBlock(width, config.num_attention_heads, inner, config.layer_scale_init, qk_norm=True)
            for _ in range(config.num_decoder_layers)
        )
        self.register_token = nn.Parameter(torch.randn(1, 1, config.num_register_tokens, width) * 1e-6)
        self.point_decoder = PlainDecoder(config, config.point_dim)
        self.point_head = PlainPixels(config.point_dim, 3, config.patch_size)
        self.conf_decoder = copy.deepcopy(self.point_decoder)
        self.conf_head = PlainPixels(config.point_dim, 1, config.patch_size)
        self.camera_decoder = PlainDecoder(config, config.camera_dim)
        self.camera_head = PlainCamera(config.camera_dim)
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(config.image_std).view(1, 3, 1, 1))

    def choose_kernels(self, choice: str) -> None:
        """See [`kernels`]."""
        for module in self.modules():
            if isinstance(module, PlainAttention):
                module.choice = choice

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        config = self.config
        batch, frames, _, height, width = images.shape
        rows, columns = height // config.patch_size, width // config.patch_size
        pixels = ((images - self.image_mean) / self.image_std).reshape(batch * frames, 3, height, width)
        tokens = self.encoder(pixels)  # the published forward, too, holds the normalised images to its end
        registers = config.num_register_tokens
        tokens = torch.cat([self.register_token[0].expand(batch * frames, -1, -1), tokens], 1)
        length = tokens.shape[1]
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(images.device) + 1
        positions = torch.cat([grid.new_zeros(registers, 2), grid]).expand(batch * frames, -1, -1)
        kept = []
        for index, block in enumerate(self.decoder):
            count = 1 if index % 2 == 0 else frames
            shaped, places = (x.reshape(-1, count * length, x.shape[-1]) for x in (tokens, positions))
            tokens = block(shaped, places, config.rope_base).reshape(batch * frames, length, -1)
            if index >= len(self.decoder) - 2:
                kept.append(tokens)
        features = torch.cat(kept, -1)
        point, conf, camera = (
            decoder(features, positions, config.rope_base)[:, registers:]
            for decoder in (self.point_decoder, self.conf_decoder, self.camera_decoder)
        )
        with torch.autocast(images.device.type, enabled=False):
            maps = self.point_head(point.float(), rows, columns).reshape(batch, frames, height, width, 3)
            xy, z = maps.split([2, 1], -1)
            z = z.exp()
            local_points = torch.cat([xy * z, z], -1)
            conf = self.conf_head(conf.float(), rows, columns).reshape(batch, frames, height, width, 1)
            poses = self.camera_head(camera.float()).reshape(batch, frames, 4, 4)
            homogeneous = torch.cat([local_points, torch.ones_like(z)], -1)
            points = torch.einsum("bnij,bnhwj->bnhwi", poses, homogeneous)[..., :3]
        return {"points": points, "local_points": local_points, "conf": conf, "camera_poses": poses}


# --------------------------------------------------------------------------------------
# The library's weights under their published names
# --------------------------------------------------------------------------------------

RENAMED = (
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"embeddings\.(cls_token|register_tokens)", r"\1"),
    (r"encoder\.layer\.(\d+)\.attention\.o_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.((?:norm[12]|mlp)\..+)", r"blocks.\1.\2"),
    (r"layernorm\.(.+)", r"norm.\1"),
)


def published_encoder(encoder) -> dict[str, torch.Tensor]:
    """The weights of a `GeometryEncoder` as π³'s file names them; queries, keys and values in one matrix."""
    state, found = encoder.state_dict(), {}
    for name, tensor in state.items():
        for pattern, published in RENAMED:
            if re.fullmatch(pattern, name):
                found[re.sub(pattern, published, name)] = tensor
    for layer in range(encoder.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [state[f"encoder.layer.{layer}.attention.{one}_proj.{kind}"] for one in "qkv"]
            found[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    return found


def published_weights(model) -> dict[str, torch.Tensor]:
    """The weights of a `Pi3Model`; outside of the encoder the names are the same."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    return own | {f"encoder.{name}": tensor for name, tensor in published_encoder(model.encoder).items()}


def plain_encoder(encoder) -> PlainEncoder:
    """The plain encoder with the weights of a `GeometryEncoder`, shared where they are the same tensors."""
    with torch.device("meta"):
        plain = PlainEncoder(encoder.config)
    plain.load_state_dict(published_encoder(encoder), assign=True)
    return plain.eval()


def plain_model(model) -> PlainPi3:
    """Likewise of a `Pi3Model`."""
    with torch.device("meta"):
        plain = PlainPi3(model.config)
    plain.load_state_dict(published_weights(model), assign=True)
    return plain.eval()
