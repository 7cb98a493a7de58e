"""Ratios of the library against a stated baseline: `python -m benchmarks`."""
