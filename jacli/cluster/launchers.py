"""The one table of launchers: each writes the scripts of a run's shards and hands them to a queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jacli.cluster.queue import cancel, queued_tasks, require_sbatch, sbatch
from jacli.cluster.slurm import Job, render_array, render_merge


class Submit(Protocol):
    """Hands a script over, to start once the jobs ``after`` have ended; gives the job's number."""

    def __call__(self, script: Path, *, after: Sequence[str] = ()) -> str: ...


@dataclass(frozen=True)
class Launcher:
    """What starts a run as one job per shard, and a job that merges them.

    Attributes:
        render_array: A run to the script of its shards.
        render_merge: A run to the script of the merge.
        require: Raises a UsageError where the programs that the others call are not here.
        submit: Hands a script over.
        queued_tasks: Jobs to their tasks that wait or run; None where the queue cannot be asked.
        cancel: Takes a job out of the queue.
    """

    render_array: Callable[[Job], str]
    render_merge: Callable[[Job], str]
    require: Callable[[], None]
    submit: Submit
    queued_tasks: Callable[[Sequence[str]], Mapping[str, set[int]] | None]
    cancel: Callable[[str], None]


LAUNCHERS = {
    "slurm": Launcher(render_array, render_merge, require_sbatch, sbatch, queued_tasks, cancel),
}
"""Every launcher by the name that ``jacli submit --for`` takes."""
