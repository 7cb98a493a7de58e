"""PAGE-4D's forward in the plain way of its published code, on the weights of a `Page4DModel`: the baseline to beat.

Every layer's tokens are kept, all frames pass the encoder at once, rotary tables are looked up per layer after reading
the largest position back from the device, the mask is realised by eight more channels, the dense heads take eight
frames at a time and build their positional maps in float64 whenever they need one, and resize before they project.
"""

import torch
from torch.nn import functional as F

from modeling_dsr.page4d_dpt import VALUE_ACTIVATIONS

HEAD_FRAMES = 8


def forward(model, images: torch.Tensor, mask_alpha: float = 0.0) -> dict[str, torch.Tensor]:
    """`pose_enc`, `depth`, `depth_conf`, `world_points`, `world_points_conf` of images `[B, S, 3, H, W]`."""
    grid = tuple(side // model.config.patch_size for side in images.shape[-2:])
    layers = trunk(model, encode(model, images), grid, mask_alpha)
    return heads(model, layers, images.shape)


def encode(model, images: torch.Tensor) -> torch.Tensor:
    images = (images - model.image_mean) / model.image_std
    skip = 1 + model.config.encoder_config.num_register_tokens
    return model.encoder(images.flatten(0, 1)).last_hidden_state[:, skip:].unflatten(0, images.shape[:2])


# --------------------------------------------------------------------------------------
# Trunk
# --------------------------------------------------------------------------------------


def trunk(model, patches: torch.Tensor, grid: tuple[int, int], mask_alpha: float) -> list[torch.Tensor]:
    """The tokens `[B, S, N, 2C]` of every layer."""
    config, parts = model.config, model.aggregator
    batch, frames, _, width = patches.shape
    special = torch.cat([parts.camera_token, parts.register_token], 2)
    special = torch.cat([special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)], 1).expand(batch, -1, -1, -1)
    count = special.shape[2]
    tokens = torch.cat([special, patches], 2)
    length = tokens.shape[2]
    y, x = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    positions = torch.cat([torch.zeros(count, 2, dtype=torch.long), torch.stack([y, x], -1).flatten(0, 1) + 1])
    positions = positions.to(patches.device).expand(batch * frames, -1, -1)
    tables, layers = {}, []
    rows = columns = None
    for index, (frame_block, global_block) in enumerate(zip(parts.frame_blocks, parts.global_blocks)):
        tokens = block(frame_block, tokens.reshape(batch * frames, length, width), positions, tables, config)
        in_frame = tokens.view(batch, frames, length, width)
        if index == config.mask_layer and mask_alpha > 0:
            mask = parts.spatial_mask_head(tokens[:, count:].clone(), grid).view(batch, frames, -1)
            columns = F.pad(mask, (count, 0)).flatten(1)
            rows = torch.zeros(batch, frames, length, device=tokens.device)
            rows[:, :, :count] = config.mask_scale * mask_alpha
            rows = rows.flatten(1)
        bias = (rows, columns) if rows is not None and index in config.masked_layers else None
        flat = positions.reshape(batch, frames * length, 2)
        tokens = block(global_block, tokens.reshape(batch, frames * length, width), flat, tables, config, bias)
        tokens = tokens.view(batch, frames, length, width)
        layers.append(torch.cat([in_frame, tokens], -1))
    return layers


def block(module, x, positions, tables, config, bias=None):
    x = x + module.ls1(attention(module.attn, module.norm1(x), positions, tables, config, bias))
    return x + module.ls2(module.mlp(module.norm2(x)))


def attention(module, x, positions, tables, config, bias):
    batch, length, width = x.shape
    query, key, value = module.qkv(x).reshape(batch, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = module.q_norm(query), module.k_norm(key)
    query, key = (rotate(part, positions, tables, config.rope_freq) for part in (query, key))
    if bias is None:
        attended = F.scaled_dot_product_attention(query, key, value)
    else:
        attended = widened_attention(query, key, value, *bias)
    return module.proj(attended.transpose(1, 2).reshape(batch, length, width))


def widened_attention(query, key, value, rows, columns):
    """Eight more channels, one of which holds the factors of the bias; the default scale of the wider head undone."""
    width = query.shape[-1]
    wide = width + 8
    if not rows.any():
        return F.scaled_dot_product_attention(query, key, value)
    row = (rows * wide**0.5)[:, None, :, None].expand(-1, query.shape[1], -1, 1)
    column = columns[:, None, :, None].expand(-1, query.shape[1], -1, 1)
    query = F.pad(torch.cat([query * (wide / width) ** 0.5, row], -1), (0, 7))
    key = F.pad(torch.cat([key, column], -1), (0, 7))
    return F.scaled_dot_product_attention(query, key, F.pad(value, (0, 8)))[..., :width]


def rotate(tokens, positions, tables, base):
    half = tokens.shape[-1] // 2
    largest = int(positions.max()) + 1
    if (half, largest) not in tables:
        exponent = torch.arange(0, half, 2, device=tokens.device).float() / half
        angles = torch.arange(largest, device=tokens.device).float()[:, None] / base**exponent
        angles = torch.cat([angles, angles], -1)
        tables[half, largest] = angles.cos(), angles.sin()
    cos, sin = tables[half, largest]

    def axis(part, position):
        first, second = part.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return part * F.embedding(position, cos)[:, None] + turned * F.embedding(position, sin)[:, None]

    vertical, horizontal = tokens.chunk(2, -1)
    return torch.cat([axis(vertical, positions[..., 0]), axis(horizontal, positions[..., 1])], -1)


# --------------------------------------------------------------------------------------
# Heads
# --------------------------------------------------------------------------------------


def heads(model, layers: list[torch.Tensor], shape) -> dict[str, torch.Tensor]:
    config = model.config
    outputs = {"pose_enc": camera(model.camera_head, layers[-1][:, :, 0])}
    for name, head, activation in (
        ("depth", model.depth_head, config.depth_activation),
        ("world_points", model.point_head, config.point_activation),
    ):
        special, frames = model.aggregator.num_special, shape[1]
        values, confidences = [], []
        for start in range(0, frames, HEAD_FRAMES):
            chosen = [layers[i][:, start : start + HEAD_FRAMES, special:] for i in config.dpt_layers]
            raw = dense(head, chosen, shape[-2:], config.patch_size)
            raw = raw.unflatten(0, chosen[0].shape[:2]).permute(0, 1, 3, 4, 2)
            values.append(VALUE_ACTIVATIONS[activation](raw[..., :-1]))
            confidences.append(1 + raw[..., -1].exp())
        outputs[name] = torch.cat(values, 1)
        outputs[f"{name}_conf"] = torch.cat(confidences, 1)
    return outputs


def camera(head, tokens):
    tokens = head.token_norm(tokens)
    estimate = None
    for _ in range(head.num_iterations):
        state = head.empty_pose_tokens.expand(*tokens.shape[:2], -1) if estimate is None else estimate.detach()
        shift, scale, gate = head.pose_modulation(F.silu(head.embed_pose(state))).chunk(3, -1)
        hidden = gate * (head.modulated_norm(tokens) * (1 + scale) + shift) + tokens
        for module in head.trunk:
            hidden = hidden + module.ls1(plain_self_attention(module.attn, module.norm1(hidden)))
            hidden = hidden + module.ls2(module.mlp(module.norm2(hidden)))
        delta = head.pose_branch(head.trunk_norm(hidden))
        estimate = delta if estimate is None else estimate + delta
    return torch.cat([estimate[..., :7], F.relu(estimate[..., 7:])], -1)


def plain_self_attention(module, x):
    batch, length, width = x.shape
    query, key, value = module.qkv(x).reshape(batch, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value)
    return module.proj(attended.transpose(1, 2).reshape(batch, length, width))


def dense(head, layers, size, patch):
    """Raw map `[B·S, C, H, W]` of four layers `[B, S, h·w, 2C]`."""
    height, width = size
    grid = (height // patch, width // patch)
    levels = []
    for index, tokens in enumerate(layers):
        x = head.norm(tokens.flatten(0, 1)).permute(0, 2, 1).reshape(-1, tokens.shape[-1], *grid)
        x = head.projections[index](x)
        x = head.resizes[index](x + 0.1 * position_map(x, width / height))
        levels.append(head.level_convs[index](x))
    x = levels[3]
    for level in (3, 2, 1, 0):
        fusion = head.fusions[level]
        if level < 3:
            x = x + residual(fusion.skip_unit, levels[level])
        x = residual(fusion.unit, x)
        target = levels[level - 1].shape[-2:] if level else [2 * side for side in x.shape[-2:]]
        x = fusion.projection(F.interpolate(x, size=tuple(target), mode="bilinear", align_corners=True))
    x = F.interpolate(head.output_conv1(x), size=tuple(size), mode="bilinear", align_corners=True)
    return head.output_conv2(x + 0.1 * position_map(x, width / height))


def residual(unit, x):
    x = F.relu(x)
    return unit.conv2(F.relu(unit.conv1(x))) + x


def position_map(x, aspect):
    channels, height, width = x.shape[1:]
    diagonal = (aspect**2 + 1) ** 0.5
    spans = aspect / diagonal, 1 / diagonal
    axes = [
        torch.linspace(-s * (n - 1) / n, s * (n - 1) / n, n, device=x.device) for s, n in zip(spans, (width, height))
    ]
    u, v = torch.meshgrid(*axes, indexing="xy")
    quarter = channels // 4
    omega = 1 / 100.0 ** (torch.arange(quarter, dtype=torch.float64, device=x.device) / quarter)
    parts = []
    for coordinate in (u, v):
        angle = coordinate.reshape(-1, 1).double() * omega
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, -1).float().view(height, width, channels).permute(2, 0, 1).expand(len(x), -1, -1, -1)


# --------------------------------------------------------------------------------------
# The model that is measured
# --------------------------------------------------------------------------------------

FRAMES, SIDE = 32, 140  # 100 patches per frame


def measured_model(frames: int = FRAMES):
    """A quarter of the published width at the published depth, random weights, and frames for it."""
    from modeling_dsr.configuration_page4d import Page4DConfig
    from modeling_dsr.modeling_page4d import Page4DModel

    torch.manual_seed(0)
    config = Page4DConfig(
        embed_dim=256,
        num_heads=4,
        encoder_config={"num_attention_heads": 4},
        camera_num_heads=4,
        dpt_features=64,
        dpt_out_channels=[64, 128, 256, 256],
        dpt_hidden_channels=8,
    )
    model = Page4DModel(config).eval()
    with torch.no_grad():  # fresh LayerScales of 0.01 would hide the blocks
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    return model, torch.rand(1, frames, 3, SIDE, SIDE)
