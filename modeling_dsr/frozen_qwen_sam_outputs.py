"""What FrozenQwenSAM returns: outputs, features of images, and answers that are ready to be grounded."""

from dataclasses import dataclass, field

import torch
from transformers import DynamicCache
from transformers.utils import ModelOutput


@dataclass
class FrozenQwenSAMOutput(ModelOutput):
    """
    Output of [`FrozenQwenSAMModel`]. Tuples have one entry per image; n is the number of its phrases.

    Args:
        loss (`torch.FloatTensor`): with labels, the sum of the four losses, each a mean over the images.
        loss_mask, loss_dice, sam_loss_mask, sam_loss_dice (`torch.FloatTensor`): of coarse and refined masks.
        accuracy, aiou, sam_accuracy, sam_aiou (`torch.FloatTensor`): share of right pixels and mean IoU of both.
        mask_attentions: `(n, layers·heads, h, w)`, attention of each phrase to each image token (28×28 processed
        pixels).
        text_embeds: per image one tensor per phrase, `(tokens, 256)`.
        pred_masks: `(n, h', w')` logits, the coarse masks.
        prompt_masks: `(n, 1, 256, 256)` logits over SAM's padded square image.
        boxes: `(n, 4)` x0, y0, x1, y1 in SAM's square image of 1024 pixels.
        sam_pred_masks: `(n, H, W)` logits at the size of the original image.
        low_res_masks, iou_scores: `(n, 1 or 3, 256, 256)` and `(n, 1 or 3)` of SAM's decoder.
        candidate_ious: `(n, 3)` overlap of the candidates with the coarse mask, with `multimask_output`.
        features ([`FrozenQwenSAMFeatures`]): of the images, to be passed back with other captions.
    """

    loss: torch.FloatTensor | None = None
    loss_mask: torch.FloatTensor | None = None
    loss_dice: torch.FloatTensor | None = None
    sam_loss_mask: torch.FloatTensor | None = None
    sam_loss_dice: torch.FloatTensor | None = None
    accuracy: torch.FloatTensor | None = None
    aiou: torch.FloatTensor | None = None
    sam_accuracy: torch.FloatTensor | None = None
    sam_aiou: torch.FloatTensor | None = None
    mask_attentions: tuple[torch.FloatTensor, ...] | None = None
    text_embeds: tuple[tuple[torch.FloatTensor, ...], ...] | None = None
    pred_masks: tuple[torch.FloatTensor, ...] | None = None
    prompt_masks: tuple[torch.FloatTensor, ...] | None = None
    boxes: tuple[torch.FloatTensor, ...] | None = None
    sam_pred_masks: tuple[torch.FloatTensor, ...] | None = None
    low_res_masks: tuple[torch.FloatTensor, ...] | None = None
    iou_scores: tuple[torch.FloatTensor, ...] | None = None
    candidate_ious: tuple[torch.FloatTensor, ...] | None = None
    features: "FrozenQwenSAMFeatures | None" = None


@dataclass
class FrozenQwenSAMFeatures:
    """
    Everything of a batch of images that does not depend on captions.

    Attributes:
        prefix_ids: `[B, P]` tokens of the prefixes, padded on the right. prefix_lengths: `[B]`, on the CPU.
        past_key_values: of the prefixes.
        image_embeddings: `[B, 256, 64, 64]` of SAM's image encoder; None until masks are refined.
        vision_tokens: per image `[h·w, D]`, what the language model reads of it.
    """

    prefix_ids: torch.Tensor
    prefix_lengths: torch.Tensor
    past_key_values: DynamicCache
    vision_tokens: tuple[torch.Tensor, ...]
    image_embeddings: torch.Tensor | None = None


@dataclass
class FrozenQwenSAMAnswer:
    """
    A generated (or given) answer about one image, ready to be grounded.

    Attributes:
        output_ids: `[T]` tokens of the answer. input_ids: `[1, S]` prompt and answer.
        inputs: image inputs of the prompt (`image_grid_thw`, `sam_pixel_values`, sizes).
        features: of the prompt without its last token.
    """

    output_ids: torch.Tensor
    input_ids: torch.Tensor
    features: FrozenQwenSAMFeatures
    inputs: dict = field(default_factory=dict)

    @property
    def prompt_length(self) -> int:
        return self.input_ids.shape[1] - len(self.output_ids)
