"""Shards of a small run, written by the writer of runs: no network is needed to merge them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jacli.cluster import shard_path, shard_rows
from jacli.options.config import from_options
from jacli.options.values import Shard
from jacli.store import Progress, ResultLayout, ResultWriter, part_path, write_progress
from tests.store.layouts import random_batch

LAYOUT = ResultLayout(1, (3, 5, 4), (7,), n_singular_values=7, nuclear_norm=True, batch_size=4)
SAMPLES = 10


def write_shard(
    out: Path,
    shard: Shard,
    *,
    samples: int = SAMPLES,
    layout: ResultLayout = LAYOUT,
    options: dict[str, Any] | None = None,
    shift: int = 0,
    done: int | None = None,
    **attributes: object,
) -> Path:
    """One shard; ``options`` and attributes as given, `sample_index` moved by ``shift``."""
    rows, path = shard_rows(shard, samples), shard_path(out, shard)
    config = from_options({"model": "m.pt", "inputs": "x.npy", "out": out.name, **(options or {})})
    told: dict[str, object] = {
        "created": f"at {shard}",
        "command": f"jacli compute m.pt x.npy -o {out.name} --shard {shard}",
        "config": replace(config, shard=shard).to_dict(),
        "model_sha256": "f00d",
        "dtype": "float32",
        "method": "vmap",
        "notes": ["of every shard", f"of {shard}"],
        "shard": str(shard),
        "inputs_sha256": f"of {shard}",
        **attributes,
    }
    layout = replace(layout, n_samples=len(rows))
    arrays = random_batch(layout, 0, len(rows))
    arrays["sample_index"] = np.arange(rows.start, rows.stop) + shift
    with ResultWriter.create(path, layout, told, overwrite=False) as writer:
        kept = len(rows) if done is None else done
        writer.write_batch(0, {name: values[:kept] for name, values in arrays.items()})
        writer.finish()
    return path


def write_shards(out: Path, count: int, **more: Any) -> list[Path]:
    """All shards of a run."""
    return [write_shard(out, Shard(index, count), **more) for index in range(1, count + 1)]


def unfinished(path: Path, state: str, *, folder: Path, done: int = 1, **more: Any) -> None:
    """What a run leaves beside a result that it did not finish."""
    part_path(path).touch()
    told = {"samples": 4, "done_before": 0, "started": 100.0, "folder": str(folder), **more}
    write_progress(path, Progress(state=state, done=done, **told))
