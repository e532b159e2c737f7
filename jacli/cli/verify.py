"""The command `jacli verify`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jacli.cli.collector import importing
from jacli.cli.options import AllowPickle, Arch, AsJson
from jacli.cli.streams import show, show_json
from jacli.cli.usage import parse_all
from jacli.errors.printable import count_of
from jacli.options.values import parse_device, parse_fraction, whole

if TYPE_CHECKING:
    from jacli.commands.verify import Verification


def verify(
    file: Annotated[Path, typer.Argument(help="A result file of jacli compute.", show_default=False)],
    samples: Annotated[
        str, typer.Option("-n", "--samples", metavar="N|all", help="How many samples, chosen at random.")
    ] = "4",
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="X", help="Largest relative error [float32: 1e-4, bf16: 5e-2]."),
    ] = None,
    seed: Annotated[str, typer.Option(metavar="N", help="Of samples, rows and probes.")] = "0",
    model: Annotated[str | None, typer.Option(metavar="PATH", help="The model, where it is now.")] = None,
    inputs: Annotated[
        str | None, typer.Option(metavar="PATH", help="The inputs, where they are now.")
    ] = None,
    arch: Arch = None,
    allow_pickle: AllowPickle = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N [as recorded].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Example: jacli verify out.h5 --samples 16.

    Recheck stored Jacobians, norms and outputs against plain reverse passes through the model, in
    float64 where it runs in it, and everything stored against its checksums.  Exits with 6 where a
    sample differs or a checksum is wrong; FILE stays as it is.
    """
    asked = _parsed(samples, tolerance, seed, device)
    from jacli.cli.progress import progress_reporter

    with importing():
        from jacli.commands.verify import verify as verify_file
    from jacli.errors import UnsoundResultsError

    # Models print; stdout is for data only.
    with redirect_stdout(sys.stderr), progress_reporter(quiet=False, every=30.0) as progress:
        verification = verify_file(
            file, model=model, inputs=inputs, arch=arch, allow_pickle=allow_pickle, progress=progress, **asked
        )
    if as_json:
        show_json(verification.to_dict())
    else:
        _print(verification)
    if verification.damaged:
        more = f", and {len(verification.damaged) - 5} more" if len(verification.damaged) > 5 else ""
        raise UnsoundResultsError(
            f"{file} was damaged after it was written.",
            why=f"Checksums are wrong: {', '.join(verification.damaged[:5])}{more}.",
            hint="Copy it again from an intact original, or compute it again.",
        )
    if verification.failed:
        listed = ", ".join(map(str, verification.failed[:10])) + (
            " ..." if len(verification.failed) > 10 else ""
        )
        raise UnsoundResultsError(
            f"{len(verification.failed)} of {len(verification.samples)} rechecked samples of {file} "
            f"are wrong: {listed}.",
            why="They differ from the model's own derivative by up to "
            f"{verification.worst_error:.1e} (relative), "
            + (
                f"in {verification.dtype}; plain reverse passes in the run's own arithmetic differ as much."
                if verification.only_rounding
                else f"in {verification.dtype} and in the run's own arithmetic."
            ),
            hint="Compute them with --dtype float64, or allow more with --tolerance."
            if verification.only_rounding
            else "Compute them again, with --method loop if the method is at fault.",
        )


def _parsed(samples: str, tolerance: str | None, seed: str, device: str | None) -> dict[str, Any]:
    """The options that are not texts; all that are wrong are reported at once."""
    return parse_all(
        "verify",
        {
            "samples": (samples, _samples),
            "tolerance": (tolerance, parse_fraction),
            "seed": (seed, whole(0)),
            "device": (device, parse_device),
        },
    )


def _samples(text: str) -> int | None:
    """Number of samples; None for all."""
    if text == "all":
        return None
    try:
        return whole(1)(text)
    except ValueError as error:
        raise ValueError(f"all or {error}") from None


_ROWS = 20
"""If more samples than this are rechecked, only those that are not ok are listed."""


def _print(verification: Verification) -> None:
    from jacli.cli.render import print_notes, print_table
    from jacli.summary import Table

    listed = [
        sample
        for sample in verification.samples
        if len(verification.samples) <= _ROWS or sample.verdict != "ok"
    ]
    rows = tuple(
        (sample.sample_index, f"{sample.found.error:.1e}", int(sample.found.near_kink), sample.verdict)
        for sample in listed
    )
    table = Table(("sample", "error", "near_kink", "verdict"), rows, verification.notes)
    if rows:
        print_table(table)
    else:
        print_notes(table)
    if len(listed) < len(verification.samples):
        others = f"; the other {len(listed)} are listed" if listed else ""
        rechecked = len(verification.samples)
        show(f"{rechecked - len(listed)} of {count_of(rechecked, 'sample')} ok{others}")
    kinks = len(verification.at_kinks)
    worst = (
        "no sample away from a kink"
        if verification.worst_error is None
        else f"worst error {verification.worst_error:.1e}"
    )
    left_out = f" ({kinks} at a kink left out: up to {verification.worst_at_kinks:.1e})" if kinks else ""
    show(
        f"{worst}{left_out}, tolerance {verification.tolerance:.1e}, "
        f"against reverse passes in {verification.dtype}"
    )
