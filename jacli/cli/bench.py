"""The command `jacli bench`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

from jacli.cli.collector import importing
from jacli.cli.options import (
    METHOD,
    AllowPickle,
    Arch,
    ArchArg,
    Arg,
    AsJson,
    BatchSize,
    ChunkSize,
    Classes,
    Constant,
    Debug,
    Device,
    Dtype,
    IgnoreExtraWeights,
    InputArg,
    Inputs,
    InputsKey,
    Labels,
    Memory,
    Model,
    Of,
    Samples,
    Seed,
    Select,
    StripPrefix,
    WeightsKey,
    option,
)
from jacli.cli.streams import say, show_json
from jacli.cli.usage import parse_all

if TYPE_CHECKING:
    from jacli.commands.bench import BenchResult, BenchRow
    from jacli.options.table import RunConfig
    from jacli.summary import Table


def bench(
    model: Model = None,
    inputs: Inputs = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    weights_key: WeightsKey = None,
    strip_prefix: StripPrefix = None,
    ignore_extra_weights: IgnoreExtraWeights = None,
    arg: Arg = None,
    constant: Constant = None,
    input_arg: InputArg = None,
    select: Select = None,
    allow_pickle: AllowPickle = None,
    inputs_key: InputsKey = None,
    samples: Samples = None,
    labels: Labels = None,
    classes: Classes = None,
    of: Of = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    limit: Annotated[
        str,
        option(
            "--limit", panel=METHOD, help="Seconds that a method's batch may take [20].", metavar="SECONDS"
        ),
    ] = "20",
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = None,
) -> None:
    """Example: jacli bench model.pt inputs.npy.

    Every method that applies, in every precision it has, side by side: the first batch of the run
    that jacli compute would do, with the best sizes of each; seconds, passes, memory, and the
    error against float64.
    """
    flags = dict(locals())
    settings, seconds = _parsed(
        {name: flags[name] for name in flags if name not in ("limit", "as_json")}, limit
    )
    with importing():
        from jacli.commands.bench import bench as run_bench

    # Models print; stdout is for data only.
    with redirect_stdout(sys.stderr):
        result = run_bench(settings, limit=seconds, progress=_say)
    if as_json:
        show_json(result.to_dict())
        return
    from jacli.cli.render import print_table

    print_table(_table(result))


def _parsed(flags: Mapping[str, Any], limit: str) -> tuple[RunConfig, float]:
    """The options; all that are wrong are reported at once."""
    from jacli.errors import JacliError, UsageError
    from jacli.options.config import from_options
    from jacli.options.values import parse_seconds

    problems: tuple[JacliError, ...] = ()
    try:
        settings = from_options(flags)
    except UsageError as error:
        problems = error.problems or (error,)
    seconds: float = parse_all("bench", {"limit": (limit, parse_seconds)}, problems)["limit"]
    return settings, seconds


def _say(method: str) -> None:
    """On a terminal, where somebody waits."""
    if sys.stderr.isatty():
        say(f"trying {method} ...")


_COLUMNS = (
    "method",
    "precision",
    "samples",
    "vectors",
    "passes",
    "s/sample",
    "seconds",
    "relative",
    "memory",
    "error",
    "worst",
    "note",
)


def _table(result: BenchResult) -> Table:
    from jacli.summary import Table

    notes = list(result.notes)
    if result.auto:
        notes.insert(
            0, f"auto takes {result.auto.method} ({result.auto.why}); it chose in {result.auto_seconds:.1f} s"
        )
    if any(row.estimated for row in result.rows):
        notes.append(
            f"~: its batch was not computed whole within {result.limit:g} s, the rest is extrapolated"
        )
    return Table(_COLUMNS, tuple(map(_cells, result.rows)), tuple(notes), keys=2)


def _cells(row: BenchRow) -> tuple[str | int | None, ...]:
    from jacli.errors.numbers import format_size

    if row.plan is None or row.seconds is None or row.seconds_a_sample is None or row.relative is None:
        return (row.method, row.precision, *[None] * (len(_COLUMNS) - 3), f"refused: {row.refused}")
    about = "~" if row.estimated else ""
    return (
        row.method,
        row.precision,
        row.plan.batch_size,
        row.plan.chunk_size,
        row.plan.passes,
        f"{about}{row.seconds_a_sample:.2e}",
        f"{about}{row.seconds:.3g}",
        f"{row.relative:.2f}x",
        None if row.peak_bytes is None else format_size(row.peak_bytes),
        None if row.error_median is None else f"{row.error_median:.1e}",
        None if row.error_worst is None else f"{row.error_worst:.1e}",
        "; ".join(row.notes) or None,
    )
