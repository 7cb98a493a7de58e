"""The task `cad`: CadQuery programs from points, meshes, views or a description."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from .files_in import Files
from .files_out import as_base64, as_png, as_stl
from .generation import Row, pad_rows, until_stop
from .request import Field, RequestError, read_fields
from .task import MODEL, SEED, STOP, TOP_P, Job, Task, new_tokens_field
from .toolkit import import_toolkit

NORMALIZATIONS = ("fit", "unit_cube", "program", "none")


class Cad(Task):
    NAME = "cad"
    ABOUT = "CadQuery programs for a part that is given as points, a mesh, views or a text."
    MODEL_TYPES = ("cadrille", "cad_recode")
    INPUTS = {
        "points": Field("cloud", "points of the surface: rows of x, y, z, or a .npy file"),
        "stl": Field("file", "a binary STL file"),
        "mesh": Field("object", '{"vertices": rows of x, y, z, "faces": rows of three vertex numbers}'),
        "images": Field("files", "one picture of 1, 2 or 4 views, or these views (Cadrille)"),
        "text": Field("text", "a description of the part (Cadrille)"),
    }
    PARAMETERS = {
        "candidates": Field("integer", "programs: the likeliest one, then sampled ones", 1, 1, "candidates"),
        "likeliest": Field("flag", "whether the first program is the likeliest one; else all are sampled", True),
        "temperature": Field("number", "of the sampled ones", 1.0, 1e-3, 10),
        "top_p": Field("number", TOP_P.about, 0.95, 1e-6, 1),
        "max_new_tokens": new_tokens_field(768), "stop": STOP,
        "normalization": Field("text", "how points get into the model's frame", "fit", choices=NORMALIZATIONS),
        "execute": Field("flag", "run the programs in a sandbox; return the closest solid as STEP and STL", False),
        "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        kind, processor = self.one_of(inputs, tuple(self.INPUTS)), self.endpoint.processor(model)
        files = self.files(processor)
        self.check_stop(parameters)
        if kind in ("images", "text") and self.endpoint.models[model] == "cad_recode":
            raise RequestError(
                "invalid_input", f"CAD-Recode reads points alone, not `inputs.{kind}`; choose a Cadrille model."
            )
        target = None
        if kind == "points":
            target = files.array("inputs.points", inputs["points"], 3, self.limits.points).astype(np.float32)
            sample = {"point_clouds": [target]}
        elif kind in ("stl", "mesh"):
            if kind == "stl":
                vertices, faces = files.stl("inputs.stl", inputs["stl"])
            else:
                vertices, faces = self.mesh(files, inputs["mesh"])
            target = processor.as_mesh(vertices, faces)
            sample = {"meshes": [target]}
        elif kind == "images":
            views = files.images_of("inputs.images", inputs["images"])
            sample = {"images": [views[0] if len(views) == 1 else views]}
        else:
            if not inputs["text"].strip():
                raise RequestError("bad_request", "`inputs.text` is empty.")
            self.check_words(processor, inputs["text"])
            sample = {"text": [inputs["text"]]}
        if parameters["execute"]:
            self.endpoint.sandbox()  # says now if there is none
        with self.endpoint.processing(model):
            options = {} if kind in ("images", "text") else {"normalization": parameters["normalization"]}
            encoded = dict(processor(**sample, seed=parameters["seed"], **options))
        self.check_prompt(encoded)
        grid = tuple(encoded["video_grid_thw"][0].tolist()) if "video_grid_thw" in encoded else None
        key = (self.NAME, model, grid, "point_clouds" in encoded, self.pace(parameters))
        return Job(
            self.NAME, model, key, encoded, parameters, {"target": target},
            cost=parameters["candidates"], length=parameters["max_new_tokens"],
        )  # fmt: skip

    def mesh(self, files: Files, given: dict) -> tuple[np.ndarray, np.ndarray]:
        known = {"vertices": Field("cloud", "rows of x, y, z"), "faces": Field("cloud", "rows of three vertex numbers")}
        parts = read_fields("inputs.mesh", given, known, self.limits)
        if parts["vertices"] is None or parts["faces"] is None:
            raise RequestError("bad_request", "`inputs.mesh` must hold vertices and faces.")
        vertices = files.array("inputs.mesh.vertices", parts["vertices"], 3, self.limits.points)
        return vertices, files.array("inputs.mesh.faces", parts["faces"], 3, self.limits.points, kind="i")

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        inputs = self.collate([job.inputs for job in jobs], [job.cost for job in jobs], model.device)
        rows = []
        for job in jobs:
            likeliest = {**job.parameters, "temperature": 0.0}
            for number in range(job.cost):
                chosen = job.parameters if number or not job.parameters["likeliest"] else likeliest
                rows.append(Row(self.sampling(chosen, number), job.listener, number))
        answers = iter(self.write(model, jobs[0].model, inputs, rows))
        return [[next(answers) for _ in range(job.cost)] for job in jobs]

    @staticmethod
    def collate(several: list[dict], times: list[int], device) -> dict:
        """Left-padded rows, each as often as its request wants candidates."""
        joined = {}
        for name in several[0]:
            values = [one[name].expand(count, *one[name].shape[1:]) for one, count in zip(several, times)]
            if name in ("input_ids", "attention_mask", "point_token_mask"):
                filling = None if name == "input_ids" else 0
                joined[name] = pad_rows([row[None] for value in values for row in value], filling)
            else:
                joined[name] = torch.cat(values)
        return {name: value.to(device) for name, value in joined.items()}

    def text(self, processor, tokens, parameters):
        program = processor.decode_programs(torch.tensor([tokens]).long().view(1, -1))[0]
        return until_stop(program, tuple(parameters.get("stop") or ()))

    def finish(self, job, result):
        processor = self.endpoint.processor(job.model)
        with self.endpoint.processing(job.model):
            programs = [self.text(processor, tokens, job.parameters) for tokens, _ in result]
        answer = {
            "programs": programs,
            "tokens": [tokens for tokens, _ in result],
            "finished": [end for _, end in result],
            "prompt_tokens": job.inputs["input_ids"].shape[1],
        }
        if job.parameters["execute"]:
            answer["execution"] = self.execute(programs, job)
        return answer

    def execute(self, programs: list[str], job: Job) -> dict:
        """What came of each program, and the solid of the best one, in the input's place and size."""
        toolkit = import_toolkit("dsr_toolkit.cad.candidates")
        sandbox, target = self.endpoint.sandbox(), job.media["target"]
        if hasattr(target, "faces"):  # the repository's class of meshes is not the toolkit's
            target = toolkit.TriangleMesh(target.vertices, target.faces)
        candidates = toolkit.judge_programs(programs, sandbox, target, seed=job.parameters["seed"])
        best = toolkit.best_candidate(candidates)
        outcome = {
            "candidates": [
                {
                    "code": one.code, "message": one.execution.message, "notes": list(one.execution.notes),
                    "chamfer": one.chamfer,
                }
                for one in candidates
            ],
            "best": best,
        }  # fmt: skip
        if best is None:
            return outcome
        scale, offset = 1.0, np.zeros(3)
        if target is not None:
            low, high = target.bounds if hasattr(target, "bounds") else (target.min(0), target.max(0))
            scale, offset = toolkit.placement_onto(candidates[best].execution, low, high)
        found = candidates[best].execution
        exported, step = sandbox.step(found, scale, offset)
        if step is None:
            outcome["message"] = f"no STEP file could be made: {exported.code} {exported.message}"
        processor = self.endpoint.processor(job.model)
        solid = processor.as_mesh(found.vertices, found.faces).moved(scale, offset)
        view = processor.draw_mesh(candidates[best].mesh, pixels=384, smooth=False, oversampling=2)
        return outcome | {
            "step": step and as_base64(step), "stl": as_base64(as_stl(solid)), "picture": as_png(Image.fromarray(view)),
            "volume": found.volume * scale**3,
        }  # fmt: skip
