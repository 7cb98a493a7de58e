"""LoRA on every architecture: presets, and adapters that find their base again."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..loading import resolve


@dataclass(frozen=True)
class LoraPreset:
    """
    What an adapter trains of an architecture.

    Args:
        attention, linear: regular expressions of the projections that get low-rank updates, of attention alone or of
            the multi-layer perceptrons, too. Frozen towers are in neither.
        whole: modules that are new or small, and those with batch norms: trained as they are and kept in the adapter.
    """

    attention: str
    linear: str
    whole: tuple[str, ...] = ()


_QWEN = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
_QWEN_MLP = rf"({_QWEN}|.*language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj)"
PRESETS = {
    "dsr": LoraPreset(_QWEN, _QWEN_MLP, ("geometry_selection",)),
    "cadrille": LoraPreset(_QWEN, _QWEN_MLP, ("point_encoder",)),
    "cad_recode": LoraPreset(
        r".*layers\.\d+\.self_attn\.(q|k|v|o)_proj",
        r".*layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
        ("point_encoder",),
    ),
    "scene_qformer": LoraPreset(
        r".*language_model\..*\.self_attn\.(q|k|v|o)_proj",
        r".*language_model\..*\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
        ("neck", "projector"),
    ),
    "frozen_qwen_sam": LoraPreset(
        r"sam\.mask_decoder\.transformer\..*\.(q|k|v|out)_proj",
        r"sam\.mask_decoder\.transformer\..*\.(q_proj|k_proj|v_proj|out_proj|lin1|lin2)",
        ("mask_head", "text_proj"),
    ),
    "pi3": LoraPreset(
        r"(decoder|(point|conf|camera)_decoder\.blocks)\.\d+\.attn\.(qkv|proj)",
        r"(decoder|(point|conf|camera)_decoder\.blocks)\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        ("point_head", "camera_head"),
    ),
    "page4d": LoraPreset(
        r"(aggregator|multiview)\..*_blocks\.\d+\.attn\.(qkv|proj)",
        r"(aggregator|multiview)\..*_blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        ("spatial_mask_head", "dynamic_mask_head"),
    ),
}
KINDS = ("attention", "linear")


def add_adapter(model, preset: str = "attention", rank: int = 16, alpha: int | None = None, dora: bool = False):
    """
    A PEFT model with a new LoRA adapter.

    Args:
        preset: "attention" or "linear", see [`LoraPreset`]. rank: of the updates; alpha: their scale, default 2·rank.
        dora: weight-decomposed updates (DoRA).
    """
    from peft import LoraConfig, get_peft_model

    kind = model.config.model_type
    if kind not in PRESETS:
        raise ValueError(f"There are LoRA presets for {', '.join(PRESETS)}, not for a {kind!r} model.")
    if preset not in KINDS:
        raise ValueError(f"`preset` must be one of {', '.join(KINDS)}, got {preset!r}.")
    here = {name.rpartition(".")[2] for name, module in model.named_modules() if any(True for _ in module.parameters())}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        use_dora=dora,
        target_modules=getattr(PRESETS[kind], preset),
        modules_to_save=[name for name in PRESETS[kind].whole if name in here] or None,
        exclude_modules=None,
    )
    return get_peft_model(model, config)


def save_adapter(model, folder: str | Path, base: str | None = None, subfolder: str | None = None) -> Path:
    """
    Save the adapter of a PEFT model so that [`load_adapter`] finds the base, and nothing else takes another for it.

    PEFT records no subfolder: of a base in one, its name and the transformers loaders would fetch the model at the
    repository's root. Here the base is written as OWNER/NAME/SUBFOLDER (or the path of the folder itself), which no
    loader mistakes for something else.

    Args:
        base, subfolder: where the base came from; default: what it was loaded from.
    """
    model.save_pretrained(folder)
    path = Path(folder) / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    base = base or config.get("base_model_name_or_path") or model.get_base_model().config._name_or_path
    if not base:
        raise ValueError("`base` is needed: the model does not know where it was loaded from.")
    config["base_model_name_or_path"] = f"{str(base).rstrip('/')}/{subfolder}" if subfolder else str(base)
    config["auto_mapping"] = None  # for code from the Hub it names a module of this machine's cache
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def load_adapter(folder: str | Path, base: str | None = None, trainable: bool = False, **kwargs):
    """
    The base of an adapter with the adapter on it, a PEFT model.

    Args:
        folder: of the adapter. base: instead of the one that it names: a folder or OWNER/NAME[/SUBFOLDER].
        kwargs: for the base's `from_pretrained` (`dtype`, `quantization_config`, …).
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig

    source = base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not source:
        raise ValueError(f"{folder} names no base model; pass `base`.")
    if not Path(source).is_dir() and source.count("/") == 2:
        source, _ = resolve(source, source.rpartition("/")[2])
    config = AutoConfig.from_pretrained(source)
    model = auto_class(config).from_pretrained(source, **{"dtype": "auto", **kwargs})
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def merge_adapter(folder: str | Path, output: str | Path, base: str | None = None) -> Path:
    """Write the base with the adapter in its weights, as a model of its own with processor and code."""
    from transformers import AutoProcessor

    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` {output} exists; choose a new folder.")
    merged: nn.Module = load_adapter(folder, base).merge_and_unload()
    try:
        merged.save_pretrained(output)
        AutoProcessor.from_pretrained(str(folder)).save_pretrained(output)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
    return output


def auto_class(config):
    """The Auto class that loads what a configuration says was saved."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    saved = (config.architectures or [""])[0]
    if saved.endswith("ForConditionalGeneration"):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM if saved.endswith("ForCausalLM") else AutoModel
