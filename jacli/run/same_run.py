"""Checks that shards belong to one run, and that none is missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jacli.cluster import shard_rows
from jacli.errors import ResultsError, UnsoundResultsError
from jacli.errors.printable import count_of, quote_path
from jacli.options.table import Changes, File, RunConfig, flag_of, names_of
from jacli.options.values import Shard, parse_shard
from jacli.run.provenance import READ_BY_CONTENT
from jacli.store.shard_file import ShardFile

MAY_DIFFER = names_of(lambda o: o.changes in (Changes.NOTHING, Changes.ROUNDING, Changes.PART))
"""Options that change no number beyond rounding, or say where and how loudly."""

NOTED = names_of(lambda option: option.changes is Changes.ROUNDING_NOTED)
"""Options that change numbers by rounding only, which is said where they differ."""

_READ = names_of(lambda option: option.file in (File.WHOLE, File.INSIDE, File.EACH))
"""Options that name files: a task may have read its own copy, in another folder."""

_SAME = {
    "schema": "the schema",
    **READ_BY_CONTENT,
    "dtype": "--dtype",
    "precision": "--precision",
}
"""Attributes that shards of one run have alike."""


def check_samples(out: Path, shards: Sequence[ShardFile]) -> None:
    """Every shard is whole and holds its own samples: no gap, no overlap."""
    total = sum(shard.samples for shard in shards)
    for index, shard in enumerate(shards, start=1):
        if not shard.complete or shard.done != shard.samples:
            raise UnsoundResultsError(
                f"{shard.path} is not complete.",
                why=f"{shard.done} of its {count_of(shard.samples, 'sample')} are done.",
                hint="Remove it, and compute it again with the command that jacli status "
                f"{quote_path(out)} then prints.",
            )
        expected = Shard(index, len(shards))
        said = shard.attributes.get("shard")
        if said is None or _parsed(said) != expected:
            raise ResultsError(
                f"{shard.path} is not shard {expected}.",
                why="It was not computed as a shard."
                if said is None
                else f"It was computed as shard {said}.",
                hint="Restore the names that jacli compute gave the shards.",
            )
        own = count_of(shard.samples, "sample")
        if total < len(shards) or len(shard_rows(expected, total)) != shard.samples:
            raise _other_samples(shard, f"It has {own}, and all together have {total}.")
    positions = np.concatenate([shard.sample_index for shard in shards])
    distinct, first = np.unique(positions, return_index=True)
    if len(distinct) < total:
        row = int(np.setdiff1d(np.arange(total), first)[0])
        raise _other_samples(_holding(shards, row), f"Sample {positions[row]} is in another shard as well.")
    if config_of(shards[0]).get("samples") is None:
        wrong = np.flatnonzero(positions != np.arange(total))
        if len(wrong):
            why = f"It holds sample {positions[wrong[0]]} where sample {wrong[0]} belongs."
            raise _other_samples(_holding(shards, int(wrong[0])), why)


def _parsed(text: object) -> Shard | str | None:
    try:
        return parse_shard(text)
    except ValueError:
        return None


def _holding(shards: Sequence[ShardFile], row: int) -> ShardFile:
    stops = np.cumsum([shard.samples for shard in shards])
    return shards[int(np.searchsorted(stops, row, side="right"))]


def _other_samples(shard: ShardFile, why: str) -> ResultsError:
    return ResultsError(
        f"{shard.path} does not hold the samples of its shard.",
        why=why,
        hint="Did the inputs have another length for some of the shards? Compute those again.",
    )


def check_same_run(shards: Sequence[ShardFile]) -> list[str]:
    """Compare every shard with the first.

    Returns:
        What differs and may.

    Raises:
        ResultsError: What differs and may not.
    """
    first = shards[0]
    config = config_of(first)
    folders: set[str] = set()
    noted: set[str] = set()
    for shard in shards[1:]:
        own = config_of(shard)
        differences = [
            _difference(what, first.attributes.get(name), shard.attributes.get(name))
            for name, what in _SAME.items()
            if first.attributes.get(name) != shard.attributes.get(name)
        ]
        for name in sorted({*config, *own} - set(MAY_DIFFER)):
            was, now = config.get(name), own.get(name)
            if was == now:
                continue
            if name in _READ and _without_folders(was) == _without_folders(now):
                folders.add(name)
            elif name in NOTED:
                noted.add(name)
            elif name != "model" or first.attributes.get("model_sha256") is None:
                differences.append(_difference(flag_of(name), was, now))
        if not differences:
            differences = _other_layout(first, shard)
        if differences:
            raise ResultsError(
                f"{shard.path} is not of the same run as {first.path}.",
                why=f"What differs: {'; '.join(differences)}.",
                hint="Compute it again with the options of the others, in the same folder.",
            )
    notes = [f"the shards were computed with different --{name}: equal to rounding" for name in sorted(noted)]
    notes += [f"the shards read {name} from different folders" for name in sorted(folders)]
    return notes + _plan_notes(shards)


def config_of(shard: ShardFile) -> Mapping[str, Any]:
    """Its options."""
    config = shard.attributes.json_object("config")
    return {"precision": RunConfig.precision, **config}  # files from before there was a choice lack it


def _without_folders(value: Any) -> Any:
    """File names in place of paths, also in ``file.py:callable`` and in ``NAME=@FILE``."""
    if isinstance(value, Mapping):
        return {name: _without_folders(part) for name, part in value.items()}
    return os.path.basename(value) if isinstance(value, str) and os.sep in value else value


def _difference(what: str, first: Any, other: Any) -> str:
    return f"{what} ({_short(first)} there, {_short(other)} here)"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _other_layout(first: ShardFile, shard: ShardFile) -> list[str]:
    if set(first.layouts) != set(shard.layouts):
        return [f"the datasets ({', '.join(sorted(set(first.layouts) ^ set(shard.layouts)))} in one only)"]
    return [
        _difference(f"the dataset {name}", f"{a.dtype} {a.shape[1:]}", f"{b.dtype} {b.shape[1:]}")
        for name, a in first.layouts.items()
        for b in (shard.layouts[name],)
        if (a.shape[1:], a.dtype, a.dims) != (b.shape[1:], b.dtype, b.dims)
    ]


def _plan_notes(shards: Sequence[ShardFile]) -> list[str]:
    """Shards choose by measurement, each on its machine: what they chose, where it differs."""
    notes = []
    for name, what in (
        ("method", "methods"),
        ("device_name", "devices"),
        ("torch_version", "versions of torch"),
    ):
        counts = Counter(str(shard.attributes.get(name)) for shard in shards)
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({times})" for value, times in counts.most_common())
            notes.append(f"the shards have different {what}: {listed}; the attributes are those of the first")
    return notes
