"""The command ``jacli doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jacli.cli.collector import importing
from jacli.cli.streams import show_json, trusted
from jacli.errors.printable import escape

if TYPE_CHECKING:
    from jacli.commands.doctor import Finding


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where results would be written.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Example: `jacli doctor results/`.

    Say what is installed, which devices there are, whether torch and torchvision fit together, and whether
    FOLDER can hold results: free space, and a lock that keeps a second writer out.

    Exits with 4 when FOLDER cannot be written; anything else comes with a remedy and exits with 0.
    """
    with importing():
        from jacli.commands.doctor import FOLDER, diagnose
    from jacli.errors import OutputError

    findings = diagnose(folder)
    if as_json:
        _print_json(findings)
    else:
        _print_table(findings)
    for finding in findings:
        if finding.name == FOLDER and not finding.ok:
            raise OutputError(
                f"Results cannot be written to {folder}.", why=f"{finding.value}.", hint=finding.todo
            )


def _print_json(findings: list[Finding]) -> None:
    from dataclasses import asdict

    show_json({"ok": all(f.ok for f in findings), "findings": [asdict(f) for f in findings]})


def _print_table(findings: list[Finding]) -> None:
    """Name, verdict and value in aligned columns; below them what to do, where there is something to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        verdict = Text("ok", style="green") if finding.ok else Text("!!", style="bold red")
        table.add_row(finding.name, verdict, Text(escape(finding.value)))
    console = Console(file=trusted(sys.stdout))
    console.print(table)
    notes = [finding for finding in findings if finding.todo]
    if notes:
        console.print()
    for finding in notes:
        console.print(Text(escape(f"{finding.name}: {finding.todo}")), soft_wrap=True)
