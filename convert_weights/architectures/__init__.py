"""Published checkpoints, architecture by architecture."""
