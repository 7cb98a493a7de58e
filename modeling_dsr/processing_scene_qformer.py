"""Processor of the Scene Q-Former: six surround cameras, their calibration, and text."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import BatchFeature, ProcessorMixin

from .configuration_scene_qformer import SCENE_CAMERAS
from .frames import resize_image
from .image_reader import read_image
from .media import Media
from .pictures import cell_overlap, heat_colours, overlay_heat
from .processing_arguments import refuses_unreadable
from .scene_qformer_collator import SceneQFormerCollator

# How people look at the six images: left to right, ahead above, behind below.
SCENE_LAYOUT = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
MAP_INSTRUCTION = (
    "You perceive the surroundings of a car. Its six cameras look, in this order, to the front, front right, front "
    "left, back, back left and back right. Find the map elements around it: 0 divider, 1 pedestrian crossing, 2 "
    "boundary. Give each one's class and 20 points (x, y) in -1 … 1, x to the right within 15 m, y forward within 30 m."
)


class _SceneSubProcessors:
    """`get_attributes` of a processor whose tokenizer is optional: a Q-Former without language model has none."""

    def __get__(self, processor, owner):
        without = processor is not None and processor.tokenizer is None
        return lambda: [] if without else ["tokenizer"]


class SceneQFormerProcessor(ProcessorMixin):
    r"""
    Six camera images, their calibration and prompts to the inputs of [`SceneQFormerModel`] and
    [`SceneQFormerForConditionalGeneration`]; attentions and map detections back to pictures and metres.

    Args:
        tokenizer (*optional*): of the language model; without one only images are prepared.
        image_size (`tuple[int, int]`, *optional*, defaults to `(336, 336)`):
            Height and width of the network's input. Images are resized to it, not cropped: every camera keeps its view.
        image_mean, image_std (`tuple[float]`, *optional*): normalisation; ImageNet's, as the ResNet was trained.
        num_scene_tokens (`int`, *optional*, defaults to 512): queries of the model, hence placeholders per scene.
        needs_calibration (`bool`, *optional*, defaults to `False`): whether the model's position encoding reads it.
        camera_names (`list[str]`, *optional*): names and order of the cameras.
        image_token (`str`, *optional*, defaults to `"<image>"`): what stands for a scene in a prompt.
        image_token_index (`int`, *optional*, defaults to -200):
            Written once per scene where the tokenizer has no `image_token`; the model makes room for it.
        map_instruction (`str`, *optional*): what asks for the map, see `map_prompt`.
    """

    get_attributes = _SceneSubProcessors()

    media = Media

    def __init__(
        self,
        tokenizer=None,
        chat_template=None,
        image_size=(336, 336),
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        num_scene_tokens: int = 512,
        needs_calibration: bool = False,
        camera_names=SCENE_CAMERAS,
        image_token: str = "<image>",
        image_token_index: int = -200,
        map_instruction: str = MAP_INSTRUCTION,
        **kwargs,
    ):
        self.tokenizer = tokenizer
        self.image_size = tuple(image_size)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.num_scene_tokens = num_scene_tokens
        self.needs_calibration = needs_calibration
        self.camera_names = tuple(camera_names)
        self.image_token = image_token
        self.image_token_index = image_token_index
        self.map_instruction = map_instruction
        if tokenizer is None:
            super().__init__(chat_template=chat_template)
        else:
            super().__init__(tokenizer, chat_template=chat_template)
            # Generation goes on at the right end, whatever the source's tokenizer says; training may pad either side.
            self.tokenizer.padding_side = "left"

    def to_dict(self):
        return {**super().to_dict(), "has_tokenizer": self.tokenizer is not None}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        if processor_dict is not None and not processor_dict.get("has_tokenizer", True):
            return [None]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    @property
    def model_input_names(self):
        names = ["pixel_values", "cam_intrinsics", "cam_extrinsics"]
        return names + (list(self.tokenizer.model_input_names) if self.tokenizer is not None else [])

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        cam_intrinsics=None,
        cam_extrinsics=None,
        camera_names=None,
        return_tensors="pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: a scene or a list of scenes. A scene is a dictionary of images by camera name, in any order, or a
                list of images in the order of `self.camera_names`. An image is a PIL image, an array `[H, W, 3]` uint8
                or a path.
            text: a prompt or a list of prompts, with an `image_token` per scene.
            cam_intrinsics: per scene `[N, 3, 3]` in pixels of the given images, or a dictionary by camera name.
            cam_extrinsics: per scene `[N, 4, 4]` camera → vehicle in metres, or a dictionary by camera name.
            camera_names: the order in which listed images come, to be checked.

        Returns:
            `pixel_values` `[B, N, 3, H, W]`; with calibration `cam_intrinsics` `[B, N, 3, 3]` in pixels of
            `pixel_values` and `cam_extrinsics` `[B, N, 4, 4]`; with text `input_ids` and `attention_mask` `[B, L]`,
            padded on the tokenizer's side.
        """
        if kwargs:
            raise ValueError(f"SceneQFormerProcessor knows no arguments {sorted(kwargs)}.")
        if images is None and text is None:
            raise ValueError("Pass `images`, `text` or both.")
        data = {}
        num_scenes = 0
        if images is not None:
            scenes = self._scenes(images, camera_names)
            num_scenes = len(scenes)
            data["pixel_values"] = np.stack([np.stack([self._pixels(image) for image in scene]) for scene in scenes])
            data |= self._calibration(scenes, images, cam_intrinsics, cam_extrinsics)
        elif cam_intrinsics is not None or cam_extrinsics is not None:
            raise ValueError("`cam_intrinsics` and `cam_extrinsics` belong to `images`, which are not given.")
        if text is not None:
            data |= self._encode([text] if isinstance(text, str) else list(text), num_scenes)
        return BatchFeature(data, tensor_type=return_tensors)

    # ---- images --------------------------------------------------------------------------

    def _scenes(self, images, camera_names) -> list[list[Image.Image]]:
        """Per scene the images in the order of `self.camera_names`."""
        if camera_names is not None and tuple(camera_names) != self.camera_names:
            raise ValueError(
                f"`camera_names` must be {list(self.camera_names)}, in this order, got {list(camera_names)}. Pass the "
                "images as a dictionary by name and they are put in order."
            )
        scenes = images if _is_batch(images) else [images]
        return [self._ordered(scene, "images", number) for number, scene in enumerate(scenes)]

    def _ordered(self, scene, argument: str, number: int) -> list:
        if isinstance(scene, dict):
            if set(scene) != set(self.camera_names):
                missing = [name for name in self.camera_names if name not in scene]
                unknown = [name for name in scene if name not in self.camera_names]
                raise ValueError(
                    f"`{argument}` of scene {number} must be named {list(self.camera_names)}; missing {missing}, "
                    f"unknown {unknown}."
                )
            scene = [scene[name] for name in self.camera_names]
        if len(scene) != len(self.camera_names):
            raise ValueError(
                f"`{argument}` of scene {number} must hold {len(self.camera_names)} entries, one per camera in the "
                f"order {list(self.camera_names)}, got {len(scene)}."
            )
        return [read_image(image) for image in scene] if argument == "images" else list(scene)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        height, width = self.image_size
        pixels = np.asarray(resize_image(image, (width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255.0
        mean, std = (np.array(numbers, np.float32) for numbers in (self.image_mean, self.image_std))
        return ((pixels - mean) / std).transpose(2, 0, 1)

    # ---- calibration ---------------------------------------------------------------------

    def _calibration(self, scenes, images, cam_intrinsics, cam_extrinsics) -> dict[str, np.ndarray]:
        given = {"cam_intrinsics": cam_intrinsics, "cam_extrinsics": cam_extrinsics}
        missing = [name for name, value in given.items() if value is None]
        if missing and (self.needs_calibration or len(missing) == 1):
            raise ValueError(
                f"{' and '.join(f'`{name}`' for name in missing)} missing: this model reads the calibration of its "
                "cameras, intrinsics [N, 3, 3] in pixels and extrinsics [N, 4, 4] camera → vehicle."
            )
        if missing:
            return {}
        matrices = {
            name: self._matrices(value, name, size, len(scenes), _is_batch(images))
            for (name, value), size in zip(given.items(), (3, 4))
        }
        sizes = np.array([[image.size for image in scene] for scene in scenes], dtype=np.float32)  # (width, height)
        self._check_intrinsics(matrices["cam_intrinsics"], sizes)
        self._check_extrinsics(matrices["cam_extrinsics"])
        scale = np.array(self.image_size[::-1], np.float32) / sizes  # [B, N, (x, y)]
        matrices["cam_intrinsics"] = matrices["cam_intrinsics"].copy()
        matrices["cam_intrinsics"][:, :, :2] *= scale[..., None]
        return matrices

    def _matrices(self, value, name: str, size: int, num_scenes: int, batched: bool) -> np.ndarray:
        scenes = value if batched else [value]
        if len(scenes) != num_scenes:
            raise ValueError(f"`{name}` must hold one entry per scene ({num_scenes}), got {len(scenes)}.")
        rows = [
            [np.asarray(matrix, dtype=np.float32) for matrix in self._ordered(scene, name, number)]
            for number, scene in enumerate(scenes)
        ]
        for number, row in enumerate(rows):
            for camera, matrix in zip(self.camera_names, row):
                if matrix.shape != (size, size) or not np.isfinite(matrix).all():
                    raise ValueError(
                        f"`{name}` of {camera} in scene {number} must be a finite {size}×{size} matrix, got shape "
                        f"{matrix.shape}: {matrix.tolist()}."
                    )
        return np.array(rows)

    def _check_intrinsics(self, intrinsics: np.ndarray, sizes: np.ndarray) -> None:
        focal = np.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)
        centre = intrinsics[..., :2, 2]
        problems = (
            (
                (np.abs(intrinsics[..., 2, :] - np.array([0, 0, 1], np.float32)) > 1e-6).any(-1),
                "has no last row (0, 0, 1)",
            ),
            (~(np.linalg.cond(intrinsics) < 1e8), "is singular"),
            ((focal <= 0).any(-1), "has a focal length that is not positive"),
            (((centre < 0) | (centre > sizes)).any(-1), "has its principal point outside of the image"),
        )
        for wrong, what in problems:
            if wrong.any():
                scene, camera = np.argwhere(wrong)[0]
                width, height = sizes[scene, camera].astype(int)
                raise ValueError(
                    f"`cam_intrinsics` of {self.camera_names[camera]} in scene {scene} {what}: "
                    f"{intrinsics[scene, camera].tolist()} for an image of {width}×{height} pixels. Pass the matrix "
                    "that belongs to the image as given; the processor scales both."
                )

    def _check_extrinsics(self, extrinsics: np.ndarray) -> None:
        rotation = extrinsics[..., :3, :3]
        crooked = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max((-1, -2)) > 1e-3
        mirrored = np.linalg.det(rotation) < 0
        affine = (np.abs(extrinsics[..., 3, :] - np.array([0, 0, 0, 1], np.float32)) > 1e-6).any(-1)
        wrong = np.argwhere(crooked | mirrored | affine)
        if len(wrong):
            scene, camera = wrong[0]
            raise ValueError(
                f"`cam_extrinsics` of {self.camera_names[camera]} in scene {scene} must be a rotation and a "
                f"translation with last row (0, 0, 0, 1), camera → vehicle, got {extrinsics[scene, camera].tolist()}."
            )

    # ---- text ----------------------------------------------------------------------------

    def map_prompt(self) -> str:
        """The prompt of the map task."""
        return f"{self.image_token}\n{self.map_instruction}"

    def question_prompt(self, question: str) -> str:
        """A question about one scene: a user's turn of the chat template, or plain where there is none."""
        text = f"{self.image_token}\n{question}"
        if self._template() is None:
            return text
        return self.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)

    def conversation(self, question: str, answer: str) -> tuple[str, str]:
        """What `question_prompt` gives, and the text that a model should write behind it, end mark included."""
        prompt = self.question_prompt(question)
        if self._template() is None:
            return prompt, f" {answer}{self.tokenizer.eos_token or ''}"
        turns = [
            {"role": "user", "content": f"{self.image_token}\n{question}"},
            {"role": "assistant", "content": answer},
        ]
        whole = self.apply_chat_template(turns)
        if not whole.startswith(prompt):
            raise ValueError(
                f"The chat template writes an answered question otherwise than an open one: {whole!r} does not begin "
                f"with {prompt!r}. Pass a `chat_template` that does."
            )
        return prompt, whole[len(prompt) :].rstrip()  # nobody waits for the line break behind the end mark

    def apply_chat_template(self, conversation, *args, tokenize: bool = False, chat_template=None, **kwargs):
        """
        As of every processor; an item that is an image stands for a scene and becomes `image_token` in the text.
        Content is given to the template as text, and as a list of one text where the template takes lists alone.

        With `tokenize` what is returned are the inputs of the texts; the scenes themselves go to `__call__`.
        """
        if args:
            raise ValueError(
                "SceneQFormerProcessor.apply_chat_template takes one conversation or a list, all else by name."
            )
        template = self._template() if chat_template is None else chat_template
        if template is None:
            raise ValueError("Neither processor nor tokenizer has a `chat_template`; see `question_prompt`.")
        single = isinstance(conversation[0], dict)
        texts = [self._render(turns, template, kwargs) for turns in ([conversation] if single else conversation)]
        if tokenize:
            return self(text=texts, return_tensors=kwargs.get("return_tensors", "pt"))
        return texts[0] if single else texts

    def _template(self):
        return self.chat_template or getattr(self.tokenizer, "chat_template", None)

    def _render(self, turns, template: str, settings: dict) -> str:
        texts = [self._text_of(turn["content"]) for turn in turns]
        scenes = sum(text.count(self.image_token) for text in texts)
        problem = ""
        for wrap in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
            messages = [{**turn, "content": wrap(text)} for turn, text in zip(turns, texts)]
            try:
                prompt = self.tokenizer.apply_chat_template(
                    messages, chat_template=template, **{**settings, "tokenize": False}
                )
            except Exception as error:
                # It adds text and list, say, or refuses a role. jinja2 is there where templates are, but not imported.
                if not isinstance(error, TypeError) and type(error).__module__.split(".")[0] != "jinja2":
                    raise
                problem = problem or f"{type(error).__name__}: {error}"
                continue
            if prompt.count(self.image_token) == scenes:
                return prompt
        raise ValueError(
            f"The chat template cannot show this conversation ({problem or 'it leaves the text out'}); its content was "
            "tried as text and as a list."
        )

    def _text_of(self, content) -> str:
        if isinstance(content, str):
            return content
        parts = []
        for item in content:
            if item["type"] == "image":
                parts.append(f"{self.image_token}\n")
            elif item["type"] == "text":
                parts.append(item["text"])
            else:
                raise ValueError(f"An item of a turn must be an image (a scene) or a text, got type {item['type']!r}.")
        return "".join(parts)

    def scene_placeholders(self) -> list[int]:
        """The ids that stand for one scene, one per scene token."""
        known = self.tokenizer.get_vocab().get(self.image_token)
        return [self.image_token_index if known is None else known] * self.num_scene_tokens

    def training_collator(self, **options) -> SceneQFormerCollator:
        """What makes batches of rows for Trainer; see [`SceneQFormerCollator`]."""
        return SceneQFormerCollator(self, **options)

    def _encode(self, prompts: list[str], num_scenes: int) -> dict[str, np.ndarray]:
        """Token ids; chunks between placeholders are tokenised on their own, the first one with special tokens
        (LLaVA)."""
        if self.tokenizer is None:
            raise ValueError("`text` needs a tokenizer, and this processor has none.")
        counts = [prompt.count(self.image_token) for prompt in prompts]
        if num_scenes and sum(counts) != num_scenes:
            raise ValueError(
                f"`text` holds {sum(counts)} {self.image_token} for {num_scenes} scenes; write one per scene."
            )
        known = self.image_token in self.tokenizer.get_vocab()
        place = self.scene_placeholders() if known else [self.image_token_index]
        rows = []
        for prompt in prompts:
            first, *others = prompt.split(self.image_token)
            row = list(self.tokenizer(first)["input_ids"])
            for chunk in others:
                row += place + (list(self.tokenizer(chunk, add_special_tokens=False)["input_ids"]) if chunk else [])
            rows.append(row)
        padding = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        )
        length = max(len(row) for row in rows)
        left = self.tokenizer.padding_side == "left"
        ids = np.full((len(rows), length), padding or 0, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for number, row in enumerate(rows):
            where = slice(length - len(row), length) if left else slice(0, len(row))
            ids[number, where], mask[number, where] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    # ---- back ----------------------------------------------------------------------------

    def post_process_attentions(self, attentions, layer: int = -1, queries=None, target_size=None) -> torch.Tensor:
        """
        Where queries look, as heat maps over the images.

        Each cell's probability is spread evenly over its pixels, so the sum over all pixels of all cameras is that over
        the cells: 1 with full attention.

        Args:
            attentions: of the model's output. layer: which decoder layer. queries: indices; default all, averaged.
            target_size: height and width of the maps; default the network's input.

        Returns:
            `[B, cameras, H, W]` float32, mean over heads and queries.
        """
        cells = attentions[layer].float().mean(1)  # [B, Q, N, h, w]
        cells = (cells if queries is None else cells[:, queries].flatten(1, -4)).mean(1)
        height, width = target_size or self.image_size
        rows, columns = (
            cell_overlap(pixels, count).to(cells.device) for pixels, count in zip((height, width), cells.shape[-2:])
        )
        return torch.einsum("bnhw,yh,xw->bnyx", cells, rows, columns)

    def paint_attentions(self, images, heat: torch.Tensor, title: str = "") -> Image.Image:
        """
        The six images of one scene with a heat map over each, arranged as they surround the car.

        Args:
            images: one scene, as for `__call__`. heat: `[cameras, H, W]`, one scene of `post_process_attentions`.
        """
        scene = dict(zip(self.camera_names, self._ordered(images, "images", 0)))
        level = heat.detach().float().cpu().numpy()
        # One scale for all cameras; its top is exceeded by one pixel in a thousand, so that a spark does not hide the
        # rest.
        top = max(float(np.quantile(level, 0.999)), 1e-12)
        layout = SCENE_LAYOUT if set(self.camera_names) == set(SCENE_CAMERAS) else (self.camera_names,)
        height, width, head, gap = *level.shape[-2:], 18, 4
        rows, columns = len(layout), max(len(row) for row in layout)
        top_margin = 24 if title else gap
        sheet = Image.new(
            "RGB", (columns * (width + gap) + gap, top_margin + rows * (height + head + gap) + 26), "white"
        )
        pen = ImageDraw.Draw(sheet)
        pen.text((gap, 6), title, fill="black")
        for i, row in enumerate(layout):
            for j, name in enumerate(row):
                number = self.camera_names.index(name)
                share = level[number].sum() / max(float(level.sum()), 1e-12)
                left, upper = gap + j * (width + gap), top_margin + i * (height + head + gap)
                pen.text((left, upper + 2), f"{name}   {share:.0%} of the attention", fill="black")
                picture = scene[name].resize((width, height), Image.Resampling.BILINEAR)
                sheet.paste(overlay_heat(picture, level[number] / top), (left, upper + head))
        bar = np.tile(np.linspace(0, 1, 120), (10, 1))
        lower = sheet.height - 20
        sheet.paste(Image.fromarray(heat_colours(bar).astype(np.uint8)), (gap, lower))
        pen.text((gap + 126, lower - 2), f"0 to {top * level.size:.2g} times the even share of a pixel", fill="black")
        return sheet

    def post_process_map_detection(
        self, outputs, threshold: float = 0.3, point_range=(-15.0, -30.0, 15.0, 30.0)
    ) -> list[dict]:
        """
        Map elements in metres.

        Args:
            outputs: of the model with `output_map=True`. threshold: least sigmoid score of an element's best class.
            point_range: (x min, y min, x max, y max) as in the model's `map_config`; LiDAR frame, x right, y forward.

        Returns:
            Per scene `{"scores": [n], "labels": [n], "points": [n, P, 2] metres}`.
        """
        scores, labels = outputs.class_logits.float().sigmoid().max(-1)
        low, high = (torch.tensor(point_range[i : i + 2], device=scores.device) for i in (0, 2))
        points = low + (outputs.points.float() + 1) / 2 * (high - low)
        return [
            {"scores": s[s > threshold], "labels": c[s > threshold], "points": p[s > threshold]}
            for s, c, p in zip(scores, labels, points)
        ]


def _is_batch(scenes) -> bool:
    """Whether this is a list of scenes, and not one scene: a dictionary or a list of images or matrices."""
    return isinstance(scenes, (list, tuple)) and len(scenes) > 0 and isinstance(scenes[0], (dict, list, tuple))


SceneQFormerProcessor.register_for_auto_class()
