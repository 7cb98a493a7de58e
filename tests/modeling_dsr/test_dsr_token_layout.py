"""Positions, placeholders and question text of a DSR prompt, against a plain token-by-token reading of the rules."""

from types import SimpleNamespace

import pytest
import torch

from modeling_dsr.dsr_token_layout import (
    build_token_layout,
    sample_ids_from_mask,
    select_question_tokens,
    spatial_position_ids,
)
from modeling_dsr.multimodal_rope import count_media

IMAGE, VIDEO, START, END, PAD, IM_START, IM_END, EOT = 100, 101, 102, 103, 104, 105, 106, 107
USER, ASSISTANT, SYSTEM = 50, 51, 52
QUERIES = 3


def config(**overrides):
    values = dict(
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
        text_config=SimpleNamespace(bos_token_id=EOT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        vision_pad_token_id=PAD,
        im_start_token_id=IM_START,
        im_end_token_id=IM_END,
        num_geometry_tokens=QUERIES,
        geometry_tokens_per="sample",
        geometry_for_images=False,
        geometry_tokens_per_second=2,
        question_scope="question",
    )
    return SimpleNamespace(**{**values, **overrides})


def video(grid, geometry=True, token=VIDEO):
    t, h, w = grid
    return [START] + [token] * (t * h * w // 4 + QUERIES * geometry) + [END]


def image(grid):
    return video(grid, geometry=False, token=IMAGE)


def positions_by_hand(ids, image_grids, video_grids, seconds):
    """One token at a time: what the published model's position index gives for one sample."""
    image_grids, video_grids, seconds = iter(image_grids), iter(video_grids), iter(seconds)
    result, following, i = [], 0, 0
    while i < len(ids):
        if ids[i] in (IMAGE, VIDEO):
            is_video = ids[i] == VIDEO
            t, h, w = next(video_grids if is_video else image_grids)
            per_step = torch.tensor(next(seconds) if is_video else 0.0)
            for tt in range(t):
                for y in range(h // 2):
                    for x in range(w // 2):
                        result.append([following + int(tt * per_step * 2), following + y, following + x])
            i += t * h * w // 4
            following = max(max(p) for p in result) + 1
            while i < len(ids) and ids[i] in (IMAGE, VIDEO):  # geometry tokens are text
                result.append([following] * 3)
                following, i = following + 1, i + 1
        else:
            result.append([following] * 3)
            following, i = following + 1, i + 1
    return torch.tensor(result).T, following - len(ids)


SAMPLES = {
    "one video": ([1, 2] + video((3, 4, 6)) + [3, 4], [], [(3, 4, 6)], [1.0]),
    "long video": ([1] + video((9, 2, 4)) + [3], [], [(9, 2, 4)], [1.3]),
    "fractional seconds": (video((4, 2, 2)) + [3], [], [(4, 2, 2)], [0.37]),
    "image": ([1] + image((1, 6, 4)) + [3, 4], [(1, 6, 4)], [], []),
    "text": ([1, 2, 3, 4, 5], [], [], []),
    "two videos and an image": (
        [1] + video((2, 4, 4), geometry=False) + image((1, 4, 8)) + [7] + video((5, 2, 2)) + [8, 9],
        [(1, 4, 8)],
        [(2, 4, 4), (5, 2, 2)],
        [0.5, 2.0],
    ),
}


def tensors(samples, side=None):
    """Pad samples to one batch; returns input_ids, attention_mask, image grids, video grids, seconds."""
    length = max(len(ids) for ids, *_ in samples)
    rows, masks = [], []
    for ids, *_ in samples:
        padding = length - len(ids)
        row, mask = list(ids), [1] * len(ids)
        rows.append([EOT] * padding + row if side == "left" else row + [EOT] * padding)
        masks.append([0] * padding + mask if side == "left" else mask + [0] * padding)
    images = [grid for _, grids, _, _ in samples for grid in grids]
    videos = [grid for _, _, grids, _ in samples for grid in grids]
    seconds = [s for *_, spans in samples for s in spans]
    return (
        torch.tensor(rows),
        torch.tensor(masks),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.tensor(seconds) if seconds else None,
    )


def layout_of(samples, side="right", **overrides):
    ids, mask, images, videos, seconds = tensors(samples, side)
    return (
        build_token_layout(ids, sample_ids_from_mask(mask, ids), images, videos, seconds, config(**overrides)),
        ids,
        mask,
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_positions_of_one_sample(name):
    layout, ids, _ = layout_of([SAMPLES[name]])
    positions, delta = positions_by_hand(*SAMPLES[name])
    assert torch.equal(layout.position_ids[:, 0], positions)
    assert layout.rope_deltas.item() == delta


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_do_not_depend_on_the_batch(side):
    samples = list(SAMPLES.values())
    layout, ids, mask = layout_of(samples, side)
    for row, sample in enumerate(samples):
        positions, delta = positions_by_hand(*sample)
        assert torch.equal(layout.position_ids[:, row, mask[row].bool()], positions)
        assert layout.rope_deltas[row].item() == delta


@pytest.mark.parametrize("form", ["lengths", "numbers"])
def test_packed_samples_start_at_zero(form):
    samples = list(SAMPLES.values())
    lengths = torch.tensor([len(sample[0]) for sample in samples])
    ids = torch.tensor([token for sample in samples for token in sample[0]]).unsqueeze(0)
    _, _, images, videos, seconds = tensors(samples)
    if form == "lengths":
        mask = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])
    else:
        mask = torch.repeat_interleave(torch.arange(1, len(samples) + 1), lengths).unsqueeze(0)
    layout = build_token_layout(ids, sample_ids_from_mask(mask, ids), images, videos, seconds, config())
    expected = torch.cat([positions_by_hand(*sample)[0] for sample in samples], dim=1)
    assert torch.equal(layout.position_ids[:, 0], expected)
    assert torch.equal(layout.text_position_ids[0], torch.cat([torch.arange(n) for n in lengths]))
    assert layout.num_samples == len(samples)


def test_geometry_tokens_follow_the_last_video_of_a_sample():
    layout, ids, _ = layout_of([SAMPLES["two videos and an image"]])
    assert layout.geometry_index.tolist() == [ids[0].tolist().index(8) - 1 - QUERIES + i for i in range(QUERIES)]
    assert layout.medium_group.tolist() == [0, -1, 0]
    assert len(layout.video_index) == 2 * 4 + 5


def test_geometry_tokens_of_every_video():
    ids = video((2, 4, 4)) + [1] + video((1, 2, 2)) + [2]
    layout, *_ = layout_of([(ids, [], [(2, 4, 4), (1, 2, 2)], [1.0, 1.0])], geometry_tokens_per="video")
    assert layout.medium_group.tolist() == [0, 1]
    assert layout.group_sample.tolist() == [0, 0]
    assert len(layout.geometry_index) == 2 * QUERIES


def test_geometry_tokens_of_images_on_request():
    ids = video((1, 4, 4), token=IMAGE) + [1]
    layout, *_ = layout_of([(ids, [(1, 4, 4)], [], [])], geometry_for_images=True)
    assert len(layout.image_index) == 4 and len(layout.geometry_index) == QUERIES
    assert spatial_position_ids(layout, config(geometry_for_images=True)).tolist() == [
        [0] * 4,
        [0, 0, 1, 1],
        [0, 1, 0, 1],
    ]


def test_keys_of_q_former_2_truncate_time():
    layout, *_ = layout_of([([1] + video((4, 2, 4)) + [2], [], [(4, 2, 4)], [0.4])])
    assert spatial_position_ids(layout, config()).tolist() == [[0, 0, 0, 0, 1, 1, 2, 2], [0] * 8, [0, 1] * 4]


def test_media_are_counted_by_runs():
    ids, *_ = tensors([SAMPLES["two videos and an image"], SAMPLES["text"]])
    assert count_media(ids, VIDEO).tolist() == [2, 0]
    assert count_media(ids, IMAGE).tolist() == [1, 0]


# ---- question text -------------------------------------------------------------------------


def turn(role, *tokens):
    return [IM_START, role, *tokens, IM_END, 9]


PROMPT = turn(SYSTEM, 1) + turn(USER, *video((1, 2, 2)), 2, 3) + [IM_START, ASSISTANT, 9]
ANSWER = [4, IM_END, 9]


def question(ids, labels=None, scope="question", mask=None):
    ids = torch.tensor([ids])
    labels = None if labels is None else torch.tensor([labels])
    chosen = select_question_tokens(ids, sample_ids_from_mask(mask, ids), labels, config(question_scope=scope))
    return ids[chosen].tolist()


def test_question_is_the_same_in_training_and_inference():
    at_inference = question(PROMPT)
    assert at_inference == [SYSTEM, 1, 9, USER, 2, 3, 9]
    assert question(PROMPT + ANSWER, [-100] * len(PROMPT) + ANSWER) == at_inference


def test_question_of_a_long_conversation_leaves_out_earlier_answers():
    longer = PROMPT + ANSWER + turn(USER, 5) + [IM_START, ASSISTANT, 9]
    at_inference = question(longer)
    assert at_inference == [SYSTEM, 1, 9, USER, 2, 3, 9, USER, 5, 9]
    labels = [-100] * len(PROMPT) + ANSWER + [-100] * (len(longer) - len(PROMPT) - len(ANSWER)) + [6]
    assert question(longer + [6], labels) == at_inference


def test_published_scope_keeps_the_answer_header_at_inference_only():
    assert question(PROMPT, scope="published") == [SYSTEM, 1, 9, USER, 2, 3, 9, ASSISTANT, 9]
    labels = [-100] * len(PROMPT) + ANSWER
    assert question(PROMPT + ANSWER, labels, scope="published") == [SYSTEM, 1, 9, USER, 2, 3, 9]


def test_question_of_a_prompt_without_turns_is_all_its_text():
    assert question([1] + video((1, 2, 2)) + [2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("scope", ["question", "published"])
def test_question_of_packed_samples_stays_apart(scope):
    row, mask = PROMPT + ANSWER, torch.tensor([0, len(PROMPT + ANSWER), 2 * len(PROMPT + ANSWER)])
    labels = [-100] * len(PROMPT) + ANSWER
    assert question(row * 2, labels * 2, scope, mask) == question(row, labels, scope) * 2


def test_padding_never_joins_the_question():
    mask = torch.tensor([[0, 0] + [1] * len(PROMPT)])
    assert question([1, 2] + PROMPT, mask=mask) == question(PROMPT)


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (([1] + video((1, 2, 4), geometry=False) + [2], [], [(1, 2, 4)], [1.0]), "geometry tokens are missing"),
        (([1] + video((1, 2, 4))[:-2] + [2], [], [(1, 2, 4)], [1.0]), "DSRProcessor"),
        (([1] + video((1, 2, 4)) + [2], [], [], []), "describes 0"),
        (([1] + video((1, 3, 4)) + [2], [], [(1, 3, 4)], [1.0]), "multiples of 2"),
        (([1] + video((1, 2, 2)) + [2], [], [(0, 2, 2)], [1.0]), "empty axis"),
        (([1] + video((1, 2, 2)) + [2], [], [(1, 2, 2)], [float("nan")]), "second_per_grid_ts"),
        (([1] + video((1, 2, 2)) + [2], [], [(1, 2, 2)], [1.0, 2.0]), "second_per_grid_ts"),
    ],
)
def test_prompts_that_do_not_fit_their_videos(sample, message):
    with pytest.raises(ValueError, match=message):
        layout_of([sample])


@pytest.mark.parametrize("mask", [[0, 3], [1, 6], [0, 4, 4, 6], [0]])
def test_cumulative_lengths_that_do_not_cover_the_row(mask):
    ids = torch.arange(6).unsqueeze(0)
    with pytest.raises(ValueError, match="cumulative lengths"):
        sample_ids_from_mask(torch.tensor(mask), ids)


def test_mask_of_another_shape():
    with pytest.raises(ValueError, match="shape of `input_ids`"):
        sample_ids_from_mask(torch.ones(2, 5), torch.zeros(2, 6, dtype=torch.long))
