"""Shards: which part of the samples is whose, where it is written, and which one this process is.

The parts are contiguous and follow from the number of samples alone, so that every process, today or
after a requeue, agrees on them without talking to another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jacli.errors import UsageError
from jacli.errors.printable import count_of
from jacli.options.values import Shard


def shard_rows(shard: Shard, n_samples: int) -> range:
    """The samples of a shard, among those that the run takes; the parts differ by one sample at most.

    >>> [shard_rows(Shard(index, 3), 10) for index in (1, 2, 3)]
    [range(0, 3), range(3, 6), range(6, 10)]

    Raises:
        UsageError: There are more shards than samples.
    """
    if shard.count > n_samples:
        samples = count_of(n_samples, "sample")
        raise UsageError(
            f"--shard {shard} is not possible.",
            why=f"There are {samples} for {count_of(shard.count, 'shard')}, and a shard has at least one.",
            hint=f"Give --shard I/N with N up to {n_samples}.",
        )
    start, stop = (n_samples * i // shard.count for i in (shard.index - 1, shard.index))
    return range(start, stop)


def shard_path(out: Path, shard: Shard) -> Path:
    """``out.h5`` -> ``out.00003-of-00016.h5``.

    >>> shard_path(Path("out.h5"), Shard(3, 16)).name
    'out.00003-of-00016.h5'
    """
    return out.with_name(f"{out.stem}.{shard.index:05d}-of-{shard.count:05d}{out.suffix}")


_NAME = re.compile(
    r"(?P<stem>.+)\.(?P<index>\d{5,})-of-(?P<count>\d{5,})(?P<suffix>\.[^.]*)?",
    flags=re.DOTALL,  # a name may hold a line break
)


@dataclass(frozen=True)
class ShardName:
    """The shard that a file's name stands for.

    Attributes:
        out: The file of the whole run.
        shard: Which part.
    """

    out: Path
    shard: Shard


def name_of_shard(path: Path) -> ShardName | None:
    """Back from `shard_path`; None for another name.

    >>> name_of_shard(Path("out.00003-of-00016.h5")), name_of_shard(Path("out.h5"))
    (ShardName(out=PosixPath('out.h5'), shard=Shard(index=3, count=16)), None)
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    out = path.with_name(match["stem"] + (match["suffix"] or ""))
    shard = Shard(int(match["index"]), int(match["count"]))
    if not 1 <= shard.index <= shard.count or shard_path(out, shard) != path:  # such as another padding
        return None
    return ShardName(out, shard)


def shards_beside(out: Path) -> dict[int, set[int]]:
    """Shards of ``out`` in its folder, finished or under way: count -> their indices.

    >>> for name in ("out.00001-of-00002.h5", "out.00002-of-00002.h5.part"):
    ...     Path(name).touch()
    >>> shards_beside(Path("out.h5"))
    {2: {1, 2}}
    """
    by_count: dict[int, set[int]] = {}
    try:
        names = os.listdir(out.parent)
    except OSError:
        return by_count
    for path in map(out.with_name, names):
        name = name_of_shard(path.with_name(path.name.removesuffix(".part")))
        if name is not None and name.out.name == out.name:
            by_count.setdefault(name.shard.count, set()).add(name.shard.index)
    return by_count


def shard_of_environment(environ: Mapping[str, str]) -> Shard:
    """The shard that ``--shard auto`` means.

    A Slurm array is one shard per task; inside an srun step of several tasks each of them is one, and both
    multiply.  torchrun's ``RANK`` counts where torchrun started the process: under srun there is one
    torchrun a node, whose ``SLURM_PROCID`` is not the worker's.

    >>> str(shard_of_environment({"TORCHELASTIC_RUN_ID": "none", "RANK": "2", "WORLD_SIZE": "16"}))
    '3/16'

    Raises:
        UsageError: Neither started the process; or the array has gaps or does not start at 0 or 1, and then
            its size is not the number of shards (some tasks were submitted again).
    """
    index, count = _array(environ)
    if "TORCHELASTIC_RUN_ID" in environ or not _in_step(environ):
        rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    else:
        rank = _number(environ, "SLURM_PROCID")
        size = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    if rank is None or size is None:
        if count == 0:
            raise UsageError(
                "--shard auto: no shard is assigned to this process.",
                why="It is not a task of a Slurm array, a step of srun or a worker of torchrun.",
                hint="Give --shard I/N, I from 1 to N.",
            )
        rank, size = 0, 1
    count = max(1, count)
    return Shard(index * size + rank + 1, count * size)


def _array(environ: Mapping[str, str]) -> tuple[int, int]:
    """This task's number from 0, and how many tasks the array has; 0 of 0 outside of an array."""
    task = _number(environ, "SLURM_ARRAY_TASK_ID")
    if task is None:
        return 0, 0
    first, last = _number(environ, "SLURM_ARRAY_TASK_MIN"), _number(environ, "SLURM_ARRAY_TASK_MAX")
    size = _number(environ, "SLURM_ARRAY_TASK_COUNT")
    if first is None or last is None or size is None:
        raise _not_whole(f"Slurm tells the task ({task}) but not the array's first, last and count")
    if first not in (0, 1) or last - first + 1 != size:
        raise _not_whole(f"the array has {size} tasks from {first} to {last}")
    return task - first, size


def _not_whole(what: str) -> UsageError:
    return UsageError(
        "--shard auto: this array does not say how many shards there are.",
        why=f"Here {what}; tasks that were submitted again make such an array.",
        hint="Give --shard $SLURM_ARRAY_TASK_ID/N, with N of the first submission.",
    )


_SPECIAL_STEPS = 0xFFFFFFF0
"""Slurm steps numbered from here on are not srun's: the batch script, the shell of salloc."""


def _in_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started the process; a batch script has a SLURM_PROCID too, but is no step of tasks."""
    step = _number(environ, "SLURM_STEP_ID")
    return step is not None and step < _SPECIAL_STEPS


def local_rank(environ: Mapping[str, str]) -> int:
    """Which of a node's processes this one is, and so which of several visible GPUs is its own.

    >>> local_rank({"LOCAL_RANK": "2"}), local_rank({})
    (2, 0)
    """
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        number = _number(environ, name)
        if number is not None and (name == "LOCAL_RANK" or _in_step(environ)):
            return number
    return 0


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else None
