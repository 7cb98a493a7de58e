"""What π³ and PAGE-4D train on, how one begins as the other, and that the recipes learn."""

import numpy as np
import pytest
import torch

from dsr_toolkit.training import load_recipe, train
from dsr_toolkit.training.geometry import (
    GeometryClips,
    build_pi3,
    measure,
    multiview_from_page4d,
    page4d_from_pi3,
    page4d_inputs,
    pi3_inputs,
    show,
    world_points,
)
from dsr_toolkit.training.recipes.tiny.page4d import SETTINGS
from dsr_toolkit.worlds import make_world
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.pose import invert_rigid


def test_rows_are_moments_of_the_worlds_clips():
    rows = GeometryClips(7, size=28, moments=(2, 4), group=4)
    whole = make_world("space", 7, frames=8, height=28, width=28, difficulty="easy", questions=0)
    assert len({len(rows[i]["images"]) for i in range(4)}) == 1  # one batch, one number of frames
    assert {len(rows[4 * i]["images"]) for i in range(12)} == {2, 3, 4}
    for index in (0, 5):
        row, sample = rows[index], whole[index]
        moments = [int(np.argmin([np.abs(pose - one).max() for one in sample.poses])) for pose in row["poses"]]
        if np.ptp(sample.poses, axis=0).max() > 0:
            assert moments == sorted(set(moments))
        assert all(np.allclose(row["poses"][i], sample.poses[moments[i]]) for i in range(len(moments)))
        assert np.array_equal(row["images"], rows[index]["images"])


def test_inputs_say_where_each_pixel_is():
    rows = [GeometryClips(3, size=42, moments=(2, 2))[i] for i in range(2)]
    for batch in (pi3_inputs(None)(rows), page4d_inputs(None)(rows)):
        assert (
            batch["pixel_values"].shape == (2, 2, 3, 42, 42)
            and 0 <= batch["pixel_values"].min() < batch["pixel_values"].max() <= 1
        )
    targets, page4d = pi3_inputs(None)(rows), page4d_inputs(None)(rows)
    local = (
        targets["target_points"] @ page4d["extrinsics"][..., None, :3, :3].mT
        + page4d["extrinsics"][..., None, None, :3, 3]
    )
    assert torch.allclose(local[..., 2], page4d["depths"], atol=1e-4)
    pixels = local @ page4d["intrinsics"][..., None, :, :].mT
    pixels = pixels[..., :2] / pixels[..., 2:]
    y, x = torch.meshgrid(torch.arange(42), torch.arange(42), indexing="ij")
    assert (pixels - torch.stack([x, y], -1)).abs().max() < 1e-3
    assert torch.allclose(invert_rigid(targets["target_camera_poses"])[..., :3, :], page4d["extrinsics"], atol=1e-5)


def test_shrunk_pictures_keep_their_geometry():
    row = GeometryClips(3, size=28, moments=(2, 2), oversampling=3)[1]
    large = GeometryClips(3, size=84, moments=(2, 2))[1]
    assert row["images"].shape == (2, 28, 28, 3) and row["depths"].shape == (2, 28, 28)
    points = [
        world_points(*(torch.from_numpy(one[name]).double() for name in ("depths", "poses", "intrinsics")))
        for one in (row, large)
    ]
    assert torch.allclose(points[0], points[1][:, 1::3, 1::3], atol=1e-6)
    assert abs(row["images"].mean() - large["images"].mean()) < 1


def test_scenes_may_differ_from_the_difficulty():
    orbits = [
        np.degrees([abs(2 * rows.world.scene(i).cameras[0].orbit) for i in range(20)])
        for rows in (GeometryClips(5), GeometryClips(5, scenes={"orbit": [90, 120], "still_camera": 0.0}))
    ]
    assert orbits[0].max() < 60 and orbits[1].min() > 89
    with pytest.raises(TypeError, match="orbits"):
        GeometryClips(5, scenes={"orbits": [90, 120]})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny π³, the PAGE-4D that starts from it, and the multi-view one that starts from that."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    model, processor = build_pi3(width=32, encoder_layers=1, layers=6, heads=2, head_width=32, size=28)
    model.save_pretrained(root / "pi3")
    processor.save_pretrained(root / "pi3")
    folders = {"tiny/pi3": root / "pi3"}
    page4d_from_pi3(folders, root / "page4d", size=28, **SETTINGS)
    folders["tiny/page4d"] = root / "page4d"
    dual = {"enable_dual_stream": True, "dual_stream_layers": [2], "time_pos": "none"}
    multiview_from_page4d(folders, root / "multiview", **dual)
    return folders | {"pi3": model, "multiview": root / "multiview"}


def test_page4d_begins_with_the_encoder_and_trunk_of_pi3(folders):
    model = Page4DModel.from_pretrained(folders["tiny/page4d"])
    images = torch.rand(1, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    pi3 = folders["pi3"].eval()
    with torch.no_grad():
        for token in (model.aggregator.camera_token, model.aggregator.register_token):
            token[:, 0] = token[:, 1]  # π³ has no first frame
        assert torch.equal(model.encode_frames(images).flatten(0, 1), pi3.encode(images))
        recorded = []
        pi3.decode(pi3.encode(images), 3, (2, 2), recorded=recorded)
        found = model(images, mask_alpha=0.0, output_hidden_states=True).hidden_states
        for layer in range(3):
            inside, across = found[layer].chunk(2, -1)
            assert torch.allclose(inside, recorded[2 * layer + 1], atol=1e-4)
            assert torch.allclose(across, recorded[2 * layer + 2], atol=1e-4)


def test_page4d_begins_to_learn_cameras_at_once(folders, tmp_path):
    """The first frame is told from the others, fields of view have a gradient, and a seed gives the same weights."""
    model = Page4DModel.from_pretrained(folders["tiny/page4d"])
    first, others = model.aggregator.camera_token.detach()[0]
    assert (first - others).norm() > 1
    outputs = model(**page4d_inputs(None)([GeometryClips(1, size=28, moments=(3, 3))[0]]))
    outputs.losses["camera_fov"].backward()
    assert model.camera_head.pose_branch.fc2.weight.grad[7:].abs().sum(1).min() > 0
    page4d_from_pi3(folders, tmp_path / "again", size=28, **SETTINGS)
    again, model = Page4DModel.from_pretrained(tmp_path / "again").state_dict(), model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.items())


def test_models_train_on_their_inputs_and_are_measured(folders):
    clips = GeometryClips(1, size=28, moments=(2, 2), views=2)
    for kind, rows in (("tiny/page4d", GeometryClips(1, size=28, moments=(3, 3))), ("multiview", clips)):
        model, rows = Page4DModel.from_pretrained(folders[kind]), [rows[0], rows[1]]
        batch = page4d_inputs(None)(rows)
        outputs = model(**batch)
        outputs.loss.backward()
        assert {"mask", "camera", "depth_regression"} <= set(outputs.losses)
        assert model.encoder.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
        found = measure(model, None, rows, batch, outputs)
        assert len(found["abs_rel"]) == 2 and found["mask_iou"][0] <= found["mask_iou"][1]
        pairs = 3 if kind == "tiny/page4d" else 6
        assert len(found["rotation_error_median"]) == len(found["still_camera_median"]) == 2 * pairs
        batch["depths"][0] = 0.0  # held-out data may know no depth of a window
        assert len(measure(model, None, rows, batch, outputs)["abs_rel"]) == 1
        assert len(show(model.eval(), None, rows, batch)) == 1


@pytest.mark.slow
def test_miniature_recipe_lowers_its_loss_and_beats_a_constant(tmp_path):
    """Half a minute of `tiny/pi3` on small pictures: depth is better than the best constant."""
    small = {
        "width": 64,
        "encoder_layers": 2,
        "layers": 4,
        "heads": 2,
        "head_width": 64,
        "size": 28,
        "camera_loss_weight": 0.1,
    }
    recipe = load_recipe("tiny/pi3").changed(
        {
            "coarse:model.options": small,
            "coarse:data.options": {"size": 28, "moments": [2, 2], "group": 8},
            "coarse:evaluation.options": {"size": 28, "moments": [2, 2]},
            "coarse:evaluation.count": 16,
            "coarse:max_steps": 80,
            "coarse:per_device_train_batch_size": 8,
            "coarse:warmup_steps": 10,
            "coarse:logging_steps": 20,
            "coarse:eval_steps": 80,
            "coarse:save_steps": 80,
            "coarse:dataloader_num_workers": 0,
        }
    )
    recipe.stages = recipe.stages[:1]
    trained = train(recipe, tmp_path / "out")
    losses = [
        float(line.split('"loss":')[1].split(",")[0].strip("} \n"))
        for line in (tmp_path / "out/coarse/log.jsonl").open()
        if '"loss":' in line
    ]
    assert losses[-1] < 0.7 * losses[0]
    assert trained.metrics["abs_rel_ratio"] > 1.5  # the best constant has 1.0
