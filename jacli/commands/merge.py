"""``jacli merge``: shards of one run -> one file, once it is certain that they are shards of one run."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jacli
from jacli.cluster import name_of_shard, shard_path, shards_beside
from jacli.errors import OutputError, ResultsError, UnsoundResultsError, UsageError
from jacli.errors.printable import Lines, capitalised, count_of, quote_path
from jacli.options.values import Shard
from jacli.run.run_files import (
    UNFINISHED,
    FileStatus,
    command_of_another,
    commands_for,
    look_at_shards,
    shown_shards,
)
from jacli.run.same_run import check_same_run, check_samples, config_of
from jacli.store.indexed import IndexedDataset
from jacli.store.lock import RunLock
from jacli.store.merge import is_indexed, write_merged
from jacli.store.paths import check_folder, check_place, part_exists, part_path
from jacli.store.reader import Results, open_results
from jacli.store.shard_file import ShardFile, read_shard
from jacli.store.sources import SHOWN, identity_of, path_of, sources_of

_SHOWN_COMMANDS = 3


@dataclass(frozen=True)
class Merged:
    """Result of a merge.

    Attributes:
        out: The file.
        shards: How many it was made of.
        samples: In all.
        in_shards: Datasets that are left in the shards; none in a copy.
        size: Bytes of the file.
        notes: What the user must be told.
        already_complete: The file had been merged from these very shards before, and was left as it is.
    """

    out: Path
    shards: int
    samples: int
    in_shards: tuple[str, ...]
    size: int
    notes: tuple[str, ...]
    already_complete: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            "already_complete": self.already_complete,
            "shards": self.shards,
            "samples": self.samples,
            "in_shards": list(self.in_shards),
            "bytes": self.size,
            "notes": list(self.notes),
        }


def merge(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    virtual: bool = True,
    overwrite: bool = False,
    command: str = "jacli.commands.merge(...)",
    progress: Callable[[int, int], None] = lambda done, total: None,
    waiting: Callable[[str], None] = lambda what: None,
) -> Merged:
    """Merge the shards of a run, after checking that they are all there and belong together.

    Args:
        files: Every shard; or the whole run's name, which stands for the shards beside it.
        out: The merged file; the whole run's name if None.
        virtual: An index that leaves large datasets in the shards; or a copy of everything.
        overwrite: Replace ``out`` if it is there.
        command: As it was typed, for the file.
        progress: Called with samples merged and samples in all.
        waiting: Called with what is waited for, where another host may still be writing.

    Raises:
        UsageError: It is not clear what is to be merged, or where to.
        UnsoundResultsError: Shards are missing or not finished; it says what makes them.
        ResultsError: A file is no shard, or is one of another run.
        OutputError: ``out`` is there, cannot be written, or does not fit on its disk.
    """
    whole, count = _whole_run([Path(file) for file in files])
    target = whole if out is None else Path(out)
    check_folder(target)
    with ExitStack() as stack:
        stack.callback(RunLock(target, waiting).release)
        if part_path(target).exists():
            raise part_exists(target)
        states = look_at_shards(whole, count, counted=False)
        _refuse_unfinished(whole, states)
        shards = [read_shard(state.path) for state in states]
        check_samples(whole, shards)
        notes = check_same_run(shards)
        if virtual:
            _refuse_names(shards)
            notes += _open_files_note(count)
        earlier = None if overwrite else _merged_before(target)
        if earlier is not None:
            return _left_as_it_is(earlier, shards, notes, virtual=virtual)
        check_place(target, overwrite=overwrite)
        attributes = _attributes(target, shards, notes, command)
        write_merged(target, shards, attributes, virtual=virtual, overwrite=overwrite, progress=progress)
    left = [name for name, layout in shards[0].layouts.items() if virtual and is_indexed(name, layout)]
    samples = sum(shard.samples for shard in shards)
    return Merged(target, count, samples, tuple(left), target.stat().st_size, tuple(notes))


def _merged_before(target: Path) -> Results | None:
    """The merged file that is there already; None where there is nothing, or something else.

    Raises:
        OutputError: The place cannot be written.
    """
    if target.is_symlink() or not target.is_file():
        return None
    try:
        results = open_results(target)
    except ResultsError:
        return None
    if sources_of(target, results.attrs):
        return results
    results.close()
    return None


def _left_as_it_is(
    earlier: Results, shards: Sequence[ShardFile], notes: Sequence[str], *, virtual: bool
) -> Merged:
    """The result of an earlier merge, provided that it was of these shards and of this kind.

    Raises:
        OutputError: It was not.
    """
    with earlier as results:
        out = results.path
        before = {path_of(out, source).resolve(): source for source in sources_of(out, results.attrs)}
        now = {shard.path.resolve(): shard for shard in shards}
        different = [
            f"{shard} was computed again" if path in before else f"{shard} is not in it"
            for path, shard in now.items()
            if path not in before or before[path].identity != identity_of(shard.attributes)
        ]
        different += [f"{path} is no shard of this run" for path in before if path not in now]
        in_shards: tuple[str, ...] = ()
        if not different:  # else what an index leaves in its shards may be gone
            in_shards = tuple(
                n for n, dataset in results.datasets.items() if isinstance(dataset, IndexedDataset)
            )
            is_index = any(virtual and is_indexed(n, layout) for n, layout in shards[0].layouts.items())
            if bool(in_shards) != is_index:
                different.append("as an index (--virtual)" if in_shards else "as a file of its own (--copy)")
        if different:
            more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
            raise OutputError(
                f"{out} exists already.",
                why=f"It was merged differently: {'; '.join(different[:SHOWN])}{more}.",
                hint="Choose another name with -o, or give --overwrite.",
            )
        return Merged(
            out,
            len(shards),
            len(results),
            in_shards,
            out.stat().st_size,
            tuple(notes),
            already_complete=True,
        )


def _whole_run(files: Sequence[Path]) -> tuple[Path, int]:
    """The whole run's name, and how many shards it has."""
    if len(files) == 1 and name_of_shard(files[0]) is None:
        return files[0], _count_beside(files[0])
    names = [name_of_shard(file) for file in files]
    for file, name in zip(files, names, strict=True):
        if name is None:
            raise UsageError(
                f"{file} is not named like a shard.",
                why="jacli compute --shard names them like out.00003-of-00016.h5.",
                hint="Give all shards of one run, or only the whole run's name: jacli merge out.h5.",
            )
    runs = {(name.out, name.shard.count) for name in names if name is not None}
    if len(runs) != 1:
        listed = ", ".join(f"{out} in {count}" for out, count in sorted(runs)) or "none"
        raise UsageError(
            "jacli merges the shards of one run at a time.",
            why=f"These are shards of: {listed}.",
            hint="Give all shards of one run, or only the whole run's name: jacli merge out.h5.",
        )
    return runs.pop()


def _count_beside(out: Path) -> int:
    beside = shards_beside(out)
    if not beside:
        raise ResultsError(
            f"There are no shards of {out}.",
            why=f"They would be called {shard_path(out, Shard(1, 16)).name} and so on, in {out.parent}.",
            hint="Name the shards, or the run's -o; jacli compute --shard I/N makes them.",
        )
    if len(beside) > 1:
        counts = " and ".join(str(count) for count in sorted(beside))
        one = shard_path(out, Shard(1, max(beside)))
        raise UsageError(
            f"{out} was computed in {counts} shards: it is unclear which to merge.",
            why="They lie in the same folder.",
            hint=f"Name the shards of one run ({one.name} and so on), or remove the others.",
        )
    return next(iter(beside))


def _refuse_unfinished(out: Path, states: Sequence[FileStatus]) -> None:
    lacking: dict[str, list[int]] = {}
    for state in states:
        if state.state != "complete" and state.shard is not None:
            lacking.setdefault(state.state, []).append(state.shard.index)
    if not lacking:
        return
    count = len(states)
    listed = "; ".join(f"{state}: {shown_shards(found)}" for state, found in lacking.items())
    commands = commands_for(states, command_of_another(out, states))
    if commands:
        more = len(commands) - _SHOWN_COMMANDS
        lines = ["Run: " + "\n     ".join(commands[:_SHOWN_COMMANDS])]
        lines += [f"and {more} more, which jacli status {quote_path(out)} lists"] * (more > 0)
        hint: str = Lines("\n".join(lines))
    elif any(state in UNFINISHED for state in lacking):
        hint = "Compute them as the others were: no file tells with what command."
    else:
        hint = f"Wait for them: jacli status {quote_path(out)} tells how far they are."
    raise UnsoundResultsError(
        f"{sum(map(len, lacking.values()))} of {count_of(count, 'shard')} of {out} are not complete.",
        why=f"{capitalised(listed)}.",
        hint=hint,
    )


def _refuse_names(shards: Sequence[ShardFile]) -> None:
    """An index names its shards in HDF5, whose readers take no name that is not UTF-8."""
    for shard in shards:
        try:
            os.fsencode(shard.path.name).decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(
                f"An index cannot name {shard.path}.",
                why="Its name is not UTF-8, and HDF5 takes no other names.",
                hint="Merge with --copy, or rename the shards.",
            ) from None


def _open_files_note(count: int) -> list[str]:
    """HDF5 keeps each shard open that it reads, and past the limit it reads fill values without a word."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or count + 100 < limit:
        return []
    return [
        f"other programs than jacli read NaN where a process may not open {count} files (here {limit}): "
        "raise `ulimit -n` for them, or merge with --copy"
    ]


def _attributes(
    out: Path, shards: Sequence[ShardFile], notes: Sequence[str], command: str
) -> dict[str, object]:
    """Those of the first shard, as far as they are those of all."""
    attributes = dict(shards[0].attributes)
    for name in ("shard", "inputs_sha256", "sources"):
        attributes.pop(name, None)
    told = dict.fromkeys(note for shard in shards for note in shard.attributes.json_texts("notes"))
    return {
        **attributes,
        "jacli_version": jacli.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "config": {**config_of(shards[0]), "shard": None, "out": str(out)},
        "notes": [*told, *notes],
    }
