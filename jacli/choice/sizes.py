"""The best sizes of a method that fills in the whole Jacobian, by measurement on the first samples."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from jacli.choice.lazy_trace import LazyTrace
from jacli.choice.measure import Measuring, load_rules, seconds_per_byte
from jacli.choice.problem import Problem
from jacli.device.hardware import is_gpu
from jacli.options.methods import METHODS, Method
from jacli.plans.plan import Measured
from jacli.plans.request import Request
from jacli.plans.search import START_ROWS_ON_GPU, Budget, Candidate, climb, ladder, with_rows


class Sizes:
    """Candidates of a problem, each measured once.

    Args:
        request: What is asked.
        problem: What is to be computed.
        trace: The traced network, for programs.
        budget: What measuring may take.
        measure: Times a candidate.

    Attributes:
        tried: What was measured.
    """

    def __init__(
        self, request: Request, problem: Problem, trace: LazyTrace, budget: Budget, measure: Measuring
    ) -> None:
        self._request = request
        self._problem = problem
        self._trace = trace
        self._budget = budget
        self._measure = measure
        self.tried: dict[Candidate, Measured] = {}

    def ladder(self, method: Method) -> list[Candidate]:
        """A method's candidates, from small to large."""
        return list(
            ladder(
                method,
                self._problem.shapes,
                self._request,
                most_samples=self._most_samples,
                least_rows=least_rows(self._problem.memory.device),
            )
        )

    def first(self, method: Method) -> Measured:
        """The smallest candidate of a method, measured; the budget learns what the run takes by it."""
        load_batching_rules(method, self._budget)
        measured = self.measure(self.ladder(method)[0], self._budget.patience)
        self._budget.learn(self.run_seconds(measured))
        return measured

    def climb(self, method: Method, *, best: float) -> list[Measured]:
        """Larger and larger candidates of a method, while that pays; then all in one pass, where that may."""
        load_batching_rules(method, self._budget)
        candidates = iter(self.ladder(method))
        tried = climb(candidates, self.measure, self.run_seconds, self._budget, fits=self.fits, best=best)
        return tried + self._all_at_once(method, tried)

    def descend(self, method: Method, tried: Measured) -> list[Measured]:
        """Smaller and smaller candidates until one fits, which is the last; empty if none does."""
        rows, measured, smaller = tried.batch_size * tried.chunk_size, tried, list[Measured]()
        while rows > 1:
            rows = max(1, rows // 4)
            candidate = with_rows(
                rows, method, self._problem.shapes, self._request, most_samples=self._most_samples
            )
            measured = self.measure(candidate, 0.0)
            smaller.append(measured)
            if measured.failure is None and self.fits(measured, 1):
                break
        return smaller

    def fits(self, measured: Measured, growth: float) -> bool:
        """Whether a candidate so many times the size would fit beside its results."""
        samples = min(self._most_samples, growth * measured.batch_size)
        results = samples * self._problem.shapes.sample_bytes
        return results + growth * measured.bytes_held <= self._problem.memory.limit

    def measure(self, candidate: Candidate, patience: float) -> Measured:
        """A candidate's seconds and bytes."""
        problem, precision = self._problem, self._request.precision
        if candidate not in self.tried:
            self.tried[candidate] = self._measure(
                candidate,
                lambda size: problem.linearize(
                    problem.points(0, size), self._trace.of_method(candidate.method), precision=precision
                ),
                problem.memory,
                patience=patience,
            )
        return self.tried[candidate]

    def run_seconds(self, measured: Measured) -> float:
        """Of the whole run with a candidate."""
        shapes = self._problem.shapes
        vectors = shapes.vectors(METHODS[measured.method])
        seconds = math.ceil(shapes.n_samples / measured.batch_size) * measured.batch_seconds(vectors)
        if measured.chunk_size == vectors and measured.batch_size == shapes.n_samples:
            return seconds  # the only pass yields the result itself
        return seconds + shapes.n_samples * shapes.sample_bytes * self._seconds_per_byte

    @property
    def _keeps_dense(self) -> bool:
        return self._request.keep == "dense"

    @cached_property
    def _most_samples(self) -> int:
        request = self._request
        return self._problem.memory.samples(
            self._problem.shapes,
            singular_values=request.singular_values != "none",
            written=request.written and self._keeps_dense,
        )

    @cached_property
    def _seconds_per_byte(self) -> float:
        """Of putting results into place, where they are to be kept."""
        if not self._keeps_dense:
            return 0.0
        return seconds_per_byte(self._problem.memory.device, threads=torch.get_num_threads())

    def _all_at_once(self, method: Method, tried: list[Measured]) -> list[Measured]:
        """The whole work in one pass, where it fits: then nothing is put together afterwards."""
        request, shapes, last = self._request, self._problem.shapes, tried[-1]
        size = Candidate(method, shapes.n_samples, shapes.n_selected)
        asked = request.batch_size or request.chunk_size or shapes.fixed_batch
        same = (last.batch_size, last.chunk_size) == (size.batch_size, size.chunk_size)
        one_pass = not (method.by_columns or method.is_plain)
        if not one_pass or asked or same or last.failure:
            return []
        growth = size.rows / (last.batch_size * last.chunk_size)
        fits = shapes.n_samples <= self._most_samples and self.fits(last, growth)
        if fits and self._budget.left_for(min(map(self.run_seconds, tried))):
            return [self.measure(size, self._budget.patience)]
        return []


def least_rows(device: torch.device) -> int:
    """Rows in flight that a search begins with at least.

    >>> least_rows(torch.device("cpu"))
    1
    """
    return START_ROWS_ON_GPU if is_gpu(device) else 1


def load_batching_rules(method: Method, budget: Budget) -> None:
    """Once per process, whatever is chosen: no part of the budget."""
    if method.needs_batching_rules:
        with budget.not_charged():
            load_rules()
