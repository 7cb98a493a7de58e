"""Processor of CAD-Recode: points of a part, and its program."""

import torch
from transformers import BatchFeature

from .cad_collator import CADCollator
from .cad_processor import SolidProcessor
from .cad_solids import is_cloud, is_mesh
from .processing_arguments import pad_tokens, per_sample, refuses_unreadable


class CADRecodeProcessor(SolidProcessor):
    r"""
    Meshes or point clouds to the inputs of [`CADRecodeForCausalLM`], and its answers to programs.

    Args:
        num_points, num_surface_samples: As in [`CadrilleProcessor`].
        point_channels (`int`, *optional*, defaults to 3): As in [`CADRecodeConfig`]; 6 adds normals.
        point_sampling (`str`, *optional*, defaults to `"farthest"`): `"random_sorted"` is the first published
            version's: a random choice in the order z, y, x.
        program_range (`float`, *optional*, defaults to 100): Half the range of a program's coordinates; 50 in the first
            published version.
    """

    def __init__(
        self,
        tokenizer=None,
        num_points: int = 256,
        num_surface_samples: int = 8192,
        point_channels: int = 3,
        point_sampling: str = "farthest",
        program_range: float = 100.0,
        **kwargs,
    ):
        if point_sampling not in ("farthest", "random_sorted"):
            raise ValueError(f'`point_sampling` must be "farthest" or "random_sorted", got {point_sampling!r}.')
        if num_surface_samples < num_points:
            raise ValueError(
                f"`num_surface_samples` ({num_surface_samples}) must be at least `num_points` ({num_points})."
            )
        self.num_points = num_points
        self.num_surface_samples = num_surface_samples
        self.point_channels = point_channels
        self.point_sampling = point_sampling
        self.program_range = program_range
        super().__init__(tokenizer, **kwargs)

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "point_token_mask", "point_cloud"]

    @refuses_unreadable
    def __call__(
        self,
        meshes=None,
        point_clouds=None,
        programs=None,
        normalization: str = "fit",
        noise_std: float = 0.0,
        noise_probability: float = 0.5,
        seed: int | list[int] | None = 0,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Args:
            meshes, point_clouds: a single part or a list, of which each sample has one (the other is None); see
                [`CadrilleProcessor`] for these and the rest.
            programs: answers to learn; adds `labels`, which cover the program and `<|endoftext|>`.

        Returns:
            `input_ids`, `attention_mask`, `point_token_mask` `[B, S]`, `point_cloud` `[B, num_points, point_channels]`.
        """
        if meshes is None and point_clouds is None:
            raise ValueError("Pass `meshes`, `point_clouds`, or a mix of both with None where the other has the part.")
        if point_clouds is None:
            parts = per_sample(meshes, is_mesh, None, "meshes")
        elif meshes is None:
            parts = per_sample(point_clouds, is_cloud, None, "point_clouds")
        else:
            meshes = per_sample(meshes, is_mesh, None, "meshes")
            clouds = per_sample(point_clouds, is_cloud, len(meshes), "point_clouds")
            for number, (mesh, cloud) in enumerate(zip(meshes, clouds)):
                if (mesh is None) == (cloud is None):
                    raise ValueError(f"Sample {number} must have either a mesh or a cloud.")
            parts = [cloud if mesh is None else mesh for mesh, cloud in zip(meshes, clouds)]
        programs = per_sample(programs, lambda v: isinstance(v, str), len(parts), "programs")
        generators = self._generators(seed, len(parts))
        clouds = self._clouds(parts, normalization, generators, noise_std, noise_probability)

        ids = self.tokenizer.convert_tokens_to_ids
        rows, labels = [], []
        for program in programs:
            row = [ids("<|im_end|>")] * self.num_points + [ids("<|im_start|>")]
            answer = []
            if program is not None:
                answer = self.tokenizer(program + "<|endoftext|>", add_special_tokens=False)["input_ids"]
            rows.append(row + answer)
            labels.append([-100] * len(row) + answer)
        side = padding_side or "left"
        data = {
            "input_ids": pad_tokens(rows, ids("<|im_end|>"), side),
            "attention_mask": pad_tokens([[1] * len(row) for row in rows], 0, side),
            "point_token_mask": pad_tokens(
                [[1] * self.num_points + [0] * (len(row) - self.num_points) for row in rows], 0, side
            ).bool(),
            "point_cloud": torch.stack([cloud for cloud in clouds if cloud is not None]),
        }
        if any(program is not None for program in programs):
            data["labels"] = pad_tokens(labels, -100, side)
        return BatchFeature(data, tensor_type=return_tensors)

    def training_collator(self, **options) -> CADCollator:
        """A `data_collator` for `Trainer`: rows to inputs with labels; see [`CADCollator`] for rows and options."""
        return CADCollator(self, **options)

    def decode_programs(self, sequences: torch.Tensor, prompt_length: int = 0) -> list[str]:
        """Programs of generated `sequences` `[B, S]`: what stands between `<|im_start|>` and `<|endoftext|>`."""
        texts = self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=False)
        texts = [text.split("<|im_start|>", 1)[-1].split("<|endoftext|>", 1)[0] for text in texts]
        return [text.replace("<|im_end|>", "").strip("\n") for text in texts]


CADRecodeProcessor.register_for_auto_class()
