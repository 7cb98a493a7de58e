"""Tiny models, trained from nothing on worlds; in the order in which `dsr train --recipe tiny` makes them."""

ORDER = ("pi3", "page4d", "page4d_multiview", "scene_qformer", "cad_recode", "cadrille")
