"""Recipes of this library, in groups: `recipes/GROUP/NAME.py` has `RECIPE`, and `recipes/GROUP/__init__.py` their
`ORDER`."""
