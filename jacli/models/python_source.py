"""A Python file where a model is asked for: what it defines, without running it."""

from __future__ import annotations

import ast
from pathlib import Path

_LISTED = 8


def callables_of(path: Path) -> list[str]:
    """Public classes and functions of a source file, in order; none where it cannot be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def python_source(path: Path) -> tuple[str, str]:
    """Why a source file is no model, and the commands that use it."""
    found = callables_of(path)
    listed = ", ".join(found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")
    why = (
        f"It is Python code; it defines {listed}." if found else "It is Python code, and defines no network."
    )
    name = f"{path}:{found[0] if len(found) == 1 else 'NAME'}"
    todo = (
        f"Name what builds the network: MODEL {name} as it builds it, "
        f"or the file of its weights as MODEL and --arch {name}."
    )
    return why, todo
