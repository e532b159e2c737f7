"""Samples of a result, finished or about to be, rechecked against the original model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacli.engine.replicated_passes import as_run
from jacli.options.table import RunConfig
from jacli.plans.plan import Plan
from jacli.run.prepare import Prepared
from jacli.run.reference import References, batch_of, linearized
from jacli.run.stored_matrices import stored_sample
from jacli.spectrum.boxes import ChunkedArray
from jacli.store.batches import batch_holding
from jacli.verify import PlainPasses, Rechecked, recheck, recheck_tolerance
from jacli.verify.tolerances import REDUCED_INSIDE


def choose_rows(n_samples: int, n: int, seed: int) -> list[int]:
    """``n`` different rows among all of the samples, sorted; all of them where there are no more.

    >>> choose_rows(100, 3, seed=0), choose_rows(2, 3, seed=0)
    ([49, 53, 97], [0, 1])
    """
    return sorted(random.Random(seed).sample(range(n_samples), min(n, n_samples)))


def tolerance_of(config: RunConfig, reduced: str | None = None) -> float:
    """As asked for, else by the run's dtype and precision, and the file's dtype.

    >>> [tolerance_of(RunConfig("net.pt", "x.npy", dtype=dtype)) for dtype in ("float32", "float64")]
    [0.0001, 1e-09]

    Args:
        config: The run's options.
        reduced: A dtype below the run's where the model itself computes in it, see `References`: other batch
            sizes then round otherwise by as much as passes of that precision do.
    """
    if config.tolerance is not None:
        return config.tolerance
    stored = config.dtype if config.save == "none" else config.save_dtype or config.dtype
    inside = 0.0 if reduced is None else REDUCED_INSIDE[reduced]
    return recheck_tolerance(config.dtype, stored, config.precision) + inside


def recheck_samples(
    prepared: Prepared,
    datasets: Mapping[str, ChunkedArray],
    plan: Plan | Mapping[str, Any],
    config: RunConfig,
    rows: Iterable[int],
    *,
    seed: int | None = None,
    references: References | None = None,
) -> Iterator[tuple[int, Rechecked]]:
    """Recheck some rows of a result one by one.

    The reference is the model itself, loaded anew and converted to float64; in the run's dtype where it does
    not run in float64 (a program with float32 constants), as `Rechecked.dtype` says, or is another
    function there (`References`).

    Args:
        prepared: The run's model and samples.
        datasets: Of the open result, see `stored_sample`.
        plan: How the run computed, or that as the result file has it (JSON).
        config: Its options.
        rows: Rows of the result, all of them written.
        seed: Of rows and probes; the run's if None.
        references: The model to compare with; its notes tell what it is.

    Cost: loading the model once more, and again where a sample differs.  Cost a sample: a forward and eight
    reverse passes over two samples (over a whole batch, where the model accepts nothing else) in float64, and
    one reading of its Jacobian; where it differs, eight reverse passes over its batch besides.  Memory: those
    passes' activations, and the model's parameters up to four times over.
    """
    references = references or References(prepared)
    recorded = plan if isinstance(plan, Mapping) else plan.to_dict()
    for row in rows:
        selected = _selected(datasets, row, prepared.device)
        exact, position = references.at(row, selected)
        rechecked = recheck(
            stored_sample(datasets, row),
            exact,
            partial(
                _own_passes,
                prepared,
                references,
                recorded,
                row,
                selected,
                rows=_own_batch(datasets, recorded, row),
            ),
            position=position,
            tolerance=tolerance_of(config, references.reduced),
            seed=(config.seed if seed is None else seed) + row,
            fixed_batch=prepared.shapes.fixed_batch is not None,
        )
        exact.close()
        yield row, rechecked


def _selected(datasets: Mapping[str, ChunkedArray], row: int, device: torch.device) -> Tensor | None:
    """Flat indices of the outputs that were differentiated, ``(k,)``; None for all."""
    if "class_index" not in datasets:
        return None
    classes = datasets["class_index"]
    return torch.from_numpy(classes[row] if len(classes.shape) == 2 else classes[:]).to(device)


def _own_batch(datasets: Mapping[str, ChunkedArray], plan: Mapping[str, Any], row: int) -> tuple[int, int]:
    """First and one past the last row of the batch that ``row`` was computed in.

    As the file records it; the plan's batch size tells it only where no batch was halved or cut short.
    """
    done = datasets["outputs"].shape[0]
    if "batch_start" in datasets:
        return batch_holding(np.asarray(datasets["batch_start"][:]), done, row)
    size = int(plan["batch_size"])
    start = row // size * size
    return start, min(start + size, done)


def _own_passes(
    prepared: Prepared,
    references: References,
    plan: Mapping[str, Any],
    row: int,
    selected: Tensor | None,
    *,
    rows: tuple[int, int],
) -> Iterator[tuple[PlainPasses, int]]:
    """The batch of the run that holds ``row``, once for each way its forward pass may have rounded."""
    start, stop = rows
    x, extra = batch_of(prepared, start, stop, prepared.shapes.fixed_batch or 0)
    batch = linearized(references.own, x, extra, selected)
    for passes in as_run(batch, plan, recurrent=prepared.network.recurrent):
        yield passes, row - start
