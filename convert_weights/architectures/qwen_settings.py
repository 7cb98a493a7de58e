"""What the files beside the weights of a Qwen-VL source say: how images and videos are prepared, how positions turn."""

from __future__ import annotations

from ..recipe import merge_config
from ..sources import Source

FILES = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
SIZES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
PUBLISHED_SECTIONS = (16, 24, 24)  # transformers' default where a configuration has none
NORMALISATION = ("image_mean", "image_std", "rescale_factor", "do_normalize", "do_rescale", "resample")


def patch_sizes(vision) -> dict[str, int]:
    """The vision tower's sizes under the names that processors have for them."""
    return {ours: getattr(vision, theirs) for ours, theirs in SIZES.items()}


def check_patch_sizes(source: Source, vision) -> None:
    """
    Raises:
        ValueError: a preprocessing file beside the weights cuts other patches than the vision tower reads.
    """
    for name in FILES.values():
        given = source.json(name)
        for field, size in patch_sizes(vision).items():
            if given.get(field, size) != size:
                raise ValueError(
                    f"Source `{source.name}` ({source.location}): {name} says {field} = {given[field]!r}, the vision "
                    f"tower reads {size}."
                )


def check_rotary_sections(source: Source, text) -> None:
    """
    Raises:
        ValueError: the rotary frequencies of a head are not divided among time, rows and columns.
    """
    section = (text.rope_parameters or {}).get("mrope_section", PUBLISHED_SECTIONS)
    half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
    sizes = list(section) if isinstance(section, (list, tuple)) else None
    if (
        sizes is None
        or len(sizes) != 3
        or any(type(size) is not int or size < 0 for size in sizes)
        or sum(sizes) != half
    ):
        raise ValueError(
            f"Source `{source.name}` ({source.location}): config.json divides the rotary frequencies into "
            f"mrope_section = {section!r:.80}, expected three numbers that make {half}."
        )


def image_settings(source: Source, vision) -> dict:
    """Content of preprocessor_config.json, with the vision tower's sizes; those alone if there is none."""
    return merge_config(source.json(FILES["image"]), patch_sizes(vision))


def normalisation(source: Source, kind: str = "image") -> dict:
    """How pixels are scaled and normalised. Videos follow what is said of images where nothing is said of them."""
    given = source.json(FILES["image"]) | (source.json(FILES["video"]) if kind == "video" else {})
    return {name: given[name] for name in NORMALISATION if given.get(name) is not None}
