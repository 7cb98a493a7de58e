"""What DSR does with real conversations: batches, packing, reuse of encoded videos, generation, attention, bad
inputs."""

import pytest
import torch
from transformers import set_seed

from modeling_dsr.dsr_geometry_selection import renormalize
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from tests.model_checks import assert_same, randomize
from tests.modeling_dsr.dsr_samples import IMAGE, NUM_GEOMETRY_TOKENS, VIDEO, collate, sample, tiny_config

ATOL = 1e-4

# Every mixture of media: a video, two videos of two resolutions and lengths, an image beside a video, text, an image.
CONVERSATIONS = (
    dict(videos=((2, 4, 6),), words=6, answer=3),
    dict(videos=((1, 6, 4), (3, 4, 4)), words=9, answer=1),
    dict(videos=((1, 4, 4),), images=((1, 4, 8),), words=4, answer=2),
    dict(words=12, answer=4),
    dict(images=((1, 4, 4), (1, 2, 6)), words=5, answer=2),
)


def build(**overrides) -> DSRForConditionalGeneration:
    set_seed(0)
    model = DSRForConditionalGeneration(tiny_config(**overrides)).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def conversation(index: int, **changes) -> dict:
    return sample(index, **{**CONVERSATIONS[index], **changes})


@torch.no_grad()
def run(model, inputs, **kwargs):
    return model(**inputs, **kwargs)


def rows(outputs, inputs) -> list[torch.Tensor]:
    """Logits of each sample without padding."""
    return [logits[mask.bool()] for logits, mask in zip(outputs.logits, inputs["attention_mask"])]


def generate(model, inputs, tokens=6, **kwargs):
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, **kwargs)


class Calls:
    """Counts the calls of a module."""

    def __init__(self, module):
        self.count = 0
        self.handle = module.register_forward_hook(self)

    def __call__(self, *_):
        self.count += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


# --------------------------------------------------------------------------------------
# One sample alone equals the same sample in any batch
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"geometry_tokens_per": "video"},
        {"question_scope": "published"},
        {"geometry_chunk_size": 0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_a_mixed_batch_equals_its_samples(settings, side):
    model = build(**settings)
    per = settings.get("geometry_tokens_per", "sample")
    samples = [conversation(i, geometry_tokens_per=per) for i in range(len(CONVERSATIONS))]
    together = collate(samples, side)
    for one, found in zip(samples, rows(run(model, together), together)):
        alone = collate([one])
        assert_same({"logits": found}, {"logits": rows(run(model, alone), alone)[0]}, ATOL)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_mixed_batch_is_the_mean_over_its_tokens(model, side):
    samples = [conversation(i) for i in range(len(CONVERSATIONS))]
    together = run(model, collate(samples, side, with_labels=True)).loss
    alone = [run(model, collate([one], with_labels=True)).loss for one in samples]
    counts = torch.tensor([float((one["labels"] != -100).sum()) for one in samples])
    assert torch.allclose(together, (torch.stack(alone) * counts).sum() / counts.sum(), atol=1e-5)


def packed(samples: list[dict], form: str) -> dict[str, torch.Tensor]:
    """Samples in one row, with the boundaries as cumulative lengths, as numbers, or as numbers with padding behind."""
    row = {name: torch.cat([one[name] for one in samples])[None] for name in ("input_ids", "labels")}
    lengths = torch.tensor([len(one["input_ids"]) for one in samples])
    numbers = torch.repeat_interleave(torch.arange(1, len(samples) + 1), lengths)[None]
    if form == "padded":
        row = {
            "input_ids": torch.nn.functional.pad(row["input_ids"], (0, 4)),
            "labels": torch.nn.functional.pad(row["labels"], (0, 4), value=-100),
        }
        numbers = torch.nn.functional.pad(numbers, (0, 4))
    lengths = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    media = collate(samples)
    media = {name: tensor for name, tensor in media.items() if name not in ("input_ids", "attention_mask")}
    return {**row, **media, "attention_mask": lengths if form == "cumulative" else numbers}


@pytest.mark.parametrize("form", ["cumulative", "numbered", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_equals_its_samples(attention, form):
    model = build()
    model.set_attn_implementation(attention)
    samples = [conversation(i) for i in (0, 3, 1, 2)]
    outputs = run(model, packed(samples, form))
    start, expected_loss, count = 0, 0.0, 0
    for one in samples:
        alone = run(model, collate([one], with_labels=True))
        length = len(one["input_ids"])
        assert_same({"logits": outputs.logits[0, start : start + length]}, {"logits": alone.logits[0]}, ATOL)
        supervised = int((one["labels"] != -100).sum())
        expected_loss, count, start = expected_loss + alone.loss * supervised, count + supervised, start + length
    assert torch.allclose(outputs.loss, expected_loss / count, atol=1e-5)


def test_packed_samples_never_predict_each_other(model):
    """A first token that is supervised adds nothing: the token before it belongs to another sample."""
    samples = [conversation(0), conversation(3)]
    plain = run(model, packed(samples, "cumulative")).loss
    for one in samples:
        one["labels"][0] = one["input_ids"][0]
    assert torch.equal(run(model, packed(samples, "cumulative")).loss, plain)


# --------------------------------------------------------------------------------------
# Geometry tokens
# --------------------------------------------------------------------------------------


def test_one_video_gives_the_same_tokens_per_sample_and_per_video():
    inputs = collate([conversation(0)])
    tokens = [run(build(geometry_tokens_per=per), inputs).geometry_tokens for per in ("sample", "video")]
    assert torch.equal(*tokens)


def test_per_video_each_set_reads_its_own_video():
    model = build(geometry_tokens_per="video")
    inputs = collate([conversation(1, geometry_tokens_per="video")])
    tokens = run(model, inputs).geometry_tokens
    assert tokens.shape[:2] == (2, NUM_GEOMETRY_TOKENS)
    changed = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].clone()}
    changed["pixel_values_videos"][24:] += 1.0  # the first video has 24 patches
    other = run(model, changed).geometry_tokens
    assert torch.equal(other[0], tokens[0])
    assert not torch.allclose(other[1], tokens[1], atol=1e-2)


def test_per_sample_the_tokens_read_all_videos(model):
    inputs = collate([conversation(1)])
    tokens = run(model, inputs).geometry_tokens
    assert tokens.shape[:2] == (1, NUM_GEOMETRY_TOKENS)
    for part in (slice(None, 24), slice(24, None)):
        changed = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].clone()}
        changed["pixel_values_videos"][part] += 1.0
        assert not torch.allclose(run(model, changed).geometry_tokens, tokens, atol=1e-2)


def test_the_question_selects(model):
    inputs = collate([conversation(0)])
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    question = other["input_ids"].shape[1] - 10  # a word of the question, behind the video
    assert bool(model.model.question_mask(inputs["input_ids"])[0, question])
    other["input_ids"][0, question] = (other["input_ids"][0, question] + 1) % 100
    tokens = [run(model, one).geometry_tokens for one in (inputs, other)]
    assert not torch.allclose(*tokens, atol=1e-3)


@pytest.mark.parametrize("scope, same", [("question", True), ("published", False)])
def test_training_and_inference_select_by_the_same_text(scope, same):
    """The supervised answer never reaches the queries; the published rules also read the answer's header at
    inference."""
    model = build(question_scope=scope)
    training = run(model, collate([conversation(0)], with_labels=True)).geometry_tokens
    inference = run(model, collate([conversation(0, answer=0)])).geometry_tokens
    assert torch.equal(training, inference) is same


def test_images_get_geometry_tokens_on_request():
    model = build(geometry_for_images=True)
    one = conversation(4)
    ids = one["input_ids"].tolist()
    last = len(ids) - 1 - ids[::-1].index(IMAGE)
    one["input_ids"] = torch.tensor(ids[: last + 1] + [IMAGE] * NUM_GEOMETRY_TOKENS + ids[last + 1 :])
    outputs = run(model, collate([one]), output_geometry_attentions=True)
    assert outputs.geometry_tokens.shape[:2] == (1, NUM_GEOMETRY_TOKENS)
    assert [tuple(a.shape[2:]) for a in outputs.geometry_attentions] == [(1, 2, 2), (1, 1, 3)]


def test_attentions_say_where_the_tokens_looked(model):
    samples = [conversation(i) for i in (1, 3, 0)]
    outputs = run(model, collate(samples), output_geometry_attentions=True)
    shapes = [tuple(weights.shape) for weights in outputs.geometry_attentions]
    assert shapes == [(4, NUM_GEOMETRY_TOKENS, *grid) for grid in ((1, 3, 2), (3, 2, 2), (2, 2, 3))]
    first, second, third = (weights.sum((2, 3, 4)) for weights in outputs.geometry_attentions)
    assert torch.allclose(first + second, torch.ones(4, NUM_GEOMETRY_TOKENS), atol=1e-5)
    assert torch.allclose(third, torch.ones(4, NUM_GEOMETRY_TOKENS), atol=1e-5)
    assert torch.allclose(outputs.logits, run(model, collate(samples)).logits, atol=1e-5)


def test_attentions_move_with_the_video(model):
    """A change in the geometry of one cell moves the attention to that cell most."""
    inputs = collate([conversation(0)])
    media = without(inputs, "pixel_values_videos")
    with torch.no_grad():
        features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).select([0])
    before = run(model, media, mm_encoder_outputs={"video": features}, output_geometry_attentions=True)
    changed = features.geometry_features[0].clone()
    changed[7] *= -1
    features.geometry_features = (changed,)
    after = run(model, media, mm_encoder_outputs={"video": features}, output_geometry_attentions=True)
    moved = (after.geometry_attentions[0] - before.geometry_attentions[0]).abs().amax((0, 1)).flatten()
    assert moved.argmax() == 7


# --------------------------------------------------------------------------------------
# The geometry encoder: chunks, freezing, dtypes
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 1, 2, 4, 64])
def test_chunks_change_nothing(model, chunk):
    inputs = collate([conversation(1)])
    expected = run(model, inputs).logits
    other = build(geometry_chunk_size=chunk)
    assert torch.allclose(run(other, inputs).logits, expected, atol=1e-5)


def test_chunks_bound_the_frames_in_one_call():
    model = build(geometry_chunk_size=2)
    sizes = []
    handle = model.model.geometry_encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    run(model, collate([sample(0, videos=((3, 4, 4),))]))
    handle.remove()
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_builds_no_graph(frozen):
    model = build().train()
    model.model.geometry_encoder.requires_grad_(not frozen)
    inputs = collate([conversation(0)], with_labels=True)
    seen = []
    handle = model.model.geometry_encoder.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state.requires_grad)
    )
    model(**inputs).loss.backward()
    handle.remove()
    assert set(seen) == {not frozen}
    assert (model.model.geometry_encoder.layernorm.weight.grad is None) is frozen
    assert model.model.geometry_selection.spatial_merger.mlp[0].weight.grad is not None


def test_constants_follow_the_switches():
    """In bfloat16 the published code rounds its constants; the switch keeps them, and in float32 both are one."""
    pixels = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    published, exact = tiny_config(), tiny_config(geometry_constants_in_model_dtype=False)
    assert torch.equal(renormalize(pixels, published), renormalize(pixels, exact))
    half = pixels.bfloat16()
    reference = renormalize(half.float(), exact)
    assert torch.equal(renormalize(half, exact), reference.bfloat16())
    assert not torch.equal(renormalize(half, published), reference.bfloat16())


def test_the_green_mean_is_a_setting():
    pixels = torch.zeros(1, 3, 2, 2)
    difference = renormalize(pixels, tiny_config()) - renormalize(
        pixels, tiny_config(unnormalize_mean=(0.48145466, 0.4578275, 0.40821073))
    )
    assert torch.allclose(difference[0, :, 0, 0], torch.tensor([0.0, -0.0002 / 0.224, 0.0]), atol=1e-6)


# --------------------------------------------------------------------------------------
# Encode once, ask many
# --------------------------------------------------------------------------------------


def test_encoded_videos_serve_any_number_of_questions(model):
    questions = [sample(0, videos=((2, 4, 6),), words=words) for words in (3, 6, 9)]
    for one in questions:
        one["pixel_values_videos"] = questions[0]["pixel_values_videos"]
    together = collate(questions)
    expected = run(model, together).logits
    features = model.get_video_features(questions[0]["pixel_values_videos"], questions[0]["video_grid_thw"])
    prompts = {name: together[name] for name in ("input_ids", "attention_mask", "second_per_grid_ts")}
    with Calls(model.model.visual) as vision, Calls(model.model.geometry_encoder) as geometry:
        reused = run(model, prompts, mm_encoder_outputs={"video": features.select([0, 0, 0])}).logits
    assert (vision.count, geometry.count) == (0, 0)
    assert torch.allclose(reused, expected, atol=1e-5)


def test_encoded_videos_serve_generation(model):
    inputs = collate([conversation(0, answer=0), conversation(1, answer=0)])
    expected = generate(model, inputs)
    features = model.get_video_features(inputs.pop("pixel_values_videos"), inputs.pop("video_grid_thw"))
    with Calls(model.model.visual) as vision, Calls(model.model.geometry_encoder) as geometry:
        found = generate(model, inputs, mm_encoder_outputs={"video": features})
        beams = generate(model, inputs, mm_encoder_outputs={"video": features}, num_beams=2)
    assert (vision.count, geometry.count) == (0, 0)
    assert torch.equal(found, expected)
    assert beams.shape == expected.shape


def test_selection_shares_memory(model):
    inputs = collate([conversation(0)])
    features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    many = features.select([0] * 8)
    assert {tensor.data_ptr() for tensor in many.geometry_features} == {features.geometry_features[0].data_ptr()}
    assert many.grid_thw.tolist() == [[2, 4, 6]] * 8


# --------------------------------------------------------------------------------------
# Generation
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    """All five mixtures, as prompts."""
    return collate([conversation(i, answer=0) for i in range(len(CONVERSATIONS))])


def test_a_mixed_batch_generates_what_its_samples_do(model, prompts):
    length = prompts["input_ids"].shape[1]
    together = generate(model, prompts)[:, length:]
    for i, found in enumerate(together):
        alone = collate([conversation(i, answer=0)])
        assert torch.equal(found, generate(model, alone)[0, alone["input_ids"].shape[1] :])


def test_generation_without_cache_is_the_same(model, prompts):
    assert torch.equal(generate(model, prompts, use_cache=False), generate(model, prompts))


def test_generation_with_a_static_cache_is_the_same(model, prompts):
    static = generate(model, prompts, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, generate(model, prompts))


def test_videos_and_questions_are_read_at_prefill_only(model, prompts):
    modules = (model.model.visual, model.model.geometry_selection.q_former_1, model.model.geometry_selection.q_former_2)
    with Calls(modules[0]) as vision, Calls(modules[1]) as first, Calls(modules[2]) as second:
        generate(model, prompts)
    assert (first.count, second.count) == (1, 1)
    assert vision.count <= 2  # once for images, once for videos


@pytest.mark.parametrize("index", range(len(CONVERSATIONS)))
def test_beams_of_a_batch_equal_those_of_its_samples(model, prompts, index):
    length = prompts["input_ids"].shape[1]
    settings = dict(num_beams=3, num_return_sequences=2)
    together = generate(model, prompts, **settings).view(len(CONVERSATIONS), 2, -1)[index, :, length:]
    alone = collate([conversation(index, answer=0)])
    assert torch.equal(together, generate(model, alone, **settings)[:, alone["input_ids"].shape[1] :])


def test_a_second_turn_continues_the_cache(model):
    """Tokens fed after a prefill, through the cache, give the logits of the whole row at once."""
    inputs = collate([conversation(0), conversation(1)])
    inputs = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    whole = run(model, inputs).logits
    cut = inputs["input_ids"].shape[1] - 2
    head = {**inputs, "input_ids": inputs["input_ids"][:, :cut], "attention_mask": inputs["attention_mask"][:, :cut]}
    question = model.model.question_mask(inputs["input_ids"], inputs["attention_mask"])[:, :cut]
    first = run(model, head, use_cache=True, question_mask=question)
    second = run(
        model,
        {"input_ids": inputs["input_ids"][:, cut:], "attention_mask": inputs["attention_mask"]},
        past_key_values=first.past_key_values,
    )
    assert torch.allclose(second.logits, whole[:, cut:], atol=ATOL)


def test_generation_goes_on_from_a_cache(model):
    """A second call with the first one's cache and all tokens so far writes what one call would have written."""
    inputs = collate([conversation(0, answer=0), conversation(1, answer=0)])
    first = generate(model, inputs, tokens=3, return_dict_in_generate=True)
    ids = first.sequences
    grown = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    rest = generate(model, {"input_ids": ids, "attention_mask": grown}, tokens=3, past_key_values=first.past_key_values)
    assert torch.equal(rest, generate(model, inputs))


# --------------------------------------------------------------------------------------
# Bad inputs
# --------------------------------------------------------------------------------------


def remove_one(inputs, token):
    where = (inputs["input_ids"][0] == token).nonzero()[0]
    keep = torch.arange(inputs["input_ids"].shape[1]) != where
    return {**inputs, "input_ids": inputs["input_ids"][:, keep], "attention_mask": inputs["attention_mask"][:, keep]}


def without(inputs, *names):
    return {name: tensor for name, tensor in inputs.items() if name not in names}


def only_media(inputs):
    ids = torch.tensor([[token for token in inputs["input_ids"][0].tolist() if token >= 100]])
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    "break_it, cure",
    [
        (lambda x: remove_one(x, VIDEO), "DSRProcessor"),
        (lambda x: {**x, "video_grid_thw": torch.tensor([[2, 4, 8]])}, "one call of the processor"),
        (lambda x: {**x, "pixel_values_videos": x["pixel_values_videos"][:-1]}, "one call of the processor"),
        (lambda x: {**x, "video_grid_thw": torch.tensor([[2, 3, 8]])}, "multiples of 28 pixels"),
        (lambda x: {**x, "video_grid_thw": torch.tensor([[0, 4, 6]])}, "at least one frame"),
        (lambda x: {**x, "video_grid_thw": torch.tensor([2, 4, 6])}, r"must have shape \[n, 3\]"),
        (lambda x: without(x, "video_grid_thw"), "the processor returns both"),
        (lambda x: without(x, "video_grid_thw", "pixel_values_videos"), "one call of the processor|no video was given"),
        (lambda x: without(x, "input_ids") | {"inputs_embeds": torch.zeros(1, 4, 32)}, "`input_ids` are needed"),
        (lambda x: {**x, "second_per_grid_ts": torch.tensor([0.5, 0.5])}, "one number per video"),
        (lambda x: {**x, "second_per_grid_ts": torch.tensor([float("nan")])}, "finite"),
        (lambda x: {**x, "attention_mask": torch.tensor([0, 3])}, "cumulative lengths"),
        (lambda x: {**x, "attention_mask": x["attention_mask"][:, :-3]}, "shape of `input_ids`"),
        (only_media, "Write a question"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_a_cure(model, break_it, cure):
    with pytest.raises(ValueError, match=cure):
        run(model, break_it(collate([conversation(0)])))


def test_pixels_and_their_features_exclude_each_other(model):
    inputs = collate([conversation(0)])
    features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    with pytest.raises(ValueError, match="not both"):
        run(model, inputs, mm_encoder_outputs={"video": features})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"question_scope": "all"}, "question_scope"),
        ({"geometry_tokens_per": "frame"}, "geometry_tokens_per"),
        ({"num_geometry_tokens": 0}, "num_geometry_tokens"),
        ({"geometry_chunk_size": -1}, "geometry_chunk_size"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)
