"""What the geometry kernel would look for on disk while a program runs: a font, and the solver of assemblies."""

import casadi
from OCP.Font import (
    Font_FA_Bold,
    Font_FA_BoldItalic,
    Font_FA_Italic,
    Font_FA_Regular,
    Font_FontMgr,
)
from OCP.TCollection import TCollection_AsciiString

ASPECTS = (Font_FA_Regular, Font_FA_Bold, Font_FA_Italic, Font_FA_BoldItalic)


def font_bytes() -> bytes:
    """The font that Pillow carries: text has the same shape on every machine, whatever fonts it has."""
    from PIL import ImageFont

    return ImageFont.load_default(10).font_bytes


def use_font(path: str) -> None:
    """Whatever font a program asks for, it is this one."""
    manager = Font_FontMgr.GetInstance_s()
    manager.ClearFontDataBase()
    font = manager.CheckFont(path)
    for aspect in ASPECTS:
        font.SetFontPath(aspect, TCollection_AsciiString(path))
    manager.RegisterFont(font, True)


def load_solver() -> None:
    """`Assembly.solve` hands its constraints to IPOPT, which casadi loads when it is first used."""
    x = casadi.MX.sym("x")
    settings = {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes"}}
    casadi.nlpsol("warm", "ipopt", {"x": x, "f": (x - 1) ** 2}, settings)(x0=0.0)
