"""Slurm's batch scripts, as text: an array with one task per shard, and the job that merges the shards.

Plain ``sbatch`` and not submitit: the script is text that one can read, change and keep, and it runs the
same command that one would type.  submitit pickles a function into a folder that all nodes must share,
with a time limit of 5 minutes unless told otherwise, and would be one more dependency.

Everything here is a pure function of what was asked; `jacli.commands.submit` asks and submits.

What Slurm does with signals (seen with 22.05): the notice before the time limit goes to the batch shell
only (``B:``), and bash runs a trap once ``wait`` returns: so the run is a child that is waited for, and the
shell passes the signal on.  Preemption and ``scancel`` send SIGTERM to the shell and to its children, who
then hear it twice; after ``KillWait`` seconds (30) comes SIGKILL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jacli.cluster.shards import shard_path
from jacli.errors.printable import escape, join_words, quote, quote_path
from jacli.options.table import names_of
from jacli.options.values import Shard

STOPPED = 75
"""The exit code of a run that was stopped after saving, and goes on when started again."""

NOT_OF_TASKS = names_of(lambda option: option.task == "never")
"""Options of ``jacli compute`` that are not for an array: each task is told its shard, one that is started
again must resume, and ``--print`` is what shows the plan of an array."""


@dataclass(frozen=True)
class Resources:
    """Resources requested of Slurm; None: the partition's default.

    Attributes:
        job_name: Name in the queue.
        partition: Where to run.
        account: Who pays.
        time: Limit of a task, as Slurm writes it.
        gpus: GPUs a task: ``1`` or ``a100:1``.
        cpus: Processors a task.
        memory: Of a task, as Slurm writes it.
        further: Other options of sbatch, without their hyphens; an empty value for one that takes none.
    """

    job_name: str
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    memory: str | None = None
    further: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Job:
    """A run as an array of shards.

    Attributes:
        program: What runs jacli: ``("/path/to/python", "-P", "-m", "jacli")``.
        arguments: Of ``jacli compute``, without ``--shard``.
        folder: Where it was typed, absolute: relative paths among the arguments start there.
        out: The file of the whole run, absolute.
        count: Shards in all.
        shards: Those to compute now.
        logs: Folder of the logs, absolute.
        resources: What is asked of Slurm.
        setup: Lines of shell before the run.
        array_limit: Tasks at a time; None leaves it to Slurm.
        notice: Seconds before its time limit at which a task is told to save.
        overwrite: Whether the merge replaces ``out``.
    """

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: Path
    out: Path
    count: int
    shards: tuple[int, ...]
    logs: Path
    resources: Resources
    setup: tuple[str, ...] = ()
    array_limit: int | None = None
    notice: int = 120
    overwrite: bool = False


def render_array(job: Job) -> str:
    """The script of the array: bash, to be given to ``sbatch``."""
    limit = f"%{job.array_limit}" if job.array_limit else ""
    resources = job.resources
    directives = [
        ("job-name", resources.job_name),
        ("array", compress(job.shards) + limit),
        ("output", _log_name(job.logs, "%A_%a.log")),
        ("open-mode", "append"),
        ("requeue", ""),
        ("signal", f"B:USR2@{job.notice}"),
        ("partition", resources.partition),
        ("account", resources.account),
        ("time", resources.time),
        ("gpus", resources.gpus),
        ("cpus-per-task", resources.cpus),
        ("mem", resources.memory),
        *resources.further,
    ]
    command = join_words([*job.program, "compute", *job.arguments])
    command += f' --shard "$SLURM_ARRAY_TASK_ID/{job.count}"'
    return "\n".join(
        [
            "#!/bin/bash",
            *_lines(directives),
            f"# jacli submit: a task is a shard of {escape(str(job.out))}",
            *_setup(job),
            *_threads(resources.cpus),
            f"cd -- {quote(str(job.folder))} || exit 4",
            "",
            _RUN.format(command=command, stopped=STOPPED),
        ]
    )


_RUN = """\
# Slurm's notice comes to this shell, which passes it on: the run saves and exits with {stopped}.
trap 'kill -s USR2 "$run"' USR2
trap 'kill -s TERM "$run"' TERM
{command} &
run=$!
wait "$run"
code=$?
while kill -s 0 "$run" 2>/dev/null; do  # a trap ends `wait` before the run has ended
    wait "$run"
    code=$?
done

# The task and not its job's number, which may be that of the array.  What was cancelled is not started again.
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
if [ "$code" -eq {stopped} ] && [ "$(squeue --noheader --jobs="$task" --format=%T)" = RUNNING ]; then
    scontrol requeue "$task"
fi
exit "$code"
"""

_WHOSE = ("qos", "reservation", "mail-type", "mail-user", "comment", "wckey")
"""Options of sbatch that say for whom a job runs and not on what: the merge has them too."""


def render_merge(job: Job) -> str:
    """The script of the job that merges the shards: a processor, no GPU.

    It is to start when every task has ended, however (``afterany``): after one that ended with exit
    code 6, ``afterok`` would wait for ever, and the merge itself checks what is there.
    """
    resources = job.resources
    directives = [
        ("job-name", f"{resources.job_name}-merge"),
        ("output", _log_name(job.logs, "merge_%j.log")),
        ("open-mode", "append"),
        ("partition", resources.partition),
        ("account", resources.account),
        ("time", resources.time),
        *((name, value) for name, value in resources.further if name in _WHOSE),
    ]
    overwrite = " --overwrite" if job.overwrite else ""
    return "\n".join(
        [
            "#!/bin/bash",
            *_lines(directives),
            "# jacli submit: after the array, sbatch --dependency=afterany:ARRAY",
            *_setup(job),
            f"exec {join_words([*job.program, 'merge'])} {_every_shard(job)} "
            f"--out {quote_path(job.out)}{overwrite}",
            "",
        ]
    )


def _setup(job: Job) -> list[str]:
    return ["", *job.setup, ""] if job.setup else [""]


def _threads(cpus: int | None) -> list[str]:
    """Limit torch's threads: where tasks are not confined to their CPUs, it would take all of the node's."""
    return [f"export OMP_NUM_THREADS={cpus}"] if cpus else []


def _every_shard(job: Job) -> str:
    """All names in one word, which bash expands whether the files exist or not."""
    first = shard_path(job.out, Shard(1, job.count))
    before, after = str(first).rsplit(f".{1:05d}-of-", 1)
    return f"{quote_path(f'{before}.')}{{{1:05d}..{job.count:05d}}}{quote(f'-of-{after}')}"


def compress(numbers: Iterable[int]) -> str:
    """``1, 2, 3, 7`` -> ``1-3,7``, as ``--array`` reads it.

    >>> compress([1, 2, 3, 7])
    '1-3,7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _log_name(folder: Path, name: str) -> str:
    """Slurm replaces what follows ``%`` in a log's name."""
    return f"{str(folder).replace('%', '%%')}/{name}"


def _lines(directives: Iterable[tuple[str, str | int | None]]) -> list[str]:
    """A line each; what is None was not asked for, and an empty value stands for an option without one."""
    return [
        f"#SBATCH --{name}" if value == "" else f"#SBATCH --{name}={quote_directive(str(value))}"
        for name, value in directives
        if value is not None
    ]


def quote_directive(value: str) -> str:
    """A value as sbatch reads it in its script: backslashes escape, in quotes too, and ``$`` is itself.

    >>> print(quote_directive("a100:1"), quote_directive("two words"))
    a100:1 "two words"
    """
    if re.fullmatch(r"[\w@%+=:,./-]+", value, flags=re.ASCII):
        return value
    return '"' + re.sub(r'([\\"])', r"\\\1", value) + '"'
