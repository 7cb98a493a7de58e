"""What is measured against what: for each curve the call at a given count, and the exponents that theory gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.scaling import limits


@dataclass(frozen=True)
class Curve:
    """
    Args:
        name, axis: of the curve, and what is counted.
        counts: where it is measured.
        build: the call for a count, made ready.
        time, memory: exponents that theory gives for large counts.
        reason: why, in one sentence.
        limit: where one GPU of 80 GB would end at the published size, computed: a sentence.
    """

    name: str
    axis: str
    counts: tuple[int, ...]
    build: Callable[[int], Callable[[], object]]
    time: float
    memory: float
    reason: str
    limit: Callable[[], str]


def prepare(name: str, count: int):
    """For `peak_memory`: the call of a curve, its libraries' threads and work spaces made by the smallest one."""
    curve = CURVES[name]
    curve.build(curve.counts[0])()
    return curve.build(count)


# --------------------------------------------------------------------------------------
# Frames, views and scenes
# --------------------------------------------------------------------------------------

SIDE = 112  # 64 patches a frame


def pi3_frames(frames: int, batch: int = 1):
    from benchmarks.pi3_memory import make_model

    model, images = make_model(), torch.rand(batch, frames, 3, SIDE, SIDE)
    return torch.no_grad()(lambda: model(images))


def pi3_scenes(scenes: int):
    return pi3_frames(2, scenes)


def page4d_frames(frames: int):
    from benchmarks.full_models import make_model
    from modeling_dsr.configuration_page4d import Page4DConfig
    from modeling_dsr.modeling_page4d import Page4DModel

    config = Page4DConfig(
        embed_dim=128, num_heads=4, encoder_config=dict(num_hidden_layers=4, num_attention_heads=4), camera_num_heads=4,
        camera_depth=2, dpt_features=32, dpt_out_channels=[32, 32, 64, 64], dpt_hidden_channels=8,
    )  # fmt: skip
    model, images = make_model(Page4DModel, config), torch.rand(1, frames, 3, SIDE, SIDE)
    return torch.no_grad()(lambda: model(images, mask_alpha=1.0))


def views(count: int):
    """Synchronised cameras at four times, landmark attention in the last layers."""
    from benchmarks import mv_whole

    model, images = mv_whole.make("landmark"), torch.rand(1, 4, count, 3, 84, 84)
    return torch.no_grad()(lambda: model(images))


# --------------------------------------------------------------------------------------
# Questions, phrases, candidates
# --------------------------------------------------------------------------------------


def questions(count: int):
    """Of one video of 8 frames, which is encoded once."""
    from benchmarks.dsr_models import prompt, small_model, video

    grid = (4, 12, 22)
    model, clip = small_model(), video(grid)
    asked = [prompt(grid, 24, model.config.num_geometry_tokens, seed) for seed in range(count)]

    @torch.no_grad()
    def call():
        features = model.get_video_features(clip["pixel_values_videos"], clip["video_grid_thw"])
        given = {"second_per_grid_ts": clip["second_per_grid_ts"], "mm_encoder_outputs": {"video": features}}
        for one in asked:
            model(**one, **given, logits_to_keep=1)

    return call


def phrases(captions: int):
    """Captions of four phrases each about one image of 1344 tokens, in one call."""
    from benchmarks.flmm_captions import inputs_of
    from benchmarks.flmm_models import build

    model, together = build(2), inputs_of(captions)[-1]
    return torch.no_grad()(lambda: model(**together, use_sam=False).mask_attentions[0])


def candidates(count: int):
    """Programs of 32 tokens for one part, sampled together."""
    from benchmarks.full_models import make_model
    from modeling_dsr.configuration_cad_recode import CADRecodeConfig
    from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

    config = CADRecodeConfig(
        vocab_size=4096, hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, point_token_id=7, bos_token_id=3, eos_token_id=4,
    )  # fmt: skip
    model = make_model(CADRecodeForCausalLM, config)
    ids = torch.full((1, config.num_points + 1), config.point_token_id)
    ids[:, -1] = 5
    given = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), point_cloud=torch.rand(1, config.num_points, 3),
        do_sample=True, num_return_sequences=count, max_new_tokens=32, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return lambda: model.generate(**given)


# --------------------------------------------------------------------------------------
# Repositories and servers
# --------------------------------------------------------------------------------------

KINDS = ("dsr", "pi3", "page4d", "cadrille", "cad_recode", "frozen_qwen_sam", "scene_qformer")  # DSR is at the root


def models(count: int):
    """Loading π³ from a repository that holds that many models."""
    from transformers import AutoModel

    from convert_weights import assemble
    from dsr_toolkit.tiny import hub_folder

    folder = tempfile.TemporaryDirectory(prefix="scaling-")
    held = {kind: hub_folder(kind) for kind in KINDS[:count]}
    assemble(held, Path(folder.name) / "repository", progress=False)

    def call(kept=folder):
        return AutoModel.from_pretrained(Path(kept.name) / "repository", subfolder="pi3", trust_remote_code=True)

    return call


def requests(count: int):
    """Questions that arrive at once, answered by one server's queue in batches of at most sixteen."""
    from benchmarks import serve_throughput
    from dsr_toolkit.serving import handler_module
    from dsr_toolkit.serving.batching import BatchingQueue
    from dsr_toolkit.tiny import hub_folder

    queue = BatchingQueue(handler_module().EndpointHandler(str(hub_folder("dsr"))), max_batch=16)
    asked = serve_throughput.requests()[:count]

    def call():
        with ThreadPoolExecutor(count) as clients:
            return list(clients.map(lambda one: queue.submit(one).result(), asked))

    return call


CURVES = {
    curve.name: curve
    for curve in (
        Curve(
            "pi3.frames", "frames", (2, 4, 8, 16, 32, 64), pi3_frames, 2, 1,
            "attention over all frames is quadratic, all else linear; only tokens, keys and outputs are whole",
            limits.pi3_frames,
        ),
        Curve(
            "page4d.frames", "frames", (2, 4, 8, 16, 32, 64), page4d_frames, 2, 1,
            "as π³; of the layers the four that the dense heads read are kept", limits.page4d_frames,
        ),
        Curve(
            "mv.views", "cameras", (2, 4, 8, 16), views, 2, 1,
            "the views of one time attend to each other; the landmark layers alone are linear", limits.views,
        ),
        Curve(
            "pi3.batch", "scenes of 2 frames", (1, 2, 4, 8, 16), pi3_scenes, 1, 1,
            "scenes do not see each other", limits.pi3_scenes,
        ),
        Curve(
            "dsr.questions", "questions about a video", (1, 2, 4, 8, 16, 32), questions, 1, 0,
            "a prefill each behind one pass through the encoders; nothing of a question is kept", limits.questions,
        ),
        Curve(
            "flmm.phrases", "captions of four phrases", (1, 2, 4, 8, 16), phrases, 1, 1,
            "a row of attention for every phrase; captions do not see each other", limits.phrases,
        ),
        Curve(
            "cad.candidates", "programs for a part", (1, 2, 4, 8, 16, 32), candidates, 1, 1,
            "a row of the batch each; while weights are what is read, a row costs nothing", limits.candidates,
        ),
        Curve(
            "hub.models", "models in a repository", (2, 3, 5, 7), models, 0, 0,
            "a model is loaded from its own folder", limits.models,
        ),
        Curve(
            "serve.requests", "requests at once", (1, 2, 4, 8, 16, 32), requests, 1, 1,
            "a row each, in batches of at most sixteen", limits.requests,
        ),
    )
}  # fmt: skip
