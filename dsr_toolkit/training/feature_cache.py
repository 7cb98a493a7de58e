"""What frozen towers make of an image is computed once and kept on disk."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput, BaseModelOutputWithPooling

from modeling_dsr.dsr_collator import DSRCollator
from modeling_dsr.dsr_vision_layout import vision_layout
from modeling_dsr.frozen_qwen_sam_outputs import FrozenQwenSAMFeatures

from .phrase_rows import PhraseRows
from .video_features import KnownVideos, VideoFeatures, read_features

# Per architecture the towers that are frozen in the published training, under a model or its head.
TOWERS = {
    "dsr": {"visual": "qwen", "geometry_encoder": "tokens"},
    "cadrille": {"visual": "qwen"},
    "pi3": {"encoder": "tokens"},
    "page4d": {"encoder": "tokens"},
    "frozen_qwen_sam": {"sam.vision_encoder": "tokens", "vlm": "phrases"},
    "scene_qformer": {"backbone": "maps"},
}
LAYOUT = ("position_ids", "cu_seqlens", "window_index", "cu_window_seqlens", "segments")


class FeatureCache:
    """
    Features of frozen towers, one file per image (frame, view) or video and set of weights.

    The key is made of the pixels that the tower reads (so of content and processor settings), of the tower's weights
    and of the precision. Files appear whole or not at all, so any number of processes may share a folder.

    Args:
        folder: of the files. max_bytes: files that were not used for longest are deleted beyond this.
    """

    def __init__(self, folder: str | Path, max_bytes: float = 50e9):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.total = sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))
        self.hits = self.misses = 0
        self.trail: list[str] | None = None  # files that were asked for, if somebody notes them
        self.videos: VideoFeatures | None = None
        self.weights = ""  # of all attached towers
        self._replaced: list[tuple[nn.Module, str]] = []

    # ---- towers --------------------------------------------------------------------------

    def attach(self, model) -> list[str]:
        """
        Let the frozen towers of a model answer from the cache; returns their names.

        Raises:
            ValueError: no tower of the model is frozen.
        """
        kind, found = model.config.model_type, []
        for path, form in TOWERS.get(kind, {}).items():
            name, tower = _find(model, path)
            merger = "merger." if form == "qwen" else ""
            trains = [
                n for n, p in tower.named_parameters() if p.requires_grad and not (merger and n.startswith(merger))
            ]
            if trains:
                continue
            weights = fingerprint(tower, merger)
            self.weights += f"{name} {weights} "
            if form == "phrases":
                self._phrases(model.get_submodule(name.rpartition(".")[0]), weights)
            else:
                answer = {"tokens": self._tokens, "maps": self._maps, "qwen": self._qwen}[form]
                self.replace(tower, "forward", answer(tower, tower.forward, weights))
            found.append(name)
        if kind == "dsr" and len(found) == len(TOWERS[kind]):
            self.videos = VideoFeatures(self, model.get_submodule(found[0].rpartition(".")[0]))
        if not found:
            raise ValueError(
                f"A feature cache needs a frozen tower, and this {kind!r} model has none. Freeze one, for example by "
                f"`model.freeze(…)`: {', '.join(TOWERS.get(kind, {})) or 'there is none of this kind'}."
            )
        return found

    def detach(self) -> None:
        """Give the towers their own forward back."""
        for module, name in self._replaced:
            delattr(module, name)
        self._replaced.clear()
        self.videos, self.weights = None, ""

    def collator(self, plain: Callable, precision: str = "") -> Callable:
        """
        A collator of training rows that opens no video whose features are kept; `plain` itself where there is none.
        What it adds to a batch is for [`FeatureCache.reading`].

        Args:
            precision: in which the towers compute, beside the precision of their weights.
        """
        # By name: of a processor that was loaded with its code from the Hub, it is another class of the same name.
        if self.videos is None or type(plain).__name__ != DSRCollator.__name__:
            return plain
        return KnownVideos(plain, self.folder, f"{self.weights}{self.videos.core.dtype} {precision}")

    def reading(self, inputs: dict):
        """A context in which the model is called with `inputs` of such a collator."""
        return nullcontext() if self.videos is None else self.videos.reading(inputs)

    def replace(self, module: nn.Module, name: str, method: Callable) -> None:
        setattr(module, name, method)
        self._replaced.append((module, name))

    def _tokens(self, tower, plain, weights: str):
        def forward(images, *args, **kwargs):
            rows = self.rows(weights, list(images), lambda missing: plain(images[missing], *args, **kwargs)[0])
            return BaseModelOutput(last_hidden_state=torch.stack(rows))

        return forward

    def _maps(self, tower, plain, weights: str):
        def forward(images, *args, **kwargs):
            rows = self.rows(
                weights, list(images), lambda missing: plain(images[missing], *args, **kwargs).feature_maps[-1]
            )
            return BackboneOutput(feature_maps=(torch.stack(rows),))

        return forward

    def _qwen(self, tower, plain, weights: str):
        """A Qwen vision tower, whose merger may train: what is kept lies before it, in the order behind it."""

        def forward(patches, grid_thw, *args, **kwargs):
            # DSR hands its tower the layout of all media together; alone, each has another.
            laid_out = "segments" in kwargs
            kwargs = {name: value for name, value in kwargs.items() if not laid_out or name not in LAYOUT}
            media = patches.split([int(t * h * w) for t, h, w in grid_thw.tolist()])
            group = tower.spatial_merge_size**2
            marked = [(medium, tuple(grid)) for medium, grid in zip(media, grid_thw.tolist())]

            def alone(number: int) -> torch.Tensor:
                grid = grid_thw[number : number + 1]
                given = vision_layout(grid, tower.config, patches.device).given if laid_out else {}
                return plain(media[number], grid, *args, **kwargs, **given).pooler_output

            def compute(missing: list[int]) -> list[torch.Tensor]:
                merger, tower.merger = tower.merger, _Grouped(group)
                try:
                    return [alone(i) for i in missing]
                finally:
                    tower.merger = merger

            states = torch.cat(self.rows(weights, marked, compute))  # [P/4, 4·C]
            merged = tower.merger(states.unflatten(1, (group, -1)).flatten(0, 1))
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=merged)

        return forward

    def _phrases(self, model, weights: str) -> None:
        """
        FrozenQwenSAM's language model: of each image with its captions what is kept of the phrases, attention to the
        image and hidden states. If an entry of a batch is missing, the whole batch is read.
        """
        read_prefix, read_captions = model._read_prefix, model.read_captions

        def remember(layout, input_ids, pixel_values, image_grid_thw):
            features = FrozenQwenSAMFeatures(input_ids, layout.prefix_lengths, None, ())
            features.pixels = (pixel_values, image_grid_thw)
            return features

        def read(layout, input_ids, features, merge):
            if not hasattr(features, "pixels"):  # given by the caller, who has read the prefix
                return read_captions(layout, input_ids, features, merge)
            pixels, grids = features.pixels
            asked = PhraseRows(layout, input_ids, pixels, grids, merge)

            def compute(missing: list[int]) -> list[torch.Tensor]:
                states = read_captions(layout, input_ids, read_prefix(layout, input_ids, pixels, grids), merge)
                rows = asked.split(states)
                return [rows[i] for i in missing]

            return asked.join(self.rows(weights, asked.keys(), compute), model)

        self.replace(model, "_read_prefix", remember)
        self.replace(model, "read_captions", read)

    # ---- files ---------------------------------------------------------------------------

    @torch.no_grad()
    def rows(self, weights: str, inputs: list, compute: Callable) -> list[torch.Tensor]:
        """
        The features of `inputs` (tensors, or pairs of tensor and settings), in order.

        Args:
            compute: indices of what is missing -> its features, a tensor or list with an entry for each.
        """
        files = [self._file(weights, one) for one in inputs]
        if self.trail is not None:
            self.trail += [str(file.relative_to(self.folder)) for file in files]
        device = (inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]).device
        found = [self._read(file, device) for file in files]
        missing = [i for i, features in enumerate(found) if features is None]
        if missing:
            for i, features in zip(missing, compute(missing)):
                found[i] = features
                self._write(files[i], features)
        self.hits += len(inputs) - len(missing)
        self.misses += len(missing)
        return found

    def _file(self, weights: str, given) -> Path:
        tensor, settings = given if isinstance(given, tuple) else (given, ())
        precision = (
            torch.get_autocast_dtype(tensor.device.type) if torch.is_autocast_enabled(tensor.device.type) else ""
        )
        head = f"{weights} {tensor.dtype} {tuple(tensor.shape)} {settings} {precision}"
        digest = hashlib.sha256(head.encode() + _bytes(tensor)).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _read(self, file: Path, device) -> torch.Tensor | None:
        try:
            return read_features(file).to(device)
        except FileNotFoundError:
            return None

    def _write(self, file: Path, features: torch.Tensor) -> None:
        content = save({"features": features.detach().contiguous().cpu()})
        file.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as part:
            part.write(content)
        os.replace(part.name, file)
        self.total += len(content)
        if self.total > self.max_bytes:
            self._shrink()

    def _shrink(self) -> None:
        """Delete what was not used for longest, to 90 % of the bound. Other processes may be doing the same."""
        found = []
        for file in self.folder.glob("*/*.safetensors"):
            try:
                state = file.stat()
                found.append((state.st_mtime_ns, state.st_size, file))
            except FileNotFoundError:
                continue
        self.total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if self.total <= 0.9 * self.max_bytes:
                break
            file.unlink(missing_ok=True)
            self.total -= size


class _Grouped(nn.Module):
    """In the merger's place: the tokens of a cell side by side, and nothing else."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.unflatten(0, (-1, self.group)).flatten(1)


def fingerprint(module: nn.Module, without: str = "") -> str:
    """Of a module's parameters and buffers, but those whose names begin with `without`."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in module.state_dict().items():
        if not (without and name.startswith(without)):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _find(model, path: str) -> tuple[str, nn.Module]:
    """The submodule whose name ends in `path`."""
    name = min((n for n, _ in model.named_modules() if f".{n}".endswith(f".{path}")), key=len, default=None)
    if name is None:
        raise ValueError(f"{type(model).__name__} has no module {path!r}.")
    return name, model.get_submodule(name)
