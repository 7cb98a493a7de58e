"""Videos to patches, with no more in memory than the patches and a few frames."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from .frames import ChosenFrames

ARITHMETIC = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def patch_videos(
    processor, videos: list, metadata: list[VideoMetadata], **options
) -> tuple[torch.Tensor, torch.LongTensor]:
    """
    What `processor(videos, **options)` makes of videos, to the last bit.

    Each temporal step of a video is decoded, resized and cut into patches by itself, in bytes; its numbers are computed
    where they are cut, and written where they stay.

    Args:
        processor: of Qwen2-VL's videos.
        videos: frames `[T, H, W, 3]` or `[T, 3, H, W]`, or [`ChosenFrames`].
        metadata: of each video; of chosen frames gets their height and width.
        options: of the processor.

    Returns:
        Patches `[P, channels · frames · side²]`, and the grid `[n, 3]` (steps, rows, columns) of each video.
    """
    known = {name: options.pop(name, None) for name in ARITHMETIC}
    known = {name: getattr(processor, name) if value is None else value for name, value in known.items()}
    side, step = (options.get(name) or getattr(processor, name) for name in ("patch_size", "temporal_patch_size"))
    options |= {"do_rescale": False, "do_normalize": False, "return_metadata": False, "return_tensors": None}
    patches, grids = [], []
    for video, about in zip(videos, metadata):
        # Frames that share one budget of pixels are resized in view of all of them.
        length = len(video) if options.get("cap_pixels_per_frame") else step
        whole, steps = None, 0
        for frames in _steps(video, length):
            if isinstance(video, ChosenFrames):
                about.height, about.width = frames.shape[-2:]
            made = processor([frames], **options)
            pieces, grid = made["pixel_values_videos"], torch.as_tensor(made["video_grid_thw"][0])
            numbers = processor.rescale_and_normalize(pieces.view(len(pieces), -1, step * side, side), **known)
            numbers = numbers.view(len(pieces), -1)
            if whole is None and length < len(video):
                whole = numbers.new_empty(-(-len(video) // length) * len(pieces), numbers.shape[1])
            if whole is None:
                whole = numbers
            else:
                whole[steps * grid[1] * grid[2] :][: len(pieces)] = numbers
            steps += int(grid[0])
        patches.append(whole)
        grids.append([steps, int(grid[1]), int(grid[2])])
    return patches[0] if len(patches) == 1 else torch.cat(patches), torch.tensor(grids)


def _steps(video, length: int) -> Iterator:
    """`length` frames at a time, the last ones may be fewer."""
    if not isinstance(video, ChosenFrames):
        yield from (video[start : start + length] for start in range(0, len(video), length))
        return
    frames = iter(video)
    while taken := list(islice(frames, length)):
        yield torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2)  # resizing is quicker with channels in one place
