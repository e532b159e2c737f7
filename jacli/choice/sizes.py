"""The best sizes of a method that fills in the whole Jacobian, by measurement on the first samples."""

from __future__ import annotations

import math
from functools import cached_property
from time import monotonic

import torch

from jacli.choice.lazy_trace import Graphs
from jacli.choice.measure import load_rules, measure, seconds_per_byte
from jacli.choice.problem import Task
from jacli.device.hardware import is_gpu
from jacli.options.config import COLUMN_METHODS
from jacli.plans.plan import Measured
from jacli.plans.search import START_ROWS_ON_GPU, Budget, Candidate, climb, ladder, sized


class Sizes:
    """Candidates of a task, each measured once.

    Args:
        task: What is to be computed.
        graphs: The traced network, for programs.
        budget: What measuring may take.

    Attributes:
        tried: What was measured.
    """

    def __init__(self, task: Task, graphs: Graphs, budget: Budget) -> None:
        self._task = task
        self._graphs = graphs
        self._budget = budget
        self.tried: dict[Candidate, Measured] = {}

    def ladder(self, method: str) -> list[Candidate]:
        """A method's candidates, from small to large."""
        task = self._task
        return list(
            ladder(
                method,
                task.shapes,
                task.config,
                most_samples=self._most_samples,
                least_rows=least_rows(task.memory.device),
            )
        )

    def first(self, method: str) -> Measured:
        """The smallest candidate of a method, measured; the budget learns what the run takes by it."""
        load_batching_rules(method, self._budget)
        measured = self.measure(self.ladder(method)[0], self._budget.patience)
        self._budget.run_seconds = self.run_seconds(measured)
        return measured

    def climb(self, method: str, *, best: float) -> list[Measured]:
        """Larger and larger candidates of a method, while that pays; then all in one pass, where that may."""
        load_batching_rules(method, self._budget)
        candidates = iter(self.ladder(method))
        tried = climb(candidates, self.measure, self.run_seconds, self._budget, fits=self.fits, best=best)
        return tried + self._all_at_once(method, tried)

    def descend(self, method: str, tried: Measured) -> list[Measured]:
        """Smaller and smaller candidates until one fits, which is the last; empty if none does."""
        shapes, config = self._task.shapes, self._task.config
        vectors = shapes.n_in if method in COLUMN_METHODS else shapes.n_selected
        rows, measured, found = tried.batch_size * tried.chunk_size, tried, list[Measured]()
        while rows > 1:
            rows = max(1, rows // 4)
            smaller = sized(method, rows, shapes, config, vectors=vectors, most_samples=self._most_samples)
            measured = self.measure(smaller, 0.0)
            found.append(measured)
            if measured.failure is None and self.fits(measured, 1):
                break
        return found

    def fits(self, measured: Measured, growth: float) -> bool:
        """Whether a candidate so many times the size would fit beside its results."""
        results = min(self._most_samples, growth * measured.batch_size) * self._task.shapes.sample_bytes
        return results + growth * measured.bytes_held <= self._task.memory.limit

    def measure(self, candidate: Candidate, patience: float) -> Measured:
        """A candidate's seconds and bytes."""
        task = self._task
        if candidate not in self.tried:
            self.tried[candidate] = measure(
                candidate,
                lambda size: task.linearize(task.points(0, size), self._graphs.of_method(candidate.method)),
                task.memory,
                patience=patience,
            )
        return self.tried[candidate]

    def run_seconds(self, measured: Measured) -> float:
        """Of the whole run with a candidate."""
        shapes = self._task.shapes
        vectors = shapes.n_in if measured.method in COLUMN_METHODS else shapes.n_selected
        seconds = math.ceil(shapes.n_samples / measured.batch_size) * measured.block_seconds(vectors)
        if measured.chunk_size == vectors and measured.batch_size == shapes.n_samples:
            return seconds  # the only pass yields the result itself
        return seconds + shapes.n_samples * shapes.sample_bytes * self._seconds_per_byte

    @cached_property
    def _most_samples(self) -> int:
        task = self._task
        wants_values, written = task.config.singular_values != "none", task.written and task.keeps_dense
        return task.memory.samples(task.shapes, singular_values=wants_values, written=written)

    @cached_property
    def _seconds_per_byte(self) -> float:
        """Of putting results into place, where they are to be kept."""
        return seconds_per_byte(self._task.memory.device) if self._task.keeps_dense else 0.0

    def _all_at_once(self, method: str, tried: list[Measured]) -> list[Measured]:
        """The whole work in one pass, where it fits: then nothing is put together afterwards."""
        task, shapes, last = self._task, self._task.shapes, tried[-1]
        size = Candidate(method, shapes.n_samples, shapes.n_selected)
        asked = task.config.batch_size or task.config.chunk_size or shapes.fixed_batch
        same = (last.batch_size, last.chunk_size) == (size.batch_size, size.chunk_size)
        if method not in ("vmap", "adjoint") or asked or same or last.failure:
            return []
        growth = size.rows / (last.batch_size * last.chunk_size)
        fits = shapes.n_samples <= self._most_samples and self.fits(last, growth)
        if fits and self._budget.left_for(min(map(self.run_seconds, tried))):
            return [self.measure(size, self._budget.patience)]
        return []


def least_rows(device: torch.device) -> int:
    """Rows in flight that a search begins with at least."""
    return START_ROWS_ON_GPU if is_gpu(device) else 1


def load_batching_rules(method: str, budget: Budget) -> None:
    """Once a process, whatever is chosen: no part of the budget."""
    if method in ("vmap", "forward"):
        began = monotonic()
        load_rules()
        budget.started += monotonic() - began
