"""Samples of a result, finished or about to be, rechecked against the original model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jacli.config import RunConfig
from jacli.network import Linearized
from jacli.network.settings import batched_pass
from jacli.plan import Plan
from jacli.run.prepare import Prepared
from jacli.run.reference import References, batch_of, linearized
from jacli.run.stored import Dataset, stored_sample
from jacli.verify import Rechecked, recheck, recheck_tolerance
from jacli.verify.recheck import PASSES

PLAIN_METHODS = ("loop", "replicate")
"""Their forward pass takes every kernel; the others' only those with batching rules."""


_AS_COARSE_AS = {torch.float16: "tf32", torch.bfloat16: "bf16"}
"""The precision whose fraction has as many bits."""


def choose_rows(n_samples: int, n: int, seed: int) -> list[int]:
    """``n`` different rows among all of the samples, sorted; all of them where there are no more."""
    return sorted(random.Random(seed).sample(range(n_samples), min(n, n_samples)))


def tolerance_of(config: RunConfig, reduced: torch.dtype | None = None) -> float:
    """As asked for, else by the run's dtype and precision, and the file's dtype.

    Args:
        config: The run's options.
        reduced: float16 or bfloat16 where the model itself computes in it, see `References`: other batch
            sizes then round otherwise by as much as passes of that precision do.
    """
    if config.tolerance is not None:
        return config.tolerance
    stored = config.dtype if config.save == "none" else config.save_dtype or config.dtype
    inside = 0.0 if reduced is None else PASSES[_AS_COARSE_AS[reduced]]
    return recheck_tolerance(config.dtype, stored, config.precision) + inside


def recheck_samples(
    prepared: Prepared,
    datasets: Mapping[str, Dataset],
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
    recorded = plan.to_dict() if isinstance(plan, Plan) else plan
    for row in rows:
        selected = _selected(datasets, row, prepared.device)
        exact, position = references.at(row, selected)
        found = recheck(
            stored_sample(datasets, row),
            exact,
            partial(_own_blocks, prepared, references, recorded, row, selected),
            position=position,
            tolerance=tolerance_of(config, references.reduced),
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


def _own_blocks(
    prepared: Prepared,
    references: References,
    plan: Mapping[str, Any],
    row: int,
    selected: Tensor | None,
) -> Iterator[tuple[_AsRun, int]]:
    """The block of the run that holds ``row``, once for each way its forward pass may have rounded."""
    size = prepared.shapes.fixed_batch or int(plan["batch_size"])
    start = row // size * size
    stop = min(start + size, prepared.shapes.n_samples)
    x, extra = batch_of(prepared, start, stop, prepared.shapes.fixed_batch or 0)
    for batched, copies in _ways(plan):
        block = linearized(references.own, x, extra, selected)
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
