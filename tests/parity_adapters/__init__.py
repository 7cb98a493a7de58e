"""One module per architecture: how its reference cases are run. `tests.parity` explains what a module provides."""
