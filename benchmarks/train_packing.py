"""Training tokens per second: DSR rows of different length packed into rows without padding, against padded batches.

Videos of 2 to 16 frames with questions and answers; what the frozen towers make of them is given (random numbers of
its shape) in both, as in the second epoch of a training that caches it. Both sides do the same eight samples, forward
and backward. The language model has half of the layers of the other DSR benchmarks: what does not shrink with padding
(Geometry Selection Module, head) then counts for more, against packing.
"""

import torch

from benchmarks import harness
from benchmarks.dsr_models import IM_END, prompt, small_config
from benchmarks.harness import alternate, row
from modeling_dsr.dsr_collator import pack
from modeling_dsr.dsr_outputs import DSRVisionFeatures
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

NAME = "train.packing"
TARGET = 1.5
STEPS = (1, 1, 2, 2, 3, 4, 5, 8)  # grid steps (two frames each) of the videos
PACKED_TOKENS = 1200  # of a row, about: longer rows spend more in attention than they save
GRID = (12, 22)  # patches of 168×308 pixels
LAYERS = 4  # of the language model
SECONDS = 30.0  # after which no more rounds begin: a round is two steps of eight samples


def samples(model) -> list[dict]:
    made = []
    for seed, steps in enumerate(STEPS):
        grid = (steps, *GRID)
        one = prompt(grid, 30 + 7 * seed, model.config.num_geometry_tokens, seed)
        answer = torch.randint(0, 1000, (1, 4), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([one["input_ids"], answer, torch.tensor([[IM_END]])], 1)
        labels = torch.full_like(ids, -100)
        labels[:, -5:] = ids[:, -5:]
        made.append({"ids": ids[0], "labels": labels[0], "features": features(model, grid, seed)})
    return made


def features(model, grid: tuple[int, int, int], seed: int) -> DSRVisionFeatures:
    """Random numbers in the shapes of what the towers make of a video."""
    generator, width = torch.Generator().manual_seed(seed), model.config.text_config.hidden_size
    vision, spatial = torch.randn(2, grid[0] * grid[1] * grid[2] // 4, width, generator=generator)
    return DSRVisionFeatures(pooler_output=(vision,), geometry_features=(spatial,), grid_thw=torch.tensor([grid]))


def padded(rows: list[dict]) -> dict:
    stack = torch.nn.utils.rnn.pad_sequence
    first = rows[0]["features"]
    return {
        "input_ids": stack([one["ids"] for one in rows], True, 0),
        "labels": stack([one["labels"] for one in rows], True, -100),
        "attention_mask": stack([torch.ones_like(one["ids"]) for one in rows], True, 0),
        "second_per_grid_ts": torch.ones(len(rows)),
        "mm_encoder_outputs": {
            "video": type(first)(
                pooler_output=tuple(f for one in rows for f in one["features"].pooler_output),
                geometry_features=tuple(f for one in rows for f in one["features"].geometry_features),
                grid_thw=torch.cat([one["features"].grid_thw for one in rows]),
            )
        },
    }


def run() -> list[dict]:
    torch.manual_seed(0)
    model = DSRForConditionalGeneration(small_config(text_layers=LAYERS)).train()
    model.model.geometry_selection.spatial_merger.requires_grad_(False)
    rows = samples(model)
    items = sum(int((one["labels"] != -100).sum()) for one in rows)
    groups, length = [[]], 0
    for one in sorted(rows, key=lambda one: len(one["ids"])):
        if groups[-1] and length + len(one["ids"]) > PACKED_TOKENS:
            groups.append([])
            length = 0
        groups[-1].append(one)
        length += len(one["ids"])

    def step(batches: list[dict]) -> float:
        model.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss = model(**batch, num_items_in_batch=items).loss
            loss.backward()
            total += loss.item()
        return total

    together, packs = [padded(rows)], [pack(padded(group)) for group in groups]
    assert abs(step(together) - step(packs)) < 1e-4, "the losses differ"  # and both sides are warm
    seconds = min(SECONDS, harness.ROW_SECONDS)
    baseline, ours = alternate(lambda: step(together), lambda: step(packs), rounds=5, warmup=0, seconds=seconds)
    return [row(NAME, "time of the same tokens", baseline, ours, TARGET)]
