"""The command `jacli compute`."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

from jacli.cli.collector import importing
from jacli.cli.options import (
    METHOD,
    MODEL,
    RESULT,
    RUN,
    AllowPickle,
    Arch,
    ArchArg,
    Arg,
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
    Precision,
    Samples,
    Seed,
    Select,
    StripPrefix,
    WeightsKey,
    option,
)
from jacli.cli.stopping import finished
from jacli.cli.streams import results_are_kept, say, show, show_json
from jacli.errors.printable import count_of, join_words, quote_path
from jacli.options.methods import CHAIN, METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jacli.commands.dry_run import DryRun
    from jacli.errors import UnsoundResultsError
    from jacli.options.table import RunConfig
    from jacli.run.outcome import Outcome, Recheck


def compute(
    model: Model = None,
    inputs: Inputs = None,
    out: Annotated[
        str | None, option("-o", "--out", panel=RESULT, help="Result file [out.h5].", metavar="FILE")
    ] = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    weights_key: WeightsKey = None,
    strip_prefix: StripPrefix = None,
    ema: Annotated[
        bool | None,
        option("--ema/--no-ema", panel=MODEL, help="The averaged weights of a checkpoint, or never."),
    ] = None,
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
    method: Annotated[
        str | None,
        option(
            "--method",
            panel=METHOD,
            help=f"auto, {', '.join(METHODS)} or {CHAIN} [auto].",
            metavar="NAME",
        ),
    ] = None,
    dtype: Dtype = None,
    precision: Precision = None,
    device: Device = None,
    batch_size: BatchSize = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    verify: Annotated[
        str | None,
        option(
            "--verify",
            panel=RUN,
            help="Recheck so many samples of the result against the original model; 0 = off [1].",
            metavar="N",
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        option(
            "--tolerance",
            panel=RUN,
            help="Relative error allowed by the recheck [1e-4 in float32; with --precision bf16 5e-2].",
            metavar="ERROR",
        ),
    ] = None,
    save: Annotated[
        str | None,
        option(
            "--save",
            panel=RESULT,
            help="full; factors: two narrow ones whose product it is; none: norms and values only [full].",
            metavar="WHAT",
        ),
    ] = None,
    save_dtype: Annotated[
        str | None,
        option(
            "--save-dtype", panel=RESULT, help="float32, float16 or float64 [as --dtype].", metavar="DTYPE"
        ),
    ] = None,
    compress: Annotated[
        str | None,
        option("--compress", panel=RESULT, help="none, gzip, lzf or zstd [none].", metavar="FILTER"),
    ] = None,
    save_inputs: Annotated[
        bool | None,
        option("--save-inputs/--no-save-inputs", panel=RESULT, help="Keep the inputs in the file [yes]."),
    ] = None,
    singular_values: Annotated[
        str | None,
        option(
            "--singular-values",
            panel=RESULT,
            help="auto, all, none, or the K largest [auto].",
            metavar="WHICH",
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        option(
            "--resume/--no-resume",
            panel=RUN,
            help="Go on with an unfinished file of the same run; or remove it and start anew [go on].",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        option(
            "--shard",
            panel=RUN,
            help="Only this part of the samples, into a file of its own; auto: as Slurm or torchrun says.",
            metavar="I/N|auto",
        ),
    ] = None,
    overwrite: Annotated[
        bool | None, option("--overwrite", panel=RESULT, help="Replace a finished file.")
    ] = None,
    config: Annotated[
        str | None,
        option(
            "--config",
            panel=RUN,
            help="Options from FILE.toml, or those of RESULT.h5; flags win.",
            metavar="FILE",
        ),
    ] = None,
    dry_run: Annotated[
        bool | None, option("--dry-run", panel=RUN, help="Print the plan and its cost; write nothing.")
    ] = None,
    seed: Seed = None,
    quiet: Annotated[bool | None, option("--quiet", panel=RUN, help="Only errors.")] = None,
    json: Annotated[
        bool | None, option("--json", panel=RUN, help="What was done, as JSON on stdout.")
    ] = None,
    log_every: Annotated[
        str | None,
        option(
            "--log-every", panel=RUN, help="Seconds between progress lines in a log [30].", metavar="SECONDS"
        ),
    ] = None,
    debug: Debug = None,
) -> None:
    """Example: jacli compute model.pt inputs.npy -o out.h5.

    The Jacobian of the model's outputs with respect to its inputs, for every sample, shape
    (batch, c, h, w, n_classes), with norms and singular values, in one HDF5 file.
    """
    flags = dict(locals())
    from jacli.run.config_file import resolve_options

    settings = resolve_options(flags)
    if settings.dry_run:
        with importing():
            from jacli.commands.dry_run import dry_run as plan_run

        with redirect_stdout(sys.stderr):
            plan = plan_run(settings)
        _print_plan(settings, plan)
        return
    _run(settings)


def _run(settings: RunConfig) -> None:
    from jacli.cli.progress import progress_reporter

    with importing():
        from jacli.commands.compute import run_compute

    started = time.monotonic()
    printed: set[str] = set()

    def note(text: str) -> None:
        printed.add(text)
        if not settings.quiet:
            say(f"note: {text}")

    # Models print; stdout is for data only.
    with (
        redirect_stdout(sys.stderr),
        progress_reporter(quiet=settings.quiet, every=settings.log_every) as progress,
    ):
        command = join_words(["jacli", *sys.argv[1:]])
        outcome = run_compute(
            settings,
            command=command,
            progress=progress,
            stage=progress.stage,
            note=note,
            waiting=_tell_waiting,
            published=finished,
        )
    results_are_kept()
    if settings.json:
        show_json(outcome.to_dict())
    if not settings.quiet:
        notes = [text for text in outcome.notes if text not in printed]
        _tell(outcome, notes, settings.precision, time.monotonic() - started)
    if outcome.not_finite or outcome.overflowed or outcome.rechecked.failed:
        raise _unsound(outcome, settings.precision)


def _tell_waiting(what: str) -> None:
    say(f"waiting: {what}")


def _tell(outcome: Outcome, notes: Sequence[str], precision: str, seconds: float) -> None:
    for note in notes:
        say(f"note: {note}")
    if outcome.chosen is None:
        _tell_complete(outcome)
        return
    plan = outcome.chosen.plan
    for name, why in outcome.chosen.passed_over.items():
        say(f"note: passed over {name}: {why}")
    shape = " x ".join(str(n) for n in outcome.shape)
    if outcome.continued:
        say(f"resumed after {count_of(outcome.continued, 'finished sample')}")
    say(
        f"wrote {outcome.out}: {count_of(outcome.samples, 'sample')}, Jacobian {shape} per sample; "
        f"method: {plan.method} ({plan.why}), {_in_passes(precision)}{seconds:.1f} s"
    )
    say(_recheck_line(outcome.rechecked))
    say(f"look at it: jacli summarize {quote_path(outcome.out)}")


def _tell_complete(outcome: Outcome) -> None:
    samples = count_of(outcome.samples, "sample")
    say(f"{outcome.out} is already complete: same model, inputs and options ({samples})")
    say(_recheck_line(outcome.rechecked))
    say(f"look at it: jacli summarize {quote_path(outcome.out)}")


def _in_passes(precision: str) -> str:
    return "" if precision == "ieee" else f"linear passes in {precision}, "


def _recheck_line(rechecked: Recheck) -> str:
    if not rechecked.samples:
        return "rechecked: nothing (--verify 0)"
    samples = count_of(rechecked.samples, "sample")
    line = f"rechecked {samples} against the model in {rechecked.dtype}: "
    if rechecked.worst_error is None:
        return line + "at a kink of the network, equal to plain passes in the run's own dtype"
    kinks = f", {len(rechecked.at_kinks)} at a kink left out" if rechecked.at_kinks else ""
    return line + f"relative error {rechecked.worst_error:.1e}, {rechecked.tolerance:.1e} allowed{kinks}"


def _unsound(outcome: Outcome, precision: str) -> UnsoundResultsError:
    from jacli.errors import UnsoundResultsError

    if outcome.not_finite:
        listed = ", ".join(map(str, outcome.not_finite[:10]))
        listed += " ..." if len(outcome.not_finite) > 10 else ""
        return UnsoundResultsError(
            f"{len(outcome.not_finite)} of {count_of(outcome.samples, 'sample')} are not finite: {listed}.",
            why="The derivative does not exist there (a square root or logarithm at 0), or it overflows.",
            hint=f"{outcome.out} holds NaN or infinity for them; leave them out with --samples.",
        )
    if outcome.overflowed:
        return UnsoundResultsError(
            f"{count_of(outcome.overflowed, 'value')} of the Jacobian became infinite in {outcome.out}.",
            why="They are finite, but exceed the range of --save-dtype.",
            hint="Save as float32 or float64.",
        )
    instead = "--method loop" if precision == "ieee" else "--precision ieee"
    rechecked, listed = outcome.rechecked, ", ".join(map(str, outcome.rechecked.failed))
    return UnsoundResultsError(
        f"The recheck failed: samples {listed} differ from the model's own derivative.",
        why=f"The worst relative error is {rechecked.worst_error:.1e}, {rechecked.tolerance:.1e} is allowed; "
        f"{outcome.out} has each as verified_error.",
        hint="Plain passes in the run's dtype are as far off: take --dtype float64, or a larger --tolerance."
        if rechecked.only_rounding
        else f"Compute again with {instead}, and please report it; or allow more with --tolerance.",
    )


def _print_plan(settings: RunConfig, plan: DryRun) -> None:
    if settings.json:
        show_json(plan.to_dict())
        return
    total = sum(plan.disk.values())
    for name, value in _plan_rows(plan, total):
        show(f"{name:<16} {value}".rstrip())
    for note in plan.notes:
        say(f"note: {note}")
    if total > plan.free:
        say("note: that is more than is free: try --save none or factors, --save-dtype float16 or --classes")


def _plan_rows(plan: DryRun, total: int) -> list[tuple[str, str]]:
    from jacli.errors.numbers import format_size
    from jacli.plans.plan import ChainPlan, WholePlan

    chosen = plan.plan
    rows = [
        ("samples", str(plan.shapes["samples"])),
        ("input", _shape(plan.shapes["input"])),
        ("output", _shape(plan.shapes["output"])),
        ("Jacobian", f"{_shape(plan.shapes['jacobian_of_a_sample'])} per sample"),
        ("method", f"{chosen.method} ({chosen.why})"),
        (
            "arithmetic",
            f"{plan.dtype}, linear passes in {plan.precision}".removesuffix(", linear passes in ieee"),
        ),
    ]
    match chosen:
        case ChainPlan(factorization=factorization):
            cuts = zip(factorization.cuts, factorization.widths[1:-1], strict=True)
            rows += [
                ("cut at", ", ".join(f"{name} ({width} wide)" for name, width in cuts)),
                ("in this order", factorization.order),
            ]
            passes = str(chosen.passes)
        case WholePlan(filled_by=method):
            each = "" if method.single_vector else f", {count_of(chosen.chunk_size, 'vector')} each"
            passes = f"{chosen.passes}{each}"
    others = [f"{name} {_duration(seconds)}" for name, seconds in plan.alternatives]
    rows += [
        ("next in line", ", ".join(others) or "none"),
        ("batches", f"{chosen.n_batches} of {count_of(chosen.batch_size, 'sample')}"),
        ("passes", passes),
        ("singular values", f"{chosen.singular_values} per sample"),
        ("time", "unknown" if chosen.seconds is None else f"about {_duration(chosen.seconds)}"),
        ("memory", f"up to {format_size(plan.memory)}"),
        ("on disk", f"{format_size(total)} ({total} bytes, uncompressed)"),
        ("free there", f"{format_size(plan.free)} ({plan.free} bytes)"),
        ("measured", f"{'samples':>9} {'vectors':>9} {'s a vector':>12} {'held':>10}"),
    ]
    for tried in chosen.measured:
        took = tried.failure or f"{tried.vector_seconds:>12.2e} {format_size(tried.bytes_held):>10}"
        rows.append((f"  {tried.name}", f"{tried.batch_size:>9} {tried.chunk_size:>9} {took}"))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _shape(shape: list[int]) -> str:
    return " x ".join(str(n) for n in shape) or "one number"
