"""The command `jacli submit`: every option of `jacli compute`, and those of a Slurm array."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from jacli.cli.compute import compute
from jacli.cli.options import option
from jacli.cli.streams import results_are_kept, say, show_json
from jacli.cluster.launchers import LAUNCHERS
from jacli.cluster.slurm import NOT_OF_TASKS, compress
from jacli.errors.printable import quote_path

if TYPE_CHECKING:
    from jacli.commands.submit import Handed, Submission

SLURM = "Slurm"
"""The panel of the help."""


def _array_options(
    shards: Annotated[
        str | None, option("--shards", panel=SLURM, help="Tasks that share the samples.", metavar="N")
    ] = None,
    for_: Annotated[
        str | None,
        option(
            "--for",
            panel=SLURM,
            help=f"What starts them: {', '.join(LAUNCHERS)} [slurm].",
            metavar="NAME",
        ),
    ] = None,
    partition: Annotated[
        str | None, option("--partition", panel=SLURM, help="Where to run.", metavar="NAME")
    ] = None,
    account: Annotated[str | None, option("--account", panel=SLURM, help="Who pays.", metavar="NAME")] = None,
    gpus: Annotated[
        str | None, option("--gpus", panel=SLURM, help="A task's GPU: 1 or a100:1.", metavar="[TYPE:]1")
    ] = None,
    cpus: Annotated[
        str | None, option("--cpus", panel=SLURM, help="Processors of a task.", metavar="N")
    ] = None,
    mem: Annotated[
        str | None, option("--mem", panel=SLURM, help="Memory of a task: 32G.", metavar="SIZE")
    ] = None,
    time: Annotated[
        str | None, option("--time", panel=SLURM, help="Limit of a task: 4:00:00.", metavar="TIME")
    ] = None,
    notice: Annotated[
        str | None,
        option(
            "--notice",
            panel=SLURM,
            help="So long before its limit a task saves and is queued again [120].",
            metavar="SECONDS",
        ),
    ] = None,
    array_limit: Annotated[
        str | None, option("--array-limit", panel=SLURM, help="Tasks at a time.", metavar="N")
    ] = None,
    job_name: Annotated[
        str | None, option("--job-name", panel=SLURM, help="Name in the queue [jacli-OUT].", metavar="NAME")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        option(
            "--sbatch",
            panel=SLURM,
            help="Another option of sbatch (repeatable): qos=long, exclusive.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    setup: Annotated[
        list[str] | None,
        option(
            "--setup",
            panel=SLURM,
            help="Line of shell before the run (repeatable): 'module load cuda'.",
            metavar="LINE",
        ),
    ] = None,
    print_only: Annotated[
        bool, option("--print", panel=SLURM, help="Print the scripts; submit nothing.")
    ] = False,
) -> None:
    """Options of the array, beside those of the run."""


def _signed(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `compute`, which thus stand once, and those of the array."""
    of_run, of_array = (inspect.signature(source, eval_str=True) for source in (compute, _array_options))
    parameters = [p for name, p in of_run.parameters.items() if name not in NOT_OF_TASKS]
    parameters += of_array.parameters.values()
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    return command


@_signed
def submit(**flags: Any) -> None:
    """Example: jacli submit model.pt inputs.npy -o out.h5 --shards 16 --gpus 1 --time 4:00:00.

    The same run as a Slurm job array, one shard per task, and a job after it that merges them.  The same
    command again submits only what is missing.
    """
    print_only = flags.pop("print_only")
    from jacli.commands.submit import plan_submission
    from jacli.commands.submit import submit as hand_over

    submission = plan_submission(flags)
    lines = list(_left_out(submission))
    if print_only:
        sys.stdout.write("\n".join(filter(None, (submission.array, submission.merge))))
    else:
        handed = hand_over(submission)
        results_are_kept()
        lines += _handed_over(submission, handed)
        if flags["json"]:
            show_json(_as_json(submission, handed))
    if not flags["quiet"]:
        for line in lines:
            say(line)


def _left_out(submission: Submission) -> Iterator[str]:
    for note in submission.notes:
        yield f"note: {note}"
    if submission.complete:
        yield f"complete: {_shards(submission.complete)}"
    if submission.queued:
        yield f"in the queue already: {_shards(submission.queued)}"
    for number, holder in submission.written.items():
        yield f"being written: shard {number}, by {holder}"


def _handed_over(submission: Submission, handed: Handed) -> Iterator[str]:
    job = submission.job
    if handed.array is not None:
        yield f"submitted job {handed.array}: {_shards(job.shards)} of {job.count}"
    if submission.superseded is not None:
        yield f"cancelled job {submission.superseded}, an earlier merge"
    if handed.merge is not None:
        yield f"submitted job {handed.merge}: merges them into {job.out} at the end"
    if handed.array is None and handed.merge is None:
        yield "nothing was submitted"
    else:
        yield f"scripts and logs: {job.logs}"
        yield f"once a task has begun: jacli status {quote_path(job.out)}"


def _shards(numbers: Sequence[int]) -> str:
    return f"shard{'s' * (len(numbers) > 1)} {compress(numbers)}"


def _as_json(submission: Submission, handed: Handed) -> dict[str, Any]:
    job = submission.job
    return {
        "out": str(job.out),
        "shards": job.count,
        "submitted": list(job.shards),
        "complete": list(submission.complete),
        "queued": list(submission.queued),
        "written": list(submission.written),
        "array_job": handed.array,
        "merge_job": handed.merge,
        "logs": str(job.logs),
        "notes": list(submission.notes),
    }
