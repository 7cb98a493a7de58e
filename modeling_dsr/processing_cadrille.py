"""Processor of Cadrille: points, views or text of a part, and its program."""

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from .cad_collator import CADCollator
from .cad_files import as_triangles
from .cad_processor import SolidProcessor
from .cad_solids import is_cloud, is_mesh
from .cad_views import (
    VIEW_DIRECTIONS,
    VIEW_PIXEL_LIMITS,
    compose_views,
    encode_views,
    render_mesh,
    stack_views,
)
from .frames import image_of_part, is_image
from .image_reader import read_image
from .processing_arguments import pad_tokens, per_sample, refuses_unreadable


def answer_labels(input_ids: list[int], im_start: int, header: list[int], im_end: int) -> list[int]:
    """
    Labels of a chat: each assistant turn from behind its header to its `<|im_end|>`, -100 elsewhere.

    Args:
        input_ids: one row. header: the tokens of the word "assistant". A turn without an end is not supervised.
    """
    labels = [-100] * len(input_ids)
    for start in range(len(input_ids)):
        first = start + 1 + len(header)
        if input_ids[start] == im_start and list(input_ids[start + 1 : first]) == list(header):
            if im_end in input_ids[first:]:
                stop = input_ids.index(im_end, first) + 1
                labels[first:stop] = input_ids[first:stop]
    return labels


SYSTEM = "You are a helpful assistant."


class CadrilleProcessor(SolidProcessor):
    r"""
    Meshes, point clouds, views or texts to the inputs of [`CadrilleForConditionalGeneration`], and its answers to
    programs.

    Args:
        num_points (`int`, *optional*, defaults to 256): Points of a cloud, as in [`CadrilleConfig`].
        num_surface_samples (`int`, *optional*, defaults to 8192): Points on a mesh among which they are chosen.
        num_views (`int`, *optional*, defaults to 4): Views of a mesh when it is shown instead of sampled.
        prompt (`str`, *optional*): What is asked when a sample has no text.
        program_range (`float`, *optional*, defaults to 100): Half the range of a program's coordinates.
        view_pixels (`int`, *optional*, defaults to 200704): Smallest area of a picture of views as the vision tower
            gets it; the largest is five times that.
        view_coordinates (`bool`, *optional*, defaults to `False`): Let the second of the two frames, which is otherwise
            the first again, show where each pixel lies. Not published: the vision tower has no positions but
            relative ones, and a small one that is trained from nothing finds the absolute ones slowly.
    """

    point_channels = 3
    point_sampling = "farthest"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        num_points: int = 256,
        num_surface_samples: int = 8192,
        num_views: int = 4,
        prompt: str = "Generate cadquery code",
        program_range: float = 100.0,
        view_pixels: int = VIEW_PIXEL_LIMITS[0],
        view_coordinates: bool = False,
        **kwargs,
    ):
        if num_views not in (1, 2, 4):
            raise ValueError(f"`num_views` must be 1, 2 or 4, got {num_views}.")
        if num_surface_samples < num_points:
            raise ValueError(
                f"`num_surface_samples` ({num_surface_samples}) must be at least `num_points` ({num_points})."
            )
        self.num_points = num_points
        self.num_surface_samples = num_surface_samples
        self.num_views = num_views
        self.prompt = prompt
        self.program_range = program_range
        self.view_pixels = view_pixels
        self.view_coordinates = view_coordinates
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.point_token, self.video_token = "<|endoftext|>", "<|video_pad|>"

    @property
    def model_input_names(self):
        return [
            "input_ids", "attention_mask", "point_clouds", "is_pc", "pixel_values_videos", "video_grid_thw", "is_img"
        ]  # fmt: skip

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        point_clouds=None,
        meshes=None,
        programs=None,
        modality: str = "points",
        normalization: str = "fit",
        noise_std: float = 0.0,
        noise_probability: float = 0.5,
        seed: int | list[int] | None = 0,
        padding: bool | str = True,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Every argument holds one entry per sample (None where it has none) or a single sample. A sample has a mesh, a
        cloud, views or nothing but text.

        Args:
            images: a picture of composed views, or a list of 1, 2 or 4 views, per sample.
            text: what is asked; `self.prompt` by default.
            point_clouds: arrays `[P, 3]`, P ≥ `num_points`.
            meshes: files (stl, ply, obj, step) or [`TriangleMesh`]es.
            programs: answers to learn; adds `labels`.
            modality: "points" or "views": how meshes are shown.
            normalization: how meshes and clouds get into the model's frame [-1, 1]³. "fit": bounding box to the origin,
                longest side to [-1, 1]. "unit_cube": they lie in [0, 1]³ (published test meshes). "program": they have
                the coordinates of a program (published training meshes). "none": they are in the frame already.
            noise_std, noise_probability: Gaussian noise on clouds in units of the model's frame, for training.
            seed: of surface sampling and noise, or one per sample; None for a new one each time.
            padding: True or "longest": rows of a batch are always padded to the longest.
            padding_side: "left" (default, for generation) or "right".

        Returns:
            `input_ids`, `attention_mask` `[B, S]`, `is_pc`, `is_img` `[B]`; `point_clouds` `[B, num_points, 3]` if a
            sample has points; `pixel_values_videos` `[B, L, 1176]` and `video_grid_thw` `[B, 3]` if one has views;
            `labels` `[B, S]` with programs.
        """
        given = {
            "images": (images, is_image), "text": (text, lambda v: isinstance(v, str)),
            "point_clouds": (point_clouds, is_cloud), "meshes": (meshes, is_mesh),
            "programs": (programs, lambda v: isinstance(v, str)),
        }  # fmt: skip
        first = next(((n, v, single) for n, (v, single) in given.items() if v is not None), None)
        if first is None:
            raise ValueError("Nothing was given: pass `meshes`, `point_clouds`, `images` or `text`.")
        if padding not in (True, False, "longest"):
            raise ValueError(f'`padding` must be True, False or "longest", got {padding!r}.')
        if modality not in ("points", "views"):
            raise ValueError(f'`modality` must be "points" or "views", got {modality!r}.')
        count = len(per_sample(first[1], first[2], None, first[0]))
        images, text, point_clouds, meshes, programs = (
            per_sample(value, single, count, name) for name, (value, single) in given.items()
        )
        generators = self._generators(seed, count)

        parts: list = [None] * count
        pictures: list[Image.Image | None] = [None] * count
        for i in range(count):
            shown = [
                name for name, entries in (("images", images), ("point_clouds", point_clouds), ("meshes", meshes))
                if entries[i] is not None
            ]  # fmt: skip
            if len(shown) > 1:
                raise ValueError(f"Sample {i} has {' and '.join(shown)}; Cadrille reads one of them at a time.")
            if images[i] is not None:
                pictures[i] = (
                    compose_views(images[i]) if isinstance(images[i], (list, tuple)) else read_image(images[i])
                )
            elif meshes[i] is not None and modality == "views":
                pictures[i] = self.render_views(meshes[i], normalization)
            elif shown:
                parts[i] = meshes[i] if meshes[i] is not None else point_clouds[i]
        clouds = self._clouds(parts, normalization, generators, noise_std, noise_probability)

        data: dict[str, torch.Tensor] = {}
        views = self._encode_views(pictures)
        prompts = [self._write(text[i] or self.prompt, views[i], programs[i]) for i in range(count)]
        written = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        points = [self.tokenizer.convert_tokens_to_ids(self.point_token)] * self.num_points
        rows = [points * (cloud is not None) + ids for cloud, ids in zip(clouds, written)]
        side = padding_side or "left"
        data["input_ids"] = pad_tokens(rows, self.tokenizer.convert_tokens_to_ids(self.point_token), side)
        data["attention_mask"] = pad_tokens([[1] * len(row) for row in rows], 0, side)
        data["is_pc"] = torch.tensor([cloud is not None for cloud in clouds])
        data["is_img"] = torch.tensor([view is not None for view in views])
        if data["is_pc"].any():
            data["point_clouds"] = torch.stack(
                [torch.zeros(self.num_points, 3) if cloud is None else cloud for cloud in clouds]
            )
        if data["is_img"].any():
            data["pixel_values_videos"], data["video_grid_thw"] = stack_views(views)
        if any(program is not None for program in programs):
            ids = self.tokenizer.convert_tokens_to_ids
            header = self.tokenizer.encode("assistant", add_special_tokens=False)
            labels = [answer_labels(row, ids("<|im_start|>"), header, ids("<|im_end|>")) for row in rows]
            data["labels"] = pad_tokens(labels, -100, side)
        return BatchFeature(data, tensor_type=return_tensors)

    def _write(self, question: str, view: tuple | None, program: str | None) -> str:
        """The chat of a sample, behind the placeholders of its points."""
        media = ""
        if view is not None:
            pads = int(np.prod(view[1])) // self.image_processor.merge_size**2
            media = "<|vision_start|>" + self.video_token * pads + "<|vision_end|>"
        prompt = (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{media}{question}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        return prompt if program is None else f"{prompt}{program}<|im_end|>\n"

    def apply_chat_template(self, conversation, *args, tokenize: bool = False, **kwargs):
        """
        As of every processor. With `tokenize`, a conversation is one user turn that shows a part's views and may say
        what is asked, with the default system turn before it or without, and with the program as the assistant's turn
        behind it (then there are `labels`); what is returned are the inputs that `__call__` makes of them: the
        published prompt has no other turns.
        """
        if not tokenize:
            return super().apply_chat_template(conversation, *args, tokenize=False, **kwargs)  # type: ignore[misc]
        single = isinstance(conversation[0], dict)
        images, texts, programs = [], [], []
        for turns in [conversation] if single else [getattr(turns, "messages", turns) for turns in conversation]:
            views, question, program = self._read_turns(turns)
            images.append(views)
            texts.append(question)
            programs.append(program)
        options = {name: kwargs[name] for name in ("padding", "padding_side") if kwargs.get(name) is not None}
        given = {"programs": programs} if any(program is not None for program in programs) else {}
        return self(images=images, text=texts, **given, return_tensors=kwargs.get("return_tensors", "pt"), **options)

    @staticmethod
    def _read_turns(turns: list[dict]) -> tuple:
        """Views, question and program of a conversation, None for what it lacks."""
        roles = [turn["role"] for turn in turns]
        if roles not in (["user"], ["user", "assistant"], ["system", "user"], ["system", "user", "assistant"]):
            raise ValueError(
                f"Cadrille answers one turn of the user (a system turn before, the answer behind it), got {roles}."
            )
        said = {}
        for turn in turns:
            content = turn["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            said[turn["role"]] = " ".join(part["text"] for part in parts if part["type"] == "text") or None
            if turn["role"] == "user":
                views = [image_of_part(part) for part in parts if part["type"] in ("image", "image_url")]
        if said.get("system") not in (None, SYSTEM):
            raise ValueError(f"Cadrille knows the system turn {SYSTEM!r} alone, got {said['system']!r}.")
        return None if not views else views[0] if len(views) == 1 else views, said["user"], said.get("assistant")

    # ---- views ---------------------------------------------------------------------------

    def render_views(self, mesh, normalization: str = "fit") -> Image.Image:
        """The views of a mesh (file or object) as one picture: 268 × 268 pixels for four of them."""
        mesh = self.place_mesh(as_triangles(mesh), normalization).moved(0.5, 0.5)
        return compose_views([render_mesh(mesh, direction) for direction in VIEW_DIRECTIONS[: self.num_views]])

    def _encode_views(self, pictures: list) -> list:
        limits = (self.view_pixels, 5 * self.view_pixels)
        options = (self.image_processor, limits, self.view_coordinates)
        return [None if picture is None else encode_views(picture, *options) for picture in pictures]

    def training_collator(self, **options) -> CADCollator:
        """A `data_collator` for `Trainer`: rows to inputs with labels; see [`CADCollator`] for rows and options."""
        return CADCollator(self, **options)

    # ---- back ----------------------------------------------------------------------------

    def decode_programs(self, sequences: torch.Tensor, prompt_length: int = 0) -> list[str]:
        """Programs of generated `sequences` `[B, S]` that begin with a prompt of `prompt_length` tokens."""
        return [
            text.strip("\n")
            for text in self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
        ]


CadrilleProcessor.register_for_auto_class()
