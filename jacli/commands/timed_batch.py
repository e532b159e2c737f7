"""The first batch of a run by one method: timed, stopped at a limit, and compared with float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.choice.problem import Graph, Problem
from jacli.device.clock import now
from jacli.device.matrix_product import product
from jacli.linear_maps import DenseMap, Matrices, Slab
from jacli.linear_maps.agreement import relative_errors
from jacli.methods import checked_slabs, factors_of
from jacli.methods.filling import assemble
from jacli.network import CutNetwork, Linearized
from jacli.plans.plan import ChainPlan, WholePlan
from jacli.plans.request import Request
from jacli.run.prepare import Prepared
from jacli.run.reference import References

_COMPARED_SAMPLES = 4
_COMPARED_ROWS = 8
"""With float64."""

_PRODUCT_BYTES = 64 * 2**20
"""Bytes of a product of factors that is multiplied out at once."""


@dataclass(frozen=True)
class TimedBatch:
    """The first batch, as far as it was computed.

    Attributes:
        linearization: The network there.
        matrices: Jacobians of its samples; entries beyond the rows and columns computed are meaningless.
        count: Samples, without those that pad the batch.
        n_rows: How many rows, from the first on, are computed.
        n_columns: How many columns of them, from the first on, are computed.
        seconds: Time for a batch of the plan's size.
        estimated: Whether ``seconds`` is extrapolated.
    """

    linearization: Linearized
    matrices: Matrices
    count: int
    n_rows: int
    n_columns: int
    seconds: float
    estimated: bool


def dense_batch(
    request: Request, problem: Problem, plan: WholePlan, graph: Graph, limit: float
) -> TimedBatch:
    """Chunk by chunk, until the limit."""
    device = problem.memory.device
    began = now(device)
    points = problem.points(0, plan.batch_size)
    linearization = problem.linearize(points, graph, precision=request.precision)
    n_out, n_in = linearization.n_out, linearization.n_in
    chunks: list[tuple[float, int]] = []  # entries of a sample that are in place, and when they were
    done = (0, 0)

    def until_limit() -> Iterator[Slab]:
        nonlocal done
        for slab in checked_slabs(plan.filled_by, linearization, chunk_size=plan.vectors_per_pass):
            done = (slab.outputs.stop, slab.inputs.stop)
            yield slab
            chunks.append((now(device) - began, done[0] * done[1]))
            if chunks[-1][0] > limit:
                return

    dense = assemble(until_limit(), linearization)
    complete = done == (n_out, n_in)
    seconds = now(device) - began if complete else _extrapolated(chunks, n_out * n_in)
    count = min(plan.batch_size, problem.shapes.n_samples)
    return TimedBatch(linearization, DenseMap(dense), count, *done, seconds, estimated=not complete)


def _extrapolated(chunks: Sequence[tuple[float, int]], entries: int) -> float:
    """By the chunks after the first, which includes the linearisation; by the first if there is no other."""
    (first, n_first), (last, n_last) = chunks[0], chunks[-1]
    if n_last == n_first:
        return first * entries / n_first
    return last + (entries - n_last) * (last - first) / (n_last - n_first)


def chain_batch(request: Request, problem: Problem, plan: ChainPlan, graph: Graph, count: int) -> TimedBatch:
    """Some samples, and their product multiplied out in pieces as a run writes it."""
    device = problem.memory.device
    began = now(device)
    assert isinstance(graph, CutNetwork)  # what the choice has for a chain
    linearization = problem.cut(problem.points(0, count), graph, precision=request.precision)
    factors = factors_of(linearization, plan.factorization)
    if request.keep == "dense":
        step = max(1, _PRODUCT_BYTES // (count * factors.n_in * problem.shapes.itemsize))
        for start in range(0, factors.n_out, step):
            product(factors.left[:, start : start + step], factors.right)
    seconds = (now(device) - began) * plan.batch_size / count
    size = (factors.n_out, factors.n_in)
    return TimedBatch(linearization, factors, count, *size, seconds, estimated=count < plan.batch_size)


class RowsInFloat64:
    """Rows of the first samples' Jacobians by plain reverse passes in float64, each computed once."""

    def __init__(self, request: Request, problem: Problem, prepared: Prepared) -> None:
        self._references = References(prepared)
        self._count = min(_COMPARED_SAMPLES, problem.shapes.n_samples)
        self._seed = request.seed
        self._selected = problem.points(0, problem.shapes.fixed_batch or self._count)[2]
        self._rows: dict[int, Tensor] = {}
        self.dtype: torch.dtype | None = None

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the reference."""
        return self._references.notes

    @property
    def reduced(self) -> str | None:
        """The dtype, lower than the run's, that the model computes in internally; see `References`."""
        return self._references.reduced

    def errors(self, computed: TimedBatch) -> Tensor:
        """Relative error of each sample compared: Frobenius norms, over some of the rows there are."""
        generator = torch.Generator().manual_seed(self._seed)
        index = torch.randperm(computed.n_rows, generator=generator)[:_COMPARED_ROWS]
        count = min(self._count, computed.count)
        matrices = computed.matrices.take(slice(count))
        rows = matrices.rows(index.to(computed.linearization.device))[..., : computed.n_columns].double()
        expected = self._expected(index.tolist())[:count, :, : computed.n_columns]
        return relative_errors(rows, expected)

    def _expected(self, index: Sequence[int]) -> Tensor:
        """Rows ``index`` of the first samples, ``(samples, k, n_in)``."""
        missing = [i for i in index if i not in self._rows]
        for sample in range(self._count if missing else 0):
            selected = None if self._selected is None else self._selected[sample]
            exact, position = self._references.at(sample, selected)
            self.dtype = exact.dtype
            with exact:
                tape = exact.tape()
                for i in missing:
                    shape = (1, exact.batch, exact.n_out)
                    cotangents = torch.zeros(shape, dtype=exact.dtype, device=exact.device)
                    cotangents[..., i] = 1
                    row = tape.vjp(cotangents)[0, position].double()
                    self._rows.setdefault(i, row.new_empty(self._count, exact.n_in))[sample] = row
        return torch.stack([self._rows[i] for i in index], dim=1)
