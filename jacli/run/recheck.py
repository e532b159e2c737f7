"""Samples of a result, finished or about to be, rechecked against the original model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jacli.config import RunConfig
from jacli.dtypes import as_dtype, convert
from jacli.network import Linearized, TensorNetwork, frozen_twin
from jacli.network.settings import batched_pass
from jacli.plan import Plan
from jacli.run.prepare import Prepared
from jacli.run.stored import Dataset, stored_sample
from jacli.verify import Rechecked, recheck, recheck_tolerance

PLAIN_METHODS = ("loop", "replicate")
"""Their forward pass takes every kernel; the others' only those with batching rules."""


def choose_rows(n_samples: int, n: int, seed: int) -> list[int]:
    """``n`` different rows among all of the samples, sorted; all of them where there are no more."""
    return sorted(random.Random(seed).sample(range(n_samples), min(n, n_samples)))


def tolerance_of(config: RunConfig) -> float:
    """As asked for, else by the run's dtype and precision, and the file's dtype."""
    if config.tolerance is not None:
        return config.tolerance
    stored = config.dtype if config.save == "none" else config.save_dtype or config.dtype
    return recheck_tolerance(config.dtype, stored, config.precision)


def recheck_samples(
    prepared: Prepared,
    datasets: Mapping[str, Dataset],
    plan: Plan | Mapping[str, Any],
    config: RunConfig,
    rows: Iterable[int],
    *,
    seed: int | None = None,
) -> Iterator[tuple[int, Rechecked]]:
    """Recheck some rows of a result one by one.

    The reference is the model itself, converted to float64; in the run's dtype where it does not run
    in float64 (a program with float32 constants), as `Rechecked.dtype` says.

    Args:
        prepared: The run's model and samples.
        datasets: Of the open result, see `stored_sample`.
        plan: How the run computed, or that as the result file has it (JSON).
        config: Its options.
        rows: Rows of the result, all of them written.
        seed: Of rows and probes; the run's if None.

    Cost a sample: a forward and eight reverse passes over two samples (over a whole block, where the
    model accepts nothing else) in float64, and one reading of its Jacobian; where it differs, eight reverse
    passes over its block besides.  Memory: those passes' activations, and the model's parameters twice over.
    """
    references = References(prepared)
    recorded = plan.to_dict() if isinstance(plan, Plan) else plan
    for row in rows:
        selected = _selected(datasets, row, prepared.device)
        exact, position = references.at(row, selected)
        found = recheck(
            stored_sample(datasets, row),
            exact,
            partial(_own_blocks, prepared, recorded, row, selected),
            position=position,
            tolerance=tolerance_of(config),
            seed=(config.seed if seed is None else seed) + row,
        )
        exact.close()
        yield row, found


def _selected(datasets: Mapping[str, Dataset], row: int, device: torch.device) -> Tensor | None:
    """Flat indices of the outputs that were differentiated, ``(k,)``; None for all."""
    if "class_index" not in datasets:
        return None
    classes = datasets["class_index"]
    return torch.from_numpy(classes[row] if len(classes.shape) == 2 else classes[:]).to(device)


def _linearized(
    network: TensorNetwork, x: Tensor, extra: Mapping[str, Tensor], selected: Tensor | None
) -> Linearized:
    return Linearized(network, x, extra, None if selected is None else selected.expand(len(x), -1))


def _batch(prepared: Prepared, start: int, stop: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples ``start:stop``, the last one repeated up to ``size``."""
    _, x, extra = prepared.rows(start, stop)
    index = torch.arange(max(size, len(x)), device=x.device).clamp(max=len(x) - 1)
    return x[index], {name: rows[index] for name, rows in extra.items()}


class References:
    """The original model at small batches, in float64 where it runs in it; found out at the first sample."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._network: TensorNetwork | None = None
        self._dtype = torch.float64

    def at(self, row: int, selected: Tensor | None) -> tuple[Linearized, int]:
        """The linearisation at a batch that holds ``row``, and the sample's position in it."""
        x, extra, position = self._points(row)
        if self._network is None:
            self._choose(x, extra, selected)
        assert self._network is not None  # just chosen
        return _linearized(self._network, *_converted(x, extra, self._dtype), selected), position

    def _choose(self, x: Tensor, extra: Mapping[str, Tensor], selected: Tensor | None) -> None:
        own = self._prepared.network
        self._network, self._dtype = own, self._prepared.dtype
        if self._prepared.dtype == torch.float64:
            return
        # A model's own code may raise anything when its numbers are converted, or run out of memory.
        with suppress(Exception):
            twin = _in_float64(own)
            trial = _linearized(twin, *_converted(x, extra, torch.float64), selected)
            trial.pull(torch.zeros(trial.batch, trial.n_out, dtype=torch.float64, device=x.device))
            if trial.outputs.dtype == torch.float64:
                self._network, self._dtype = twin, torch.float64

    def _points(self, row: int) -> tuple[Tensor, dict[str, Tensor], int]:
        prepared, n_samples = self._prepared, self._prepared.shapes.n_samples
        if fixed := prepared.shapes.fixed_batch:
            start = row // fixed * fixed
            return *_batch(prepared, start, min(start + fixed, n_samples), fixed), row - start
        if n_samples > 1:
            start = min(row, n_samples - 2)
            return *_batch(prepared, start, start + 2, 2), row - start
        x, extra = _batch(prepared, 0, 1, 2)
        spread = x.std(correction=0).clamp(min=0.1)
        noise = torch.randn(x[1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        x[1] += spread * noise.to(x)
        return x, extra, 0


def _in_float64(network: TensorNetwork) -> TensorNetwork:
    twin = convert(frozen_twin(network.module), torch.float64)
    arguments = {name: _doubled(value) for name, value in network.arguments.items()}
    return replace(network, module=twin, arguments=arguments)


def _doubled(value: object) -> object:
    return as_dtype(value, torch.float64) if isinstance(value, Tensor) else value


def _converted(
    x: Tensor, extra: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The run's own points, rounded as it saw them, in another dtype."""
    return x.to(dtype), {name: as_dtype(rows, dtype) for name, rows in extra.items()}


def _own_blocks(
    prepared: Prepared, plan: Mapping[str, Any], row: int, selected: Tensor | None
) -> Iterator[tuple[_AsRun, int]]:
    """The block of the run that holds ``row``, once for each way its forward pass may have rounded."""
    size = prepared.shapes.fixed_batch or int(plan["batch_size"])
    start = row // size * size
    stop = min(start + size, prepared.shapes.n_samples)
    x, extra = _batch(prepared, start, stop, prepared.shapes.fixed_batch or 0)
    for batched, copies in _ways(plan):
        block = _linearized(prepared.network, x, extra, selected)
        recurrent = prepared.network.recurrent and plan["method"] == "forward"
        yield _AsRun(block, batched=batched, copies=copies, recurrent=recurrent), row - start
        block.close()


def _ways(plan: Mapping[str, Any]) -> list[tuple[bool, int]]:
    """Whether only kernels with batching rules serve, and how many copies of the block; likeliest first."""
    links = (plan.get("factored") or {}).get("links", ())
    copies = [link["reverse_chunk"] for link in links if link["reverse_method"] == "replicate"]
    if plan["method"] == "replicate":
        copies = [plan["chunk_size"]]
    ways = [] if plan["method"] in PLAIN_METHODS else [(True, 1)]
    return list(dict.fromkeys([*((False, int(n)) for n in copies), *ways, (False, 1)]))


class _AsRun:
    """Plain reverse passes whose forward pass rounds as the method's own did, so that kinks fall alike.

    ``replicate`` runs the model on ``copies`` copies of every sample, and row i comes from copy
    ``i % copies``: a cotangent u pulls back as the sum over the copies c of the parts of u at c,
    ``c + copies``, ...  Batched methods (``batched``) take the kernels that have batching rules.
    """

    def __init__(self, block: Linearized, *, batched: bool, copies: int, recurrent: bool) -> None:
        self.batch, self.n_out, self.n_in = block.batch, block.n_out, block.n_in
        self.dtype, self.device = block.dtype, block.device
        self._copies = min(copies, self.n_out)
        self._passes: Callable[[], AbstractContextManager[None]] = nullcontext
        if batched:
            self._passes = partial(batched_pass, recurrent=recurrent)
        repeated = torch.arange(self.batch, device=self.device).repeat(self._copies)
        self._block = block if self._copies == 1 else block.at(repeated)

    @property
    def outputs(self) -> Tensor:
        return self._block.outputs[: self.batch]

    def pull(self, cotangents: Tensor) -> Tensor:
        copy_of = torch.arange(self.n_out, device=self.device) % self._copies
        mine = copy_of == torch.arange(self._copies, device=self.device)[:, None]  # (copies, n_out)
        spread = (cotangents * mine[:, None, :]).reshape(-1, self.n_out)
        with self._passes():
            gradients = self._block.pull(spread)
        return gradients.reshape(self._copies, self.batch, self.n_in).sum(0)
