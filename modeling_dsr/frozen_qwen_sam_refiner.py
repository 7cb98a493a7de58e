"""Coarse masks, boxes and text as prompts of SAM: the refiner of FrozenQwenSAM (F-LMM, arXiv 2406.05821).

All phrases of a batch of images pass through prompt encoder and decoder together. What depends on the size of an image
is a product with interpolation matrices, so that the square intermediates of 1024×1024 pixels are never made.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamTwoWayAttentionBlock


@dataclass
class RefinedMasks:
    """
    Attributes:
        masks: per image `[n, H, W]` logits at its original size.
        prompt_masks: `[n_all, 1, 256, 256]` logits, the mask prompts.
        boxes: `[n_all, 4]` x0, y0, x1, y1 in the padded square image.
        low_res_masks: `[n_all, 1 or 3, 256, 256]` logits of the decoder. iou_scores: `[n_all, 1 or 3]`, its own
        estimate.
        candidate_ious: `[n_all, 3]` overlap of the candidates with the coarse mask, with several candidates.
    """

    masks: tuple[torch.Tensor, ...]
    prompt_masks: torch.Tensor
    boxes: torch.Tensor
    low_res_masks: torch.Tensor
    iou_scores: torch.Tensor
    candidate_ious: torch.Tensor | None


# --------------------------------------------------------------------------------------
# Interpolation
# --------------------------------------------------------------------------------------


def interpolation_matrix(sizes_in: torch.Tensor, sizes_out: torch.Tensor, max_in: int, max_out: int) -> torch.Tensor:
    """
    Bilinear interpolation (align_corners=False) of lines of different lengths as matrices.

    Args:
        sizes_in, sizes_out: `[n]` lengths before and after.

    Returns:
        float32 `[n, max_out, max_in]`; rows from `sizes_out` on are zero.
    """
    sizes_in, sizes_out = sizes_in[:, None].float(), sizes_out[:, None].float()
    target = torch.arange(max_out, device=sizes_in.device, dtype=torch.float32)
    position = ((target + 0.5) * (sizes_in / sizes_out) - 0.5).clamp_min(0)  # [n, max_out]
    lower = torch.minimum(position.floor(), sizes_in - 1)
    share = (position - lower).clamp(0, 1)
    upper = torch.minimum(lower + 1, sizes_in - 1)
    matrix = position.new_zeros(*position.shape, max_in)
    matrix.scatter_add_(2, lower.long()[..., None], (1 - share)[..., None])
    matrix.scatter_add_(2, upper.long()[..., None], share[..., None])
    return matrix * (target < sizes_out)[..., None]


def _resize(rows: torch.Tensor, maps: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`rows` `[n, H, h]` · `maps` `[n, …, h, w]` · `columns`ᵀ `[n, W, w]`, in float32 also under autocast."""
    with torch.autocast(maps.device.type, enabled=False):
        while rows.ndim < maps.ndim:
            rows, columns = rows.unsqueeze(1), columns.unsqueeze(1)
        return rows @ maps.float() @ columns.transpose(-1, -2)


def mask_prompts(
    coarse: torch.Tensor,
    coarse_sizes: torch.Tensor,
    input_sizes: torch.Tensor,
    padding: torch.Tensor,
    square: int,
    prompt_size: int,
) -> torch.Tensor:
    """
    Coarse logits resized to the image within SAM's square, padded, and resized to SAM's mask prompt.

    Args:
        coarse: `[n, h, w]`, each valid in its upper left `coarse_sizes` `[n, 2]`.
        input_sizes: `[n, 2]` size of the image within the square of `square` pixels.
        padding: `[n]` logit of the rest of the square.

    Returns:
        float32 `[n, 1, prompt_size, prompt_size]`.
    """
    to_prompt = interpolation_matrix(
        torch.tensor([square], device=coarse.device),
        torch.tensor([prompt_size], device=coarse.device),
        square,
        prompt_size,
    )
    lines = []
    for axis in (0, 1):
        to_image = interpolation_matrix(coarse_sizes[:, axis], input_sizes[:, axis], coarse.shape[axis + 1], square)
        lines.append(to_prompt @ to_image)  # [n, prompt_size, h or w]
    # Rows that reach into the padding sum to less than one; what is missing is the padding's share.
    covered = lines[0].sum(-1)[:, :, None] * lines[1].sum(-1)[:, None]
    padding = padding.float()[:, None, None]
    return (_resize(lines[0], coarse, lines[1]) + (1 - covered) * padding)[:, None]


def masks_at_original_size(masks: torch.Tensor, input_size, original_size, square: int) -> torch.Tensor:
    """Decoder masks `[n, 256, 256]` → square → without its padding → `[n, H, W]` of one image."""
    device, low = masks.device, masks.shape[-1]
    size = torch.tensor([[low], [square], *[[int(s)] for s in (*input_size, *original_size)]], device=device)
    to_square = interpolation_matrix(size[0], size[1], low, square)
    lines = []
    for axis in (0, 1):
        inside, outside = int(input_size[axis]), int(original_size[axis])
        to_image = interpolation_matrix(size[2 + axis], size[4 + axis], inside, outside)
        lines.append(to_image @ to_square[:, :inside])  # [1, H or W, low]
    return _resize(lines[0], masks, lines[1]).to(masks.dtype)


def binary_masks(coarse: torch.Tensor, original_size) -> torch.Tensor:
    """Where coarse logits `[n, h, w]` mean foreground at the original size: probabilities are resized, then
    compared."""
    size = torch.tensor([[s] for s in (*coarse.shape[-2:], *map(int, original_size))], device=coarse.device)
    lines = [
        interpolation_matrix(size[axis], size[2 + axis], coarse.shape[-2 + axis], int(original_size[axis]))
        for axis in (0, 1)
    ]
    return _resize(lines[0], coarse.detach().float().sigmoid(), lines[1]) > 0.5


def mask_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Boxes `[n, 4]` (x0, y0, x1 + 1, y1 + 1) around boolean masks `[n, H, W]`; the whole image for an empty one."""
    edges = []
    for axis in (1, 2):  # [n, W], then [n, H]
        occupied = masks.any(axis).to(torch.int8)
        length = occupied.shape[1]
        edges.append((occupied.argmax(1), length - occupied.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = edges
    boxes = torch.stack([x0, y0, x1, y1], dim=1)
    whole = torch.zeros_like(boxes[:1])
    whole[0, 2], whole[0, 3] = masks.shape[2], masks.shape[1]
    return torch.where(masks.flatten(1).any(1)[:, None], boxes, whole)


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boolean masks over the last two dimensions; 0 for two empty ones."""
    intersection = (a & b).sum((-2, -1)).float()
    return intersection / ((a | b).sum((-2, -1)) + 1e-12)


# --------------------------------------------------------------------------------------
# SAM
# --------------------------------------------------------------------------------------


class PhraseTwoWayBlock(SamTwoWayAttentionBlock):
    """
    The decoder's block for prompts of different lengths.

    `attention_similarity`, which plain SAM adds where tokens look at the image, is here the additive mask
    `[n, 1, 1, tokens]` of padding tokens, applied where tokens are looked at.
    """

    def forward(self, queries, keys, query_point_embedding, key_point_embedding, attention_similarity=None, **kwargs):
        mask = attention_similarity
        if self.skip_first_layer_pe:
            queries = self.self_attn(query=queries, key=queries, value=queries, attention_similarity=mask)[0]
        else:
            query = queries + query_point_embedding
            queries = queries + self.self_attn(query=query, key=query, value=queries, attention_similarity=mask)[0]
        queries = self.layer_norm1(queries)

        query, key = queries + query_point_embedding, keys + key_point_embedding
        queries = self.layer_norm2(queries + self.cross_attn_token_to_image(query=query, key=key, value=keys)[0])
        queries = self.layer_norm3(queries + self.mlp(queries))

        query = queries + query_point_embedding
        seen = self.cross_attn_image_to_token(query=key, key=query, value=queries, attention_similarity=mask)[0]
        return queries, self.layer_norm4(keys + seen), seen


class PhraseSamModel(SamModel):
    """[`SamModel`] whose decoder takes text tokens of different numbers in one batch. Parameters and names are
    SAM's."""

    def __init__(self, config):
        super().__init__(config)
        layers = self.mask_decoder.transformer.layers
        for number in range(len(layers)):
            layers[number] = PhraseTwoWayBlock(config.mask_decoder_config, skip_first_layer_pe=number == 0)
        self.post_init()

    def decode_phrases(
        self,
        image_embeddings: torch.Tensor,
        phrase_image: torch.Tensor,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
        text_embeds: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        multimask_output: bool = False,
        chunk_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Masks of phrases, each with its own prompts. Phrases do not see each other.

        Args:
            image_embeddings: `[B, C, 64, 64]`. phrase_image: `[n]` image of each phrase.
            boxes: `[n, 4]`. masks: `[n, 1, 256, 256]`.
            text_embeds: `[n, T, C]`. text_mask: `[n, T]`, False for padding; None if there is none.
            chunk_size: phrases at a time, 0 for all. None: 32 on a GPU; 2 elsewhere, since the image tokens of more
                phrases do not fit a CPU's caches.

        Returns:
            Logits `[n, 1 or 3, 256, 256]` and SAM's estimate of their quality `[n, 1 or 3]`.
        """
        number, channels = len(phrase_image), image_embeddings.shape[1]
        if chunk_size is None:
            chunk_size = 32 if image_embeddings.is_cuda else 2
        if 0 < chunk_size < number:
            prompts = (phrase_image, boxes, masks, text_embeds, text_mask)
            chunks = [
                self.decode_phrases(
                    image_embeddings,
                    *(None if prompt is None else prompt[start : start + chunk_size] for prompt in prompts),
                    multimask_output,
                    chunk_size,
                )
                for start in range(0, number, chunk_size)
            ]
            return tuple(torch.cat(parts) for parts in zip(*chunks))
        decoder_dtype = self.mask_decoder.iou_token.weight.dtype
        sparse, dense = self.prompt_encoder(
            input_points=None,
            input_labels=None,
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=None if masks is None else masks.to(decoder_dtype),
        )
        if sparse is None:
            sparse = image_embeddings.new_zeros(number, 1, 0, channels)
        padding = None
        if text_embeds is not None:
            sparse = torch.cat([sparse.to(text_embeds.dtype), text_embeds[:, None]], dim=2)
            if text_mask is not None:
                fixed = 1 + self.mask_decoder.num_mask_tokens + sparse.shape[2] - text_embeds.shape[1]
                seen = nn.functional.pad(text_mask, (fixed, 0), value=True)[:, None, None]
                lowest = torch.finfo(decoder_dtype).min
                padding = torch.zeros_like(seen, dtype=decoder_dtype).masked_fill(~seen, lowest)
        low_res, scores = self.mask_decoder(
            image_embeddings=image_embeddings[phrase_image],
            image_positional_embeddings=self.get_image_wide_positional_embeddings().expand(number, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            attention_similarity=padding,
        )
        return low_res[:, 0], scores[:, 0]
