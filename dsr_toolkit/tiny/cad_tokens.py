"""What the tokenizer of the tiny Cadrille and CAD-Recode knows beside bytes: numbers and phrases of CadQuery."""

# A whole number is one token, in programs and in descriptions alike: a tiny model compares and copies numbers, and is
# spared their digits. With the sign where it has one: (-60,0) is "(" "-60" "," "0" ")".
NUMBERS = tuple(str(number) for number in range(-100, 201))
PHRASES = (
    "import cadquery as cq\nw0=cq.Workplane('",
    "w1=cq.Workplane('",
    "XY",
    "YZ",
    "ZX",
    "',origin=(",
    "))\n",
    "r=w0",
    "w0",
    "w1",
    ".sketch()",
    ".rect(",
    ".circle(",
    ".regularPolygon(",
    ".push([(",
    "),(",
    ")])",
    ",mode='s')",
    ".finalize().extrude(",
    ".union(w1",
    ".cut(w1",
    ".moveTo(",
    ").lineTo(",
    ").close().extrude(",
    ".box(",
    ".cylinder(",
    ")\n",
    "))\n",
    ") (",
    ") and (",
)
PIECES = PHRASES + NUMBERS

# Words of descriptions, from which merges are learnt.
CORPUS = (
    *("system\nuser\nassistant\nYou are a helpful assistant.\nGenerate cadquery code\n",) * 20,
    *(
        "A box of 1 by 2 by 3. A cylinder of radius 1 and height 2 along X. A ring of radius 1 with a bore of"
        " radius 2 and height 3 along Y. A plate of 1 by 2 with thickness 3 along Z and 4 holes of radius 5 "
        "at (6,7). and a hole of. A hexagon of radius 1 and height 2 along X with a bore of radius 3. A "
        "bracket of depth 1 along Y like the letter L T U with corners. On a plate of 1 by 2 with thickness 3"
        " along Z a boss of radius 4 and height 5 at (6,7) and a bore of radius 8. On a disc of radius 1 with"
        " thickness 2 along X a boss of 3 by 4 and height 5. A block of 1 by 2 with height 3 along Y and a "
        "pocket of radius 4 and depth 5 at (6,7). and a pocket of 1 by 2 and depth 3",
    )
    * 10,
)
