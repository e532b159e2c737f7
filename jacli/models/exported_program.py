"""What an exported program says in words, before torch believes it.

``torch.export.load`` evaluates the shapes written in the program (sympy's ``sympify`` is Python's
``eval``), executes its guards (``exec``), and calls whatever attribute of ``torch`` its nodes name.  Here
every expression must be arithmetic, every guard a comparison of sizes, every node an operator.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import torch

_FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|Abs|Equality|Unequality|"
    r"(Strict)?(Greater|Less)Than|ExprCondPair|Piecewise|Eq|Ne|Gt|Ge|Lt|Le|And|Or|Not|floor|ceiling|"
    r"FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|"
    r"PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|"
    r"TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|sqrt|log|exp"
)
_METHODS = frozenset(("size", "stride", "storage_offset", "dim", "item", "isnan", "inf"))
_POWERS = frozenset(("Pow", "LShift", "PowByNatural", "FloatPow"))
_NAME = re.compile(r"[A-Za-z][\w.-]*|_[a-z0-9][\w.-]*")
_LONGEST = 10_000
_DEEPEST = 100
_LARGEST_EXPONENT = 64
_MOST_POWERS = 3

_OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?")
_PYTHON = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|getitem|"
    r"lshift|rshift)|math\.[a-z]+|torch\.(_sym_sqrt|sym_[a-z]+)"
)
_FILES_AND_CODE = re.compile(
    r"torch\.ops\.(aten\.(from_file|save)\b|debugprims\.|higher_order\.(aoti|executorch|triton)|_c10d|symm_mem)"
)


def problem_of_program(text: bytes) -> str | None:
    """What in a serialised program (JSON) would run code, as a sentence; None where nothing does.

    Raises:
        ValueError: It is no JSON.
    """
    for entry in _objects(json.loads(text)):
        expression, guards, target = entry.get("expr_str"), entry.get("guards_code"), entry.get("target")
        if expression is not None and not _is_arithmetic(expression):
            return f"A size in it is no arithmetic: {str(expression)[:60]!r}."
        for guard in guards if isinstance(guards, list) else [guards] if guards else []:
            if not _is_comparison(guard):
                return f"A guard in it is no comparison of sizes: {str(guard)[:60]!r}."
        if target is not None and "inputs" in entry and "outputs" in entry and not _is_operator(target):
            return f"It calls {str(target)[:60]!r}, which is no operator of a network."
    return None


def _objects(parsed: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object, nested ones too."""
    rest = [parsed]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)


def _is_arithmetic(expression: Any) -> bool:
    tree = _parsed(expression)
    return tree is not None and all(_is_plain(node) for node in ast.walk(tree))


def _is_comparison(guard: Any) -> bool:
    tree = _parsed(guard)
    if tree is None or '"' in guard or "\\" in guard or "\n" in guard:  # torch writes it into a string
        return False
    return all(_is_plain(node) or _is_access(node) for node in ast.walk(tree))


def _parsed(expression: Any) -> ast.Expression | None:
    """Its syntax tree, if that is small and its powers stay numbers that can be computed."""
    if not isinstance(expression, str) or len(expression) > _LONGEST or _depth(expression) > _DEEPEST:
        return None
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    powers = [node for node in ast.walk(tree) if _is_power(node)]
    constants = [p.value for node in powers for p in ast.walk(node) if isinstance(p, ast.Constant)]
    numbers = [value for value in constants if isinstance(value, int | float)]
    small = all(abs(number) <= _LARGEST_EXPONENT for number in numbers)
    towers = any(_is_power(p) for node in powers for part in _exponents(node) for p in ast.walk(part))
    return tree if len(powers) <= _MOST_POWERS and small and not towers else None


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _POWERS
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)


def _exponents(power: ast.AST) -> list[ast.expr]:
    return (
        power.args[1:]
        if isinstance(power, ast.Call)
        else [power.right]
        if isinstance(power, ast.BinOp)
        else []
    )


def _depth(expression: str) -> int:
    """How deep brackets and signs are nested, at most."""
    depth = deepest = 0
    for sign in expression:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return max([deepest, *(len(found) for found in re.findall(r"[-~+\s]{2,}", expression))])


def _is_plain(node: ast.AST) -> bool:
    """Numbers, names, arithmetic, and calls of the known functions by their name."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute) and (
            not isinstance(node.func, ast.Name) or _FUNCTIONS.fullmatch(node.func.id) is not None
        )
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant):
        value = node.value
        return isinstance(value, int | float | bool) or (
            isinstance(value, str) and _NAME.fullmatch(value) is not None and "__" not in value
        )
    kinds = (ast.Expression, ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.keyword)
    return isinstance(node, (*kinds, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple))


def _is_access(node: ast.AST) -> bool:
    """``L['x'].size()[0]``: what a guard takes of an input."""
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.Attribute) and node.attr in _METHODS)


def _is_operator(target: Any) -> bool:
    """Whether a node's target is an operator, found as torch itself finds it."""
    if not isinstance(target, str):
        return False
    if _PYTHON.fullmatch(target):
        return True
    if not _OPERATOR.fullmatch(target) or _FILES_AND_CODE.match(target):
        return False
    found: Any = torch
    for name in target.split(".")[1:]:
        try:
            found = getattr(found, name)
        except (AttributeError, RuntimeError):
            return True  # unknown to this torch, which says so itself
    operators = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)
    return isinstance(found, operators)
