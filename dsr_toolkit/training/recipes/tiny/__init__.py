"""Tiny models, trained from nothing on worlds; in the order in which `dsr train --recipe tiny` makes them."""

ORDER = (
    "pi3", "page4d", "page4d_multiview", "qwen_vl", "dsr", "sam", "frozen_qwen_sam", "scene_qformer", "cad_recode",
    "cadrille",
)  # fmt: skip

COMPARISONS = ("dsr_without_geometry",)  # run by name alone
