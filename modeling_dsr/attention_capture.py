"""Some rows and columns of a decoder's attention, without ever holding whole attention matrices.

`output_attentions=True` keeps `[heads, S, S]` of every layer and forces the eager kernel on every token. Most uses need
the rows of a few tokens towards a few others. [`capture_attention`] leaves the model on its own kernel (sdpa, flash)
and computes those rows beside it, one layer at a time.
"""

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Callable

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# One name per copy of this file: the library and code loaded from the Hub may live in one process.
CAPTURE = "dsr_capture_" + __name__.replace(".", "_")
_active: ContextVar["AttentionCapture | None"] = ContextVar("attention_capture", default=None)


class AttentionCapture:
    """
    What [`capture_attention`] collects.

    Attributes:
        attentions: one tensor per layer, in the order of the layers: `[B, heads, rows, columns]` in the model's dtype,
            or whatever `reduce` made of it.
    """

    def __init__(self, rows, columns, reduce, implementation: str):
        self.rows, self.columns, self.reduce, self.implementation = rows, columns, reduce, implementation
        self.modules: set[int] = set()
        self.by_layer: dict[int, torch.Tensor] = {}

    @property
    def attentions(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.by_layer[layer] for layer in sorted(self.by_layer))

    def record(self, module, query, key, attention_mask, scaling, kwargs) -> None:
        """Compute the rows of a layer whose kernel keeps its probabilities to itself."""
        special = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
        if special:
            raise ValueError(
                f"{type(module).__name__} computes attention with {special}, which only its eager kernel does openly; "
                "load the "
                'model with attn_implementation="eager". Whole matrices are then made, one layer at a time.'
            )
        rows = _resolve(self.rows, query.shape[2], query)
        window = kwargs.get("sliding_window")
        self.keep(
            module, attention_rows(query, key, rows, attention_mask, scaling, "flash" in self.implementation, window)
        )

    def keep(self, module, weights: torch.Tensor) -> None:
        """Store the columns of a layer's rows `[B, heads, rows, K]`."""
        columns = _resolve(self.columns, weights.shape[-1], weights)
        weights = weights.gather(-1, columns[:, None, None].expand(*weights.shape[:3], -1))
        self.by_layer[module.layer_idx] = self.reduce(weights) if self.reduce is not None else weights


@contextmanager
def capture_attention(
    model: torch.nn.Module,
    rows: torch.Tensor | slice | None = None,
    columns: torch.Tensor | slice | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    implementation: str | None = None,
):
    """
    Record attention probabilities of chosen tokens towards chosen tokens during forward passes.

        with capture_attention(model, rows=answer_positions, columns=image_positions) as captured:
            model(**inputs)
        captured.attentions[layer]  # [B, heads, rows, columns]

    The probabilities are those of `attn_implementation="eager"`: softmax in float32 over everything a token sees, so
    that a row's chosen columns sum to less than one. No gradients flow through them. Every forward pass replaces what
    the one before recorded.

    Args:
        model: a transformers decoder, or a model that contains one; every attention module with a `layer_idx` that goes
            through transformers' attention interface is recorded. With several decoders pass the one that is meant.
        rows: tokens that look, as positions in the tokens of the forward pass: `[R]`, or `[B, R]` with a row of its own
            per sample, or a slice; None for all.
        columns: tokens looked at, as positions in all tokens including cached ones: `[C]`, `[B, C]`, slice or None.
        reduce: applied to each layer's `[B, heads, rows, columns]`, so that only its result is kept.
        implementation: the kernel to run; default the model's own.

    Yields:
        An [`AttentionCapture`].

    Raises:
        ValueError: the model has no such attention module, or a position lies outside the sequence.
    """
    found = [m for m in model.modules() if getattr(m, "layer_idx", None) is not None and hasattr(m, "config")]
    modules: list[Any] = [
        m for m in found if any(hasattr(m, name) for name in ("q_proj", "qkv_proj", "c_attn", "query_key_value"))
    ]
    if not modules:
        raise ValueError(
            f"`model` ({type(model).__name__}) holds no decoder attention with a `layer_idx`; pass a transformers "
            "decoder."
        )
    configs = {id(m.config): m.config for m in modules}
    chosen = implementation or modules[0].config._attn_implementation
    capture = AttentionCapture(rows, columns, reduce, chosen or "sdpa")
    capture.modules = {id(m) for m in modules}
    before = {name: config._attn_implementation for name, config in configs.items()}
    token = _active.set(capture)
    try:
        for config in configs.values():
            config._attn_implementation = CAPTURE
        yield capture
    finally:
        for name, config in configs.items():
            config._attn_implementation = before[name]
        _active.reset(token)


@contextmanager
def capture_hidden_states(layers, rows: torch.Tensor):
    """
    Record the outputs of decoder layers for some tokens only.

    Args:
        layers: decoder layers. rows: `[B, R]` positions in the tokens of the forward pass.

    Yields:
        A list that the forward pass fills with one `[B, R, D]` per layer.
    """
    states: list[torch.Tensor] = []

    def record(module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        states.append(output.gather(1, rows[..., None].expand(-1, -1, output.shape[-1])))

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    rows: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    is_flash: bool = False,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """
    Softmax probabilities of some rows.

    Keys are not repeated for grouped queries: the queries of a group share a matrix product.

    Args:
        query: `[B, heads, Q, d]`. key: `[B, key_value_heads, K, d]`. rows: `[B, R]` positions in Q.
        attention_mask: None for a causal mask; `[B, 1, Q, K]`, boolean (True: seen) or additive; or `[B, K]` (1:
        token).

    Returns:
        `[B, heads, R, K]` in the dtype of `query`.
    """
    batch, heads, length, width = query.shape
    key_heads, num_keys = key.shape[1:3]
    query = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, width))  # [B, heads, R, d]
    grouped = query.reshape(batch, key_heads, -1, width)  # [B, key_value_heads, groups·R, d]
    scores = torch.matmul(grouped, key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
    scores = scores.reshape(batch, heads, -1, num_keys)
    lowest = torch.finfo(scores.dtype).min
    if attention_mask is not None and attention_mask.ndim == 4:
        mask = attention_mask.expand(batch, -1, -1, -1)[..., :num_keys]
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    else:
        # Queries are the last of the keys. sdpa gets no mask for a prefill into a static cache, whose first keys they
        # are.
        offset = num_keys - length if is_flash or length == 1 else 0
        position, keys = rows[:, None, :, None] + offset, torch.arange(num_keys, device=query.device)
        hidden = keys > position
        if sliding_window is not None:
            hidden = hidden | (keys <= position - sliding_window)
        if attention_mask is not None:
            hidden = hidden | (attention_mask[:, None, None, :num_keys] == 0)
        scores = scores.masked_fill(hidden, lowest)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype)


def _resolve(positions, length: int, like: torch.Tensor) -> torch.Tensor:
    """Positions as `[B, n]` indices on the device of `like` `[B, …]`."""
    if positions is None or isinstance(positions, slice):
        positions = torch.arange(length, device=like.device)[positions or slice(None)]
    positions = torch.as_tensor(positions, device=like.device)
    if (
        positions.device.type == "cpu"
        and positions.numel()
        and not 0 <= int(positions.min()) <= int(positions.max()) < length
    ):
        raise ValueError(
            f"Attention was asked for positions {int(positions.min())}…{int(positions.max())}, but there are {length} "
            "tokens; rows count the tokens of the forward pass, columns those and the cached ones."
        )
    return positions.expand(like.shape[0], -1)


def _capturing_attention(module, query, key, value, attention_mask, *args, scaling=None, **kwargs):
    capture = _active.get()
    if capture is None:
        raise RuntimeError(f'The attention implementation "{CAPTURE}" works only inside `capture_attention`.')
    wanted = id(module) in capture.modules
    if capture.implementation == "eager":  # every model file has its own, which returns the probabilities
        attend = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = attend(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
        if wanted:
            rows = _resolve(capture.rows, query.shape[2], query)
            rows = rows[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[-1])
            capture.keep(module, weights.detach().gather(2, rows))
        return output, None
    attend = ALL_ATTENTION_FUNCTIONS[capture.implementation]
    if wanted:
        with torch.no_grad():
            capture.record(module, query, key, attention_mask, scaling, kwargs)
    return attend(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)


def _capturing_mask(*args, **kwargs):
    capture = _active.get()
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa" if capture is None else capture.implementation](*args, **kwargs)


AttentionInterface.register(CAPTURE, _capturing_attention)
AttentionMaskInterface.register(CAPTURE, _capturing_mask)
