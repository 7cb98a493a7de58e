"""What a generated program may say. A filter in front of the confinement, which does not rely on it.

The programs that the models are trained on are straight lines of CadQuery calls with the result in `r`; people also
write functions and `show_object(part)`. A program may name what is in the vocabulary and what it defines itself, and
nothing else; everything that such a program does not need is refused by its form, before any of it runs.
"""

import ast
import builtins

from .vocabulary import ATTRIBUTES, BUILTINS, CADQUERY, MATH, SELECTORS

MAX_SOURCE = 16 * 1024  # characters
MAX_NODES = 20_000
MAX_NUMBER = 1e9
MAX_STRING = 1024
MAX_DEPTH = 200

MODULES = {
    "cadquery": frozenset((*CADQUERY, *SELECTORS, "selectors")),
    "cadquery.selectors": frozenset(SELECTORS),
    "math": frozenset(MATH),
}
IMPORTABLE = ("cadquery", "math")
# Names that Python has everywhere and that are not given; other unknown names are a program's own mistake.
WITHHELD = frozenset(dir(builtins)) - frozenset(BUILTINS)
STATEMENTS = (
    ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.For, ast.While, ast.If,
    ast.Pass, ast.Break, ast.Continue, ast.FunctionDef, ast.Return, ast.Assert, ast.Raise,
)  # fmt: skip
EXPRESSIONS = (
    ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp,
    ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Slice, ast.Starred, ast.ListComp, ast.GeneratorExp,
    ast.Lambda, ast.JoinedStr, ast.FormattedValue,
)  # fmt: skip
PARTS = (
    ast.Module, ast.alias, ast.arguments, ast.arg, ast.keyword, ast.comprehension, ast.expr_context, ast.operator,
    ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


class PolicyViolation(ValueError):
    """A program says something that generated programs have no need for."""


def check_program(source: str) -> ast.Module:
    """
    The syntax tree of a program that keeps to the rules.

    Raises:
        SyntaxError: it is no Python.
        PolicyViolation: it is, but does what a generated program has no need for; the line is named.
    """
    if len(source) > MAX_SOURCE:
        raise PolicyViolation(f"the program has {len(source)} characters, more than {MAX_SOURCE}")
    for number, line in enumerate(source.split("\n"), 1):
        if any(ord(mark) < 32 and mark not in "\t\r\f" or 127 <= ord(mark) < 160 for mark in line):
            if "\0" not in line:  # which is no Python
                raise PolicyViolation(f"line {number} holds a control character")
    try:
        tree = ast.parse(source)
    except (ValueError, MemoryError, RecursionError) as error:  # null bytes, nesting
        raise SyntaxError(str(error)) from None
    withheld = WITHHELD - _bound_names(tree)
    nodes = 0
    pending: list[tuple[ast.AST, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        nodes += 1
        # A chain of method calls nests deeply without harm: only its arguments count.
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            _refuse(node, "is longer or nested deeper than programs are")
        _check_node(node, withheld)
        chain = isinstance(node, (ast.Attribute, ast.Call))
        pending += [
            (
                child,
                depth
                if chain and child is (node.value if isinstance(node, ast.Attribute) else node.func)
                else depth + 1,
            )
            for child in reversed(list(ast.iter_child_nodes(node)))  # the last one is looked at first
        ]
    return tree


def _check_node(node: ast.AST, withheld: frozenset[str]) -> None:
    if not isinstance(node, STATEMENTS + EXPRESSIONS + PARTS):
        _refuse(node, f"uses {type(node).__name__}, which programs do not need")
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name not in IMPORTABLE:
                _refuse(node, f"imports {alias.name!r}")
            _check_own_name(node, alias.asname)
    elif isinstance(node, ast.ImportFrom):
        names = MODULES.get(node.module, ()) if not node.level else ()
        for alias in node.names:
            if alias.name not in names and not (alias.name == "*" and names):
                _refuse(node, f"imports {alias.name!r} from {node.module!r}")
            _check_own_name(node, alias.asname)
    elif isinstance(node, ast.Name):
        if node.id != "__name__" or not isinstance(node.ctx, ast.Load):
            _check_own_name(node, node.id)
        if node.id in withheld and node.id != "__name__":
            _refuse(node, f"uses the name {node.id!r}")
    elif isinstance(node, ast.Attribute):
        if not isinstance(node.ctx, ast.Load):
            _refuse(node, f"assigns to the attribute {node.attr!r}")
        if node.attr not in ATTRIBUTES:
            _refuse(node, f"uses the attribute {node.attr!r}, which is none of a part's")
    elif isinstance(node, ast.Constant):
        _check_constant(node)
    elif isinstance(node, ast.FunctionDef):
        _check_own_name(node, node.name)
        if node.decorator_list:
            _refuse(node, "decorates a function")
    elif isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and not _is_small_power(node):
            _refuse(node, "raises to a power above 8 or one that is not written out")
        if isinstance(node.op, ast.Mult) and any(
            isinstance(side, (ast.List, ast.Tuple)) or _is_text(side) for side in (node.left, node.right)
        ):
            _refuse(node, "multiplies a sequence")
    elif isinstance(node, ast.arg):
        _check_own_name(node, node.arg)


def _bound_names(tree: ast.Module) -> set[str]:
    """What the program itself gives a meaning to: `dir = "Z"` is nobody else's `dir`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.alias)):
            names |= {node.name, getattr(node, "asname", None)}
    return names


def _check_own_name(node: ast.AST, name: str | None) -> None:
    if name is not None and name.startswith("__"):
        _refuse(node, f"uses the name {name!r}")


def _check_constant(node: ast.Constant) -> None:
    if isinstance(node.value, (str, bytes)) and len(node.value) > MAX_STRING:
        _refuse(node, f"holds a text of {len(node.value)} characters")
    if isinstance(node.value, (int, float, complex)) and not abs(node.value) <= MAX_NUMBER:
        _refuse(node, "holds a number above 1e9")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, (ast.JoinedStr, ast.Constant)) and isinstance(getattr(node, "value", ""), (str, bytes))


def _is_small_power(node: ast.BinOp) -> bool:
    exponent = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
    return isinstance(exponent, ast.Constant) and isinstance(exponent.value, (int, float)) and abs(exponent.value) <= 8


def _refuse(node: ast.AST, what: str):
    line = getattr(node, "lineno", None)
    raise PolicyViolation(f"line {line} {what}" if line else f"the program {what}")
