"""The options of the command as the keywords of a Python function, from the one table of options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

from jacli.options.table import RunConfig, names_of
from jacli.options.values import Classes


def with_options(function: Callable[..., Any]) -> Signature:
    """The signature of a function whose ``**options`` are the command's, each named, with its default.

    >>> from jacli.commands.compute import compute
    >>> signature(compute).parameters["method"]
    <Parameter "method: str = 'auto'">
    """
    declared = signature(function)
    named = [part for part in declared.parameters.values() if part.kind is not Parameter.VAR_KEYWORD]
    taken = {part.name for part in named}
    offered = set(names_of(lambda option: option.in_python)) - taken
    kinds = get_type_hints(RunConfig)
    options = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=_default(field), annotation=kinds[field.name])
        for field in fields(RunConfig)
        if field.name in offered
    ]
    options.append(Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation="str | None"))
    return declared.replace(parameters=[*named, *options])


def _default(field: Any) -> Any:
    """As a caller would give it: of classes the text, of assignments an empty table."""
    value = field.default if field.default is not MISSING else field.default_factory()
    return str(value) if isinstance(value, Classes) else value
