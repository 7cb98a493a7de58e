"""The pipeline `cad-generation` of Cadrille and CAD-Recode."""

from .spatial_pipeline import SpatialPipeline


class CadGenerationPipeline(SpatialPipeline):
    """
    CadQuery programs for one part.

    Calling it takes one of `mesh` (file or [`TriangleMesh`]), `points` `[P, 3]`, `images` (a picture of views, or a
    list of 1, 2 or 4) or `text`; CAD-Recode takes the first two. It returns a list of programs as text, which nobody
    has checked or run. Options: `normalization` and `seed` of the processor, `modality="views"` to show a mesh, and
    those of `generate`: `max_new_tokens` (default 768), `do_sample`, `num_return_sequences`, `temperature`, `top_p`.
    """

    PREPROCESS = ("normalization", "seed", "modality")
    FORWARD = ("max_new_tokens", "do_sample", "num_return_sequences", "temperature", "top_p")
    NAMES = {"mesh": "meshes", "points": "point_clouds", "images": "images", "text": "text"}

    def __call__(self, mesh=None, points=None, images=None, text=None, **options):
        parts = {"mesh": mesh, "points": points, "images": images, "text": text}
        given = {name: part for name, part in parts.items() if part is not None}
        if len(given) != 1:
            raise ValueError(f"Pass one of {', '.join(parts)}; got {', '.join(given) or 'none of them'}.")
        ((name, part),) = given.items()
        return super().__call__({self.NAMES[name]: [part]}, **options)

    def preprocess(self, inputs, **options):
        return self.processor(**inputs, **options)

    def _forward(self, inputs, **options):
        if not options.get("do_sample"):
            options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
        sequences = self.model.generate(**inputs, **{"max_new_tokens": 768, **options})
        return {"sequences": sequences, "prompt_length": inputs["input_ids"].shape[1]}

    def postprocess(self, result):
        return self.processor.decode_programs(**result)
