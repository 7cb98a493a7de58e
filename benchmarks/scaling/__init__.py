"""How time and memory grow with the work: `python -m benchmarks.scaling` measures, and writes SCALING.md and plots."""
