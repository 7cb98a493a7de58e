"""Pipelines of a repository with tiny models: `image-text-to-text`, and the custom ones that its configurations
name."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from dsr_toolkit.loading import load
from modeling_dsr.cad_solids import TriangleMesh
from tests.convert_weights import repositories
from tests.hub import samples


def picture(seed: int = 0, size=(72, 56)) -> Image.Image:
    return Image.open(io.BytesIO(samples.picture(seed, size)))


def build(repository, task: str, name: str):
    """A pipeline of a model in a subfolder, with the code of the repository's root."""
    processor = AutoProcessor.from_pretrained(repository, subfolder=name, trust_remote_code=True)
    options = {"trust_remote_code": True, "model_kwargs": {"subfolder": name}} if name else {"trust_remote_code": True}
    return pipeline(
        task, model=str(repository), processor=processor, tokenizer=getattr(processor, "tokenizer", None), **options
    )


def chat(image, text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def test_image_text_to_text_of_dsr(repository):
    pipe = pipeline("image-text-to-text", model=str(repository), trust_remote_code=True)
    image, question = picture(1, (68, 60)), "Does it come nearer?"
    (found,) = pipe(
        text=chat(image, question), return_full_text=False, generate_kwargs={"max_new_tokens": 6, "do_sample": False}
    )
    inputs = pipe.processor.apply_chat_template(
        chat(image, question), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    expected = pipe.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert found["generated_text"] == pipe.processor.decode(expected, skip_special_tokens=True)


def test_image_text_to_text_of_cadrille(repository):
    pipe = build(repository, "image-text-to-text", "cadrille")
    views = picture(2, (268, 268))
    inputs = pipe.processor(images=views)
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = pipe.processor.decode_programs(pipe.model.generate(**inputs, **options), inputs["input_ids"].shape[1])[0]
    for arguments in ({"images": views, "text": pipe.processor.prompt}, {"text": chat(views, pipe.processor.prompt)}):
        (found,) = pipe(**arguments, return_full_text=False, generate_kwargs=options)
        assert found["generated_text"].strip("\n").endswith(expected)


def test_cadrille_takes_one_turn_alone(repository):
    processor = AutoProcessor.from_pretrained(repository, subfolder="cadrille", trust_remote_code=True)
    turns = chat(picture(), "Draw it") + chat(picture(), "Draw it again")
    with pytest.raises(ValueError, match="one turn of the user"):
        processor.apply_chat_template(turns, tokenize=True)


@pytest.mark.parametrize("name", ["pi3", "page4d"])
def test_scene_reconstruction(repository, name):
    pipe = build(repository, "scene-reconstruction", name)
    if name == "pi3":
        pipe.processor.pixel_limit = 56 * 72  # of the pictures, which would be enlarged to 255 000
    images = [picture(seed) for seed in range(2)]
    scene = pipe(images, confidence_threshold=0.2)
    inputs = pipe.processor(images)
    with torch.no_grad():
        outputs = pipe.model(inputs["pixel_values"])
    expected = pipe.processor.post_process_geometry(
        outputs, inputs["original_sizes"], inputs["image_boxes"], confidence_threshold=0.2
    )[0]
    torch.testing.assert_close(scene.points, expected.points)
    assert scene.mask.any()
    assert scene.depth.shape == (2, 56, 72) and torch.equal(scene.mask, expected.mask)
    with pytest.raises(ValueError, match="no options"):
        pipe(images, frames=3)


def test_scene_reconstruction_of_a_video(repository, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(samples.video())
    assert len(build(repository, "scene-reconstruction", "page4d")(str(tmp_path / "clip.mp4"), num_frames=3).depth) == 3


def test_phrase_segmentation(repository):
    pipe = build(repository, "phrase-segmentation", "frozen_qwen_sam")
    found = pipe(picture(), phrases=["the red block", "a wall"])
    assert found["phrases"] == ["the red block", "a wall"] and found["masks"].shape == (2, 56, 72)
    answered = pipe(picture(), question="What is it?", max_new_tokens=6)
    word = answered["answer"].split()[0]
    assert answered["phrases"] == [] or answered["masks"].shape[1:] == (56, 72)
    named = pipe(picture(), question="What is it?", phrases=[word], max_new_tokens=6)
    assert named["answer"] == answered["answer"] and named["masks"].shape == (1, 56, 72)
    with pytest.raises(ValueError, match="`phrases`"):
        pipe(picture())


@pytest.mark.parametrize("name", ["cadrille", "cad_recode"])
def test_cad_generation(repository, name):
    pipe = build(repository, "cad-generation", name)
    points = np.array(samples.points(), np.float32)
    programs = pipe(points=points, max_new_tokens=6)
    inputs = pipe.processor(point_clouds=[points])
    expected = pipe.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert programs == pipe.processor.decode_programs(expected, inputs["input_ids"].shape[1])
    assert len(pipe(points=points, max_new_tokens=3, do_sample=True, num_return_sequences=3)) == 3
    mesh = TriangleMesh(np.eye(4, 3), np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]))
    assert len(pipe(mesh=mesh, max_new_tokens=3)) == 1
    with pytest.raises(ValueError, match="Pass one of"):
        pipe(points=points, text="A plate")


PIPELINES = {
    "pi3": ("scene-reconstruction", "geometry_pipeline.SceneReconstructionPipeline"),
    "page4d": ("scene-reconstruction", "geometry_pipeline.SceneReconstructionPipeline"),
    "frozen_qwen_sam": ("phrase-segmentation", "frozen_qwen_sam_pipeline.PhraseSegmentationPipeline"),
    "cadrille": ("cad-generation", "cad_pipeline.CadGenerationPipeline"),
    "cad_recode": ("cad-generation", "cad_pipeline.CadGenerationPipeline"),
}


@pytest.mark.parametrize("name", list(PIPELINES))
def test_a_saved_model_gives_its_pipeline_as_the_original_does(name, tmp_path):
    """`save_pretrained` of model and processor alone, as `Trainer` does it."""
    task, implementation = PIPELINES[name]
    folder = repositories.folders()[name]
    model, processor = load(str(folder), name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"][task]["impl"] == implementation
    again = pipeline(task, model=str(tmp_path), trust_remote_code=True)
    original = pipeline(task, model=str(folder), trust_remote_code=True)
    assert type(again).__name__ == type(original).__name__ == implementation.split(".")[1]
    assert type(model.as_pipeline(processor)).__name__ == type(again).__name__
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), original.model.parameters()))


def test_a_pipeline_travels_with_what_it_saves(repository, tmp_path):
    pipe = build(repository, "scene-reconstruction", "pi3")
    pipe.save_pretrained(tmp_path)
    again = pipeline("scene-reconstruction", model=str(tmp_path), trust_remote_code=True)
    images = [picture()]
    expected = pipe(images).depth
    torch.testing.assert_close(again(images).depth, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
