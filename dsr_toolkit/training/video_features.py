"""Videos of DSR whose features are kept are not opened again: rows bring features where they brought pixels."""

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from modeling_dsr.dsr_collator import DSRCollator
from modeling_dsr.dsr_outputs import DSRVisionFeatures

KEYS, FEATURES = "video_keys", "video_features"  # of a batch, beside the model's inputs
INDEX = "videos"  # folder of what is known of each video
WAYS = ("padding", "padding_side", "return_tensors")  # options that say how to write text, not what to see


class KnownVideos(DSRCollator):
    """
    As the [`DSRCollator`] that it is made of. If the features of all videos of a batch are kept, and they are files,
    the batch has them under "video_features", no pixels, and no video is opened; else "video_keys" say what to keep
    them under.

    Args:
        plain: the collator. folder: of the [`FeatureCache`]. weights: of the towers, and how they compute.
    """

    def __init__(self, plain: DSRCollator, folder: Path, weights: str):
        super().__init__(plain.processor, plain.max_length, plain.packed, **plain.processor_options)
        self.folder, self.weights = folder, weights

    def encode(self, texts: list[str], images: list, videos: list, copies: list[int], options: dict):
        if images or not videos or not all(isinstance(video, str) and os.path.isfile(video) for video in videos):
            return super().encode(texts, images, videos, copies, options)
        keys = [self.key(video, options) for video in videos]
        known = [read_video(self.folder, key) for key in keys]
        if not all(known):
            batch = super().encode(texts, images, videos, copies, options)
            batch[KEYS] = keys
            return batch
        grids = torch.tensor([one["grid"] for one in known])
        repeated = grids.repeat_interleave(torch.tensor(copies), 0) if max(copies) > 1 else grids
        given = {name: options[name] for name in WAYS if name in options}
        batch = self.processor(text=texts, video_grid_thw=repeated, **given)
        batch["video_grid_thw"] = grids
        batch["second_per_grid_ts"] = torch.tensor([one["seconds"] for one in known])
        if max(copies) > 1:
            batch["video_copies"] = torch.tensor(copies)
        batch[FEATURES] = [one["features"] for one in known]
        return batch

    def key(self, video: str, options: dict) -> str:
        """Of a file's content, the towers, and all that says what is seen of it."""
        processor = self.processor
        settings = [
            processor.video_processor.to_dict(),
            processor.num_frames,
            processor.fixed_second_per_grid_ts,
            {name: value for name, value in options.items() if name not in WAYS},
        ]
        state = os.stat(video)
        content = _content(os.path.abspath(video), state.st_mtime_ns, state.st_size)
        told = f"{content} {self.weights} {json.dumps(settings, sort_keys=True, default=str)}"
        return hashlib.sha256(told.encode()).hexdigest()


@cache
def _content(path: str, moment: int, size: int) -> str:
    """Digest of a file; `moment` and `size` tell whether it was changed since."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_features(file: Path) -> torch.Tensor:
    """A file's tensor, mapped into memory; its use is noted. FileNotFoundError if it is not there."""
    features = load_file(file)["features"]
    with suppress(FileNotFoundError):  # deleted since: what is mapped stays
        os.utime(file)
    return features


def read_video(folder: Path, key: str) -> dict | None:
    """`grid`, `seconds` and `features` of a video, or None if any of them is not kept (any more)."""
    try:
        known = json.loads((folder / INDEX / f"{key}.json").read_text(encoding="utf-8"))
        visual, *frames = (read_features(folder / name) for name in known["files"])
    except (FileNotFoundError, ValueError):
        return None
    return {**known, "features": {"visual": visual, "geometry": torch.stack(frames)}}


class VideoFeatures:
    """
    A DSR's side: takes features from a batch, and notes where those of a video lie that was seen for the first time.

    Args:
        cache: a [`FeatureCache`] to which both towers are attached. core: the `DSRModel`.
    """

    def __init__(self, cache, core):
        self.cache, self.core = cache, core
        self.seen, self.forward = core.get_video_features, core.forward
        self.given: list[dict] | None = None
        self.keys: list[str] | None = None
        self.seconds: list[float] = []
        cache.replace(core, "get_video_features", self._see)
        cache.replace(core, "forward", self._forward)

    @contextmanager
    def reading(self, inputs: dict):
        """While a model gets `inputs`, out of which what is not its own is taken."""
        self.given, self.keys = inputs.pop(FEATURES, None), inputs.pop(KEYS, None)
        if self.keys is not None:
            self.seconds = inputs["second_per_grid_ts"].tolist()
        try:
            yield
        finally:
            self.given = self.keys = None

    def _forward(self, *args, **kwargs):
        if self.given is not None:
            kwargs["mm_encoder_outputs"] = {"video": self._merged(self.given, kwargs["video_grid_thw"])}
        return self.forward(*args, **kwargs)

    def _merged(self, given: list[dict], grids: torch.Tensor) -> DSRVisionFeatures:
        """What the mergers, which may train, make of features."""
        tower, config = self.core.visual, self.core.config
        skip, moments = 1 + config.geometry_config.num_register_tokens, config.vision_config.temporal_patch_size
        vision, spatial = [], []
        for one, (t, h, w) in zip(given, grids.tolist()):
            states = one["visual"].unflatten(1, (tower.spatial_merge_size**2, -1))
            vision.append(tower.merger(states.flatten(0, 1)))
            # In the chunks in which they are computed, so that numbers are the same to the last bit.
            steps = max(1, config.geometry_chunk_size // moments) if config.geometry_chunk_size else t
            parts = one["geometry"][:, skip:].split(steps * moments)
            spatial.append(torch.cat([self.core.merge_geometry(p, (len(p) // moments, h, w)) for p in parts]))
        return DSRVisionFeatures(pooler_output=tuple(vision), geometry_features=tuple(spatial), grid_thw=grids)

    def _see(self, patches, grids=None, **kwargs):
        """Video by video, if they are to be noted."""
        if self.keys is None:
            return self.seen(patches, grids, **kwargs)
        sizes, found = [t * h * w for t, h, w in grids.tolist()], []
        for number, piece in enumerate(patches.split(sizes)):
            self.cache.trail = []
            found.append(self.seen(piece, grids[number : number + 1], **kwargs))
            known = {"grid": grids[number].tolist(), "seconds": self.seconds[number], "files": self.cache.trail}
            self.cache.trail = None
            file = self.cache.folder / INDEX / f"{self.keys[number]}.json"
            file.parent.mkdir(exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(known), encoding="utf-8")
            os.replace(part, file)
        return DSRVisionFeatures(
            pooler_output=tuple(one for some in found for one in some.pooler_output),
            geometry_features=tuple(one for some in found for one in some.geometry_features),
            grid_thw=grids,
        )
