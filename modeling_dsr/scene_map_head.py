"""Output queries in the language model and the map detection head that reads them.

Each of `I` map elements has an instance query and `P` point queries, in the order instance, its points, next instance.
They are appended to the prompt, pass the language model under a structured mask, read the scene tokens once more and
become classes and polylines.

Coordinates are in -1 … 1 over `point_range` of the LiDAR frame (x right, y forward).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .optional_libraries import needs
from .scene_decoder import SceneAttention, fill_from, start_with

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # needed for training the map head alone
    linear_sum_assignment = None


# Published: the direction of an edge shorter than 1 cm is noise, and this much keeps its normalisation differentiable.
MIN_EDGE_SQUARED = 1e-4
EDGE_EPSILON = 1e-6


# ---- masks -------------------------------------------------------------------------------


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    The form of a mask that every attention implementation adds to its scores: 0 = attend, most negative = blocked.

    Args:
        mask: bool (True = attend), or float that is additive already, or float with 1 = attend and 0 = blocked.
    """
    blocked = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, blocked)
    mask = mask.to(dtype).clamp_min(blocked)
    # An additive mask has no positive value, the other kind has one wherever something is attended to.
    ones_attend = (mask > 0).any()
    return torch.where(ones_attend, (mask <= 0) * blocked, mask)


def output_query_mask(num_instances: int, num_points: int, device=None) -> torch.Tensor:
    """
    Who reads whom among the output queries, bool `[T, T]`, T = I·(1 + P): instances read all instances and their own
    points; points read their instance and its points.
    """
    index = torch.arange(num_instances * (1 + num_points), device=device)
    instance, is_instance = index // (1 + num_points), index % (1 + num_points) == 0
    return (instance[:, None] == instance) | (is_instance[:, None] & is_instance)


def prompt_and_query_mask(prompt_mask: torch.Tensor, query_mask: torch.Tensor) -> torch.Tensor:
    """
    bool `[B, 1, L + T, L + T]`: the prompt is causal, output queries read all of it and each other by `query_mask`.

    Args:
        prompt_mask: bool `[B, L]`, False on padding. query_mask: bool `[T, T]`.
    """
    batch, length = prompt_mask.shape
    total = length + len(query_mask)
    mask = torch.ones(total, total, dtype=torch.bool, device=prompt_mask.device).tril()
    mask[length:, length:] = query_mask
    real = nn.functional.pad(prompt_mask, (0, len(query_mask)), value=True)
    return (mask & real[:, None, :]).unsqueeze(1)


def packed_prompts_and_query_mask(prompts: torch.Tensor, query_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The same where each row's prompts have a mask of their own: output queries read what the row's last token reads.

    Args:
        prompts: bool `[B, 1, L, L]`; padding is read by nobody and reads nothing. query_mask: bool `[T, T]`.

    Returns:
        bool `[B, 1, L + T, L + T]`, and the index `[B]` of each row's last token.
    """
    length, count = prompts.shape[-1], len(query_mask)
    real = prompts[:, 0].diagonal(dim1=1, dim2=2).long()  # [B, L]
    last = (real * torch.arange(length, device=real.device)).argmax(1)
    mask = nn.functional.pad(prompts, (0, count, 0, count), value=False)
    mask[:, :, length:, :length] = prompts[torch.arange(len(prompts)), :, last].unsqueeze(2)
    mask[:, :, length:, length:] = query_mask
    return mask, last


# ---- weights -----------------------------------------------------------------------------


class SceneMapQueries(nn.Module):
    """Instance query = content + number of the instance; point query = content + number of the point."""

    def __init__(self, config, hidden_size: int):
        super().__init__()
        self.std = config.initializer_range
        self.instance_content = nn.Parameter(torch.empty(config.num_instances, hidden_size))
        normal = partial(init.normal_, std=self.std)
        self.instance_position = start_with(nn.Embedding(config.num_instances, hidden_size), weight=normal)
        self.point_content = nn.Parameter(torch.empty(config.num_instances, config.num_points, hidden_size))
        self.point_position = start_with(nn.Embedding(config.num_points, hidden_size), weight=normal)

    def reset_parameters(self):
        init.normal_(self.instance_content, std=self.std)
        init.normal_(self.point_content, std=self.std)

    def forward(self) -> torch.Tensor:
        """`[I·(1 + P), hidden]`."""
        instances = self.instance_content + self.instance_position.weight
        points = self.point_content + self.point_position.weight
        return torch.cat([instances.unsqueeze(1), points], dim=1).flatten(0, 1)


class SceneMapInteractionLayer(GradientCheckpointingLayer):
    """Pre-norm: output queries read each other, then the scene tokens, then a ReLU MLP."""

    def __init__(self, config):
        super().__init__()
        dims = config.embed_dims
        self.self_attn = SceneAttention(config)
        self.self_attn_norm = nn.LayerNorm(dims)
        self.cross_attn = SceneAttention(config)
        self.cross_attn_norm = nn.LayerNorm(dims)
        self.ffn = nn.Sequential(
            nn.Linear(dims, config.ffn_dims),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.ffn_dims, dims),
            nn.Dropout(config.dropout),
        )
        self.ffn_norm = nn.LayerNorm(dims)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states, scene_states):
        hidden_states = hidden_states + self.dropout(self.self_attn(self.self_attn_norm(hidden_states))[0])
        read, _ = self.cross_attn(self.cross_attn_norm(hidden_states), scene_states)
        hidden_states = hidden_states + self.dropout(read)
        return hidden_states + self.ffn(self.ffn_norm(hidden_states))


class SceneMapInteraction(nn.Module):
    """Output queries read the scene tokens at a small width; a scaled result is added to what the language model
    said."""

    def __init__(self, config, hidden_size: int):
        super().__init__()
        self.initial_scale = config.residual_scale
        self.map_input_proj, self.scene_input_proj = (
            nn.Sequential(
                nn.LayerNorm(hidden_size),
                nn.Linear(hidden_size, config.embed_dims),
                nn.ReLU(),
                nn.Dropout(config.dropout),
            )
            for _ in range(2)
        )
        self.layers = nn.ModuleList(SceneMapInteractionLayer(config) for _ in range(config.num_layers))
        self.output_proj = nn.Sequential(nn.LayerNorm(config.embed_dims), nn.Linear(config.embed_dims, hidden_size))
        self.residual_scale = nn.Parameter(torch.empty(1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                start_with(module, weight=init.xavier_uniform_, bias=init.zeros_)

    def reset_parameters(self):
        init.constant_(self.residual_scale, self.initial_scale)

    def forward(self, query_states: torch.Tensor, scene_tokens: torch.Tensor) -> torch.Tensor:
        """`[B, T, hidden]` from query states `[B, T, hidden]` and scene tokens `[B, Q, hidden]`."""
        states, scene = self.map_input_proj(query_states), self.scene_input_proj(scene_tokens)
        for layer in self.layers:
            states = layer(states, scene)
        return query_states + self.residual_scale * self.output_proj(states)


class _Reducer(nn.Sequential):
    """Norm, linear, ReLU, dropout, from width to width."""

    def __init__(self, widths, dropout: float):
        super().__init__()
        for number, (wide, narrow) in enumerate(zip(widths, widths[1:])):
            step = nn.Module()
            step.norm, step.linear = nn.LayerNorm(wide), nn.Linear(wide, narrow)
            self.add_module(str(number), step)
        self.dropout_rate = dropout

    def forward(self, hidden_states):
        for step in self:
            hidden_states = nn.functional.relu(step.linear(step.norm(hidden_states)))
            hidden_states = nn.functional.dropout(hidden_states, self.dropout_rate, self.training)
        return hidden_states


def order_table(points: int, dims: int) -> torch.Tensor:
    """`[points, dims]`: sines and cosines of the number of a point, by turns."""
    rates = torch.exp(torch.arange(0, dims, 2, dtype=torch.float32) * (-math.log(10000.0) / dims))
    angles = torch.arange(points, dtype=torch.float32).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dims]


class SceneMapRefinement(nn.Module):
    """The points of an instance read each other, then each one moves."""

    def __init__(self, config):
        super().__init__()
        dims, hidden = config.embed_dims, config.embed_dims
        fused = 2 * dims + 2 * config.coordinate_dims
        self.initial_scale = config.offset_scale
        self.self_attn = SceneAttention(config, num_heads=config.point_heads)
        self.norm = nn.LayerNorm(dims)
        self.offset_mlp = nn.Sequential(
            nn.LayerNorm(fused),
            nn.Linear(fused, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, 2),
        )
        self.offset_scale = nn.Parameter(torch.empty(()))
        self.dropout = nn.Dropout(config.dropout)

    def reset_parameters(self):
        init.constant_(self.offset_scale, self.initial_scale)

    def forward(self, point_states, instance_states, coordinates, order):
        """point_states, instance_states: `[B, I, P, C]`. Returns the point states and the offsets `[B, I, P, 2]`."""
        flat = point_states.flatten(0, 1)  # [B·I, P, C]
        flat = flat + self.dropout(self.self_attn(self.norm(flat))[0])
        point_states = flat.view_as(point_states)
        fused = torch.cat([point_states, instance_states, coordinates, order], dim=-1)
        return point_states, self.offset_mlp(fused) * self.offset_scale


class SceneMapDecoder(nn.Module):
    """Classes from the instance states; points from anchors that every instance and point state moves step by step."""

    def __init__(self, config, hidden_size: int):
        super().__init__()
        self.config = config
        dims, small = config.embed_dims, config.coordinate_dims
        self.instance_reducer = _Reducer((hidden_size, *config.instance_dims, dims), config.dropout)
        self.point_reducer = _Reducer((hidden_size, *config.point_dims, dims), config.dropout)
        self.class_head = nn.Sequential(nn.LayerNorm(dims), nn.Linear(dims, config.num_classes))
        self.point_proj, self.instance_proj = (
            nn.Sequential(nn.LayerNorm(dims), nn.Linear(dims, small), nn.ReLU(), nn.Dropout(config.dropout))
            for _ in range(2)
        )
        self.first_offset = nn.Sequential(
            nn.LayerNorm(2 * small),
            nn.Linear(2 * small, small),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(small, 2),
        )
        self.coordinate_proj = nn.Linear(4 * config.num_frequencies, small)
        self.order_embedding = nn.Embedding(config.num_points, small)
        self.refinements = nn.ModuleList(SceneMapRefinement(config) for _ in range(config.num_refinements))

        # Rare classes, points on their anchors, and a smooth order code to begin with.
        rare = -math.log((1 - config.prior) / config.prior)
        start_with(self.class_head[-1], weight=init.xavier_uniform_, bias=partial(init.constant_, val=rare))
        start_with(self.first_offset[-1], weight=init.zeros_, bias=init.zeros_)
        start_with(self.order_embedding, weight=partial(fill_from, partial(order_table, config.num_points, small)))

    def encode_coordinates(self, points: torch.Tensor) -> torch.Tensor:
        """`[..., coordinate_dims]`: sines and cosines of π·2^f·(x, y) for each f, projected."""
        frequencies = math.pi * 2.0 ** torch.arange(self.config.num_frequencies, device=points.device)
        angles = points.unsqueeze(-1) * frequencies  # [..., 2, F]
        features = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
        return self.coordinate_proj(features.to(self.coordinate_proj.weight.dtype))

    def forward(self, query_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            query_states: `[B, I·(1 + P), hidden]`.

        Returns:
            Class logits `[B, I, classes]` and points `[steps, B, I, P, 2]` after each refinement, not yet clamped.
        """
        config = self.config
        states = query_states.unflatten(1, (config.num_instances, 1 + config.num_points))
        instances = self.instance_reducer(states[:, :, 0])  # [B, I, C]
        point_states = self.point_reducer(states[:, :, 1:])  # [B, I, P, C]
        per_point = point_states.shape[:3]
        first = torch.cat(
            [self.point_proj(point_states), self.instance_proj(instances).unsqueeze(2).expand(*per_point, -1)], dim=-1
        )
        y = torch.linspace(-config.anchor_extent, config.anchor_extent, config.num_points, device=first.device)
        anchors = torch.stack([torch.zeros_like(y), y], dim=-1)
        points = (anchors + config.max_offset * self.first_offset(first).float().tanh()).clamp(-1, 1)  # [B, I, P, 2]
        order = self.order_embedding.weight.expand(*per_point, -1)
        beside = instances.unsqueeze(2).expand(*per_point, -1)
        steps = []
        for refinement in self.refinements:
            point_states, offset = refinement(point_states, beside, self.encode_coordinates(points), order)
            points = points + offset
            steps.append(points)
        return self.class_head(instances), torch.stack(steps)


def bounding_boxes(points: torch.Tensor) -> torch.Tensor:
    """`[..., 4]` (centre x, centre y, width, height) of points `[..., P, 2]`."""
    low, high = points.amin(-2), points.amax(-2)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


# ---- loss --------------------------------------------------------------------------------


@dataclass
class SceneMapLossOutput(ModelOutput):
    """`loss` is what training minimises; the rest are its terms before weighting, of the last refinement."""

    loss: torch.FloatTensor | None = None
    class_loss: torch.FloatTensor | None = None
    points_loss: torch.FloatTensor | None = None
    direction_loss: torch.FloatTensor | None = None


def equivalent_orders(points: torch.Tensor, labels: torch.Tensor, config) -> torch.Tensor:
    """
    `[T, P, P, 2]`: the orders in which the same element may be written. Lines: forwards and backwards (repeated to fill
    up); closed classes: any first point.

    Args:
        points: `[T, P, 2]`. labels: `[T]`.
    """
    count = points.shape[1]
    index = torch.arange(count, device=points.device)
    rotations = points[:, (index[:, None] + index) % count]
    lines = torch.where((index == 0)[:, None, None], points[:, None], points.flip(1)[:, None])
    closed = torch.isin(labels, torch.tensor(list(config.closed_classes), device=labels.device))
    return torch.where(closed[:, None, None, None], rotations, lines)


def check_map_labels(map_labels, batch: int, config) -> None:
    """Refuse targets that the head cannot learn."""
    if len(map_labels) != batch:
        raise ValueError(f"`map_labels` must hold one dictionary per scene ({batch}), got {len(map_labels)}.")
    for number, target in enumerate(map_labels):
        labels, points = target.get("class_labels"), target.get("points")
        if labels is None or points is None:
            raise ValueError(f"`map_labels[{number}]` must hold 'class_labels' and 'points', got {sorted(target)}.")
        if tuple(points.shape) != (len(labels), config.num_points, 2):
            raise ValueError(
                f"`map_labels[{number}]['points']` must be [{len(labels)}, {config.num_points}, 2], got "
                f"{tuple(points.shape)}."
            )
        if len(labels) > config.num_instances:
            raise ValueError(
                f"`map_labels[{number}]` has {len(labels)} elements, more than the {config.num_instances} instance "
                "queries."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < config.num_classes:
            raise ValueError(
                f"`map_labels[{number}]['class_labels']` must lie in 0 … {config.num_classes - 1}, got "
                f"{labels.tolist()}."
            )


def map_detection_loss(class_logits: torch.Tensor, steps: torch.Tensor, map_labels, config) -> SceneMapLossOutput:
    """
    Set-prediction loss: Hungarian matching, then focal + L1 + edge direction, on the last refinement and, with the
    class logits detached and a smaller weight, on those before it.

    Terms: focal (sum over queries and classes) / matched; L1 / (matched·P); 1 - cosine of the edges in metres /
    (matched·(P - 1)). Matching minimises class_weight·(-p) + points_weight·(L1 / P) over the equivalent orders.

    Args:
        class_logits: `[B, I, classes]`. steps: `[S, B, I, P, 2]`, points after each refinement.
        map_labels: per scene `{"class_labels": [n], "points": [n, P, 2]}`, points in -1 … 1.
    """
    needs("scene", "The map loss, which matches predictions,", "scipy")
    num_steps, batch, instances, num_points, _ = steps.shape
    check_map_labels(map_labels, batch, config)
    device, steps = steps.device, torch.cat([steps[:-1], steps[-1:].clamp(-1, 1)]).float()
    counts = [len(target["class_labels"]) for target in map_labels]
    labels = torch.cat([target["class_labels"] for target in map_labels]).to(device)  # [T]
    points = torch.cat([target["points"] for target in map_labels]).to(device, torch.float32)
    orders = equivalent_orders(points, labels, config)  # [T, P, P, 2]

    with torch.no_grad():
        step, scene, query, target, order = _match(class_logits, steps, counts, labels, orders, config)
    matched_points, wanted = steps[step, scene, query], orders[target, order]  # [matches, P, 2]
    matched = max(sum(counts), 1)

    # The classes of the intermediate steps are those of the last; only that one teaches the class head.
    logits = class_logits.float()
    logits = torch.cat([logits.detach().expand(num_steps - 1, -1, -1, -1), logits.unsqueeze(0)])
    one_hot = torch.zeros_like(logits)
    one_hot[step, scene, query, labels[target]] = 1
    class_loss = _focal_loss(logits, one_hot, config).flatten(1).sum(1) / matched  # [S]

    per_step = torch.zeros(num_steps, device=device)
    points_loss = per_step.index_add(0, step, (matched_points - wanted).abs().sum((1, 2))) / (matched * num_points)
    direction = _edge_direction_loss(matched_points, wanted, config)
    direction_loss = per_step.index_add(0, step, direction) / (matched * (num_points - 1))

    weights = torch.full((num_steps,), config.auxiliary_weight, device=device)
    weights[-1] = 1.0
    total = (
        config.class_weight * class_loss + config.points_weight * points_loss + config.direction_weight * direction_loss
    )
    return SceneMapLossOutput(
        loss=(weights * total).sum() + 0.0 * steps.sum(),  # reaches the points of scenes without elements, too
        class_loss=class_loss[-1].detach(),
        points_loss=points_loss[-1].detach(),
        direction_loss=direction_loss[-1].detach(),
    )


def _match(class_logits, steps, counts, labels, orders, config):
    """Indices (step, scene, query, target, order) of every matched pair; all steps and scenes in one transfer."""
    device, (num_steps, batch, instances, num_points, _) = steps.device, steps.shape
    most = max(counts)
    empty = torch.zeros(0, dtype=torch.long, device=device)
    if most == 0:
        return (empty,) * 5
    # [B, most, P, P, 2], targets of scenes with fewer elements padded.
    padded = nn.utils.rnn.pad_sequence(list(orders.split(counts)), batch_first=True)
    distance = torch.cdist(
        steps.flatten(3).transpose(0, 1).flatten(1, 2), padded.flatten(3).flatten(1, 2), p=1
    )  # [B, S·I, most·P]
    distance, order = distance.view(batch, num_steps, instances, most, num_points).min(-1)
    class_of = nn.utils.rnn.pad_sequence(list(labels.split(counts)), batch_first=True)  # [B, most]
    probability = class_logits.float().sigmoid().gather(2, class_of[:, None].expand(-1, instances, -1))
    cost = config.points_weight * distance / num_points - config.class_weight * probability.unsqueeze(1)
    cost = cost.cpu().numpy()
    pairs, start = [], 0
    for scene, count in enumerate(counts):  # the assignment itself runs on the CPU, one problem after another
        for step in range(num_steps):
            try:
                queries, targets = linear_sum_assignment(cost[scene, step, :, :count])
            except ValueError as error:
                raise ValueError(
                    f"Scene {scene} of the batch has predictions that are not finite; the loss has no value. Lower the "
                    "learning rate or look for infinities in `pixel_values` and `map_labels`."
                ) from error
            pairs += [(step, scene, query, start + target, target) for query, target in zip(queries, targets)]
        start += count
    step, scene, query, target, local = torch.tensor(pairs, device=device).unbind(1)
    return step, scene, query, target, order[scene, step, query, local]


def _focal_loss(logits, one_hot, config):
    probability = logits.sigmoid()
    miss = torch.where(one_hot > 0, 1 - probability, probability)
    alpha = torch.where(one_hot > 0, config.focal_alpha, 1 - config.focal_alpha)
    return (
        alpha
        * miss**config.focal_gamma
        * nn.functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    )


def _edge_direction_loss(found, wanted, config):
    """Per match, the sum over edges of 1 - cosine of the angle between them, in metres; tiny edges count nothing."""
    x_low, y_low, x_high, y_high = config.point_range
    scale = found.new_tensor([(x_high - x_low) / 2, (y_high - y_low) / 2])
    found, wanted = found.diff(dim=1) * scale, wanted.diff(dim=1) * scale
    squares = [(edges**2).sum(-1) for edges in (found, wanted)]
    cosine = (found * wanted).sum(-1) / torch.stack([square + EDGE_EPSILON for square in squares]).sqrt().prod(0)
    real = (squares[0] > MIN_EDGE_SQUARED) & (squares[1] > MIN_EDGE_SQUARED)
    return ((1 - cosine.clamp(-1, 1)) * real).sum(-1)
