"""DSR with Qwen2.5-VL-3B's sizes (4.2 billion parameters, random weights, bfloat16): one question, and eight.

Baseline, in the published way: all frames pass the geometry encoder and the merger at once, both Q-Formers work under
a dense mask, logits are made of every position, and each question passes the video through all towers again. The
vision tower and the language model are transformers' own on both sides. Times reach to the first token.
"""

from __future__ import annotations

import torch

from benchmarks.dsr_models import IM_END, TOKEN_IDS, prompt, small_config, video
from benchmarks.dsr_qformer_batch import dense_block_diagonal
from benchmarks.full_models import make_model, relative
from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row
from benchmarks.pi3_plain import plain_encoder
from modeling_dsr.configuration_dsr import DSRConfig
from modeling_dsr.dsr_geometry_selection import regroup_patch_tokens, renormalize, unflatten_patches
from modeling_dsr.dsr_token_layout import build_token_layout, sample_ids_from_mask, spatial_position_ids
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

NAME = "full.dsr_prefill"
TARGETS = {"time": 0.98, "memory": 2.0, "time, 8 questions": 1.3}
QUESTIONS = 8


def published_sizes(width: int, inner: int, layers: int, heads: int, kv_heads: int, tied: bool) -> DSRConfig:
    text = dict(
        vocab_size=151936, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, bos_token_id=1007,
        eos_token_id=IM_END, rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )  # fmt: skip
    return DSRConfig(text_config=text, vision_config=dict(out_hidden_size=width), tie_word_embeddings=tied, **TOKEN_IDS)


SIZES = {
    "small": dict(config=small_config, grid=(4, 8, 12), dtype="float32", rounds=5),
    "cpu": dict(
        config=lambda: published_sizes(2048, 11008, 36, 16, 2, True), grid=(4, 12, 22), dtype="bfloat16", rounds=1
    ),  # 8 frames of 168×308
    "gpu": dict(
        config=lambda: published_sizes(3584, 18944, 28, 28, 4, False), grid=(16, 24, 44), dtype="bfloat16", rounds=5
    ),  # 32 frames of 336×616, the 7B model
}
AGREEMENT = {"small": 1e-4, "cpu": 0.1, "gpu": 0.1}  # of the largest logit; bfloat16 through 60 layers


def build(size: str):
    """A model, the plain encoder on its weights, and the prompts of eight questions about one video."""
    settings = SIZES[size]
    model = make_model(DSRForConditionalGeneration, settings["config"](), getattr(torch, settings["dtype"]))
    to = lambda batch: {name: tensor.to(device()) for name, tensor in batch.items()}  # noqa: E731
    queries = model.config.num_geometry_tokens
    prompts = [
        to(prompt(settings["grid"], words=20 + 3 * i, geometry_tokens=queries, seed=i)) for i in range(QUESTIONS)
    ]
    return model, plain_encoder(model.model.geometry_encoder), to(video(settings["grid"])), prompts


def ask_plain(model: DSRForConditionalGeneration, encoder, clip: dict, question: dict) -> torch.Tensor:
    """Logits `[1, S, vocabulary]` of a prompt."""
    config, inner = model.config, model.model
    ids, patches, grid = question["input_ids"], clip["pixel_values_videos"], clip["video_grid_thw"]
    patches = patches.to(inner.visual.dtype)
    vision = inner.visual(patches, grid_thw=grid, return_dict=True).pooler_output
    merge, patch = config.vision_config.spatial_merge_size, config.vision_config.patch_size
    (t, h, w) = grid[0].tolist()
    frames = renormalize(unflatten_patches(patches, (t, h, w), merge, patch), config)
    module = inner.geometry_selection
    spatial = module.spatial_merger(regroup_patch_tokens(encoder(frames), (t, h, w), merge))
    samples = sample_ids_from_mask(question["attention_mask"], ids)
    layout = build_token_layout(ids, samples, None, grid, clip["second_per_grid_ts"], config)
    embeds = model.get_input_embeddings()(ids)
    text = embeds[0, inner.question_mask(ids, question["attention_mask"])[0]]
    given = dict(
        text_states=text,
        text_lengths=torch.tensor([len(text)]),
        spatial_states=spatial,
        spatial_lengths=torch.tensor([len(spatial)]),
        spatial_position_ids=spatial_position_ids(layout, config).to(embeds.device),
    )
    geometry = dense_block_diagonal(module, given)[0]
    seen = torch.cat([vision, geometry.to(vision.dtype)])
    embeds = embeds.masked_scatter((ids == config.video_token_id).unsqueeze(-1), seen)
    outputs = inner.language_model(
        inputs_embeds=embeds, position_ids=layout.position_ids.to(ids.device), use_cache=True
    )
    return model.lm_head(outputs.last_hidden_state)


def calls(size: str) -> tuple:
    model, encoder, clip, prompts = build(size)
    patches = {name: clip[name] for name in ("pixel_values_videos", "video_grid_thw")}

    def plain(questions: int):
        return torch.cat([ask_plain(model, encoder, clip, one)[:, -1] for one in prompts[:questions]])

    def ours(questions: int):
        if questions == 1:
            return one_of_ours(None, prompts[0])
        features = model.get_video_features(**patches)
        return torch.cat([one_of_ours(features, one) for one in prompts[:questions]])

    def one_of_ours(features, question):
        given = {"mm_encoder_outputs": {"video": features}} if features is not None else patches
        seconds = {"second_per_grid_ts": clip["second_per_grid_ts"]}
        return model(**question, **given, **seconds, logits_to_keep=1, use_cache=True).logits[:, -1]

    return torch.no_grad()(plain), torch.no_grad()(ours)


def prepare(side: str, size: str):
    """One question, in a process of its own."""
    call = calls(size)[side == "ours"]
    return lambda: call(1)


def timing(size: str) -> tuple:
    plain, ours = calls(size)
    expected = plain(1)
    assert_agreement(ours(1), expected, relative(expected, AGREEMENT[size]))
    rounds = SIZES[size]["rounds"]
    one = alternate(lambda: plain(1), lambda: ours(1), rounds, warmup=0)
    eight = alternate(lambda: plain(QUESTIONS), lambda: ours(QUESTIONS), rounds, warmup=0)
    return one, eight


def run(size: str = "cpu") -> list[dict]:
    one, eight = timing(size)
    memory = [peak_memory(f"{__name__}:prepare", side, size) for side in ("baseline", "ours")]
    return [
        row(NAME, "time", *one, TARGETS["time"]),
        row(NAME, "time, 8 questions", *eight, TARGETS["time, 8 questions"]),
        row(NAME, "memory", *memory, TARGETS["memory"]),
    ]
