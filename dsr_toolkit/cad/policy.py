"""What a generated program may say. A filter in front of the confinement, which does not rely on it.

The programs that the models are trained on are straight lines of CadQuery calls with the result in `r`. Everything that
such a program does not need is refused by its form, before any of it runs.
"""

import ast

MAX_SOURCE = 16 * 1024  # characters
MAX_NODES = 20_000
MAX_NUMBER = 1e9
MAX_STRING = 1024
MAX_DEPTH = 200

MODULES = {"cadquery": (None, "cq", "cadquery"), "math": (None, "math")}  # module: names it may be imported as
FORBIDDEN_NAMES = frozenset(
    "eval exec compile open getattr setattr delattr hasattr vars globals locals dir input breakpoint help type object super "
    "memoryview classmethod staticmethod property exit quit".split()
)
# Attributes through which CadQuery touches files, or leads to the modules behind it.
FORBIDDEN_ATTRIBUTES = frozenset(
    "exporters importers occ_impl plugins cq cqgi vis assembly export save load importStep importDXF importBrep importStl "
    "exportStep exportStl exportBrep exportBin importBin exportDXF exportDxf exportSvg toSvg toBin fromBin toVTK _repr_javascript_ "
    "wrapped format format_map mro gi_frame gi_code cr_frame f_globals f_locals f_builtins f_back tb_frame".split()
)
STATEMENTS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.For, ast.If, ast.Pass)
EXPRESSIONS = (
    ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.IfExp, ast.Subscript, ast.Slice, ast.Starred, ast.ListComp, ast.GeneratorExp, ast.Lambda,
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
    try:
        tree = ast.parse(source)
    except (ValueError, MemoryError, RecursionError) as error:  # null bytes, nesting
        raise SyntaxError(str(error)) from None
    nodes = 0
    pending: list[tuple[ast.AST, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        nodes += 1
        # A chain of method calls nests deeply without harm: only its arguments count.
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            _refuse(node, "is longer or nested deeper than programs are")
        _check_node(node)
        chain = isinstance(node, (ast.Attribute, ast.Call))
        pending += [
            (
                child,
                depth
                if chain and child is (node.value if isinstance(node, ast.Attribute) else node.func)
                else depth + 1,
            )
            for child in ast.iter_child_nodes(node)
        ]
    return tree


def _check_node(node: ast.AST) -> None:
    if not isinstance(node, STATEMENTS + EXPRESSIONS + PARTS):
        _refuse(node, f"uses {type(node).__name__}, which programs do not need")
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname not in MODULES.get(alias.name, ()):
                _refuse(node, f"imports {alias.name!r}" + (f" as {alias.asname!r}" if alias.asname else ""))
    elif isinstance(node, ast.ImportFrom):
        _refuse(node, f"imports from {node.module!r}")
    elif isinstance(node, ast.Name):
        if node.id in FORBIDDEN_NAMES or node.id.startswith("__"):
            _refuse(node, f"uses the name {node.id!r}")
        if not isinstance(node.ctx, ast.Load) and node.id in ("cq", "cadquery", "math"):
            _refuse(node, f"assigns to {node.id!r}")
    elif isinstance(node, ast.Attribute):
        if node.attr.startswith("_") or node.attr in FORBIDDEN_ATTRIBUTES:
            _refuse(node, f"uses the attribute {node.attr!r}")
        if not isinstance(node.ctx, ast.Load):
            _refuse(node, f"assigns to the attribute {node.attr!r}")
    elif isinstance(node, ast.Constant):
        _check_constant(node)
    elif isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and not _is_small_power(node):
            _refuse(node, "raises to a power above 8 or one that is not written out")
        if isinstance(node.op, ast.Mult) and any(
            isinstance(side, (ast.List, ast.Tuple)) or _is_text(side) for side in (node.left, node.right)
        ):
            _refuse(node, "multiplies a sequence")
    elif isinstance(node, ast.arg) and node.arg.startswith("__"):
        _refuse(node, f"uses the name {node.arg!r}")


def _check_constant(node: ast.Constant) -> None:
    if isinstance(node.value, (str, bytes)) and len(node.value) > MAX_STRING:
        _refuse(node, f"holds a text of {len(node.value)} characters")
    if isinstance(node.value, (int, float, complex)) and not abs(node.value) <= MAX_NUMBER:
        _refuse(node, "holds a number above 1e9")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _is_small_power(node: ast.BinOp) -> bool:
    exponent = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
    return isinstance(exponent, ast.Constant) and isinstance(exponent.value, (int, float)) and abs(exponent.value) <= 8


def _refuse(node: ast.AST, what: str):
    line = getattr(node, "lineno", None)
    raise PolicyViolation(f"line {line} {what}" if line else f"the program {what}")
