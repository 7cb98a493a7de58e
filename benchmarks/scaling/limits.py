"""Where the memory of one GPU of 80 GB would end at the published sizes: computed from sizes, measured nowhere."""

from __future__ import annotations

GPU = 80e9  # bytes
USABLE = 0.9  # the rest is for work spaces and fragments
FLOAT, HALF = 4, 2
PIXELS, PATCHES = 392 * 518, 28 * 37  # of a frame


def fits(weights: float, each: float, fixed: float = 0.0) -> int:
    """How many of `each` bytes there is room for beside weights and what does not grow."""
    return int((USABLE * GPU - weights - fixed) // each)


def pi3_frames() -> str:
    return f"about {fits(PI3, PI3_FRAME):,} frames of 518×392 ({PI3_FRAME / 2**20:.0f} MiB each)"


# float32 weights under bfloat16 autocast, as published. A frame keeps two token streams in float32 and, inside a block
# over all frames, queries, keys, values, what they attend to and its projection; and seven float32 maps.
PI3 = 958_697_762 * FLOAT
PI3_FRAME = (PATCHES + 5) * 1024 * (2 * FLOAT + 5 * HALF + 2 * FLOAT) + PIXELS * 7 * FLOAT


def page4d_frames() -> str:
    # As π³, one stream, and four layers of twice the width for the dense heads.
    each = (PATCHES + 5) * 1024 * (FLOAT + 5 * HALF + 2 * FLOAT + 4 * 2 * FLOAT) + PIXELS * 6 * FLOAT
    return f"about {fits(1_190_869_017 * FLOAT, each):,} frames of 518×392 ({each / 2**20:.0f} MiB each)"


def views() -> str:
    return "as the frames of PAGE-4D: times × cameras"


def pi3_scenes() -> str:
    return f"about {fits(PI3, 2 * PI3_FRAME):,} scenes of two frames of 518×392"


def questions() -> str:
    # 32 frames of 336×616: 4224 vision tokens and as many spatial states of width 3584.
    features = 2 * 4224 * 3584 * HALF
    kept = fits(9_159_344_128 * HALF, features, 2e9)
    return f"no end for questions; about {kept:,} videos could be kept encoded ({features / 2**20:.0f} MiB each)"


def phrases() -> str:
    # Qwen2.5-VL-3B at 1024×1024: a float32 map of 37×37 cells for each of 36 · 16 heads.
    each = 36 * 16 * 37 * 37 * FLOAT
    return (
        f"about {fits(3.75e9 * HALF + 0.64e9 * FLOAT, each, 4e9):,} phrases of an image ({each / 2**20:.1f} MiB each)"
    )


def candidates() -> str:
    # Keys and values of 28 layers, two heads of 128, for 257 tokens of the prompt and 768 of the program.
    each = 2 * 28 * 2 * 128 * (257 + 768) * HALF
    return f"about {fits(1_543_794_176 * HALF, each, 1e9):,} programs at once ({each / 2**20:.0f} MiB each)"


def models() -> str:
    total = (9.16 * HALF + 0.96 * FLOAT + 1.19 * FLOAT + 4.4 * HALF + 2.2 * HALF + 1.54 * HALF + 7.1 * HALF) * 1e9
    return f"all seven at once take {total / 1e9:.0f} GB of weights; loaded one at a time, nothing grows"


def requests() -> str:
    # DSR: keys and values of 28 layers, four heads of 128, for 4224 + 32 + 200 tokens.
    each = 2 * 28 * 4 * 128 * 4456 * HALF
    return f"about {fits(9_159_344_128 * HALF, each, 4e9):,} videos under way ({each / 2**20:.0f} MiB of cache each)"
