"""Checks the text of an exported program before torch loads it.

``torch.export.load`` evaluates the shapes written in the program (sympy's ``sympify`` is Python's
``eval``), executes its guards (``exec``), imports the modules that its structures of arguments name, and
calls whatever attribute of ``torch`` its nodes name.  Here every expression must be arithmetic on short
numbers, every guard a comparison of sizes, every node an operator that computes
(`jacli.untrusted.operators`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from jacli.untrusted.operators import computes

_FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|Abs|Equality|Unequality|"
    r"(Strict)?(Greater|Less)Than|ExprCondPair|Piecewise|Eq|Ne|Gt|Ge|Lt|Le|And|Or|Not|floor|ceiling|"
    r"FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|"
    r"PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|"
    r"TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|sqrt"
)
_QUICK = frozenset(("Symbol", "Integer", "Add", "Mul"))
_LONGEST_QUICK = 1_000
_METHODS = frozenset(("size", "stride", "storage_offset", "dim", "item", "isnan", "inf"))
_POWERS = frozenset(("Pow", "LShift", "PowByNatural", "FloatPow"))
_NAME = re.compile(r"[A-Za-z][\w.-]*|_[a-z0-9][\w.-]*")
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{0,60})?(e[-+]?\d{1,2})?")  # Float('1.7', precision=53)
_LARGEST_NUMBER = 2**64
_LONGEST = 10_000
_DEEPEST = 100
_LARGEST_EXPONENT = 64
_MOST_POWERS = 3

_OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?")
_PYTHON = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|getitem|"
    r"lshift|rshift)|torch\.(_sym_sqrt|sym_[a-z]+)|"
    r"math\.(sqrt|cosh?|sinh?|tanh?|acos|asin|atan|log2?|exp|pow|floor|ceil|trunc|isinf|isnan)"
)
_FACTORIES = frozenset(f"builtins.{name}" for name in ("dict", "float", "int", "list", "set", "str", "tuple"))


@dataclass(frozen=True)
class ProgramFindings:
    """Findings about a serialised program.

    Attributes:
        problem: The part that would run code, as a sentence; None if there is none.
        quick: Whether its sizes are sums and products: others may take for ever, and are tried in a process
            of their own first.
    """

    problem: str | None
    quick: bool = True


def examine_program(text: bytes) -> ProgramFindings:
    """Look through a serialised program (JSON).

    >>> examine_program(b'{"nodes": []}')
    ProgramFindings(problem=None, quick=True)

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    quick = True
    for entry in _objects(parsed):
        problem = _problem_of_entry(entry)
        if problem is not None:
            return ProgramFindings(problem)
        quick = quick and not entry.get("guards_code") and _is_quick(entry.get("expr_str"))
    return ProgramFindings(None, quick)


def _problem_of_entry(entry: Mapping[str, Any]) -> str | None:
    expression, guards, target = entry.get("expr_str"), entry.get("guards_code"), entry.get("target")
    if expression is not None and not _is_arithmetic(expression):
        return f"A size in it is no arithmetic: {str(expression)[:60]!r}."
    for guard in guards if isinstance(guards, list) else [guards] if guards else []:
        if not _is_comparison(guard):
            return f"A guard in it is no comparison of sizes: {str(guard)[:60]!r}."
    called = [target] if target is not None and ("inputs" in entry or "outputs" in entry) else []
    called += [entry["as_operator"]] if "as_operator" in entry else []
    for name in called:
        if not _is_operator(name):
            return f"It calls {str(name)[:60]!r}, which is no operator that is known to compute only."
    if "__enum__" in entry:
        return f"Its arguments' structure imports {str(entry.get('fqn'))[:60]!r}."
    if "default_factory_module" in entry:
        factory = f"{entry['default_factory_module']}.{entry.get('default_factory_name')}"
        if factory not in _FACTORIES:
            return f"Its arguments' structure imports {factory[:60]!r}."
    return None


def _objects(parsed: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object, nested ones too, also in texts that are JSON themselves."""
    rest = [parsed]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
        elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                rest.append(json.loads(value))
            except RecursionError as error:
                raise ValueError("its JSON is nested too deeply") from error
            except ValueError:
                continue  # a text, such as a guard's or a stack trace


def _is_arithmetic(expression: Any) -> bool:
    tree = _parsed(expression)
    return tree is not None and all(_is_plain(node) for node in ast.walk(tree))


def _is_quick(expression: Any) -> bool:
    """Whether sympy parses it at once: it is short, and calls only simple functions."""
    if expression is None:
        return True
    if len(expression) > _LONGEST_QUICK:
        return False
    calls = [node.func for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Call)]
    return all(isinstance(function, ast.Name) and function.id in _QUICK for function in calls)


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
    """Largest nesting depth of brackets and signs."""
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
        if isinstance(value, int | float):
            return abs(value) <= _LARGEST_NUMBER
        if not isinstance(value, str):
            return False
        named = _NAME.fullmatch(value) is not None and "__" not in value
        return named or _NUMBER.fullmatch(value) is not None
    kinds = (ast.Expression, ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.keyword)
    return isinstance(node, (*kinds, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple))


def _is_access(node: ast.AST) -> bool:
    """``L['x'].size()[0]``: what a guard takes of an input."""
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.Attribute) and node.attr in _METHODS)


def _is_operator(target: Any) -> bool:
    """Whether a node's target is an operator that computes, found as torch itself finds it."""
    if not isinstance(target, str):
        return False
    if _PYTHON.fullmatch(target):
        return True
    if not _OPERATOR.fullmatch(target):
        return False
    _, _, namespace, name, *overload = target.split(".")
    if not computes(namespace, name):
        return False
    value: Any = torch.ops
    for part in (namespace, name, *overload):
        value = getattr(value, part, None)
    operators = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)
    return value is None or isinstance(value, operators)  # None: this torch lacks it, and says so itself
