"""Parameters of a module's ``forward``: which one takes the inputs, and how dotted names nest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jacli.errors import UsageError


@dataclass(frozen=True)
class Parameter:
    """A parameter of ``forward`` that can be given by name.

    Attributes:
        name: Its name.
        takes_tensor: Whether TorchScript declares it as a tensor and rejects numbers.
        takes_list: Whether TorchScript declares it as a list and rejects tuples.
    """

    name: str
    takes_tensor: bool = False
    takes_list: bool = False


def parameters_of(model: Callable[..., object]) -> tuple[Parameter, ...]:
    """The parameters of ``forward`` that can be given by name, in order; none if the signature is unknown.

    >>> [parameter.name for parameter in parameters_of(lambda x, mask, *, scale=1: x)]
    ['x', 'mask', 'scale']
    """
    if isinstance(model, torch.jit.ScriptModule):
        schema = getattr(getattr(model, "forward", None), "schema", None)
        return tuple(
            Parameter(argument.name, argument.type.kind() == "TensorType", argument.type.kind() == "ListType")
            for argument in (schema.arguments[1:] if schema is not None else ())
        )
    if names := getattr(model, "parameter_names", ()):  # an exported program
        return tuple(map(Parameter, names))
    try:
        signature = inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)
    except (TypeError, ValueError):
        return ()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(signature.parameters.values())
    # In `(x, /, ...)` and `(*args, ...)` the inputs come first and cannot be given by name.
    if not parameters or parameters[0].kind not in by_name:
        return ()
    return tuple(Parameter(one.name) for one in parameters if one.kind in by_name)


def input_parameter(
    model: Callable[..., object], given: Collection[str], asked: str | None = None
) -> str | None:
    """Name of the parameter of ``forward`` that takes the inputs; None for the first one, by position.

    >>> forward = lambda edges, x, mask: x
    >>> input_parameter(forward, given=["edges"]), input_parameter(forward, given=["x", "mask"])
    ('x', None)

    Args:
        model: A module or a function.
        given: Names of the other arguments; dotted if nested.
        asked: ``--input-arg``; None picks the first parameter that is not in ``given``.

    Raises:
        UsageError: There is no such parameter, or every parameter is given otherwise.
    """
    parameters = [parameter.name for parameter in parameters_of(model)]
    taken = {name.partition(".")[0] for name in given}
    listed = ", ".join(parameters)
    if asked is not None:
        if asked in given or (asked in taken and "." not in asked):
            raise UsageError(
                f"--input-arg {asked} is given twice.",
                why="--arg or --constant names it as well.",
                hint="Leave one of them out.",
            )
        if parameters and asked.partition(".")[0] not in parameters and not _takes_any_name(model):
            raise UsageError(
                f"--input-arg {asked} is wrong.",
                why=f"The arguments of the model's forward are {listed}.",
                hint="Choose one of them.",
            )
        return asked
    free = [name for name in parameters if name not in taken]
    if parameters and not free and not _takes_any_name(model):
        raise UsageError(
            "No argument of the model's forward is left for INPUTS.",
            why=f"Its arguments are {listed}, and --arg and --constant name every one.",
            hint="Leave one of them out; INPUTS then take its place.",
        )
    return None if not free or free[0] == parameters[0] else free[0]


def _takes_any_name(model: Callable[..., object]) -> bool:
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "parameter_names"):
        return False
    function = model.forward if isinstance(model, torch.nn.Module) else model
    kinds = [one.kind for one in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def nested(flat: Mapping[str, Any], lists: Collection[str] = ()) -> dict[str, Any]:
    """Nest arguments with dotted names in tuples and dicts.

    ``{"state.0": h, "state.1": c, "t": 1}`` becomes ``{"state": (h, c), "t": 1}``.

    >>> nested({"state.0": 1, "state.1": 2, "options.scale": 3, "t": 4})
    {'state': (1, 2), 'options': {'scale': 3}, 't': 4}

    Args:
        flat: Dotted name -> value.
        lists: Names of the arguments to nest in lists, not tuples.

    Raises:
        UsageError: A name has both a value and parts, or positions are missing.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = tree
        for step in path:
            place = place.setdefault(step, _Parts())
            if not isinstance(place, _Parts):
                raise _both(name)
        if last in place:
            raise _both(name)
        place[last] = value
    return {name: _assembled(name, value, as_list=name in lists) for name, value in tree.items()}


class _Parts(dict[str, Any]):
    """The parts below a dotted name; a type of its own, since a value may be a dict."""


def _both(name: str) -> UsageError:
    return UsageError(
        f"The argument {name} is given twice.",
        why="It is named as a whole and by its parts.",
        hint="Give either the whole or every part.",
    )


def _assembled(name: str, value: Any, *, as_list: bool = False) -> Any:
    if not isinstance(value, _Parts):
        return value
    parts = {step: _assembled(f"{name}.{step}", part) for step, part in value.items()}
    if not all(step.isdigit() for step in parts):
        return parts
    positions = {int(step): part for step, part in parts.items()}
    if sorted(positions) != list(range(len(parts))):
        listed = ", ".join(f"{name}.{i}" for i in sorted(positions))
        raise UsageError(
            f"The argument {name} is given in part.",
            why=f"Given are {listed}; positions count from 0 without a gap.",
            hint="Also give the others, with --arg or --constant.",
        )
    ordered = [positions[i] for i in range(len(positions))]
    return ordered if as_list else tuple(ordered)


def as_declared(model: Callable[..., object], given: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Convert numbers to tensors where TorchScript declares a tensor: its calls convert nothing."""
    tensors = {parameter.name for parameter in parameters_of(model) if parameter.takes_tensor}
    return {
        name: torch.tensor(value, dtype=dtype if isinstance(value, float) else None)
        if name in tensors and isinstance(value, int | float | complex) and not isinstance(value, Tensor)
        else value
        for name, value in given.items()
    }
