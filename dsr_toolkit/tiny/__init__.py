"""Small random checkpoints in the layouts of the published ones, and the models that the real converter makes of them.

They let everything run where no real weights are: tests, the demo, and commands without `--model`.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants

from ..console import say, step


def _dsr_sources(folder: Path):
    from .pi3 import DSR_OVERRIDES, write_pi3
    from .qwen2_5_vl import write_qwen2_5_vl

    sources = {
        "qwen": write_qwen2_5_vl(folder / "Qwen2.5-VL-tiny"),
        "pi3": write_pi3(folder / "Pi3-tiny" / "model.safetensors"),
    }
    return sources, DSR_OVERRIDES


def _pi3_sources(folder: Path):
    from .pi3 import PI3_OVERRIDES, write_pi3

    return {"pi3": write_pi3(folder / "Pi3-tiny" / "model.safetensors")}, PI3_OVERRIDES


def _page4d_sources(folder: Path):
    from .page4d import OVERRIDES, write_page4d

    return {"page4d": write_page4d(folder / "PAGE4D-tiny" / "checkpoint_mask.pt")}, OVERRIDES


def _page4d_multiview_sources(folder: Path):
    from .page4d import MULTIVIEW

    sources, overrides = _page4d_sources(folder)
    return sources, overrides | MULTIVIEW


def _scene_qformer_sources(folder: Path):
    from .scene_qformer import SCENE_QFORMER_OVERRIDES, write_llama, write_scene_qformer

    sources = {
        "scene_qformer": write_scene_qformer(folder / "SceneQFormer-tiny" / "checkpoint_epoch_1.pth"),
        "llm": write_llama(folder / "Vicuna-tiny"),
    }
    return sources, SCENE_QFORMER_OVERRIDES


def _cadrille_sources(folder: Path):
    from .cadrille import write_cadrille

    return {"cadrille": write_cadrille(folder / "cadrille-tiny")}, {}


def _cad_recode_sources(folder: Path):
    from .cadrille import write_cad_recode

    return {"cad_recode": write_cad_recode(folder / "cad-recode-tiny")}, {}


def _frozen_qwen_sam_sources(folder: Path):
    from .qwen2_5_vl import TEXT, write_qwen2_5_vl
    from .sam import write_flmm, write_sam

    sizes = (TEXT["hidden_size"], TEXT["num_hidden_layers"], TEXT["num_attention_heads"])
    sources = {
        "qwen": write_qwen2_5_vl(folder / "Qwen2.5-VL-tiny"),
        "sam": write_sam(folder / "sam_vit_tiny.pth"),
        "flmm": write_flmm(folder / "flmm" / "flmm_tiny.pth", *sizes),
    }
    return sources, {}


# Per model type: folder -> (sources for the converter, its config overrides).
SOURCES = {
    "dsr": _dsr_sources,
    "pi3": _pi3_sources,
    "page4d": _page4d_sources,
    "frozen_qwen_sam": _frozen_qwen_sam_sources,
    "cadrille": _cadrille_sources,
    "cad_recode": _cad_recode_sources,
    "scene_qformer": _scene_qformer_sources,
}
# Other models of a type: its name, and the same.
VARIANTS = {"page4d_multiview": ("page4d", _page4d_multiview_sources)}


def model_type_of(name: str) -> str:
    """The model type of a tiny model by its name."""
    return VARIANTS[name][0] if name in VARIANTS else name


def build(model_type: str, folder: str | Path) -> Path:
    """Write the tiny sources of `model_type` to `folder/sources`, convert them, and return the result, `folder/hub`."""
    from convert_weights import convert

    folder = Path(folder)
    arch, write = VARIANTS.get(model_type) or (model_type, SOURCES[model_type])
    with step(f"Writing tiny checkpoints to {folder / 'sources'}"):
        sources, overrides = write(folder / "sources")
    with step(f"Converting them to {folder / 'hub'}"):
        report = convert(arch, sources, folder / "hub", config_overrides=overrides, progress=False)
    say(report.table())
    return folder / "hub"


def hub_folder(model_type: str) -> Path:
    """
    The tiny model of `model_type`, built when it is first wanted and kept in Hugging Face's cache folder.

    Its name holds a fingerprint of the code that makes it, so that a new version of the library builds a new one.
    """
    if model_type not in SOURCES | VARIANTS:
        raise ValueError(f"There is no tiny {model_type!r} model; there are {', '.join(SOURCES | VARIANTS)}.")
    return _kept(model_type, lambda work: build(model_type, work))


def repository_folder() -> Path:
    """The tiny models of every type in one repository, as `python -m convert_weights hub` assembles it; kept
    likewise."""
    from convert_weights import assemble

    def make(work: Path) -> Path:
        models = {kind: hub_folder(kind) for kind in SOURCES}
        with step(f"Assembling them in {work / 'repository'}"):
            assemble(models, work / "repository", progress=False)
        return work / "repository"

    return _kept("repository", make)


def linked_folder(folders: dict[str, Path]) -> Path:
    """A folder that holds others by name, as links; kept likewise."""

    def make(work: Path) -> Path:
        (work / "models").mkdir()
        for name, folder in folders.items():
            (work / "models" / name).symlink_to(folder.resolve(), target_is_directory=True)
        return work / "models"

    names = hashlib.sha256("\n".join(f"{name} {path.resolve()}" for name, path in folders.items()).encode()).hexdigest()
    return _kept(f"models-{names[:12]}", make)


def _kept(name: str, make: Callable[[Path], Path]) -> Path:
    """The folder that `make` makes within a scratch folder, from the cache if it is there."""
    cache = Path(constants.HF_HOME) / "dsr-tiny"
    folder = cache / f"{name}-{_fingerprint()}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=cache))
        try:
            os.rename(make(work), folder)
        except OSError:
            if not folder.is_dir():  # another process may have been quicker
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _fingerprint() -> str:
    import convert_weights
    import modeling_dsr
    from convert_weights.repository.files import beside

    packages = [Path(module.__path__[0]) for module in (modeling_dsr, convert_weights)] + [Path(__file__).parent]
    digest = hashlib.sha256()
    for package in [*packages, beside("hub")]:
        for file in sorted(package.rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]
