"""The command `jacli inspect`."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def inspect(
    path: Annotated[str, typer.Argument(help="A model, inputs or a result file.", show_default=False)],
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs", metavar="FILE", help="Run the model on a few of these: shapes, state, batch sizes."
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="As in jacli compute; goes with --inputs.")
    ] = None,
    arch_arg: Annotated[
        list[str] | None, typer.Option("--arch-arg", metavar="KEY=VALUE", help="As in jacli compute.")
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="As in jacli compute.")
    ] = None,
    select: Annotated[
        str | None, typer.Option("--select", metavar="NAME|INDEX", help="As in jacli compute.")
    ] = None,
    inputs_key: Annotated[
        str | None, typer.Option("--inputs-key", metavar="KEY", help="Which array of an inputs file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Example: jacli inspect model.pt --inputs inputs.npy.

    What is this file?  By its content: a model (format, tensors, parameters, matching architectures),
    inputs (shape, dtype, range) or a result (provenance, what it holds).
    """
    from jacli.run.inspect import inspect as inspect_path

    found = inspect_path(
        path,
        inputs=inputs,
        arch=arch,
        arch_arg=arch_arg or [],
        arg=arg or [],
        select=select,
        inputs_key=inputs_key,
    )
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in _lines(found):
        typer.echo(f"{name:<24} {value}".rstrip())


def _lines(found: dict[str, Any], indent: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in found.items():
        if value is None or value in ([], {}, ""):
            continue
        label = indent + name.replace("_", " ")
        if isinstance(value, dict):
            lines.append((label, ""))
            lines += _lines(value, indent + "  ")
        elif isinstance(value, list) and not all(isinstance(item, int) for item in value):
            lines.append(
                (
                    label,
                    "" if not value else str(value[0]) if not isinstance(value[0], dict) else _flat(value[0]),
                )
            )
            lines += [("", _flat(item) if isinstance(item, dict) else str(item)) for item in value[1:]]
        elif isinstance(value, list):
            lines.append((label, " x ".join(map(str, value))))
        else:
            lines.append((label, str(value)))
    return lines


def _flat(item: dict[str, Any]) -> str:
    return "  ".join(str(value) for value in item.values())
