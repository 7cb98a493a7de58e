"""Published checkpoints to a folder of this library: `python -m convert_weights` under another name."""

HELP = "convert published checkpoints, check converted ones (python -m convert_weights)"


def run(arguments: list[str]) -> int:
    from convert_weights.__main__ import main

    return main(arguments)
