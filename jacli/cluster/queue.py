"""Slurm's programs, and what was submitted: a small JSON file in the folder of the logs.

The queue is asked about those jobs and no others; a job that Slurm has forgotten has ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jacli.errors import OutputError, UsageError
from jacli.untrusted.json_values import parse_json
from jacli.untrusted.own_files import read_own, replace_own


@dataclass(frozen=True)
class Array:
    """An array that was submitted.

    Attributes:
        job: Slurm's number.
        count: Shards of the whole run.
        arguments: Of ``jacli compute``.
    """

    job: str
    count: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Submitted:
    """The jobs submitted for a result so far.

    Attributes:
        arrays: The oldest first; those that had ended when the next was submitted are left out.
        merge: The last merge job, or None.
    """

    arrays: tuple[Array, ...] = ()
    merge: str | None = None


_FILE = "jobs.json"


def read_submitted(folder: Path) -> Submitted:
    """The jobs recorded in ``folder``; none if there is no valid record.

    >>> read_submitted(Path("no such folder"))
    Submitted(arrays=(), merge=None)
    """
    try:
        values = parse_json(read_own(folder / _FILE))
        arrays = tuple(
            Array(str(a["job"]), int(a["count"]), tuple(map(str, a["arguments"]))) for a in values["arrays"]
        )
        return Submitted(arrays, None if values["merge"] is None else str(values["merge"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Submitted()


def write_submitted(folder: Path, submitted: Submitted) -> None:
    """Replace the file, atomically.

    >>> write_submitted(Path(), Submitted((Array("4711", 4, ("net.pt", "x.npy")),), merge="4712"))
    >>> read_submitted(Path()).merge
    '4712'

    Raises:
        OutputError: The folder cannot be written.
    """
    new = folder / f"{_FILE}.{os.getpid()}.new"
    try:
        text = json.dumps(asdict(submitted), indent=1) + "\n"
        replace_own(folder / _FILE, text.encode(), new=new)
    except OSError as error:
        raise OutputError(
            f"{folder / _FILE} cannot be written.",
            why=f"{error.strerror or error}.",
            hint="`squeue` shows what was submitted.",
        ) from error


def require_sbatch() -> None:
    """Before anything is written.

    Raises:
        UsageError: There is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "There is no sbatch here.",
            why="jacli submit hands the run to Slurm, whose programs are not on this machine's PATH.",
            hint="Submit from a login node; --print shows the scripts and submits nothing.",
        )


def sbatch(script: Path, *, after: Sequence[str] = ()) -> str:
    """Submit a script, to start once the jobs ``after`` have ended, however; returns the job's number.

    Raises:
        UsageError: Slurm refuses it.
    """
    dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    done = _run("sbatch", "--parsable", *dependency, str(script))
    if done.returncode != 0:
        raise UsageError(
            f"sbatch refused {script}.",
            why=_said(done),
            hint="Correct the options: `sinfo` lists partitions, and --shards must be below the MaxArraySize "
            "of `scontrol show config`.",
        )
    return done.stdout.strip().partition(";")[0]  # NUMBER;CLUSTER where there are several


def queued_tasks(jobs: Sequence[str]) -> Mapping[str, set[int]] | None:
    """Which tasks of these jobs wait or run; a job without tasks is there with none. None without squeue.

    Raises:
        UsageError: squeue cannot tell.
    """
    tasks: dict[str, set[int]] = {}
    if not jobs:
        return tasks
    if shutil.which("squeue") is None:
        return None
    done = _run("squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(jobs)}")
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # forgotten, so it has ended
        raise UsageError("squeue does not answer.", why=_said(done), hint="Try again later.")
    for line in done.stdout.split():
        job, _, task = line.partition("_")
        tasks.setdefault(job, set()).update({int(task)} if task.isdigit() else ())
    return tasks


def cancel(job: str) -> None:
    """Take a job out of the queue; one that has ended meanwhile is no matter."""
    _run("scancel", job)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return " ".join(lines) or f"It ended with {done.returncode} and said nothing."
