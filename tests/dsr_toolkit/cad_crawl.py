"""Everything that a program can reach under the policy: a program for the sandbox, without the policy, that looks for a
way out.

It starts from the globals of a checked program and goes on by every attribute of the vocabulary, by the results of
calls and by what callbacks are handed, and raises if it meets a module, a frame, code, a namespace of a module, or an
object of the geometry kernel.
"""

import sys
import time
import types

from dsr_toolkit.cad.program import Names, program_globals
from dsr_toolkit.cad.vocabulary import ATTRIBUTES

ATTRIBUTES = ATTRIBUTES | set("MORE".split())  # capitals are replaced

SUBJECT, LIMIT = "START", float("SECONDS")
WAYS_OUT = (types.ModuleType, types.FrameType, types.CodeType, types.TracebackType)
NAMES = ("__globals__", "__class__", "__dict__", "wrapped", "utils", "occ_impl", "{0.__class__}")
began, met, found, seen, waiting = time.monotonic(), {}, [], set(), []
namespaces = {id(vars(module)) for module in list(sys.modules.values()) if hasattr(module, "__dict__")}


def look(value, path):
    if isinstance(value, Names):
        pass
    elif (
        isinstance(value, WAYS_OUT) or id(value) in namespaces or (isinstance(value, dict) and "__builtins__" in value)
    ):
        found.append(path + ": " + type(value).__name__)
    elif type(value).__module__.split(".")[0] in ("OCP", "vtk", "vtkmodules", "casadi"):
        found.append(path + ": " + type(value).__module__ + "." + type(value).__name__)
    elif isinstance(value, type) and value.__module__.split(".")[0] not in ("builtins", "cadquery", "multimethod"):
        found.append(path + ": class " + value.__module__ + "." + value.__name__)
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        for part in list(value)[:20]:
            look(part, path + "[]")
            if isinstance(value, dict):
                look(value[part], path + "[...]")
    kind = type(value)
    known = met.setdefault(kind, [])
    if id(value) not in seen and len(known) < (400 if callable(value) else 2):
        seen.add(id(value))
        known.append(value)  # kept, so that its number is not given to another
        waiting.append((value, path))


def callback(*arguments, **options):
    for number, argument in enumerate(arguments):
        look(argument, "argument %d of a callback" % number)
    for name, argument in options.items():
        look(argument, "argument %s of a callback" % name)
    return arguments[0] if arguments else None


def call(function, path, arguments):
    try:
        look(function(*arguments), path + "(" + ", ".join(repr(a)[:20] for a in arguments) + ")")
    except Exception:  # a program cannot catch it
        pass


names = program_globals(True, [])
import_module = names["__builtins__"]["__import__"]
cq, math = import_module("cadquery"), import_module("math")
box = cq.Workplane().box(1, 1, 1)
samples = {
    "Workplane": lambda: box,
    "Sketch": lambda: cq.Sketch().rect(1, 1),
    "Assembly": lambda: cq.Assembly(box, name="a").add(box, name="b"),
    "Vector": lambda: cq.Vector(1, 2, 3),
    "Plane": lambda: cq.Plane.XY(),
    "Location": lambda: cq.Location(cq.Vector(0, 0, 1)),
    "Color": lambda: cq.Color("red"),
    "BoundBox": lambda: box.val().BoundingBox(),
    "Matrix": lambda: cq.Matrix(),
    "Edge": lambda: box.edges().val(),
    "Wire": lambda: box.wires().val(),
    "Face": lambda: box.faces().val(),
    "Shell": lambda: box.shells().val(),
    "Solid": lambda: box.val(),
    "Compound": lambda: cq.Compound.makeCompound([box.val()]),
    "Vertex": lambda: box.vertices().val(),
    "selectors": lambda: cq.StringSyntaxSelector(">Z"),
    "cadquery": lambda: cq,
    "math": lambda: math,
    "text": lambda: "abc",
    "list": lambda: [1, 2],
    "generator": lambda: (x for x in [1]),
    "function": lambda: callback,
    "number": lambda: 1.5,
    "dict": lambda: {"a": 1},
}
show_object(cq.Solid.makeBox(1, 1, 1))  # noqa: F821  given to every program; what follows may change every other
subject = samples[SUBJECT]()
# One of each kind alone, then pairs: names, numbers, callbacks and parts.
singles = [
    1.0,
    2,
    "XY",
    ">Z",
    "a",
    (0, 0, 0),
    (1.0, 0.5),
    True,
    None,
    callback,
    cq.Vector(0, 0, 1),
    cq.Plane.XY(),
    cq.Location(),
    box,
    box.val(),
    box.faces().val(),
    box.wires().val(),
    box.edges().val(),
    [(0, 0), (1, 0), (1, 1)],
    [box.edges().val()],
    [box.faces().val()],
    cq.Sketch().rect(1, 1),
    *NAMES,
]
pairs = [
    (1.0, 1.0),
    (callback, 1.0),
    ("a", "__globals__"),
    ((0, 0, 0), (0, 0, 1)),
    (box.val(), callback),
    (callback, ("__globals__",)),
    ("a", box),
]
ways = [(), *((one,) for one in singles), *pairs, (1.0, 1.0, 1.0)]

look(subject, SUBJECT)
while waiting and time.monotonic() - began < LIMIT:
    value, path = waiting.pop(0)
    for name in sorted(ATTRIBUTES):
        try:
            part = getattr(value, name)
        except Exception:
            continue
        look(part, path + "." + name)
    if callable(value) and path.count("(") < 2 and value is not callback:
        for arguments in ways:
            if time.monotonic() - began > LIMIT:
                break
            call(value, path, arguments)
if found:
    raise AssertionError(str(len(found)) + " ways out: " + "; ".join(sorted(set(found))[:12]))
