"""The pipeline `scene-reconstruction` of π³ and PAGE-4D."""

from .spatial_pipeline import SpatialPipeline


class SceneReconstructionPipeline(SpatialPipeline):
    """
    Cameras, depth and points of scenes.

    Calling it takes a scene as [`GeometryProcessor`] does (a folder, a video file, or a list of images) and returns a
    [`SceneGeometry`]; of a list of scenes (two videos, lists of images), a list of them.
    Options: `interval`, `fps`, `num_frames` say which frames; those of `post_process_geometry`.
    """

    PREPROCESS = ("interval", "fps", "num_frames")
    POSTPROCESS = (
        "confidence_threshold", "edge_tolerance", "center_principal_point", "first_camera", "point_source"
    )  # fmt: skip

    def __call__(self, scene, **options):
        if self.processor.are_scenes(scene):
            return super().__call__([{"scene": one} for one in scene], **options)
        return super().__call__({"scene": scene}, **options)

    def preprocess(self, inputs, **options):
        return self.processor(inputs["scene"], **options)

    def _forward(self, inputs):
        outputs = self.model(inputs["pixel_values"])
        kept = {name: inputs[name] for name in ("original_sizes", "image_boxes", "opaque") if name in inputs}
        return {"outputs": outputs, **kept}

    def postprocess(self, result, **options):
        return self.processor.post_process_geometry(**result, **options)[0]
