"""A run as a Slurm array: what is missing, the scripts for it, and handing them over."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jacli.cluster import shard_path, shards_beside
from jacli.cluster.launchers import LAUNCHERS, Launcher
from jacli.cluster.queue import Array, Submitted, read_submitted, write_submitted
from jacli.cluster.slurm import Job
from jacli.commands.submit_options import SlurmOptions, refuse_unprintable, resolve_submission
from jacli.errors import ModelError, OutputError, UsageError
from jacli.errors.printable import count_of, join_words
from jacli.inputs import open_inputs
from jacli.options.table import RunConfig
from jacli.options.values import Shard
from jacli.store import check_place, read_holder
from jacli.untrusted.content import why_unseen
from jacli.untrusted.own_files import replace_own

PROGRAM = (sys.executable, "-P", "-m", "jacli")
"""This very installation; -P, as the program `jacli` does not import from the current folder either."""


@dataclass(frozen=True)
class Submission:
    """The tasks to submit, and why the others are not.

    Attributes:
        launcher: What they are handed to.
        job: The run; its ``shards`` are those missing.
        array: Script of the array; None where no shard is missing.
        merge: Script of the merge job; None where one is queued already, or the merged file is there.
        after: Arrays in the queue, for which the merge waits as well.
        superseded: A merge job in the queue that the new one replaces.
        complete: Shards whose file is there.
        queued: Shards whose task waits or runs.
        written: Shards that another process is writing, with its name.
        notes: What the user must be told.
    """

    launcher: Launcher
    job: Job
    array: str | None
    merge: str | None
    after: tuple[str, ...]
    superseded: str | None
    complete: tuple[int, ...]
    queued: tuple[int, ...]
    written: Mapping[int, str]
    notes: tuple[str, ...]


def plan_submission(flags: Mapping[str, Any]) -> Submission:
    """Look at what is there, and render the scripts for the rest; nothing is written or submitted.

    Args:
        flags: The options of `jacli submit` as typed, None where not given.

    Raises:
        UsageError: Every wrong option, of the run and of the array; or more shards than samples.
        ModelError: There is no such model.
        InputsError: The inputs cannot be opened.
        OutputError: The place cannot be written.
    """
    config, asked, arguments = resolve_submission(flags)
    _check_model_and_inputs(config, asked)
    folder = _current_folder()
    out = folder / config.out
    job = Job(
        program=PROGRAM,
        arguments=(*arguments, "--out", str(out)),
        folder=folder,
        out=out,
        count=asked.shards,
        shards=(),
        logs=out.with_name(f"{out.name}.slurm"),
        resources=asked.resources(out),
        setup=asked.setup,
        array_limit=asked.array_limit,
        notice=asked.notice,
        overwrite=config.overwrite,
    )
    refuse_unprintable(job)
    check_place(out, overwrite=True)
    return _plan(LAUNCHERS[asked.for_], job)


def _check_model_and_inputs(config: RunConfig, asked: SlurmOptions) -> None:
    """Refuse what every task would fail at, before anything is submitted."""
    if not os.path.exists(config.model) and ":" not in config.model:
        raise ModelError(
            f"There is no file {config.model}.",
            why=why_unseen(config.model)
            or "Nor is it an architecture's name, which has a colon (torchvision:resnet18).",
            hint="Check the path.",
        )
    with open_inputs(
        config.inputs, key=config.inputs_key, samples=config.samples, seed=config.seed
    ) as source:
        samples = len(source)
    if asked.shards > samples:
        raise UsageError(
            f"--shards {asked.shards} is too many.",
            why=f"The inputs have {count_of(samples, 'sample')}, and a shard has at least one.",
            hint=f"Give --shards up to {samples}.",
        )


def _current_folder() -> Path:
    """By the name that the shell has for it: behind an automounter's link the other may exist here only."""
    named = Path(os.environ.get("PWD", ""))
    try:
        if named.is_absolute() and named.samefile("."):
            return named
    except OSError:
        pass
    return Path.cwd()


def _plan(launcher: Launcher, job: Job) -> Submission:
    if job.out.exists() and not job.overwrite:
        every = tuple(range(1, job.count + 1))
        return Submission(
            launcher, job, None, None, (), None, every, (), {}, (f"{job.out} is there already",)
        )
    before = read_submitted(job.logs)
    jobs = [array.job for array in before.arrays] + ([before.merge] if before.merge else [])
    tasks = launcher.queued_tasks(jobs)
    notes = [] if tasks is not None else ["squeue is not here: tasks in the queue are not left out"]
    tasks = tasks or {}
    active = [array for array in before.arrays if array.job in tasks]
    _refuse_other_count(job, active)
    queued = set().union(*(tasks[array.job] for array in active))
    complete, written = set(), {}
    for index in range(1, job.count + 1):
        path = shard_path(job.out, Shard(index, job.count))
        if path.exists() and not job.overwrite:
            complete.add(index)
        elif index not in queued and (holder := read_holder(path)) is not None:
            written[index] = str(holder)
    missing = tuple(sorted(set(range(1, job.count + 1)) - complete - queued - set(written)))
    job = replace(job, shards=missing)
    merge_queued = before.merge if before.merge in tasks else None
    wants_merge = bool(missing) or (merge_queued is None and (bool(queued) or not written))
    notes += _notes(job, before, started=bool(complete or queued))
    return Submission(
        launcher=launcher,
        job=job,
        array=launcher.render_array(job) if missing else None,
        merge=launcher.render_merge(job) if wants_merge else None,
        after=tuple(array.job for array in active),
        superseded=merge_queued if wants_merge else None,
        complete=tuple(sorted(complete)),
        queued=tuple(sorted(queued - complete)),
        written=written,
        notes=tuple(notes),
    )


def _refuse_other_count(job: Job, active: list[Array]) -> None:
    for array in active:
        if array.count != job.count:
            raise UsageError(
                f"--shards {job.count}: {job.out} is in the queue with {count_of(array.count, 'shard')}.",
                why=f"Job {array.job} computes them; both would write the same file.",
                hint=f"Give --shards {array.count}, or cancel that job: scancel {array.job}.",
            )


def _notes(job: Job, before: Submitted, *, started: bool) -> list[str]:
    notes = []
    others = sorted(set(shards_beside(job.out)) - {job.count})
    if others:
        listed = " and ".join(str(count) for count in others)
        notes.append(f"there are also files of {listed} shards, which are left alone")
    if started and before.arrays and before.arrays[-1].arguments != job.arguments:
        notes.append(
            "other shards were submitted with other options, and only shards of the same run can be merged; "
            f"then it was: jacli compute {join_words(before.arrays[-1].arguments)}"
        )
    return notes


@dataclass(frozen=True)
class Handed:
    """The jobs submitted to Slurm.

    Attributes:
        array: Number of the array's job, or None.
        merge: Number of the merge job, or None.
    """

    array: str | None
    merge: str | None


def submit(submission: Submission) -> Handed:
    """Write the scripts into the folder of the logs and submit them, the array first.

    Raises:
        UsageError: There is no sbatch, or it refuses a script.
        OutputError: The folder cannot be written.
    """
    job, launcher = submission.job, submission.launcher
    array: str | None = None
    if submission.array is None and submission.merge is None:
        return Handed(None, None)
    launcher.require()
    before = read_submitted(job.logs)
    active = tuple(a for a in before.arrays if a.job in submission.after)
    if submission.array is not None:
        array = launcher.submit(_written(job.logs / "array.sh", submission.array))
        active = (*active, Array(array, job.count, job.arguments))
        write_submitted(job.logs, Submitted(active, before.merge))
    if submission.superseded is not None:
        launcher.cancel(submission.superseded)
    merge: str | None = None
    if submission.merge is not None:
        after = [a.job for a in active]
        merge = launcher.submit(_written(job.logs / "merge.sh", submission.merge), after=after)
        write_submitted(job.logs, Submitted(active, merge))
    return Handed(array, merge)


def _written(path: Path, script: str) -> Path:
    try:
        path.parent.mkdir(exist_ok=True)
        replace_own(path, script.encode(), new=path.with_name(path.name + ".new"))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written.",
            why=f"{error.strerror or error}.",
            hint="Choose a folder that you may write to, with -o.",
        ) from error
    return path
