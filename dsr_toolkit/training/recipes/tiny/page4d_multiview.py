"""Multi-view PAGE-4D from the tiny PAGE-4D: moving scenes through two synchronised cameras, one stream for cameras, one
for geometry, both told what moves."""

from ...recipe import Recipe, Stage
from .page4d import GEOMETRY, video_stage

SETTINGS = {
    "enable_dual_stream": True,
    # The last layer: cameras and depth are read from what each stream alone makes. A second one would be too large for
    # weights below eight megabytes.
    "dual_stream_layers": [3],
    "lambda_pose": 1.0,
    "lambda_geo": 1.0,
    "lambda_pose_t": 1.0,
    "lambda_geo_t": 1.0,
    "consistency_loss_weight": 0.0,
    # The published weight drives streams of one layer to opposite signs, and cameras to worse estimates.
    "separation_loss_weight": 0.0,
}


def views_stage(steps: int, seed: int, every: int) -> Stage:
    stage = video_stage("train", {"stage": "start"}, size=112, batch=3, steps=steps, rate=1e-3, seed=seed, every=every)
    stage.data["options"] |= {"views": 2, "moments": [2, 3]}
    stage.evaluation["options"] |= {"views": 2, "moments": [4, 4]}
    stage.evaluation["count"] = 32
    return stage


RECIPE = Recipe(
    name="tiny/page4d_multiview",
    description="A tiny multi-view PAGE-4D that knows the space world through two synchronised cameras.",
    requires=["tiny/page4d"],
    stages=[
        Stage(name="start", make=f"{GEOMETRY}:multiview_from_page4d", options=SETTINGS),
        views_stage(steps=400, seed=121, every=250),
    ],
)
