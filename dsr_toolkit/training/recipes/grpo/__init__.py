"""Models of the tiny group that learn on by rewards."""

ORDER = ("cad_recode",)
