"""Processor of DSR: videos, images and text, with the placeholders of vision and geometry tokens."""

import os

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .dsr_collator import DSRCollator
from .dsr_video_patches import patch_videos
from .frames import choose_video_frames, find_frames, sample_frame_indices
from .image_reader import is_image_file, read_image
from .media import Media
from .pictures import cell_overlap
from .processing_arguments import refuses_unreadable
from .training_collator import chat_answers


class DSRProcessor(Qwen2_5_VLProcessor):
    r"""
    Text, images and videos to the inputs of [`DSRForConditionalGeneration`], and its geometry attentions to heat maps.

    A Qwen2.5-VL processor that adds the placeholders of the geometry tokens behind the videos, decodes video files with
    PyAV and samples their frames as DSR was trained to see them.

    Args:
        num_geometry_tokens, geometry_tokens_per, geometry_for_images:
            As in [`DSRConfig`]; processor and model must agree.
        num_frames (`int`, *optional*, defaults to 32):
            Frames sampled from a video file.
        fixed_second_per_grid_ts (`float`, *optional*):
            Time between two temporal grid steps that the model is told. None: the real one, as in training. The
            published evaluation always says 1.0.
    """

    sample_frame_indices = staticmethod(sample_frame_indices)

    media = Media

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        num_geometry_tokens: int = 32,
        geometry_tokens_per: str = "sample",
        geometry_for_images: bool = False,
        num_frames: int = 32,
        fixed_second_per_grid_ts: float | None = None,
        **kwargs,
    ):
        if geometry_tokens_per not in ("sample", "video"):
            raise ValueError(f'`geometry_tokens_per` must be "sample" or "video", got {geometry_tokens_per!r}.')
        self.num_geometry_tokens = num_geometry_tokens
        self.geometry_tokens_per = geometry_tokens_per
        self.geometry_for_images = geometry_for_images
        self.num_frames = num_frames
        self.fixed_second_per_grid_ts = fixed_second_per_grid_ts
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)
        # Generation goes on at the right end, whatever the source's tokenizer says; training may pad either side.
        if self.tokenizer is not None:
            self.tokenizer.padding_side = "left"

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        audio=None,
        video_grid_thw=None,
        second_per_grid_ts=None,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: images or (nested) lists of them.
            text: prompts, with one `<|image_pad|>` or `<|video_pad|>` per image or video.
            videos: file paths, or frames `[T, H, W, 3]` uint8, or (nested) lists of them.
            video_grid_thw, second_per_grid_ts: instead of `videos`, the grid `[n, 3]` (and timing `[n]`) of videos that
                are encoded already, one per `<|video_pad|>` of the text; see [`DSRVisionFeatures`].

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids`; with videos `pixel_values_videos` `[P, 1176]`,
            `video_grid_thw` `[n, 3]`, `second_per_grid_ts` `[n]`; with images `pixel_values`, `image_grid_thw`.
        """
        self._check_question(text, videos is not None or video_grid_thw is not None)
        if video_grid_thw is None:
            images = None if images is None else _readable_images(images)
            videos = None if videos is None else _video_items(videos)
            return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if videos is not None or images is not None:
            raise ValueError(
                "`video_grid_thw` stands for videos that are encoded already; pass no `videos` or `images` with it."
            )
        return self._encoded_videos_call(text, video_grid_thw, second_per_grid_ts, **kwargs)

    def _encoded_videos_call(self, text, video_grid_thw, second_per_grid_ts, return_tensors=None, **kwargs):
        prompts = [text] if isinstance(text, str) else list(text)
        grid = torch.as_tensor(video_grid_thw)
        wanted = sum(prompt.count(self.video_token) for prompt in prompts)
        if grid.ndim != 2 or grid.shape[1] != 3 or len(grid) != wanted:
            raise ValueError(
                f"`video_grid_thw` must be [{wanted}, 3], one row per {self.video_token} of the text, got "
                f"{tuple(grid.shape)}."
            )
        replacements = [self.replace_video_token({"video_grid_thw": grid}, i) for i in range(len(grid))]
        prompts, _ = self.get_text_with_replacements(prompts, videos_replacements=replacements)
        encoded = self.tokenizer(prompts, **kwargs)
        data = {
            **encoded,
            "mm_token_type_ids": self.create_mm_token_type_ids(encoded["input_ids"]),
            "video_grid_thw": grid.tolist(),
        }
        if second_per_grid_ts is not None:
            data["second_per_grid_ts"] = torch.as_tensor(second_per_grid_ts).tolist()
        return BatchFeature(data, tensor_type=return_tensors)

    def _check_question(self, text, has_videos: bool) -> None:
        """Refuse prompts that show a video and ask nothing: the queries of the geometry tokens would have no text."""
        if not has_videos or text is None:
            return
        markers = [token for token in self.tokenizer.all_special_tokens if token]
        for number, prompt in enumerate([text] if isinstance(text, str) else text):
            if not isinstance(prompt, str) or self.video_token not in prompt:
                continue
            for marker in markers:
                prompt = prompt.replace(marker, " ")
            if not prompt.strip():
                raise ValueError(
                    f"Prompt {number} of `text` shows a video but holds no text. Write a question next to it."
                )

    # ---- placeholders --------------------------------------------------------------------

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._num_vision_tokens(
            image_inputs["image_grid_thw"][image_idx], self.image_processor
        )

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * self._num_vision_tokens(
            video_inputs["video_grid_thw"][video_idx], self.video_processor
        )

    @staticmethod
    def _num_vision_tokens(grid, processor) -> int:
        return int(np.prod([int(n) for n in grid])) // processor.merge_size**2

    def get_text_with_replacements(self, text, images_replacements=(), videos_replacements=(), audio_replacements=()):
        """Expand placeholders, with those of the geometry tokens behind each video or behind a prompt's last one."""
        replacements = {"image": list(images_replacements), "video": list(videos_replacements)}
        token_of = {"image": self.image_token, "video": self.video_token}
        taken = {"image": 0, "video": 0}
        for prompt in text:
            media = sorted(
                (position, kind)
                for kind, token in token_of.items()
                if replacements[kind]
                for position in _occurrences(prompt, token)
            )
            numbered = []
            for _, kind in media:
                numbered.append((kind, taken[kind]))
                taken[kind] += 1
            wanted = [medium for medium in numbered if medium[0] == "video" or self.geometry_for_images]
            for kind, index in wanted if self.geometry_tokens_per == "video" else wanted[-1:]:
                replacements[kind][index] += token_of[kind] * self.num_geometry_tokens
        return super().get_text_with_replacements(
            text, replacements["image"], replacements["video"], list(audio_replacements)
        )

    # ---- videos --------------------------------------------------------------------------

    def _process_videos(self, videos, **kwargs):
        videos = _video_items(videos)
        num_frames = kwargs.pop("num_frames", None) or self.num_frames
        if kwargs.pop("fps", None) is not None:
            raise ValueError("DSR samples by number of frames: pass `num_frames`, not `fps`.")
        metadata = kwargs.pop("video_metadata", None)
        files = [isinstance(video, (str, os.PathLike)) for video in videos]
        timed = metadata is not None or any(files)
        if any(files):
            given = metadata if isinstance(metadata, (list, tuple)) else [metadata] * len(videos)
            opened = [
                choose_video_frames(video, num_frames) if is_file else (video, known or _untimed(video))
                for video, is_file, known in zip(videos, files, given)
            ]
            videos, metadata = [frames for frames, _ in opened], [one for _, one in opened]
        if any(len(video) == 0 for video in videos):
            raise ValueError("`videos` holds a video of zero frames; at least one is needed.")
        kwargs["do_sample_frames"] = False
        if "cap_pixels_per_frame" in getattr(self.video_processor.valid_kwargs, "__annotations__", {}):
            # DSR bounds each frame, not the sum of all.
            kwargs["cap_pixels_per_frame"] = bool(kwargs.get("cap_pixels_per_frame"))
        metadata = make_batched_metadata(videos, metadata)
        patches, grid = patch_videos(self.video_processor, videos, metadata, **kwargs)
        data = {"pixel_values_videos": patches, "video_grid_thw": grid, "video_metadata": metadata}
        if self.fixed_second_per_grid_ts is not None or not timed:
            # Frames without timing, or the published evaluation.
            data["second_per_grid_ts"] = [self.fixed_second_per_grid_ts or 1.0] * len(videos)
        else:
            step = self.video_processor.temporal_patch_size
            data["second_per_grid_ts"] = [step / one.sampled_fps for one in metadata]
        return data, [self.replace_video_token(data, number) for number in range(len(videos))]

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """As of every processor; `return_assistant_tokens_mask` works with templates that mark no generation, too (the
        published one): the mask then follows the chat's own markers."""
        encoded = super().apply_chat_template(conversation, chat_template, **kwargs)
        template = chat_template or self.chat_template or ""
        wanted = kwargs.get("return_assistant_tokens_mask") and kwargs.get("tokenize") and kwargs.get("return_dict")
        if not wanted or "generation" in template.replace("add_generation_prompt", ""):
            return encoded
        ids = encoded["input_ids"]
        rows = (
            ids
            if isinstance(ids, torch.Tensor)
            else torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in ids], True, -1)
        )
        start = self.tokenizer.convert_tokens_to_ids("<|im_start|>")
        header = self.tokenizer.encode("assistant\n", add_special_tokens=False)
        mask = chat_answers(rows, start, header, encoded.get("attention_mask") if rows is ids else None).long()
        lists = None if rows is ids else [row[: len(given)].tolist() for row, given in zip(mask, ids)]
        encoded["assistant_masks"] = mask if lists is None else lists
        return encoded

    def training_collator(self, **options) -> DSRCollator:
        """A `data_collator` for `Trainer`: rows to inputs with labels; see [`DSRCollator`] for rows and options."""
        return DSRCollator(self, **options)

    # ---- back ----------------------------------------------------------------------------

    def post_process_geometry_attentions(
        self,
        geometry_attentions,
        target_sizes=None,
        num_frames=None,
        per_token: bool = False,
    ) -> list[torch.Tensor]:
        """
        Probabilities of the geometry tokens as heat maps over the frames.

        Each probability belongs to a cell of two frames and 28×28 processed pixels. It is spread evenly over the pixels
        of the cell at the size asked for, so every sum over pixels and frames equals the sum of the probabilities.

        Args:
            geometry_attentions: of the model's output; per medium `[heads, Q, t, h/2, w/2]`.
            target_sizes: per medium (height, width) in pixels; default 28 pixels per cell.
            num_frames: per medium the real number of frames, when the last one was repeated to make it even.
            per_token: return `[Q, frames, H, W]` instead of the mean over tokens `[frames, H, W]`. Heads are averaged.

        Returns:
            One float32 tensor per medium.
        """
        maps = []
        for i, probabilities in enumerate(geometry_attentions):
            cells = probabilities.float().mean(0)  # [Q, t, h/2, w/2]
            if not per_token:
                cells = cells.mean(0, keepdim=True)
            _, t, rows, columns = cells.shape
            height, width = target_sizes[i] if target_sizes is not None else (28 * rows, 28 * columns)
            frames = num_frames[i] if num_frames is not None else 2 * t
            if not 2 * t - 1 <= frames <= 2 * t:
                raise ValueError(
                    f"`num_frames` of medium {i} must be {2 * t - 1} or {2 * t} ({t} steps of two), got {frames}."
                )
            spread = cell_overlap(2 * t, t)
            if frames < 2 * t:  # what the repeated frame got belongs to the frame it repeats
                spread = torch.cat([spread[: frames - 1], spread[frames - 1 :].sum(0, keepdim=True)])
            device = cells.device
            heat = torch.einsum(
                "qthw,ft,yh,xw->qfyx",
                cells,
                spread.to(device),
                cell_overlap(height, rows).to(device),
                cell_overlap(width, columns).to(device),
            )
            maps.append(heat if per_token else heat[0])
        return maps


def _readable_images(images):
    """Files and pillow images, however nested, as [`read_image`] reads them; arrays and tensors as they are."""
    if isinstance(images, (list, tuple)):
        return [_readable_images(image) for image in images]
    return read_image(images) if isinstance(images, (str, os.PathLike, Image.Image)) else images


def _video_items(videos) -> list:
    """
    The videos of a call, in order: files as paths, everything else as frames `[T, H, W, 3]` or `[T, 3, H, W]`.

    A list of frame files (Qwen's own form) or of images is one video.
    """
    if isinstance(videos, (str, os.PathLike)):
        return [_video_item(videos)]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return list(videos) if videos.ndim == 5 else [videos]
    videos = list(videos)
    if videos and all(_is_frame(video) for video in videos):
        return [_stack(videos)]
    found = []
    for video in videos:
        nested = isinstance(video, (list, tuple)) and len(video) > 0 and not all(_is_frame(one) for one in video)
        found += _video_items(video) if nested else [_video_item(video)]
    return found


def _video_item(video):
    if isinstance(video, (str, os.PathLike)):
        if is_image_file(video):
            return _stack([video])
        if os.path.isdir(video):
            return _stack(find_frames(video, interval=1).items)
        return os.fspath(video)
    return _stack(video) if isinstance(video, (list, tuple)) and len(video) else video


def _is_frame(value) -> bool:
    if isinstance(value, (str, os.PathLike)):
        return is_image_file(value)
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 3)


def _stack(frames) -> np.ndarray:
    """Frames `[T, H, W, 3]` of one video; all must have the first one's size."""
    if all(isinstance(frame, (np.ndarray, torch.Tensor)) for frame in frames):
        return torch.stack([torch.as_tensor(frame) for frame in frames]).numpy()
    frames = [
        np.asarray(read_image(frame, None if isinstance(frame, (str, os.PathLike)) else "a frame")) for frame in frames
    ]
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"`videos` holds a list of frames of different sizes (height, width): {sorted(sizes)}.")
    return np.stack(frames)


def _untimed(video) -> VideoMetadata:
    """Metadata of frames that come without any: two per second, Qwen's default, so one second between grid steps."""
    count = len(video)
    indices = np.arange(count)  # an array, as transformers itself fills it
    return VideoMetadata(total_num_frames=count, fps=2.0, duration=count / 2, frames_indices=indices)  # type: ignore[arg-type]


def _occurrences(text: str, token: str) -> list[int]:
    positions, start = [], text.find(token)
    while start >= 0:
        positions.append(start)
        start = text.find(token, start + len(token))
    return positions


DSRProcessor.register_for_auto_class()
