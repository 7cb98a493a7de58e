"""A tiny DSR and prompts for it, made of ids and noise: no tokenizer, no files."""

import torch

from configuration_dsr import DSRConfig

IM_START, IM_END, VISION_START, VISION_END, VISION_PAD, IMAGE, VIDEO, END_OF_TEXT, ASSISTANT = range(100, 109)
NUM_GEOMETRY_TOKENS = 5


def tiny_config(**overrides) -> DSRConfig:
    """About 170 000 parameters; grouped heads, windowed and full vision attention, an odd number of queries."""
    values = dict(
        text_config=dict(
            vocab_size=512,  # the tiny tokenizer of the toolkit fits in
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=END_OF_TEXT,
            eos_token_id=IM_END,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        ),
        vision_config=dict(
            depth=2,
            hidden_size=24,
            intermediate_size=40,
            num_heads=2,
            out_hidden_size=32,
            window_size=56,
            fullatt_block_indexes=[1],
            tokens_per_second=2,
        ),
        geometry_config=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=70),
        num_geometry_tokens=NUM_GEOMETRY_TOKENS,
        geometry_chunk_size=4,
        im_start_token_id=IM_START,
        im_end_token_id=IM_END,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        vision_pad_token_id=VISION_PAD,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return DSRConfig(**{**values, **overrides})


def sample(
    seed: int,
    videos: tuple = (),
    images: tuple = (),
    words: int = 6,
    answer: int = 0,
    geometry_tokens_per: str = "sample",
    seconds: tuple | None = None,
) -> dict[str, torch.Tensor]:
    """
    One conversation: a user turn with media and a question, and the header of the answer.

    Args:
        videos, images: grids (t, h, w) in patches; images come first.
        words: length of the question. answer: supervised tokens after the header.
        seconds: time per grid step of each video, default 0.5, 0.75, 1.0, …
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.Generator().manual_seed(seed + 1000)  # the same media whatever is asked or answered
    noise = lambda *shape: torch.randn(*shape, generator=pixels)  # noqa: E731
    text = lambda n: torch.randint(0, 100, (n,), generator=generator).tolist()  # noqa: E731
    ids = [IM_START, *text(1), *text(1)]
    for t, h, w in images:
        ids += [VISION_START, *[IMAGE] * (t * h * w // 4), VISION_END]
    for index, (t, h, w) in enumerate(videos):
        extra = NUM_GEOMETRY_TOKENS if geometry_tokens_per == "video" or index == len(videos) - 1 else 0
        ids += [VISION_START, *[VIDEO] * (t * h * w // 4 + extra), VISION_END]
    ids += [*text(words), IM_END, *text(1), IM_START, ASSISTANT, *text(1)]
    labels = [-100] * len(ids)
    if answer:
        reply = text(answer)
        ids, labels = ids + reply, labels + reply
    made = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    if images:
        made["pixel_values"] = noise(sum(t * h * w for t, h, w in images), 1176)
        made["image_grid_thw"] = torch.tensor(images)
    if videos:
        made["pixel_values_videos"] = noise(sum(t * h * w for t, h, w in videos), 1176)
        made["video_grid_thw"] = torch.tensor(videos)
        made["second_per_grid_ts"] = torch.tensor(seconds or [0.5 + 0.25 * i for i in range(len(videos))])
    return made


def collate(samples: list[dict], padding_side: str = "left", with_labels: bool = False) -> dict[str, torch.Tensor]:
    """Samples to a padded batch; media are concatenated in order."""
    length = max(len(one["input_ids"]) for one in samples)

    def pad(row: torch.Tensor, value: int) -> torch.Tensor:
        missing = length - len(row)
        return torch.nn.functional.pad(row, (missing, 0) if padding_side == "left" else (0, missing), value=value)

    batch = {
        "input_ids": torch.stack([pad(one["input_ids"], END_OF_TEXT) for one in samples]),
        "attention_mask": torch.stack([pad(torch.ones_like(one["input_ids"]), 0) for one in samples]),
    }
    if with_labels:
        batch["labels"] = torch.stack([pad(one["labels"], -100) for one in samples])
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        pieces = [one[name] for one in samples if name in one]
        if pieces:
            batch[name] = torch.cat(pieces)
    return batch
