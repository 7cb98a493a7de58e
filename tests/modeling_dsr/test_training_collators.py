"""
`processor.training_collator()` of every architecture: rows to inputs on which the model's loss is taken, and nothing
    else.
"""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Trainer, TrainingArguments

from dsr_toolkit.tiny import hub_folder
from dsr_toolkit.training import make_model
from modeling_dsr.cad_solids import TriangleMesh, farthest_point_sample
from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS
from modeling_dsr.training_collator import without_none
from tests.modeling_dsr.cad_samples import CUBE_CORNERS, CUBE_FACES

PIXELS = 56 * 84  # of the pictures below; by its rule "pi3" a processor would enlarge them to 255 000


def box(x: float) -> TriangleMesh:
    """Around the origin, 2x by 2 by 2."""
    return TriangleMesh((2 * CUBE_CORNERS - 1) * [x, 1, 1], CUBE_FACES)


def frames(count: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 56, 84, 3), dtype=np.uint8)


def scene_row(seed: int, **more) -> dict:
    generator = np.random.default_rng(seed)
    turn, pose = np.linalg.qr(generator.normal(size=(3, 3, 3)))[0], np.tile(np.eye(4), (3, 1, 1))
    pose[:, :3, :3] = turn * np.sign(np.linalg.det(turn))[:, None, None]
    pose[:, :3, 3] = generator.normal(size=(3, 3))
    intrinsics = np.tile([[60.0, 0, 42], [0, 60.0, 28], [0, 0, 1]], (3, 1, 1))
    depths = generator.uniform(1, 4, (3, 56, 84)).astype(np.float32)
    depths[:, :3] = np.nan
    return {"images": list(frames(3, seed)), "depths": depths, "intrinsics": intrinsics, "poses": pose, **more}


def cameras(seed: int = 0) -> dict:
    pictures = frames(6, seed)
    eye = np.eye(4)
    eye[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return {
        "images": {name: Image.fromarray(picture) for name, picture in zip(SCENE_CAMERAS, pictures)},
        "cam_intrinsics": {name: [[60.0, 0, 42], [0, 60.0, 28], [0, 0, 1]] for name in SCENE_CAMERAS},
        "cam_extrinsics": {name: eye.tolist() for name in SCENE_CAMERAS},
    }


def rows_of(kind: str) -> list[dict]:
    if kind == "dsr":
        return [
            {
                "video": frames(),
                "fps": 2.0,
                "question": "Does the red ball come nearer?",
                "answer": "yes",
                "image": None,
            },
            {"video": frames(4, 1), "fps": 2.0, "question": "What moves?", "answer": "the blue box turns right"},
        ]
    if kind in ("pi3", "page4d"):
        return [scene_row(0), scene_row(1)]
    if kind == "frozen_qwen_sam":
        masks = np.zeros((2, 56, 84), bool)
        masks[0, :20], masks[1, 30:] = True, True
        return [
            {"image": Image.fromarray(frames(1)[0]), "phrases": ["the red ball", "a box"], "masks": masks},
            {
                "image": Image.fromarray(frames(1, 1)[0]),
                "phrases": ["a tree"],
                "masks": masks[:1],
                "caption": "there is a tree",
            },
        ]
    if kind == "cadrille":
        return [
            {"mesh": box(2), "program": "r = box(2, 1, 1)"},
            {"views": [picture[:56, :56] for picture in frames(4)], "program": "r = box(1, 1, 1)\nr = r.cut(x)"},
            {"text": "a box", "program": "r = box(3, 1, 1)"},
        ]
    if kind == "cad_recode":
        return [
            {"mesh": box(2), "program": "r = box(2, 1, 1)"},
            {"cloud": np.random.default_rng(0).normal(size=(400, 3)), "program": "r"},
        ]
    return [
        {**cameras(), "question": "Is there a car ahead?", "answer": "yes"},
        {**cameras(1), "question": "What is behind?", "answer": "a bus that stands still"},
    ]


KINDS = ("dsr", "pi3", "page4d", "frozen_qwen_sam", "cadrille", "cad_recode", "scene_qformer")


@pytest.fixture(scope="module")
def processors():
    found = {kind: AutoProcessor.from_pretrained(hub_folder(kind)) for kind in KINDS}
    found["pi3"].pixel_limit = PIXELS
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_trains_on_what_comes_out(kind, processors):
    model, processor = make_model({"path": str(hub_folder(kind))}, {})
    batch = processor.training_collator()(rows_of(kind))
    loss = model.train()(**batch).loss
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None and p.grad.any() for p in model.parameters())


def answers(processor, batch) -> list[str]:
    rows = [labels[labels != -100] for labels in batch["labels"]]
    return [processor.tokenizer.decode(row, skip_special_tokens=False) for row in rows]


def test_labels_of_dsr_are_the_assistants_turns(processors):
    processor = processors["dsr"]
    batch = processor.training_collator()(rows_of("dsr"))
    assert answers(processor, batch) == ["yes<|im_end|>\n", "the blue box turns right<|im_end|>\n"]
    chat = [
        {"role": "user", "content": [{"type": "video", "video": None}, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": "The ball."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Nothing."}]},
    ]
    row = {"messages": chat, "videos": [frames()], "question": None}
    batch = processor.training_collator()([row])
    assert answers(processor, batch) == ["The ball.<|im_end|>\nNothing.<|im_end|>\n"]
    assert len(batch["video_grid_thw"]) == 1  # Arrow's None is no second video


def test_labels_of_programs_and_of_scenes_are_the_answers(processors):
    batch = processors["cadrille"].training_collator()(rows_of("cadrille"))
    assert [text.strip() for text in answers(processors["cadrille"], batch)] == [
        f"{row['program']}<|im_end|>" for row in rows_of("cadrille")
    ]
    batch = processors["cad_recode"].training_collator()(rows_of("cad_recode"))
    assert answers(processors["cad_recode"], batch) == [f"{r['program']}<|endoftext|>" for r in rows_of("cad_recode")]
    processor = processors["scene_qformer"]
    batch = processor.training_collator()(rows_of("scene_qformer"))
    end = processor.tokenizer.eos_token
    found = [answer.strip() for answer in answers(processor, batch)]
    assert found == [f"yes{end}", f"a bus that stands still{end}"]


@pytest.mark.parametrize(
    "kind, row, message",
    [
        ("dsr", {"question": "What?", "answer": ""}, None),
        ("dsr", {"video": frames(), "fps": 2.0, "question": "What?"}, "lacks \\['answer'\\]"),
        ("dsr", {"messages": [{"role": "user", "content": "Hello"}]}, "no supervised token"),
        ("pi3", {**scene_row(0), "extrinsics": np.zeros((3, 3, 4))}, 'either "poses"'),
        ("pi3", {**scene_row(0), "depths": np.zeros((3, 56, 84))}, "no known depth"),
        (
            "frozen_qwen_sam",
            {"image": frames(1)[0], "phrases": ["a", "b"], "masks": np.ones((1, 4, 4))},
            "2 phrases and 1 masks",
        ),
        ("cad_recode", {"text": "a box", "program": "r"}, "CAD-Recode reads"),
        ("cadrille", {"mesh": box(1)}, "lacks \\['program'\\]"),
        ("scene_qformer", {**cameras(), "question": "What?"}, "`answer` to"),
    ],
)
def test_rows_that_teach_nothing_are_refused(kind, row, message, processors):
    if message is None:  # an empty answer still has its end token
        processors[kind].training_collator()([row])
        return
    with pytest.raises(ValueError, match=message):
        processors[kind].training_collator()([row])


@pytest.mark.parametrize("kind", ["pi3", "page4d"])
def test_cameras_may_be_given_either_way_round(kind, processors):
    row = scene_row(0)
    other = {name: value for name, value in row.items() if name != "poses"}
    other["extrinsics"] = np.linalg.inv(row["poses"])[:, :3]
    collate = processors[kind].training_collator()
    for name, value in collate([row]).items():
        torch.testing.assert_close(collate([other])[name], value, atol=2e-5, rtol=1e-5)


def test_targets_of_pi3_project_back_onto_their_pixels(processors):
    row = scene_row(3)
    batch = processors["pi3"].training_collator()([row])
    data = processors["pi3"](row["images"], depths=row["depths"], intrinsics=row["intrinsics"], poses=row["poses"])
    into = torch.linalg.inv(batch["target_camera_poses"])
    local = torch.einsum("bnij,bnhwj->bnhwi", into[..., :3, :3], batch["target_points"]) + into[..., None, None, :3, 3]
    pixels = torch.einsum("bnij,bnhwj->bnhwi", data["intrinsics"], local)
    height, width = local.shape[2:4]
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
    valid = batch["target_valid"]
    error = pixels[..., :2] / pixels[..., 2:] - grid
    assert (error[valid] - error[valid].mean(0)).abs().max() < 1e-3 and error[valid].mean(0).abs().max() <= 0.5 + 1e-3
    assert not valid[..., 0, :].any()  # NaN is unknown


def test_noise_is_fresh_at_every_call_and_repeats_with_the_rows_seed(processors):
    collate = processors["cad_recode"].training_collator(noise_probability=1.0)
    rows = rows_of("cad_recode")
    first, second = (collate(rows)["point_cloud"] for _ in range(2))
    assert not torch.equal(first, second)
    seeded = [{**row, "seed": i} for i, row in enumerate(rows)]
    assert torch.equal(collate(seeded)["point_cloud"], collate(seeded)["point_cloud"])


@pytest.mark.parametrize("kind", KINDS)
def test_collators_are_pickled_to_spawned_workers(kind, processors):
    collate = pickle.loads(pickle.dumps(processors[kind].training_collator()))
    assert type(collate) is type(processors[kind].training_collator())


@pytest.mark.slow
def test_noise_differs_between_spawned_workers_and_epochs(processors):
    rows = rows_of("cad_recode")
    loader = torch.utils.data.DataLoader(
        [rows[0]] * 4,
        batch_size=1,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context("spawn"),
        collate_fn=processors["cad_recode"].training_collator(noise_probability=1.0),
    )
    clouds = [batch["point_cloud"] for _ in range(2) for batch in loader]
    assert len({cloud.numpy().tobytes() for cloud in clouds}) == 8


def test_arrows_gaps_are_dropped_at_any_depth():
    row = {"video": None, "messages": [{"role": "user", "content": [{"type": "video", "video": None, "text": None}]}]}
    assert without_none(row) == {"messages": [{"role": "user", "content": [{"type": "video"}]}]}


def test_a_mesh_of_other_code_is_a_mesh(processors):
    twin = type("TriangleMesh", (), {"vertices": box(2).vertices, "faces": box(2).faces})()
    ours, theirs = (processors["cadrille"](meshes=mesh)["point_clouds"] for mesh in (box(2), twin))
    assert torch.equal(ours, theirs)


def test_cadrille_reads_a_conversation_with_its_answer(processors):
    processor = processors["cadrille"]
    picture = Image.fromarray(frames(1)[0][:56, :56])
    user = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}
    answer = {"role": "assistant", "content": "r = box(1, 1, 1)"}
    batch = processor.apply_chat_template([user, answer], tokenize=True, return_dict=True, padding=True)
    assert answers(processor, batch)[0].strip() == "r = box(1, 1, 1)<|im_end|>"
    with pytest.raises(ValueError, match="one turn of the user"):
        processor.apply_chat_template([user, answer, user], tokenize=True)


def farthest_by_definition(cloud: np.ndarray, count: int) -> list[int]:
    chosen, nearest = [0], np.full(len(cloud), np.inf, cloud.dtype)
    for _ in range(count - 1):
        difference = (cloud - cloud[chosen[-1]]) ** 2
        nearest = np.minimum(nearest, difference[:, 0] + difference[:, 1] + difference[:, 2])
        chosen.append(int(nearest.argmax()))
    return chosen


def test_farthest_points_are_those_of_the_definition():
    """Ties and all, of several clouds at once: each the farthest from those before, the lowest index among equals."""
    generator = np.random.default_rng(0)
    clouds = generator.normal(size=(3, 1500, 3)).astype(np.float32)
    clouds[1] = generator.integers(0, 8, (1500, 3))  # many ties and repeats
    clouds[2, :1400] *= 1e-3  # a knot: beyond the hundred points outside, distances fall at once
    for wanted in (clouds, clouds.astype(np.float64)):
        found = farthest_point_sample(torch.from_numpy(wanted), 200)
        assert found.tolist() == [farthest_by_definition(cloud, 200) for cloud in wanted]
    few = generator.integers(0, 2, (1, 300, 3)).astype(np.float32)  # eight places, all used up soon
    assert farthest_point_sample(torch.from_numpy(few), 200).tolist() == [farthest_by_definition(few[0], 200)]


@pytest.mark.parametrize("kind", ["pi3", "page4d", "scene_qformer"])
def test_a_plain_trainer_has_an_evaluation_loss(kind, tmp_path):
    """The collator says which inputs are targets; Trainer itself looks for names with "label" and wants them all."""
    model, processor = make_model({"path": str(hub_folder(kind))}, {})
    if kind == "pi3":
        processor.pixel_limit = PIXELS
    collate = processor.training_collator()
    arguments = TrainingArguments(
        str(tmp_path), label_names=list(collate.label_names), use_cpu=True, remove_unused_columns=False,
        report_to="none", per_device_eval_batch_size=1, prediction_loss_only=True, disable_tqdm=True,
    )  # fmt: skip
    rows = [{**row, "seed": 0} for row in rows_of(kind)]
    found = Trainer(model, arguments, data_collator=collate, eval_dataset=rows).evaluate()["eval_loss"]
    with torch.no_grad():
        losses = [model.eval()(**collate([row])).loss.item() for row in rows]
    assert found == pytest.approx(np.mean(losses), rel=1e-3)


def test_packed_rows_have_the_loss_of_padded_ones(processors):
    model, processor = make_model({"path": str(hub_folder("dsr"))}, {})
    rows = rows_of("dsr")
    packed = processor.training_collator(packed=True)(rows)
    assert len(packed["input_ids"]) == 1 and packed["attention_mask"].unique().tolist() == [1, 2]
    with torch.no_grad():
        expected = model.eval()(**processor.training_collator()(rows)).loss
        assert model(**packed).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_assistant_masks_need_no_marks_in_the_template(processors):
    """The published chat template marks no generation; the mask then follows the chat's own markers."""
    processor = processors["dsr"]
    template = processor.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A ball."}]},
    ]
    encoded = processor.apply_chat_template(
        chat, chat_template=template, tokenize=True, return_dict=True, return_tensors="pt",
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    answer = encoded["input_ids"][0][encoded["assistant_masks"][0].bool()]
    assert processor.tokenizer.decode(answer) == "A ball.<|im_end|>\n"
