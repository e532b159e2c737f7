"""Builders of networks in a user's own module: classes of networks, and functions defined there."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable
from functools import _lru_cache_wrapper, partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import torch

from jacli.errors import ModelError


def builder_names(module: ModuleType) -> list[str]:
    """Names of the module's own builders, in the order of its source.

    >>> from jacli.models.architecture import import_file
    >>> builder_names(import_file(Path("sample_models/digits_cnn.py")))
    ['DigitsCNN', 'make_model']
    """
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and _builds_networks(value, module)
    ]


def surely_builds_a_network(builder: Callable[..., Any]) -> bool:
    """Whether it can only build a network: a class of networks, or a function annotated to return one.

    >>> surely_builds_a_network(torch.nn.Linear), surely_builds_a_network(print)
    (True, False)
    """
    if inspect.isclass(builder):
        return True
    try:
        returned = get_type_hints(builder).get("return")
    except Exception:  # a user's annotation may be anything
        return False
    return inspect.isclass(returned) and issubclass(returned, torch.nn.Module)


def builder_named(module: ModuleType, place: str, callable_name: str) -> Callable[..., Any]:
    """The object of that name, if it is a network's class or a function defined in the module itself.

    ``arch.py:os.system`` is neither: nothing that a module merely imported is called.

    >>> from jacli.models.architecture import import_file
    >>> module = import_file(Path("sample_models/digits_cnn.py"))
    >>> builder_named(module, "digits_cnn.py", "DigitsCNN").__name__
    'DigitsCNN'

    Raises:
        ModelError: There is no such callable, or it is something else.
    """
    value: Any = module
    for attribute in callable_name.split("."):
        value = getattr(value, attribute, None)
    own = builder_names(module)
    if isinstance(value, torch.nn.Module):
        raise _is_built(value, place, callable_name, own)
    if not callable(value):
        raise ModelError(
            f"{place} has no callable {callable_name!r}.",
            why=f"Its callables are: {', '.join(own) or 'none'}.",
            hint=f"Name one of its own: --arch {place}:{_closest(callable_name, own) or 'NAME'}",
        )
    if not _builds_networks(value, module):
        home = getattr(value, "__module__", type(value).__module__)
        raise ModelError(
            f"{place}:{callable_name} cannot be used as an architecture.",
            why=f"It comes from {home}: no torch.nn.Module class, and no function defined in {place}.",
            hint=f"Name one of its own: --arch {place}:{own[0] if own else 'NAME'}, "
            "or write a function there that calls it.",
        )
    builder: Callable[..., Any] = value
    return builder


def which_one(place: str, names: list[str]) -> ModelError:
    """The error where a place has several callables, or none, and no name chooses among them.

    >>> print(which_one("net.py", ["Encoder", "Decoder"]))
    Which callable of net.py builds the network?
    Its callables are: Encoder, Decoder.
    Name one: --arch net.py:Encoder
    """
    if not names:
        return ModelError(
            f"{place} has no callable that builds a network.",
            why="It defines neither a class of torch.nn.Module nor a function.",
            hint="Write one there, and name it: --arch file.py:callable.",
        )
    return ModelError(
        f"Which callable of {place} builds the network?",
        why=f"Its callables are: {', '.join(names)}.",
        hint=f"Name one: --arch {place}:{names[0]}",
    )


def names_in_source(path: Path) -> list[str]:
    """Classes and functions at the top of a source file, which is not run; empty if it cannot be parsed.

    >>> names_in_source(Path("sample_models/digits_cnn.py"))
    ['DigitsCNN', 'make_model']
    """
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [part.name for part in body if isinstance(part, kinds)]


def _is_built(network: torch.nn.Module, place: str, name: str, own: list[str]) -> ModelError:
    kind = type(network).__name__
    by_class = f"Name its class: --arch {place}:{kind}; or write" if kind in own else "Write"
    return ModelError(
        f"{place}:{name} is an already built network, an instance of {kind}.",
        why="--arch must name a class, or a function that returns a network.",
        hint=f"{by_class} a function in {place}, `def make(): return {name}`, and name that: "
        f"--arch {place}:make",
    )


def _closest(name: str, own: list[str]) -> str | None:
    """The own name that is most like another one; the first where none is like it."""
    alike = {candidate.lower(): candidate for candidate in reversed(own)}
    close = difflib.get_close_matches(name.rpartition(".")[2].lower(), alike, n=1)
    return alike[close[0]] if close else own[0] if own else None


def _builds_networks(value: object, module: ModuleType) -> bool:
    """Whether it is a class of networks, a function defined in the module, or either bound or cached."""
    if isinstance(value, partial):
        return _builds_networks(value.func, module)
    if isinstance(value, _lru_cache_wrapper):
        return _builds_networks(value.__wrapped__, module)
    if inspect.isclass(value):
        return issubclass(value, torch.nn.Module)
    if inspect.ismethod(value):  # a class method: of a network's class, or of the module's own
        owner = value.__self__
        if inspect.isclass(owner) and issubclass(owner, torch.nn.Module):
            return True
        value = value.__func__
    if not inspect.isfunction(value):
        return False
    # A package gives what its own modules define: torchvision.models:resnet18.
    return value.__module__.partition(".")[0] == module.__name__.partition(".")[0]
