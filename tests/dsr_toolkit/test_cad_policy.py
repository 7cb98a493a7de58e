"""What programs may say: the vocabulary against CadQuery's classes, a crawl of it, programs of every style."""

import ast
import builtins
import inspect
from pathlib import Path

import pytest

cadquery = pytest.importorskip("cadquery")

from dsr_toolkit.cad import PolicyViolation, Sandbox, SandboxLimits, check_program, vocabulary  # noqa: E402

CRAWL = (Path(__file__).parent / "cad_crawl.py").read_text()
STARTS = (
    "Workplane Sketch Assembly Vector Plane Location Color BoundBox Matrix Edge Wire Face Shell Solid Compound Vertex "
    "selectors cadquery math text list generator function number dict"
).split()


def crawl(start: str, seconds: float, more: str = "") -> str:
    return CRAWL.replace('"START"', repr(start)).replace('"SECONDS"', repr(seconds)).replace('"MORE"', repr(more))


@pytest.fixture(scope="module")
def unchecked():
    with Sandbox(workers=2, limits=SandboxLimits(seconds=90), policy=False) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def checked():
    with Sandbox(workers=2, limits=SandboxLimits(seconds=30)) as sandbox:
        yield sandbox


# --------------------------------------------------------------------------------------
# Vocabulary
# --------------------------------------------------------------------------------------


def test_attributes_are_those_of_the_classes():
    """Derived again: public names of the classes and of an instance each; what is kept back is kept back by name."""
    cq = cadquery
    box = cq.Workplane().box(1, 1, 1)
    instances = [
        box, box.ctx, box.val(), box.val().BoundingBox(), box.edges().val(), cq.Plane.XY(), cq.Vector(), cq.Location(),
        cq.Assembly(), cq.Sketch().rect(1, 1),
    ]  # fmt: skip
    classes = [getattr(cq, name) for name in vocabulary.CADQUERY if isinstance(getattr(cq, name), type)]
    classes += [getattr(cq.selectors, name) for name in vocabulary.SELECTORS] + [
        type(instance) for instance in instances
    ]
    names = {name for kind in classes for name in (*dir(kind), *getattr(kind, "__annotations__", ()))}
    names |= {name for instance in instances for name in getattr(instance, "__dict__", ())}
    public = {name for name in names if not name.startswith("_")}
    assert set(vocabulary.CLASSES) <= public
    assert not set(vocabulary.CLASSES) & set(vocabulary.KEPT_BACK)
    if cadquery.__version__.startswith("2.8"):  # a later version may know more, which is not allowed unseen
        assert public == set(vocabulary.CLASSES) | set(vocabulary.KEPT_BACK)


def test_no_allowed_method_names_a_file_or_returns_an_object_of_the_kernel():
    for kind in map(cadquery.__dict__.get, vocabulary.CADQUERY):
        for name in set(vocabulary.CLASSES) & set(dir(kind)):
            try:
                signature = inspect.signature(getattr(kind, name))
            except (TypeError, ValueError):
                continue
            returned = str(signature.return_annotation)
            assert not any(word in returned for word in ("OCP", "vtk", "TopoDS", "gp_")), (kind, name)
            assert not {"fileName", "filename", "f: 'str | BytesIO'"} & set(signature.parameters), (kind, name)


def test_builtins_are_plain():
    assert set(vocabulary.BUILTINS) <= set(dir(builtins))
    ways_out = (
        "__import__ breakpoint compile delattr dir eval exec getattr globals hasattr help input iter locals memoryview "
        "next object open setattr super type vars"
    )
    assert not set(vocabulary.BUILTINS) & set(ways_out.split())


@pytest.mark.parametrize("start", STARTS)
def test_no_way_out_can_be_reached(unchecked, start):
    """From each kind of object, for a second."""
    found = unchecked.run(crawl(start, 1))
    assert found.ok, found.message


@pytest.mark.parametrize("seconds", [pytest.param(4, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("start", STARTS)
def test_no_way_out_can_be_reached_in_more_time(unchecked, start, seconds):
    found = unchecked.run(crawl(start, seconds))
    assert found.ok, found.message


@pytest.mark.parametrize(
    "start, more",
    [
        ("Solid", "wrapped"),
        ("function", "__code__"),
        ("generator", "gi_frame"),
        ("Workplane", "__module__ __class__ __init__ __globals__"),
    ],
)
def test_the_crawl_finds_what_one_more_name_would_open(unchecked, start, more):
    found = unchecked.run(crawl(start, 2, more))
    assert found.code == "runtime" and "ways out" in found.message


# --------------------------------------------------------------------------------------
# Programs
# --------------------------------------------------------------------------------------

HEAD = "import cadquery as cq\n"
STYLES = dict(
    section.split("\n", 1) for section in (Path(__file__).parent / "cad_programs.txt").read_text().split("\n## ")[1:]
)


@pytest.mark.parametrize("style", STYLES)
def test_programs_of_every_style_keep_to_the_policy(checked, style):
    found = checked.run(STYLES[style])
    assert found.ok, (found.code, found.message)


def test_a_long_chain_is_no_deep_nesting():
    check_program("import cadquery as cq\nr=cq.Workplane()" + ".union(cq.Workplane().box(1,1,1))" * 300)


@pytest.mark.parametrize(
    "program, message",
    [
        ("import os", "line 1 imports 'os'"),
        ("import cadquery.utils", "imports 'cadquery.utils'"),
        ("from cadquery import exporters", "imports 'exporters' from 'cadquery'"),
        ("from cadquery.occ_impl import shapes", "imports 'shapes' from 'cadquery.occ_impl'"),
        ("from . import x", "imports 'x' from None"),
        ("import math as __builtins__", "uses the name '__builtins__'"),
        ("x = 1\ny = x.__class__", "line 2 uses the attribute '__class__'"),
        ("import cadquery as cq\ncq.utils", "uses the attribute 'utils'"),
        ("import cadquery as cq\ncq.exporters", "'exporters'"),
        ("import cadquery as cq\ncq.Workplane().val().wrapped", "'wrapped'"),
        ("import cadquery as cq\ncq.Workplane.box = None", "assigns to the attribute 'box'"),
        ("'{0.real}'.format(1)", "'format'"),
        ("f'{x.__class__}'", "'__class__'"),
        ("eval('1')", "uses the name 'eval'"),
        ("getattr(1, 'real')", "uses the name 'getattr'"),
        ("type(1)", "uses the name 'type'"),
        ("def f(__builtins__): pass", "'__builtins__'"),
        ("@f\ndef g(): pass", "decorates"),
        ("class A: pass", "ClassDef"),
        ("try: pass\nexcept Exception: pass", "Try"),
        ("with f: pass", "With"),
        ("global x", "Global"),
        ("async def f(): pass", "AsyncFunctionDef"),
        ("def f(): yield 1", "Yield"),
        ("(y := 1)", "NamedExpr"),
        ("match 1:\n  case x: pass", "Match"),
        ("del x", "Delete"),
        ("x = '\x1b'", "control character"),
        # attacks that look for a way around the list
        ("import cadquery as cq\nimport functools", "line 2 imports 'functools'"),
        ("import cadquery as cq\nx = cq.Workplane.box.__wrapped__", "'__wrapped__'"),
        ("g = (x for x in [1])\ny = g.gi_frame", "'gi_frame'"),
        ("x = list(map(str.format, ['{0.__class__}'], [1]))", "'format'"),
        ("x = '{a.__class__}'.format_map({'a': 1})", "'format_map'"),
        ("x = f'{(y := 1)}'", "NamedExpr"),
        ("x = f'{1:{(1).__class__}}'", "'__class__'"),
        ("e = ValueError('x')\ny = e.__traceback__", "'__traceback__'"),
        ("e = ValueError('x').with_traceback(None)", "'with_traceback'"),
        ("match 1:\n  case object(__class__=c): pass", "Match"),
        ("x = list[int].__origin__", "'__origin__'"),
        ("def f(__class_getitem__): pass", "'__class_getitem__'"),
        ("import cadquery as cq\ncq.Assembly().save('a.step')", "'save'"),
        ("import cadquery as cq\ncq.Assembly().export('a.step')", "'export'"),
        ("import cadquery as cq\ncq.Assembly.load('a.xml')", "'load'"),
        ("import cadquery as cq\nr = cq.Workplane().box(1, 1, 1).each(lambda f: f.wrapped)", "'wrapped'"),
        ("import cadquery as cq\nr = cq.Workplane().val().\u02b7rapped", "'wrapped'"),  # read as w
        ("x = \uff45val('1')", "'eval'"),
        ("import cadquery as cq\nfor cq.Workplane.box in [1]: pass", "assigns to the attribute 'box'"),
        ("import cadquery as cq\n(cq.Workplane.box, x) = 1, 2", "assigns to the attribute 'box'"),
        ("f = lambda x=__import__: x", "'__import__'"),
        ("def f(x: eval('1')): pass", "'eval'"),
        ("x = __builtins__['eval']", "'__builtins__'"),
        ("from math import __loader__", "imports '__loader__' from 'math'"),
    ],
)
def test_what_is_not_listed_is_refused_with_its_line(program, message):
    with pytest.raises(PolicyViolation, match="line|program") as refused:
        check_program(program)
    assert message in str(refused.value)


def test_every_kind_of_syntax_is_allowed_or_refused_by_name():
    """A node that a later Python adds is refused because it is not listed."""
    from dsr_toolkit.cad.policy import EXPRESSIONS, PARTS, STATEMENTS

    listed = {kind.__name__ for kind in STATEMENTS + EXPRESSIONS}
    assert not listed & {
        "ClassDef",
        "Try",
        "With",
        "Global",
        "Nonlocal",
        "Await",
        "Yield",
        "YieldFrom",
        "Lambda_",
        "Delete",
    }
    assert all(issubclass(kind, ast.AST) for kind in STATEMENTS + EXPRESSIONS + PARTS)


# --------------------------------------------------------------------------------------
# What counts as the result
# --------------------------------------------------------------------------------------


def test_what_is_shown_counts(checked):
    found = checked.run(
        HEAD + "r = 5\npart = cq.Workplane().box(r, 1, 1)\nshow_object(part, name='part', options={'color': 'red'})"
    )
    assert found.volume == pytest.approx(5) and found.notes == ()


def test_of_several_shown_objects_the_last_counts_and_it_is_noted(checked):
    found = checked.run(HEAD + "show_object(cq.Workplane().box(2, 1, 1))\nshow_object(cq.Workplane().box(3, 1, 1))")
    assert found.volume == pytest.approx(3) and found.notes == ("2 objects are shown; the last one counts",)


def test_uncombined_solids_are_noted(checked):
    found = checked.run(HEAD + "r = cq.Workplane().pushPoints([(0, 0), (5, 0)]).box(1, 1, 1, combine=False)")
    assert (
        found.volume == pytest.approx(1) and "2 objects that are not combined; the first one counts" in found.notes[0]
    )
    found = checked.run(HEAD + "r = cq.Workplane().pushPoints([(0, 0), (5, 0)]).box(1, 1, 1)")
    assert found.volume == pytest.approx(2) and found.notes == ("the result consists of 2 separate solids",)


def test_text_has_the_same_shape_whatever_font_is_asked_for(checked):
    volumes = [
        checked.run(HEAD + f"r = cq.Workplane().text('Ag7', 10, 2, font='{font}')").volume
        for font in ("Arial", "Nonsense")
    ]
    assert volumes[0] == volumes[1] > 20


def test_constraints_of_an_assembly_are_solved(checked):
    found = checked.run(STYLES["assembly with constraints"])
    assert found.vertices[:, 2].max() == pytest.approx(0.5 + 3, abs=1e-3)
