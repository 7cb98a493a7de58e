"""Where everything sits in a DSR prompt: samples, placeholders, positions and question text.

Pure functions on integer tensors. They run on the CPU, once per prefill, so that a prompt which does not fit its videos
is refused with a readable error before any network runs, and so that the forward pass itself needs no synchronisation.
No function loops over samples or videos.
"""

from dataclasses import dataclass

import torch

IGNORE_INDEX = -100


@dataclass
class TokenLayout:
    """
    Index tensors of one prompt batch of `B` rows and `S` columns, all on the CPU.

    A *medium* is one image or video, in order of appearance; a *group* is one set of geometry tokens.
    Flat token indices point into the `B*S` tokens, row by row.

    Attributes:
        position_ids: `[3, B, S]`, rotary positions (time, row, column) of the language model; 0 on padding.
        text_position_ids: `[B, S]`, index of each token in its sample.
        rope_deltas: `[B, 1]`, next position minus number of tokens.
        image_index, video_index: flat indices of the vision tokens, in feature order.
        geometry_index: flat indices of the geometry tokens, `num_geometry_tokens` per group.
        medium_is_video: `[M]` bool. medium_grid: `[M, 3]` patches. medium_group: `[M]`, -1 without geometry.
        medium_seconds: `[M]` float32, seconds per temporal grid step.
        group_sample: `[G]`, the sample (numbered over the batch) that asks the question of a group.
        num_samples: number of samples in the batch.
    """

    position_ids: torch.Tensor
    text_position_ids: torch.Tensor
    rope_deltas: torch.Tensor
    image_index: torch.Tensor
    video_index: torch.Tensor
    geometry_index: torch.Tensor
    medium_is_video: torch.Tensor
    medium_grid: torch.Tensor
    medium_group: torch.Tensor
    medium_seconds: torch.Tensor
    group_sample: torch.Tensor
    num_samples: int


def sample_ids_from_mask(attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor:
    """
    Number the samples of each row: 0 is padding, 1, 2, … are samples.

    Args:
        attention_mask: None (each row is one sample); `[B, S]` with 0 for padding and 1 for tokens, or with 1, 2, … for
            the samples packed in a row; or the 1-D cumulative lengths `[0, L1, L1+L2, …]` of a single packed row.
        input_ids: `[B, S]`.

    Returns:
        `[B, S]` int64 on the CPU.
    """
    batch, length = input_ids.shape
    if attention_mask is None:
        return torch.ones(batch, length, dtype=torch.long)
    mask = attention_mask.cpu().long()
    if mask.ndim == 1:
        if batch != 1 or mask.numel() < 2 or mask[0] != 0 or mask[-1] != length or (mask.diff() <= 0).any():
            raise ValueError(
                "`attention_mask` is one-dimensional, so it must hold the cumulative lengths [0, L1, L1+L2, …, "
                f"{length}] of a single packed row; got {mask.tolist()} for `input_ids` of shape "
                f"{tuple(input_ids.shape)}."
            )
        return (torch.bucketize(torch.arange(length), mask, right=True)).unsqueeze(0)
    if mask.shape != (batch, length):
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {(batch, length)}, or be one-dimensional for a "
            f"packed row; got {tuple(mask.shape)}."
        )
    return mask


def number_samples(sample_ids: torch.Tensor) -> torch.Tensor:
    """Number the samples of all rows consecutively: `[B, S]` of 0, 1, …, and -1 on padding."""
    numbers = torch.full_like(sample_ids, -1)
    if sample_ids.numel():
        key = torch.arange(len(sample_ids)).unsqueeze(1) * (sample_ids.max() + 1) + sample_ids
        real = sample_ids > 0
        numbers[real] = torch.unique(key[real], return_inverse=True)[1]
    return numbers


def build_token_layout(
    input_ids: torch.Tensor,
    sample_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None,
    video_grid_thw: torch.Tensor | None,
    second_per_grid_ts: torch.Tensor | None,
    config,
) -> TokenLayout:
    """
    Locate vision and geometry tokens and compute rotary positions.

    Positions follow the published model (transformers 4.51): a text token advances all three axes by one; a medium's
    vision tokens span its (time, row, column) grid and the text goes on at the largest position plus one; geometry
    placeholders are text tokens in this respect. Later transformers releases go on elsewhere after a video, which the
    published weights never saw.

    Args:
        input_ids: `[B, S]`.
        sample_ids: `[B, S]` from [`sample_ids_from_mask`].
        image_grid_thw, video_grid_thw: `[n, 3]` patches (time, rows, columns).
        second_per_grid_ts: `[n]`, one per video; None means 1.0.
        config: a [`DSRConfig`].
    """
    merge = config.vision_config.spatial_merge_size
    tokens = _real_tokens(input_ids, sample_ids)
    media = _find_media(tokens, image_grid_thw, video_grid_thw, second_per_grid_ts, merge, config)
    medium_group, writes_geometry = _place_geometry(tokens, media, config)
    is_vision, positions = _rotary_positions(tokens, media, config.vision_config.tokens_per_second)

    batch, length = input_ids.shape
    flat = tokens.flat
    position_ids = torch.zeros(3, batch * length, dtype=torch.long)
    position_ids[:, flat] = positions
    text_positions = torch.zeros(batch * length, dtype=torch.long)
    text_positions[flat] = tokens.order - tokens.first[tokens.sample] if tokens.num_samples else tokens.order
    highest = torch.full((batch,), -1).scatter_reduce(0, tokens.row, positions.amax(0), "amax")
    count = torch.bincount(tokens.row, minlength=batch)

    return TokenLayout(
        position_ids=position_ids.view(3, batch, length),
        text_position_ids=text_positions.view(batch, length),
        rope_deltas=(highest + 1 - count).unsqueeze(1),
        image_index=flat[is_vision & ~media.is_video_token],
        video_index=flat[is_vision & media.is_video_token],
        geometry_index=flat[media.is_pad & ~is_vision],
        medium_is_video=media.is_video,
        medium_grid=media.grid,
        medium_group=medium_group,
        medium_seconds=media.seconds,
        group_sample=media.sample[writes_geometry],
        num_samples=tokens.num_samples,
    )


@dataclass
class _Tokens:
    """
    The N real tokens of a batch, row by row.

    Attributes:
        flat: places in the `B*S` tokens. token, sample, row: id, number of the sample and row of each. order: 0 … N-1.
        first: `[num_samples]`, the first token of each sample.
    """

    flat: torch.Tensor
    token: torch.Tensor
    sample: torch.Tensor
    row: torch.Tensor
    order: torch.Tensor
    first: torch.Tensor

    @property
    def num_samples(self) -> int:
        return len(self.first)


def _real_tokens(input_ids: torch.Tensor, sample_ids: torch.Tensor) -> _Tokens:
    ids, numbers = input_ids.cpu(), number_samples(sample_ids.cpu())
    flat = (numbers >= 0).flatten().nonzero().squeeze(1)
    sample, order = numbers.flatten()[flat], torch.arange(len(flat))
    num_samples = int(sample.max()) + 1 if len(sample) else 0
    first = torch.full((num_samples,), len(flat)).scatter_reduce(0, sample, order, "amin")
    return _Tokens(flat, ids.flatten()[flat], sample, flat // ids.shape[1], order, first)


@dataclass
class _Media:
    """
    The M media of a batch: runs of equal placeholders.

    Attributes:
        is_pad, is_video_token: `[N]` bool. medium: `[N]`, meaningful on placeholders.
        start, length, sample: `[M]`, the run's first token, its length, its sample. is_video: `[M]` bool.
        grid: `[M, 3]` patches. cells: `[M, 3]` merged tokens. seconds: `[M]` per temporal step, 0 for an image.
    """

    is_pad: torch.Tensor
    is_video_token: torch.Tensor
    medium: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    sample: torch.Tensor
    is_video: torch.Tensor
    grid: torch.Tensor
    cells: torch.Tensor
    seconds: torch.Tensor

    @property
    def num_vision(self) -> torch.Tensor:
        return self.cells.prod(1)


def _find_media(tokens: _Tokens, image_grid_thw, video_grid_thw, second_per_grid_ts, merge: int, config) -> _Media:
    """First stage: where media stand, with the grids that belong to them."""
    token, sample = tokens.token, tokens.sample
    is_video_token = token == config.video_token_id
    is_pad = is_video_token | (token == config.image_token_id)
    starts = is_pad.clone()
    starts[1:] &= (token[1:] != token[:-1]) | (sample[1:] != sample[:-1])
    medium = starts.cumsum(0) - 1
    start = tokens.order[starts]
    is_video = is_video_token[start]

    grid = torch.zeros(len(start), 3, dtype=torch.long)
    seconds = torch.zeros(len(start))  # a still image spans no time
    grid[~is_video] = _checked_grid(image_grid_thw, "image", int((~is_video).sum()), merge)
    grid[is_video] = _checked_grid(video_grid_thw, "video", int(is_video.sum()), merge)
    seconds[is_video] = _checked_seconds(second_per_grid_ts, int(is_video.sum()))
    return _Media(
        is_pad=is_pad,
        is_video_token=is_video_token,
        medium=medium,
        start=start,
        length=torch.bincount(medium[is_pad], minlength=len(start)),
        sample=sample[start],
        is_video=is_video,
        grid=grid,
        cells=torch.stack([grid[:, 0], grid[:, 1] // merge, grid[:, 2] // merge], dim=1),
        seconds=seconds,
    )


def _place_geometry(tokens: _Tokens, media: _Media, config) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Second stage: geometry tokens stand after each such medium, or after a sample's last one.

    Returns:
        The group of each medium `[M]`, -1 without geometry, and which media have a group's tokens behind them.
    """
    has_geometry = media.is_video | config.geometry_for_images
    writes_geometry, count = has_geometry, len(media.start)
    per_sample = config.geometry_tokens_per == "sample"
    if per_sample:
        last = torch.full((tokens.num_samples,), -1).scatter_reduce(
            0, media.sample[has_geometry], torch.arange(count)[has_geometry], "amax"
        )
        writes_geometry = has_geometry & (torch.arange(count) == last[media.sample])
    expected = media.num_vision + writes_geometry * config.num_geometry_tokens
    _check_run_lengths(media.length, expected, media.num_vision, media.is_video, tokens.row[media.start])

    group = writes_geometry.cumsum(0) - 1  # of the media that write one
    if per_sample:
        sample_group = torch.full((tokens.num_samples,), -1)
        sample_group[media.sample[writes_geometry]] = group[writes_geometry]
        group = sample_group[media.sample]
    return torch.where(has_geometry, group, -1), writes_geometry


def _rotary_positions(tokens: _Tokens, media: _Media, tokens_per_second: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Third stage: which tokens are vision tokens, `[N]`, and positions `[3, N]`.

    The whole advance of a medium is booked on its last vision token, so that an exclusive sum gives every one of its
    tokens the medium's start.
    """
    order, cells = tokens.order, media.cells
    if len(media.start):
        medium = media.medium.clamp_min(0)
        in_run, of_medium = order - media.start[medium], cells[medium]
        is_vision = media.is_pad & (in_run < media.num_vision[medium])
    else:
        in_run, of_medium, is_vision = (
            torch.zeros_like(order),
            torch.ones(len(order), 3, dtype=torch.long),
            media.is_pad,
        )
    advance = (~is_vision).long()
    if len(media.start):
        duration = _temporal_positions(cells[:, 0] - 1, media.seconds, tokens_per_second) + 1
        advance[media.start + media.num_vision - 1] = torch.stack([duration, cells[:, 1], cells[:, 2]]).amax(0)
    before = advance.cumsum(0) - advance
    before = before - before[tokens.first][tokens.sample] if tokens.num_samples else before
    within = torch.stack(
        [
            in_run // (of_medium[:, 1] * of_medium[:, 2]),
            in_run // of_medium[:, 2] % of_medium[:, 1],
            in_run % of_medium[:, 2],
        ]
    )
    if len(media.start):
        within[0] = _temporal_positions(within[0], media.seconds[medium], tokens_per_second)
    return is_vision, before + within * is_vision


def spatial_position_ids(layout: TokenLayout, config) -> torch.Tensor:
    """
    Positions of the keys of Q-Former 2, `[3, K]`: (time, row, column) of each merged token of every medium that has
    geometry, in order of appearance. Each medium starts at 0: synchronised videos of one sample share a time axis.
    """
    chosen = layout.medium_group >= 0
    grid, merge = layout.medium_grid[chosen], config.vision_config.spatial_merge_size
    cells = torch.stack([grid[:, 0], grid[:, 1] // merge, grid[:, 2] // merge], dim=1)
    count = cells.prod(1)
    medium = torch.repeat_interleave(torch.arange(len(cells)), count)
    inside = torch.arange(int(count.sum())) - (count.cumsum(0) - count)[medium]
    of_medium = cells[medium]
    time = _temporal_positions(
        inside // (of_medium[:, 1] * of_medium[:, 2]),
        layout.medium_seconds[chosen][medium],
        config.geometry_tokens_per_second,
    )
    return torch.stack([time, inside // of_medium[:, 2] % of_medium[:, 1], inside % of_medium[:, 2]])


def select_question_tokens(
    input_ids: torch.Tensor, sample_ids: torch.Tensor, labels: torch.Tensor | None, config
) -> torch.Tensor:
    """
    The text that conditions the learned queries, as a bool mask `[B, S]` on the CPU.

    Special tokens never count. `question_scope="question"` leaves out every turn of the role that speaks last (the
    answering one: its header ends a prompt at inference and opens the answer in training), so the same conversation
    selects the same text with and without labels. `"published"` keeps all text at inference, and in training the
    unsupervised text less the last unsupervised token and the two before it (the header of the answer), as the
    published model was trained and run; an answer without labels is found by the chat's markers.

    Args:
        input_ids: `[B, S]`. sample_ids: `[B, S]` from [`sample_ids_from_mask`]. labels: `[B, S]`, -100 where
        unsupervised.
        config: a [`DSRConfig`].
    """
    batch, length = input_ids.shape
    tokens = _real_tokens(input_ids, sample_ids)
    flat, token, sample, order, num_samples = tokens.flat, tokens.token, tokens.sample, tokens.order, tokens.num_samples
    special = [
        config.vision_start_token_id,
        config.vision_end_token_id,
        config.vision_pad_token_id,
        config.image_token_id,
        config.video_token_id,
        config.im_start_token_id,
        config.im_end_token_id,
        *_as_list(config.text_config.bos_token_id),  # <|endoftext|>
    ]
    keep = torch.ones(len(flat), dtype=torch.bool)
    if config.question_scope == "published":
        asked = _before_answers(tokens, config) if labels is None else labels.cpu().flatten()[flat] == IGNORE_INDEX
        if asked is not None:
            keep &= asked
            last = torch.full((num_samples,), -1).scatter_reduce(0, sample[keep], order[keep], "amax")
            keep &= order < last[sample] - 2
    elif len(flat):
        opens = token == config.im_start_token_id
        header = torch.where(opens, order, -1).cummax(0).values  # index of the token that opened this turn
        in_turn = header >= tokens.first[sample]
        role = token[(header + 1).clamp(0, len(flat) - 1)]
        last = torch.full((num_samples,), -1).scatter_reduce(0, sample, torch.where(in_turn, header, -1), "amax")
        answering = token[(last + 1).clamp(0, len(flat) - 1)]
        keep &= ~in_turn | (role != answering[sample])
        if labels is not None:
            keep &= labels.cpu().flatten()[flat] == IGNORE_INDEX
    keep &= ~torch.isin(token, torch.tensor(special))
    mask = torch.zeros(batch * length, dtype=torch.bool)
    mask[flat[keep]] = True
    return mask.view(batch, length)


def _before_answers(tokens: _Tokens, config) -> torch.Tensor | None:
    """
    Which tokens published labels would leave unsupervised, read off the chat markers: all but the answering role's
    turns behind their three tokens of header. None where no sample has an answer: a prompt, as at inference.

    Label smoothing, preference losses and losses of one's own take the labels away, and the answer must not slip into
    the question.
    """
    if not len(tokens.flat):
        return None
    token, order, sample = tokens.token, tokens.order, tokens.sample
    header = torch.where(token == config.im_start_token_id, order, -1).cummax(0).values
    in_turn = header >= tokens.first[sample]
    role = token[(header + 1).clamp(0, len(token) - 1)]
    last = torch.full((tokens.num_samples,), -1).scatter_reduce(0, sample, torch.where(in_turn, header, -1), "amax")
    answering = token[(last + 1).clamp(0, len(token) - 1)]
    answer = in_turn & (role == answering[sample]) & (order - header > 2)
    return ~answer if bool(answer.any()) else None


def _temporal_positions(step: torch.Tensor, seconds: torch.Tensor, tokens_per_second: int) -> torch.Tensor:
    """`trunc(step · seconds · tokens_per_second)` with the product in float32, as the published code rounds it."""
    return (step.float() * seconds * tokens_per_second).long()


def _as_list(value) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _checked_grid(grid_thw: torch.Tensor | None, kind: str, count: int, merge: int) -> torch.Tensor:
    given = 0 if grid_thw is None else len(grid_thw)
    if given != count:
        raise ValueError(
            f"`input_ids` hold {count} {kind}(s) but `{kind}_grid_thw` describes {given}. Prepare text and {kind}s in "
            f"one call of the processor; two {kind}s need a separator such as <|vision_end|> between their "
            "placeholders."
        )
    if not count:
        return torch.zeros(0, 3, dtype=torch.long)
    return check_grid(grid_thw, f"{kind}_grid_thw", merge)


def check_grid(grid_thw: torch.Tensor, name: str, merge: int) -> torch.Tensor:
    """Refuse a grid that no processor writes: `[n, 3]`, positive, rows and columns multiples of `merge`."""
    grid = torch.as_tensor(grid_thw).cpu().long()
    if grid.ndim != 2 or grid.shape[1] != 3:
        raise ValueError(f"`{name}` must have shape [n, 3] (time, rows, columns in patches), got {tuple(grid.shape)}.")
    if (grid < 1).any():
        raise ValueError(
            f"`{name}` has an empty axis: {grid.tolist()}. A video needs at least one frame and each frame "
            f"{merge}×{merge} patches; decode the file again or drop it."
        )
    if (grid[:, 1:] % merge).any():
        raise ValueError(
            f"`{name}` rows and columns must be multiples of {merge} (tokens merge {merge}×{merge} patches), got "
            f"{grid.tolist()}. Let the processor resize frames to multiples of {14 * merge} pixels."
        )
    return grid


def _checked_seconds(second_per_grid_ts, count: int) -> torch.Tensor:
    if second_per_grid_ts is None:
        return torch.ones(count)
    seconds = torch.as_tensor(second_per_grid_ts).cpu().float().flatten()
    if len(seconds) != count:
        raise ValueError(f"`second_per_grid_ts` must hold one number per video ({count}), got {len(seconds)}.")
    if not torch.isfinite(seconds).all() or (seconds < 0).any():
        raise ValueError(f"`second_per_grid_ts` must be finite and not negative, got {seconds.tolist()}.")
    return seconds


def _check_run_lengths(found, expected, num_vision, is_video, row) -> None:
    wrong = (found != expected).nonzero().flatten()
    if not len(wrong):
        return
    i = int(wrong[0])
    kind = "video" if is_video[i] else "image"
    advice = f"Write the prompt with DSRProcessor, which places one <|{kind}_pad|> per token."
    if found[i] == num_vision[i]:
        advice = (
            "The placeholders of the geometry tokens are missing: DSRProcessor adds them, Qwen2.5-VL's processor does "
            "not; processor and model must also agree on `geometry_tokens_per` and `geometry_for_images`."
        )
    raise ValueError(
        f"Row {int(row[i])} of `input_ids` has {int(found[i])} placeholders for {kind} {i} of the batch, but its grid "
        f"needs {int(num_vision[i])} vision tokens and {int(expected[i] - num_vision[i])} geometry tokens. {advice}"
    )
