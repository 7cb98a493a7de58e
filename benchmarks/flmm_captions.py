"""Eight captions on one image in one call, against eight calls of the same model."""

import torch

from benchmarks.flmm_models import PHRASES, build, caption_inputs
from benchmarks.harness import alternate, assert_agreement, device, row

NAME = "flmm.captions"
CAPTIONS = 8
LAYERS = 4


def inputs_of(captions: int) -> list[dict]:
    """Rows of one caption each, on the same prefix, and last the row that holds all of them."""
    base = caption_inputs()
    total = sum(PHRASES)
    prefix = {name: base[name][:, :-total] for name in ("input_ids", "mask_ids", "caption_ids")}
    words = torch.randint(1, 499, (captions, total), generator=torch.Generator().manual_seed(2))
    masks = base["mask_ids"][:, -total:]
    singles = [
        {
            **base,
            "input_ids": torch.cat([prefix["input_ids"], words[i : i + 1]], 1),
            "mask_ids": torch.cat([prefix["mask_ids"], masks], 1),
            "caption_ids": torch.cat([prefix["caption_ids"], torch.ones_like(masks)], 1),
        }
        for i in range(captions)
    ]
    together = {
        **base,
        "input_ids": torch.cat([prefix["input_ids"], words.reshape(1, -1)], 1),
        "mask_ids": torch.cat([prefix["mask_ids"], *(masks + i * len(PHRASES) for i in range(captions))], 1),
        "caption_ids": torch.cat([prefix["caption_ids"], *(torch.full_like(masks, i + 1) for i in range(captions))], 1),
    }
    return [*singles, together]


def run() -> list[dict]:
    model = build(LAYERS).to(device())
    *singles, together = ({name: value.to(device()) for name, value in one.items()} for one in inputs_of(CAPTIONS))

    @torch.no_grad()
    def one_by_one():
        return torch.cat([model(**single, use_sam=False).mask_attentions[0] for single in singles])

    @torch.no_grad()
    def at_once():
        return model(**together, use_sam=False).mask_attentions[0]

    assert_agreement(at_once(), one_by_one(), 1e-5)
    return [row(NAME, "time", *alternate(one_by_one, at_once, rounds=3), 4)]
