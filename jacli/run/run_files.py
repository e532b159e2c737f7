"""The files of a run, whole or in shards: how far each one is, and what command goes on with it.

Told by the small files beside an unfinished result, which is itself never opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from jacli.cluster import shard_path
from jacli.errors import ResultsError
from jacli.errors.printable import join_words, quote, split_words
from jacli.options.values import Shard
from jacli.store.attributes import Attributes
from jacli.store.lock import read_holder
from jacli.store.paths import part_path
from jacli.store.progress import Progress, read_progress
from jacli.store.reader import open_results
from jacli.store.shard_file import count_samples

UNFINISHED = ("stopped", "killed", "failed", "missing")
"""States of a file that nobody works on."""

COMPUTE = ("jacli", "compute")
"""First words of a command that resumes a run: no other command is printed, whatever a file says."""


@dataclass(frozen=True)
class RunCommand:
    """The command that computes a run.

    Attributes:
        words: Program and arguments.
        folder: Where that was typed; empty if unknown.
    """

    words: tuple[str, ...]
    folder: str = ""

    def with_shard(self, text: str | None) -> RunCommand:
        """The same with another ``--shard``, or without one."""
        words: list[str] = []
        old = iter(self.words)
        for word in old:
            if word == "--shard":
                next(old, None)
            elif not word.startswith("--shard="):
                words.append(word)
        return replace(self, words=(*words, *(("--shard", text) if text else ())))

    def __str__(self) -> str:
        """For a shell, from the current folder."""
        there = self.folder and Path(self.folder) != _current_folder()
        return (f"cd {quote(self.folder)} && " if there else "") + join_words(self.words)


@dataclass(frozen=True)
class FileStatus:
    """Progress of a file.

    Attributes:
        path: Its final name.
        shard: Which part of its run; None for the whole.
        state: ``complete``; ``running``; ``waiting`` (a process has it, and no batch yet); ``stopped`` (by
            a signal, saved); ``failed`` (see ``reason``); ``killed`` (it says running, but its process is
            gone); ``missing``.
        samples: In the file; None if unknown.
        done: Of these, on disk.
        rate: Samples a second, while it is running.
        seconds_left: At that rate.
        where: Host, process and job, of one that has a process.
        reason: Why it stopped.
        command: What goes on with it; None if that is not known.
    """

    path: Path
    shard: Shard | None
    state: str
    samples: int | None = None
    done: int | None = None
    rate: float | None = None
    seconds_left: float | None = None
    where: str = ""
    reason: str = ""
    command: RunCommand | None = None


def look_at(path: Path, shard: Shard | None = None, *, counted: bool = True) -> FileStatus:
    """Progress of one file.

    >>> look_at(Path("nobody.h5")).state
    'missing'

    Args:
        path: Its final name.
        shard: Which part of a run it is.
        counted: Whether a finished file is opened for its number of samples.
    """
    # The lock goes last when a run ends: who has no holder has its final name by now.
    holder, progress = read_holder(path), read_progress(path)
    if holder is None and os.path.exists(path):
        return _finished(path, shard) if counted else FileStatus(path, shard, "complete")
    if progress is None:
        begun = holder is not None or os.path.exists(part_path(path))
        state = "waiting" if holder is not None else "killed" if begun else "missing"
        return FileStatus(path, shard, state, where=str(holder or ""))
    state = progress.state
    if holder is not None:
        state = "running" if progress.state == "running" and progress.rate is not None else "waiting"
    elif progress.state == "running":
        state = "killed"
    running = state == "running"
    return FileStatus(
        path,
        shard,
        state,
        samples=progress.samples,
        done=progress.done,
        rate=progress.rate if running else None,
        seconds_left=progress.seconds_left if running else None,
        where=str(holder or ""),
        reason="" if holder is not None else progress.reason,
        command=_command_of(progress),
    )


def _command_of(progress: Progress) -> RunCommand | None:
    """The command that resumes a run, from its progress file; None if that holds any other command."""
    folder = progress.folder if Path(progress.folder).is_absolute() else ""
    is_ours = progress.command[:2] == COMPUTE and (folder or not progress.folder)
    return RunCommand(progress.command, folder) if is_ours else None


def _current_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _finished(path: Path, shard: Shard | None) -> FileStatus:
    try:
        samples = count_samples(path)
    except ResultsError as error:
        return FileStatus(path, shard, "failed", reason=error.summary)
    return FileStatus(path, shard, "complete", samples, samples)


def look_at_shards(out: Path, count: int, *, counted: bool = True) -> list[FileStatus]:
    """Progress of every shard of a run, missing ones included.

    >>> [str(file.shard) for file in look_at_shards(Path("nobody.h5"), 2)]
    ['1/2', '2/2']
    """
    shards = (Shard(index, count) for index in range(1, count + 1))
    return [look_at(shard_path(out, shard), shard, counted=counted) for shard in shards]


def command_recorded(path: Path, out: Path) -> RunCommand:
    """What made a finished shard, as typed; where its folder is not certain, what repeats it from anywhere.

    Args:
        path: The shard.
        out: The whole run's name.

    Raises:
        ResultsError: The shard cannot be read.
    """
    with open_results(path) as results:
        words, folder = _typed(results.attrs, out)
    if words:
        return RunCommand(words, folder)
    return RunCommand((*COMPUTE, "--config", str(path), "-o", str(out)))


def command_of_another(out: Path, files: Sequence[FileStatus]) -> RunCommand | None:
    """The command that computes a shard of this run, if any of its files records it."""
    for file in files:
        if file.command is not None:
            return file.command
    for file in files:
        if file.state == "complete":
            with contextlib.suppress(ResultsError):
                return command_recorded(file.path, out)
    return None


def _typed(attributes: Attributes, out: Path) -> tuple[tuple[str, ...], str]:
    """The recorded command and its folder, from which its relative -o leads to ``out``; else nothing."""
    try:
        words = tuple(split_words(attributes.text("command") or ""))
        asked = Path(attributes.json_object("config")["out"])
        here = out.resolve().parts
    except (ResultsError, ValueError, KeyError, TypeError, OSError):
        return (), ""
    if words[:2] != COMPUTE or asked.is_absolute() or here[-len(asked.parts) :] != asked.parts:
        return (), ""
    return words, str(Path(*here[: -len(asked.parts)]))


def commands_for(files: Iterable[FileStatus], other: RunCommand | None) -> list[str]:
    """Lines for a shell that go on with files, or make them; loops, where many differ by --shard only.

    >>> again = RunCommand(("jacli", "compute", "net.pt", "x.npy"), "")
    >>> commands_for([look_at(Path("nobody.h5"))], again)
    ['jacli compute net.pt x.npy']

    Args:
        files: Of which those count that nobody works on, and that are not complete.
        other: What makes another shard of their run: for those that know no command themselves.
    """
    shards: dict[RunCommand, list[Shard | None]] = {}
    for file in files:
        command = file.command or other
        if command is not None and file.state in UNFINISHED:
            shards.setdefault(command.with_shard(None), []).append(file.shard)
    return [_line(command, alike) for command, alike in shards.items()]


def _line(command: RunCommand, shards: Sequence[Shard | None]) -> str:
    first = shards[0]
    if first is None or len(shards) == 1:
        return str(command.with_shard(None if first is None else str(first)))
    there = str(replace(command, words=("true",))).removesuffix("true")
    each = join_words(command.words)
    ranges = ranges_of(shard.index for shard in shards if shard is not None)
    listed = " ".join(str(low) if low == high else f"{{{low}..{high}}}" for low, high in ranges)
    return f"{there}for i in {listed}; do {each} --shard $i/{first.count}; done"


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of successive numbers: 3 7 8 9 -> (3, 3) (7, 9).

    >>> ranges_of([3, 7, 8, 9])
    [(3, 3), (7, 9)]
    """
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append((members[0], members[-1]))
    return runs


def shown_shards(indices: Iterable[int]) -> str:
    """For the eye: ``shard 3``, ``shards 3, 7-9``.

    >>> shown_shards([3]), shown_shards([3, 7, 8, 9])
    ('shard 3', 'shards 3, 7-9')
    """
    ranges = ranges_of(indices)
    listed = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:20]]
    several = len(ranges) > 1 or ranges[0][0] < ranges[0][1]
    return f"shard{'s' * several} {', '.join(listed)}{', ...' * (len(ranges) > 20)}"
