"""The task `reconstruct`: cameras, depth and points of images or a video."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from .files_out import as_base64, as_npy, points_glb
from .request import Field, RequestError
from .task import MODEL, SEED, Job, Task


class Reconstruct(Task):
    NAME = "reconstruct"
    ABOUT = "Cameras, depth and coloured points of a scene, from images or a video."
    MODEL_TYPES = ("pi3", "page4d")
    OUTPUTS = ("glb", "depth", "points", "confidence", "mask", "dynamic")
    INPUTS = {
        "video": Field("file", "a video file"),
        "images": Field("files", "image files of one scene"),
    }
    PARAMETERS = {
        "num_frames": Field("integer", "frames taken of the video, evenly spread", 16, 1, "frames"),
        "outputs": Field("texts", "what to return beside the cameras", ("glb",), choices=OUTPUTS),
        "views": Field("integer", "so many images at a time are synchronised views of one moment", None, 1, "images"),
        "confidence": Field("number", "points below it are left out of glb and mask", 0.1, 0, 1),
        "edge_tolerance": Field("number", "so are points where depth jumps by this part; 0 keeps them", 0.03, 0, 1e6),
        "max_points": Field("integer", "of the glb file", 100_000, 1, "points"),
        "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        processor = self.endpoint.processor(model)
        files = self.files(processor)
        if self.one_of(inputs, ("video", "images")) == "video":
            count = min(parameters["num_frames"], self.limits.frames)
            choose = processor.choose_frames
            frames, facts = files.video("inputs.video", inputs["video"], lambda total: choose(total, 1, count))
            images, numbers = [Image.fromarray(frame) for frame in frames], facts["indices"]
        else:
            images = files.images_of("inputs.images", inputs["images"], alpha=True)
            numbers = list(range(len(images)))
            if len(images) > self.limits.frames:
                raise RequestError("too_large", f"`inputs.images` holds more than {self.limits.frames} frames.")
        views = parameters["views"]
        if views is not None and len(images) % views:
            raise RequestError("invalid_input", f"{len(images)} images are no whole number of times {views} views.")
        with self.endpoint.processing(model):
            encoded = dict(processor(images))
        if views is not None and self.endpoint.knows_views(model):  # others see them as one sequence
            encoded["pixel_values"] = encoded["pixel_values"].unflatten(1, (-1, views))
        # Maps at the size at which the model sees the frames, never enlarged.
        boxes, sizes = encoded.pop("image_boxes"), encoded.pop("original_sizes")
        seen = (boxes[..., 2:] - boxes[..., :2]).flip(-1).round().to(sizes.dtype)
        sizes = sizes.minimum(seen.clamp_min(1))
        media = {"opaque": encoded.pop("opaque", None), "numbers": numbers, "boxes": boxes, "sizes": sizes}
        if "glb" in parameters["outputs"]:  # the originals are not kept: colours at the size of the maps are
            sides = [size[::-1] for size in sizes.reshape(-1, 2).tolist()]
            resize, method = processor.resize_image, Image.Resampling.LANCZOS
            media["colours"] = [
                np.asarray(resize(one.convert("RGB"), tuple(side), method)) for one, side in zip(images, sides)
            ]
        shape = tuple(encoded["pixel_values"].shape)
        return Job(self.NAME, model, (self.NAME, model, shape), encoded, parameters, media, cost=len(images))

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        with torch.inference_mode():
            outputs = model(torch.cat([job.inputs["pixel_values"] for job in jobs]).to(model.device))
        rows = {
            name: value
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and len(value) == len(jobs)
        }
        return [
            {name: value[number : number + 1].clone() for name, value in rows.items()} for number in range(len(jobs))
        ]

    def finish(self, job, result):
        processor, parameters, media = self.endpoint.processor(job.model), job.parameters, job.media
        (scene,) = processor.post_process_geometry(
            result, media["sizes"], media["boxes"], confidence_threshold=parameters["confidence"],
            edge_tolerance=parameters["edge_tolerance"] or None, first_camera=True, opaque=media["opaque"],
        )  # fmt: skip
        frames = []
        for number, index in enumerate(media["numbers"]):
            height, width = scene.depth[number].shape
            frame = {
                "index": index, "width": width, "height": height,
                "camera_to_world": scene.camera_poses[number].tolist(), "intrinsics": scene.intrinsics[number].tolist(),
            }  # fmt: skip
            maps = {"depth": scene.depth, "points": scene.points, "confidence": scene.confidence, "mask": scene.mask}
            maps["dynamic"] = scene.dynamic_mask
            for name in parameters["outputs"]:
                if maps.get(name) is not None:
                    frame[name] = as_npy(maps[name][number])
            frames.append(frame)
        answer = {"frames": frames, "points": int(sum(mask.sum() for mask in scene.mask))}
        if "glb" in parameters["outputs"]:
            answer["glb"] = as_base64(points_glb(*self.cloud(scene, media["colours"], parameters)))
        return answer

    @staticmethod
    def cloud(scene, pictures: list[np.ndarray], parameters) -> tuple[np.ndarray, np.ndarray]:
        """Trusted points and their colours, at most `max_points`, evenly drawn."""
        masks = [mask.cpu().numpy() for mask in scene.mask]
        points = np.concatenate([points.cpu().numpy()[mask] for points, mask in zip(scene.points, masks)])
        colours = np.concatenate([pixels[mask] for pixels, mask in zip(pictures, masks)])
        if len(points) > parameters["max_points"]:
            generator = np.random.default_rng(parameters["seed"])
            chosen = np.sort(generator.choice(len(points), parameters["max_points"], replace=False))
            points, colours = points[chosen], colours[chosen]
        return points, colours
