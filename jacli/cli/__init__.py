"""The command line: typer and rich live here and nowhere else; torch is imported inside the commands."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from typing import Annotated, NoReturn

import typer

import jacli
from jacli.cli import collector, stopping, streams
from jacli.cli.bench import bench
from jacli.cli.compute import compute
from jacli.cli.doctor import doctor
from jacli.cli.inspect import inspect
from jacli.cli.merge import merge
from jacli.cli.status import status
from jacli.cli.submit import submit
from jacli.cli.summarize import summarize
from jacli.cli.usage import Command, Group
from jacli.cli.verify import verify
from jacli.errors import (
    JacliError,
    OutOfMemoryError,
    OutputError,
    means_out_of_memory,
    user_code_behind,
)
from jacli.errors.printable import escape, escape_lines

_OF_THE_SYSTEM = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE),
    }
)
"""Errors of a path or its disk, and not of jacli."""

app = typer.Typer(
    name="jacli",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command(cls=Command, short_help="Jacobians of a model at inputs, into one HDF5 file")(compute)
app.command(cls=Command, short_help="Tables of norms, ranks and condition of result files")(summarize)
app.command(cls=Command, short_help="Recheck stored results against their model")(verify)
app.command(cls=Command, short_help="Shards of one run into one file")(merge)
app.command(cls=Command, short_help="How far a run or its shards are, and what to run next")(status)
app.command(cls=Command, short_help="Every method side by side: seconds, memory, error")(bench)
app.command(cls=Command, short_help="What is this file: a model, inputs, a result?")(inspect)
app.command(cls=Command, short_help="The same run as a Slurm job array, and its merge")(submit)
app.command(cls=Command, short_help="Versions, devices, and whether a folder can take results")(doctor)


def _print_version(asked: bool) -> None:
    if asked:
        streams.show(f"jacli {jacli.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Example: jacli compute model.pt inputs.npy, then jacli summarize out.h5.

    What does a trained network's output do when its input moves?  Jacobians of a model's outputs
    with respect to its inputs, for every sample, with their norms and singular values.
    """


def main() -> NoReturn:
    """Run the command line; every error becomes its message and its exit code."""
    streams.guard()
    debug = "--debug" in sys.argv
    if not debug:
        warnings.simplefilter("ignore")  # of the libraries; what a user must know, jacli says itself
    stopping.listen()
    collector.own_process()
    code: int | str | None
    try:
        app()
    except SystemExit as stop:
        code = stop.code
    except JacliError as error:
        code = _report(stopping.stop_behind(error) or error)
        if debug:
            traceback.print_exc()
    except stopping.Stopped as stop:
        code = _report(stop.as_error())
    except MemoryError as error:
        code = _report(OutOfMemoryError("Out of memory.", why=str(error), hint="Take fewer --samples."))
    except Exception as error:
        stopped = stopping.stop_behind(error)
        code = _report_unforeseen(error) if stopped is None else _report(stopped)
    lost = streams.lost_output()
    if lost is not None and not code:
        why = f"Standard output: {lost.strerror or lost}."
        hint = "Free space, or send it elsewhere; nothing else was left undone."
        code = _report(OutputError("The output could not be printed.", why=why, hint=hint))
    sys.exit(code)


def _report_unforeseen(error: Exception) -> int:
    """Errors that no part of jacli foresaw: of memory, of a disk or folder, or a defect."""
    if means_out_of_memory(error):
        hint = "Give more --memory, or fewer --samples or --classes."
        return _report(OutOfMemoryError("Out of memory.", why=str(error).partition("\n")[0], hint=hint))
    if (of_model := user_code_behind(error)) is not None:
        if "--debug" in sys.argv:
            traceback.print_exc()
        return _report(of_model)
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM and error.filename is not None:
        what = f"{os.fsdecode(error.filename)} cannot be used."
        return _report(OutputError(what, why=f"{error.strerror}.", hint="Check that path and its disk."))
    traceback.print_exc()
    print(
        f"\nThis is a defect of jacli {jacli.__version__}. "
        "Please report it with the command and the text above.",
        file=sys.stderr,
    )
    return 1


def _report(error: JacliError) -> int:
    first, *rest = (
        line for part in (error.what, error.why, error.hint) if part for line in escape_lines(part)
    )
    streams.say(f"jacli: {first}")
    for line in rest:
        streams.say(f"  {line}")
    for other in error.besides:
        streams.say(escape(f"  Besides: {' '.join(filter(None, (other.what, other.why, other.hint)))}"))
    return error.exit_code
