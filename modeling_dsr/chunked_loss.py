"""Next-token cross-entropy on supervised positions alone, without ever holding all logits."""

import torch
from torch import nn

IGNORE_INDEX = -100


class _ChunkedCrossEntropy(torch.autograd.Function):
    """
    Sum over positions of −log softmax(h·Wᵀ)[label], a chunk of positions at a time.

    The gradient of a chunk needs its logits alone, so it is taken while they exist; one chunk of float32 logits is all
    that is ever held. The weight's gradient grows in one buffer.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, labels, chunk_size):
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total = hidden_states.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_states) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for start in range(0, len(labels), chunk_size):
            chunk = slice(start, start + chunk_size)
            states, wanted = hidden_states[chunk], labels[chunk, None]
            logits = (states @ weight.T).float()  # [chunk, V]
            normalizer = logits.logsumexp(1, keepdim=True)
            total += (normalizer - logits.gather(1, wanted)).sum()
            if wants_hidden or wants_weight:
                # softmax − one-hot, in the memory of the logits
                grad_logits = logits.sub_(normalizer).exp_()
                grad_logits.scatter_add_(1, wanted, grad_logits.new_full((1, 1), -1.0).expand_as(wanted))
                grad_logits = grad_logits.to(weight.dtype)
                if wants_hidden:
                    grad_hidden[chunk] = grad_logits @ weight
                if wants_weight:
                    grad_weight.addmm_(grad_logits.T, states)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_total):
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = [None if grad is None else grad.mul_(grad_total.to(grad.dtype)) for grad in (grad_hidden, grad_weight)]
        return *scaled, None, None


def chunked_next_token_loss(
    hidden_states: torch.Tensor,
    lm_head: nn.Linear,
    labels: torch.Tensor,
    chunk_size: int,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Cross-entropy of predicting `labels` one token ahead, in float32.

    Args:
        hidden_states: `[B, S, D]` of the last layer. lm_head: without bias.
        labels: `[B, S]`, -100 where no loss is taken.
        chunk_size: positions whose logits exist at a time.
        num_items_in_batch: divide the sum by this (gradient accumulation); default the number of supervised tokens.

    Returns:
        A scalar; 0, with gradients of 0, when nothing is supervised.
    """
    targets = labels[:, 1:].reshape(-1)
    supervised = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    states = hidden_states[:, :-1].flatten(0, 1)[supervised]  # [M, D]
    total = _ChunkedCrossEntropy.apply(states, lm_head.weight, targets[supervised].to(states.device), chunk_size)
    count = max(len(supervised), 1) if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, torch.Tensor):
        count = count.to(total.device)
    return total / count


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int | torch.Tensor | None = None
) -> torch.Tensor:
    """The same from logits `[B, S, V]`, when they are wanted anyway."""
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    total = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    count = (targets != IGNORE_INDEX).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, torch.Tensor) else count)


def logits_and_loss(
    model,
    hidden_states: torch.Tensor,
    labels: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    What a language-model head returns: logits, and the loss when there are labels.

    A model in training mode needs the loss alone; it is then computed in chunks of `config.loss_chunk_size` positions
    and the logits are None. A head that an adapter has wrapped is called as a module, on all positions.
    """
    if labels is not None and labels.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"`labels` must be {list(hidden_states.shape[:2])} like `input_ids`, got {list(labels.shape)}."
        )
    chunk_size = model.config.loss_chunk_size
    if labels is not None and model.training and chunk_size and type(model.lm_head) is nn.Linear:
        return None, chunked_next_token_loss(hidden_states, model.lm_head, labels, chunk_size, num_items_in_batch)
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    if labels is None:
        return model.lm_head(hidden_states[:, keep]), None
    logits = model.lm_head(hidden_states)
    return logits[:, keep], next_token_loss(logits, labels, num_items_in_batch)
