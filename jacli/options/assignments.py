"""Options that name arguments: ``NAME=VALUE`` and ``NAME=FILE``, nested by dots, or tables of them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any


def parse_assignments(value: Any) -> dict[str, Any]:
    """``["width=64", "act=relu"]`` or a TOML table -> names to values (Python literals, else text).

    >>> parse_assignments(["width=64", "act=relu", "bias=false"])
    {'width': 64, 'act': 'relu', 'bias': False}
    """
    if isinstance(value, Mapping):
        return dict(value)
    return {name: _literal(text) for name, text in _pairs(value, "VALUE", dotted=False).items()}


def parse_arguments(value: Any) -> dict[str, Any]:
    """As `parse_assignments`, nested by dots: ``state.0=@h.npy``, or a table in a table.

    >>> parse_arguments({"state": {"0": "@h.npy"}, "scale": 2})
    {'state.0': '@h.npy', 'scale': 2}
    """
    if isinstance(value, Mapping):
        return _flattened(value)
    return {name: _literal(text) for name, text in _pairs(value, "VALUE", dotted=True).items()}


def parse_files(value: Any) -> dict[str, str]:
    """``["edges=edges.npy"]`` or a table -> names, nested by dots, to paths.

    >>> parse_files(["edges=edges.npy"])
    {'edges': 'edges.npy'}
    """
    files = _flattened(value) if isinstance(value, Mapping) else _pairs(value, "FILE", dotted=True)
    if not all(isinstance(path, str) and path for path in files.values()):
        raise ValueError("NAME=FILE, or a table of them")
    return {name: path.removeprefix("@") for name, path in files.items()}


def parse_dotted_name(value: Any) -> str:
    """A Python identifier, or several with dots.

    >>> parse_dotted_name("options.scale")
    'options.scale'
    """
    if isinstance(value, str) and _is_dotted(value):
        return value
    raise ValueError("the name of an argument")


def _pairs(value: Any, what: str, *, dotted: bool) -> dict[str, str]:
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"NAME={what}, or a table of them")
    pairs: dict[str, str] = {}
    for item in [value] if isinstance(value, str) else value:
        name, equals, text = str(item).partition("=")
        name = name.strip()
        if not equals or not (_is_dotted(name) if dotted else name.isidentifier()):
            parts = ", its parts with dots (state.0)" if dotted else ""
            raise ValueError(f"NAME={what}, NAME being a Python identifier{parts}")
        pairs[name] = text
    return pairs


def _is_dotted(name: str) -> bool:
    first, *rest = name.split(".")
    return first.isidentifier() and all(part.isidentifier() or part.isdecimal() for part in rest)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _flattened(table: Mapping[str, Any]) -> dict[str, Any]:
    """Tables in tables by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name}.{part}": inner for part, inner in _flattened(value).items()}
        else:
            flat[str(name)] = value
    return flat
