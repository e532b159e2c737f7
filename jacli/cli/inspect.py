"""The command `jacli inspect`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jacli.cli.collector import importing
from jacli.cli.options import Arch, ArchArg, Arg, AsJson, Constant, InputArg, InputsKey, Select
from jacli.cli.streams import show, show_json


def inspect(
    path: Annotated[str, typer.Argument(help="A model, inputs or a result file.", show_default=False)],
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs", metavar="FILE", help="Run the model on a few of these: shapes, state, batch sizes."
        ),
    ] = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    arg: Arg = None,
    constant: Constant = None,
    input_arg: InputArg = None,
    select: Select = None,
    inputs_key: InputsKey = None,
    as_json: AsJson = False,
) -> None:
    """Example: jacli inspect model.pt --inputs inputs.npy.

    What is this file?  By its content: a model (format, tensors, parameters, matching architectures),
    inputs (shape, dtype, range) or a result (provenance, what it holds).  Options of the model go with
    --inputs.
    """
    with importing():
        from jacli.commands.inspect import inspect as inspect_path

    description = inspect_path(
        path,
        inputs=inputs,
        inputs_key=inputs_key,
        arch=arch,
        arch_arg=arch_arg,
        arg=arg,
        constant=constant,
        input_arg=input_arg,
        select=select,
    )
    if as_json:
        show_json(description)
        return
    for name, value in _lines(description):
        show(f"{name:<24} {value}".rstrip())


def _lines(description: dict[str, Any], indent: str = "") -> list[tuple[str, str]]:
    """Name and value, a line each; what is unknown or empty is left out."""
    lines: list[tuple[str, str]] = []
    for name, value in description.items():
        if value is None or value in ([], {}, ""):
            continue
        label = indent + name.replace("_", " ")
        if isinstance(value, dict) and "shape" in value:  # an array: one line says it all
            lines.append((indent + name, _flat(value)))
        elif isinstance(value, dict):
            lines.append((label, ""))
            lines += _lines(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
            lines += [(label if i == 0 else "", _flat(item)) for i, item in enumerate(value)]
        else:
            lines.append((label, _flat(value)))
    return lines


def _flat(value: Any) -> str:
    """On one line: numbers as a shape, names with commas, an array's facts side by side."""
    if isinstance(value, dict):
        return "  ".join(_flat(part) for part in value.values() if part not in ([], ""))
    if isinstance(value, list) and value and all(isinstance(part, int) for part in value):
        return " x ".join(map(str, value))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
