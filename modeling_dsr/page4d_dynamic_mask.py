"""Which patches of a multi-view video move: a small convolutional head, joined with masks from elsewhere."""

import torch
from torch import nn
from torch.nn import functional as F


def pool_mask(
    mask: torch.Tensor, images: tuple[int, int, int], grid: tuple[int, int], patch_size: int, name: str = "ext_mask"
) -> torch.Tensor:
    """
    An external mask as patches, `[B, T, V, P, 1]`.

    Args:
        mask: 1 = dynamic; pixels `[B, T, V, H, W]` or `[B, T, V, 1, H, W]`, which are averaged over each patch, or
            patches `[B, T, V, P, 1]` or `[B, T, V, P]`.
        images: (B, T, V). grid: (h, w) in patches. name: of the argument, in errors.
    """
    if not isinstance(mask, torch.Tensor) or not (mask.is_floating_point() or mask.dtype is torch.bool):
        found = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"`{name}` must be a bool tensor, or one of floating-point shares 0…1, got {found}. Divide bytes by 255."
        )
    mask = mask.float() if mask.dtype is torch.bool else mask
    patches = grid[0] * grid[1]
    size = (grid[0] * patch_size, grid[1] * patch_size)
    shape = tuple(mask.shape)
    if shape in ((*images, patches, 1), (*images, patches)):
        return mask.reshape(*images, patches, 1)
    if shape in ((*images, *size), (*images, 1, *size)):
        return F.adaptive_avg_pool2d(mask.reshape(-1, 1, *size), grid).view(*images, patches, 1)
    raise ValueError(
        f"`{name}` must be pixels {[*images, *size]} or patches {[*images, patches, 1]} to match the images, got "
        f"{list(shape)}. Bring it to the size of the images first."
    )


def standardise(logits: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 over the patches of each image, `[B, T, V, P, 1]`."""
    if logits.shape[-2] < 2:
        raise ValueError(
            "`mask_standardize` needs at least two patches per image, got one: larger images, or switch it off."
        )
    return (logits - logits.mean(-2, keepdim=True)) / (logits.std(-2, keepdim=True) + 1e-8)


class DynamicMaskHead(nn.Module):
    """
    `sigmoid(alpha · own + beta · external)` per patch, 1 = dynamic.

    Args:
        use_gating: `alpha` and `beta` come from the mean token of each image instead of being two learned numbers.
        standardize: own and external masks are standardised over each image first.
    """

    def __init__(self, dim: int, use_gating: bool = False, standardize: bool = False):
        super().__init__()
        self.standardize = standardize
        self.mask_head = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim // 2, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim // 2, 1, 1),
        )
        self.use_gating = use_gating
        if use_gating:
            self.gate_alpha, self.gate_beta = (
                nn.Sequential(nn.Linear(dim, dim // 4), nn.GELU(), nn.Linear(dim // 4, 1)) for _ in range(2)
            )
        else:
            self.alpha, self.beta = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(
        self, patches: torch.Tensor, grid: tuple[int, int], external: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            patches: `[B, T, V, P, C]`. external: `[B, T, V, P, 1]`, see [`pool_mask`].

        Returns:
            The mask in (0, 1) and the head's own logits, `[B, T, V, P, 1]` each.
        """
        own = (
            # Contiguous: with channels last, the last digit of torch 2.11 depends on where the weights lie.
            self.mask_head(patches.flatten(0, 2).transpose(1, 2).unflatten(2, grid).contiguous())
            .flatten(1)
            .view(*patches.shape[:4], 1)
        )
        mean = patches.mean(3, keepdim=True) if self.use_gating else None
        prepare = standardise if self.standardize else lambda logits: logits
        mask = (self.gate_alpha(mean).sigmoid() if self.use_gating else self.alpha) * prepare(own)
        if external is not None:
            mask = mask + (self.gate_beta(mean).sigmoid() if self.use_gating else self.beta) * prepare(external)
        return mask.sigmoid(), own
