"""A program and its result, inside its own process: what it may use, and its solid as B-rep on the way out.

Nothing here is relied on. A program that takes hold of this process can send any solid, which is then measured like
every other, in a process that it never saw (`measuring`).
"""

import builtins
import io
import math
import sys

import cadquery
from cadquery import selectors
from cadquery.occ_impl import shapes
from OCP.BinTools import BinTools

from .vocabulary import BUILTINS, CADQUERY, MATH, SELECTORS

MAX_NOTES = 4
_Workplane, _Assembly = cadquery.Workplane, cadquery.Assembly
_first_object, _to_compound = cadquery.Workplane.val, cadquery.Assembly.toCompound
_SHAPES = frozenset(
    value for value in vars(shapes).values() if isinstance(value, type) and issubclass(value, shapes.Shape)
)
_write = BinTools.Write_s


class Names:
    """A module as far as programs see one: some of its names, and no way to the module itself."""

    def __init__(self, names: dict):
        self.__dict__.update(names, __all__=sorted(names))


_selectors = {name: getattr(selectors, name) for name in SELECTORS}
MODULES = {
    "cadquery": Names(
        {name: getattr(cadquery, name) for name in CADQUERY} | _selectors | {"selectors": Names(_selectors)}
    ),
    "cadquery.selectors": Names(_selectors),
    "math": Names({name: getattr(math, name) for name in MATH if hasattr(math, name)}),
}


class Refused(Exception):
    """The program ran, but its result is none; `code` says in what way."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def program_globals(limited: bool, shown: list) -> dict:
    """
    A fresh namespace. `limited` gives the whitelisted builtins and what programs import. What is handed to
    `show_object`, as in CadQuery's editor, is added to `shown`.
    """

    def show_object(obj, *arguments, **options):
        shown.append(obj)

    own = {"__name__": "__main__", "show_object": show_object}
    if not limited:
        return {**own, "__builtins__": builtins}

    def import_known(name, globals=None, locals=None, fromlist=(), level=0):
        if name not in MODULES or level:
            raise ImportError(f"programs import cadquery and math, not {name}")
        return MODULES[name if fromlist else name.partition(".")[0]]

    names = {name: getattr(builtins, name) for name in BUILTINS}
    return {**own, "__builtins__": {**names, "__import__": import_known}}


def result_of(namespace: dict, shown: list, notes: list[str]):
    """What the program made: what it shows last, else `r`, which in programs of people is often a radius."""
    if len(shown) > 1:
        notes.append(f"{len(shown)} objects are shown; the last one counts")
    if shown:
        return shown[-1]
    if "r" not in namespace:
        raise Refused("no_result", "the program leaves nothing in `r` and shows nothing")
    return namespace["r"]


def shape_of(result, notes: list[str]):
    """The shape of a result: of a workplane its first object, as published."""
    if type(result) is _Workplane:
        if len(result.objects) > 1:
            notes.append(f"the result holds {len(result.objects)} objects that are not combined; the first one counts")
        result = _first_object(result)
    elif type(result) is _Assembly:
        result = _to_compound(result)
    if type(result) not in _SHAPES:
        raise Refused(
            "no_result", f"the result is no CadQuery solid but {type(result).__module__}.{type(result).__name__}"
        )
    return result


def brep_of(shape) -> bytes:
    stream = io.BytesIO()
    _write(shape.wrapped, stream)
    return stream.getvalue()


def answer(request: dict, channel) -> None:
    """Run the program of `request` and send what came of it."""
    # Taken before the program runs: nothing it does to modules reaches these names.
    run_code, compile_code, find, shape, encode, send = exec, compile, result_of, shape_of, brep_of, channel.send
    shown, notes = [], []
    try:
        sys.setrecursionlimit(1000)
        try:
            code = compile_code(request["program"], "<program>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            return send({"code": "syntax", "message": str(error)[:500]})
        namespace = program_globals(request["limited"], shown)
        run_code(code, namespace)
        brep = encode(shape(find(namespace, shown, notes), notes))
    except Refused as error:
        return send({"code": error.code, "message": str(error)[:500]})
    except MemoryError:
        return send({"code": "memory", "message": "the program needs more memory than it may have"})
    except BaseException as error:  # SystemExit and whatever else a program raises
        return send(failure(error))
    send({"code": "ok", "notes": notes[:MAX_NOTES]}, brep)


def failure(error: BaseException) -> dict:
    """Code and message of an exception."""
    name, text = type(error).__name__, str(error)
    out_of_memory = "OutOfMemory" in name or "bad_alloc" in text
    return {"code": "memory" if out_of_memory else "runtime", "message": f"{name}: {text}"[:500]}
