"""A few singular values without the matrix: whether that is faster, by the measured time of a product.

How many products the search for k triples takes depends on the spectrum, which nobody knows beforehand.  The
plan is chosen by a typical number and given up after the number that takes as long as the matrix would: at
worst a batch takes twice the time of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from jacli.choice.lazy_trace import LazyTrace
from jacli.choice.measure import OUT_OF_MEMORY, load_rules
from jacli.choice.memory_limit import MemoryLimit
from jacli.choice.problem import Problem
from jacli.device.clock import now
from jacli.errors import MethodError, means_out_of_memory, telling_line
from jacli.linear_maps import Linearization, LinearMap
from jacli.methods import primitive_map
from jacli.network import Linearized, LinearProgram
from jacli.options.methods import KRYLOV, Primitive
from jacli.plans.plan import (
    ChainPlan,
    MatrixFreePlan,
    Measured,
    Plan,
    Shapes,
    WholePlan,
    matrix_free_plan,
)
from jacli.plans.request import Request
from jacli.plans.search import FEW_SAMPLES

MATVECS_OF_ONE = 24
MATVECS_PER_VALUE = 20
"""Products for the largest value alone, and for each of several: as of trained and untrained networks."""

MAX_VECTORS_PER_PASS = 16
"""Vectors of one product of each sample; a block has as many vectors as values are asked for."""

LEAST_BASIS = 6
"""Basis vectors per value, so many at least, that must fit in memory."""

SEARCH_OVERHEAD = 1.1
"""Seconds of a search over those of its products: orthogonalisation and small eigenproblems."""


def expected_matvecs(k: int, shorter: int) -> int:
    """Products per sample that k singular values of a matrix typically take.

    >>> expected_matvecs(1, 1000), expected_matvecs(10, 1000), expected_matvecs(10, 12)
    (24, 200, 24)
    """
    return min(2 * shorter, MATVECS_OF_ONE if k == 1 else MATVECS_PER_VALUE * k)


class MeasuringProducts(Protocol):
    """Times products with vectors, as `measure_products` does."""

    def __call__(
        self,
        primitive: Primitive,
        batch_size: int,
        chunk_size: int,
        linearize: Callable[[int], Linearization],
        memory: MemoryLimit,
    ) -> Measured: ...


def measure_products(
    primitive: Primitive,
    batch_size: int,
    chunk_size: int,
    linearize: Callable[[int], Linearization],
    memory: MemoryLimit,
) -> Measured:
    """Time a linearisation and its products with vectors, in both directions.

    Args:
        primitive: The map whose products are taken.
        batch_size: Samples per batch.
        chunk_size: Vectors per pass.
        linearize: The network at the first ``batch_size`` samples.
        memory: What may be held.

    Returns:
        ``vector_seconds`` is the mean of both directions, per vector of every sample of the batch; with
        ``failure`` where the primitive has no such product, or memory ran out.

    Cost: one linearisation and two products in each direction.
    """
    named = Measured(KRYLOV, batch_size, chunk_size)
    if primitive == "batched":
        load_rules()
    try:
        with memory.peak() as held:
            began = now(memory.device)
            with linearize(batch_size) as linearization, torch.no_grad():
                products = primitive_map(primitive, linearization)
                cotangents = torch.ones(
                    chunk_size, products.batch, products.n_out, dtype=products.dtype, device=products.device
                )
                first = _seconds_of_pair(products, cotangents)
                setup = max(0.0, now(memory.device) - began - first)
                pair = min(first, _seconds_of_pair(products, cotangents))
    except MethodError as failure:
        return replace(named, failure=failure.summary)
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        return replace(named, failure=OUT_OF_MEMORY if means_out_of_memory(error) else telling_line(error))
    return replace(named, setup_seconds=setup, vector_seconds=pair / (2 * chunk_size), bytes_held=held[0])


def _seconds_of_pair(products: LinearMap, cotangents: Tensor) -> float:
    began = now(products.device)
    products.jvp(products.vjp(cotangents))
    return now(products.device) - began


class MatrixFree:
    """Measures products with vectors, and plans with them.

    Args:
        request: What is asked.
        problem: What is to be computed.
        trace: The traced network.
        measured: What was tried; the products are added.
        measure: Times products.
    """

    def __init__(
        self,
        request: Request,
        problem: Problem,
        trace: LazyTrace,
        measured: list[Measured],
        measure: MeasuringProducts,
    ) -> None:
        self._request = request
        self._problem = problem
        self._trace = trace
        self._measured = measured
        self._measure = measure

    @property
    def _shorter(self) -> int:
        return min(self._problem.shapes.n_in, self._problem.shapes.n_selected)

    @property
    def _k(self) -> int:
        asked = self._request.singular_values
        return asked if isinstance(asked, int) and asked < self._shorter else 0

    def instead_of(self, dense: Sequence[Plan]) -> list[Plan]:
        """The plan, if it should take less time than the best that forms the matrices; or if none does.

        Args:
            dense: The plans that form them, the fastest first; empty where nothing fits in memory.
        """
        if not (self._k and self._request.is_exact):
            return []
        if not dense:
            return self.required()
        seconds, expected = dense[0].seconds, expected_matvecs(self._k, self._shorter)
        if seconds is None or expected >= _vectors(dense[0], self._problem.shapes):
            return []  # a product with a vector takes what a row takes
        traceable = self._trace.program is None and self._problem.shapes.fixed_batch is None
        if traceable and not self._trace.worth_tracing():
            return []
        plan = self._plan()
        if plan is None or plan.seconds is None or plan.seconds >= seconds:
            return []
        limit = math.floor(plan.matvecs * seconds / plan.seconds)
        return [replace(plan, max_matvecs=limit, why="fewer products than rows, by measurement")]

    def required(self) -> list[Plan]:
        """By the fastest size of the first primitive that gives products both ways; empty if none does."""
        plan = self._plan()
        return [] if plan is None else [plan]

    def _plan(self) -> MatrixFreePlan | None:
        for primitive in self._primitives():
            tried = [one for one in self._tried(primitive) if one.failure is None]
            if tried:
                return self._of(primitive, min(tried, key=self._seconds))
        return None

    def _primitives(self) -> Iterator[Primitive]:
        if self._problem.shapes.fixed_batch is None and self._trace.try_to_trace():
            yield "program"
        yield "batched"
        yield "tape"

    def _tried(self, primitive: Primitive) -> Iterator[Measured]:
        """Sizes from small to large, as long as that pays."""
        shapes, last = self._problem.shapes, math.inf
        fixed = shapes.fixed_batch or self._request.batch_size
        chunk = 1 if primitive == "tape" else min(max(1, self._k), MAX_VECTORS_PER_PASS)
        chunk = min(chunk, self._request.chunk_size or chunk)
        sizes = (fixed,) if fixed else (FEW_SAMPLES, 4 * FEW_SAMPLES)
        for size in dict.fromkeys(min(size, shapes.n_samples) for size in sizes):
            graph = self._trace.program if primitive == "program" else None
            measured = self._measure(
                primitive, size, chunk, partial(self._linearize, graph), self._problem.memory
            )
            self._measured.append(measured)
            yield measured
            if measured.failure or self._seconds(measured) > 0.97 * last:
                return
            last = self._seconds(measured)
            if 5 * measured.bytes_held > self._problem.memory.limit:
                return

    def _linearize(self, graph: LinearProgram | None, size: int) -> Linearized:
        return self._problem.linearize(self._problem.points(0, size), graph)

    def _of(self, primitive: Primitive, measured: Measured) -> MatrixFreePlan:
        shapes, memory = self._problem.shapes, self._problem.memory
        per_vector = 2 * 8 * self._shorter
        per_vector += shapes.itemsize * max(shapes.n_in, shapes.n_selected)
        room = (memory.limit - measured.bytes_held) // (2 * measured.batch_size)
        plan = matrix_free_plan(
            primitive,
            "asked for",
            shapes,
            self._request,
            batch_size=measured.batch_size,
            chunk_size=measured.chunk_size,
            matvecs=expected_matvecs(self._k, self._shorter),
            max_basis=max(LEAST_BASIS * max(1, self._k), room // per_vector),
        )
        return replace(plan, seconds=self._seconds(measured))

    def _seconds(self, measured: Measured) -> float:
        """Of the whole run."""
        shapes = self._problem.shapes
        matvecs = expected_matvecs(self._k, self._shorter)
        batches = math.ceil(shapes.n_samples / measured.batch_size)
        return batches * (measured.setup_seconds + SEARCH_OVERHEAD * matvecs * measured.vector_seconds)


def _vectors(dense: Plan, shapes: Shapes) -> int:
    """Vectors per sample with which a plan fills in the matrix."""
    match dense:
        case ChainPlan(factorization=factorization):
            return factorization.width
        case WholePlan(filled_by=method):
            return shapes.vectors(method)
        case MatrixFreePlan():
            return dense.matvecs
