"""Training tokens per second: DSR rows of different length packed into rows without padding, against padded batches.

Videos of 2 to 16 frames with questions and answers; features of the frozen towers come from the cache in both, as in
the second epoch of a training. Both sides do the same eight samples, forward and backward.
"""

import torch

from benchmarks.dsr_models import IM_END, prompt, small_model, video
from benchmarks.harness import alternate, row
from modeling_dsr.dsr_collator import pack

NAME = "train.packing"
TARGET = 1.5
STEPS = (1, 1, 2, 2, 3, 4, 5, 8)  # grid steps (two frames each) of the videos
PACKED_TOKENS = 1200  # of a row, about: longer rows spend more in attention than they save
GRID = (12, 22)  # patches of 168×308 pixels


def samples(model) -> list[dict]:
    made = []
    for seed, steps in enumerate(STEPS):
        grid = (steps, *GRID)
        one = prompt(grid, 30 + 7 * seed, model.config.num_geometry_tokens, seed)
        answer = torch.randint(0, 1000, (1, 4), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([one["input_ids"], answer, torch.tensor([[IM_END]])], 1)
        labels = torch.full_like(ids, -100)
        labels[:, -5:] = ids[:, -5:]
        with torch.no_grad():
            clip = video(grid, seed)
            features = model.get_video_features(clip["pixel_values_videos"], clip["video_grid_thw"])
        made.append({"ids": ids[0], "labels": labels[0], "features": features, "seconds": clip["second_per_grid_ts"]})
    return made


def padded(rows: list[dict]) -> dict:
    stack = torch.nn.utils.rnn.pad_sequence
    first = rows[0]["features"]
    return {
        "input_ids": stack([one["ids"] for one in rows], True, 0),
        "labels": stack([one["labels"] for one in rows], True, -100),
        "attention_mask": stack([torch.ones_like(one["ids"]) for one in rows], True, 0),
        "second_per_grid_ts": torch.cat([one["seconds"] for one in rows]),
        "mm_encoder_outputs": {
            "video": type(first)(
                pooler_output=tuple(f for one in rows for f in one["features"].pooler_output),
                geometry_features=tuple(f for one in rows for f in one["features"].geometry_features),
                grid_thw=torch.cat([one["features"].grid_thw for one in rows]),
            )
        },
    }


def run() -> list[dict]:
    model = small_model().train()
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
    assert abs(step(together) - step(packs)) < 1e-4, "the losses differ"
    baseline, ours = alternate(lambda: step(together), lambda: step(packs), rounds=5, warmup=1)
    return [row(NAME, "time of the same tokens", baseline, ours, TARGET)]
