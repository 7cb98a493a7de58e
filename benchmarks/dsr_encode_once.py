"""Eight questions on one video: encoding it once against asking eight times.

Baseline: each question passes the video through both encoders again, as the published code does.
"""

import time

import torch

from benchmarks.dsr_models import prompt, small_model, video
from benchmarks.harness import Seconds, alternate, assert_agreement, row

NAME = "dsr.encode_once"
QUESTIONS = 8
GRID = (4, 12, 22)  # 8 frames of 168×308


def run() -> list[dict]:
    model, clip = small_model(), video(GRID)
    queries = model.config.num_geometry_tokens
    prompts = [prompt(GRID, words=20 + 3 * i, geometry_tokens=queries, seed=i) for i in range(QUESTIONS)]
    encoding = [0.0]
    encode = model.model.get_video_features

    def timed_encode(*args, **kwargs):
        start = time.perf_counter()
        features = encode(*args, **kwargs)
        encoding[0] += time.perf_counter() - start
        return features

    model.model.get_video_features = timed_encode  # both sides reach the encoders through it

    @torch.no_grad()
    def ask_each_time():
        return torch.cat([model(**one, **clip, logits_to_keep=1).logits for one in prompts])

    @torch.no_grad()
    def encode_once():
        features = model.get_video_features(clip["pixel_values_videos"], clip["video_grid_thw"])
        seconds = clip["second_per_grid_ts"]
        answers = [
            model(**one, second_per_grid_ts=seconds, mm_encoder_outputs={"video": features}, logits_to_keep=1).logits
            for one in prompts
        ]
        return torch.cat(answers)

    assert_agreement(encode_once(), ask_each_time(), 1e-4)
    spent: dict[str, list[float]] = {"each": [], "once": []}

    def measured(name, function):
        def call():
            encoding[0] = 0.0
            function()
            spent[name].append(encoding[0])

        return call

    rounds, warmup = 5, 1
    first_tokens = alternate(measured("each", ask_each_time), measured("once", encode_once), rounds, warmup)
    encoders = [Seconds(spent[name][warmup:]) for name in ("each", "once")]
    return [
        row(NAME, "time", *encoders, target=7.0),
        row(NAME, "time_to_first_tokens", *first_tokens, target=None),
    ]
