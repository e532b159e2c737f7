"""Small layouts and arrays that fit them; all axes differ, so that no transposition passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jacli.store import ResultLayout, ResultWriter
from jacli.store.schema import AFTERWARDS

IMAGES = ResultLayout(10, (3, 5, 4), (7,), n_singular_values=7, nuclear_norm=True, batch_size=4)


def random_batch(layout: ResultLayout, start: int, stop: int) -> dict[str, np.ndarray]:
    """Arrays for rows ``start:stop`` of every per-sample dataset that a block brings."""
    draw = np.random.default_rng(start)
    arrays = {
        name: draw.standard_normal((stop - start, *dataset.shape[1:])).astype(dataset.dtype)
        for name, dataset in layout.datasets().items()
        if dataset.dims[0] == "batch" and name not in AFTERWARDS
    }
    arrays["sample_index"] = np.arange(start, stop)
    return arrays


def write_file(out: Path, layout: ResultLayout = IMAGES, **attributes: object) -> dict[str, np.ndarray]:
    """A finished file; returns what was written."""
    blocks = []
    with ResultWriter.create(out, layout, attributes, overwrite=False) as writer:
        for start in range(0, layout.n_samples, layout.batch_size):
            blocks.append(random_batch(layout, start, min(start + layout.batch_size, layout.n_samples)))
            writer.write_batch(start, blocks[-1])
        writer.finish()
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
