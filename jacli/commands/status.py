"""``jacli status``: how far runs are, from the small files beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jacli.cluster import name_of_shard, shard_rows, shards_beside
from jacli.errors import ResultsError, UsageError
from jacli.errors.printable import as_argument
from jacli.options.values import Shard
from jacli.run.run_files import (
    UNFINISHED,
    FileStatus,
    RunCommand,
    command_of_another,
    commands_for,
    look_at,
    look_at_shards,
)
from jacli.store import open_results
from jacli.untrusted.content import why_unseen

EACH_OPENED = 64
"""Shards of which each finished one is opened for its number of samples; of more, only one is."""


@dataclass(frozen=True)
class RunStatus:
    """Progress of a run, in one file or in shards.

    Attributes:
        out: The file of the whole run, as it was asked for.
        files: That file alone, or each of its shards.
        next: Lines for a shell: what is to be run next; none where nothing is.
        notes: What must be known beside them.
        estimated: Numbers of samples of finished shards may be one off.
    """

    out: Path
    files: tuple[FileStatus, ...]
    next: tuple[str, ...]
    notes: tuple[str, ...] = ()
    estimated: bool = False

    @property
    def done(self) -> int:
        """Samples on disk."""
        return sum(file.done or 0 for file in self.files)

    @property
    def samples(self) -> int | None:
        """In all files; where some are not known yet, about as many as in the others. None if none is."""
        known = [file.samples for file in self.files if file.samples is not None]
        if not known:
            return None
        if len(known) == len(self.files):
            return sum(known)
        return round(sum(known) / len(known) * len(self.files))

    @property
    def samples_are_known(self) -> bool:
        """Whether each file has said how many it will hold; shards differ by one sample at most."""
        return not self.estimated and all(file.samples is not None for file in self.files)

    @property
    def rate(self) -> float | None:
        """Samples a second of all that are running."""
        return sum(file.rate or 0.0 for file in self.files) or None

    @property
    def seconds_left(self) -> float | None:
        """Until the last of those running ends; where others are to be computed as well, at this rate."""
        if self.rate is None or self.samples is None:
            return None
        if all(file.state in ("complete", "running") for file in self.files):
            return max((file.seconds_left or 0.0 for file in self.files), default=0.0)
        return (self.samples - self.done) / self.rate

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            "files": [_as_json(file) for file in self.files],
            "done": self.done,
            "samples": self.samples,
            "samples_are_known": self.samples_are_known,
            "samples_a_second": self.rate,
            "seconds_left": self.seconds_left,
            "next": list(self.next),
            "notes": list(self.notes),
        }


def _as_json(file: FileStatus) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "shard": None if file.shard is None else str(file.shard),
        "state": file.state,
        "done": file.done,
        "samples": file.samples,
        "samples_a_second": file.rate,
        "seconds_left": file.seconds_left,
        "where": file.where or None,
        "reason": file.reason or None,
    }


def status(files: Sequence[str | os.PathLike[str]]) -> list[RunStatus]:
    """Progress of each of these runs.

    >>> status(["nobody.h5"])
    Traceback (most recent call last):
        ...
    jacli.errors.ResultsError: Nothing is named nobody.h5.
    There is neither a result, nor an unfinished one, nor a shard of one.
    Check the path; a run writes to its -o, by default out.h5.

    Args:
        files: Results, finished or not; of a run in shards its whole name, which stands for all of them,
            or the shards.

    Raises:
        UsageError: No file was named.
        ResultsError: There is nothing of such a name.
    """
    if not files:
        raise UsageError("No file was named.", hint="Name a run's file: `jacli status out.h5`.")
    runs: list[RunStatus] = []
    named: dict[tuple[Path, int], list[Shard]] = {}
    for file in files:
        path = _final(Path(file))
        name = name_of_shard(path)
        if name is None:
            runs += _runs_of(path)
        else:
            named.setdefault((name.out, name.shard.count), []).append(name.shard)
    for (out, count), shards in named.items():
        every, estimated = _shards(out, count)
        asked = [every[shard.index - 1] for shard in dict.fromkeys(shards)]
        _refuse_nothing(asked, asked[0].path)
        runs.append(_in_shards(out, asked if len(asked) < count else every, every, estimated))
    return runs


def _final(path: Path) -> Path:
    """A ``.part`` stands for what it becomes."""
    return path.with_name(path.name.removesuffix(".part"))


def _runs_of(out: Path) -> list[RunStatus]:
    """All results of this name: the file itself, and sets of shards (normally one)."""
    whole = look_at(out)
    beside = shards_beside(out)
    if whole.state != "missing" or not beside:
        _refuse_nothing([whole], out)
    if whole.state == "complete":  # merged, or never in shards
        return [RunStatus(out, (whole,), ())]
    runs = [] if whole.state == "missing" else [_with_next(out, (whole,), None)]
    for count in sorted(beside):
        every, estimated = _shards(out, count)
        runs.append(_in_shards(out, every, every, estimated))
    return runs


def _shards(out: Path, count: int) -> tuple[list[FileStatus], bool]:
    """Progress of a run's shards, and whether their numbers of samples are estimates.

    Of many, one finished shard is opened: the last.  Where in the inputs it ends tells how many samples there
    are, exactly if it is the last of all.
    """
    if count <= EACH_OPENED:
        return look_at_shards(out, count), False
    files = look_at_shards(out, count, counted=False)
    complete = [file for file in files if file.state == "complete"]
    if not complete:
        return files, False
    last = complete[-1]
    try:
        samples, known = _samples_of_run(last.path, last.shard or Shard(1, 1))
    except (ResultsError, KeyError, IndexError) as error:
        files[files.index(last)] = replace(last, state="failed", reason=f"cannot be read: {error}")
        return files, True
    return [_with_samples(file, samples) if file.state == "complete" else file for file in files], not known


def _with_samples(file: FileStatus, samples: int) -> FileStatus:
    count = len(shard_rows(file.shard or Shard(1, 1), samples))
    return replace(file, samples=count, done=count)


def _samples_of_run(path: Path, shard: Shard) -> tuple[int, bool]:
    """Samples of all shards, by one of them; and whether no other number is possible."""
    with open_results(path) as results:
        index, chosen = results["sample_index"][:], results.json("config").get("samples")
    start, stop = int(index[0]), int(index[-1]) + 1
    least, most = -(-stop * shard.count // shard.index), ((stop + 1) * shard.count - 1) // shard.index
    if chosen is None and shard_rows(shard, max(least, shard.count)) == range(start, stop):
        return least, least == most
    return len(index) * shard.count, False  # --samples: its place in the inputs tells nothing


def _in_shards(
    out: Path, files: Sequence[FileStatus], every: Sequence[FileStatus], estimated: bool
) -> RunStatus:
    """Some shards of a run, or all of them."""
    if all(file.state == "complete" for file in every):
        merge = () if os.path.exists(out) else (str(RunCommand(("jacli", "merge", as_argument(out)))),)
        return RunStatus(out, tuple(files), merge, estimated=estimated)
    return replace(_with_next(out, files, command_of_another(out, every)), estimated=estimated)


def _with_next(out: Path, files: Sequence[FileStatus], other: RunCommand | None) -> RunStatus:
    hint, notes = commands_for(files, other), []
    if not hint and any(file.state in UNFINISHED for file in files):
        notes.append("it was begun from Python: call jacli.compute again with the same arguments to resume")
    return RunStatus(out, tuple(files), tuple(hint), tuple(notes))


def _refuse_nothing(files: Sequence[FileStatus], path: Path) -> None:
    if all(file.state == "missing" for file in files):
        raise ResultsError(
            f"Nothing is named {path}.",
            why=why_unseen(path) or "There is neither a result, nor an unfinished one, nor a shard of one.",
            hint="Check the path; a run writes to its -o, by default out.h5.",
        )
