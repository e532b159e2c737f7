"""Hill climbing by measurement: which method, with which batch and chunk size?  No torch.

No method is fastest everywhere, and the batch size alone is worth a factor of 1.6.  Candidates are therefore
timed on the first samples.  For each method that applies, the number of *rows in flight* (samples per batch
times vectors per pass) grows in steps, as long as that pays and fits in memory.  The time for all of this is
limited to a small part of the run's own time, by the best estimate so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic

from jacli.options.methods import METHODS, Method
from jacli.plans.plan import Measured, Shapes
from jacli.plans.request import Request

FEW_SAMPLES = 8
"""With fewer samples per batch than this, a pass carries several vectors per sample."""

_MANY_SAMPLES = 32

_STEP = 4
_PAYS = 0.97
"""The climb goes on while a larger size takes less than this part of the time of the last one."""

_NOISE = 1.2
"""Between short passes a difference up to this factor may be noise; the climb goes on."""

_SHORT = 0.01
"""Seconds of a pass below which the overhead of calls exceeds the arithmetic."""

START_ROWS_ON_GPU = 256
"""Rows in flight that a search on a GPU starts with.  Fewer leave it idle, and each size tried costs seconds
of loading kernels: on an H100, a search from 8 rows spent its budget before it reached a good size."""

Measure = Callable[["Candidate", float], Measured]
"""Measures a candidate; skips the second, warm pass if the first took longer than that many seconds."""


@dataclass(frozen=True)
class Candidate:
    """A method and its sizes.

    Attributes:
        method: Fills in the matrix.
        batch_size: Samples per batch.
        chunk_size: Vectors per pass.
    """

    method: Method
    batch_size: int
    chunk_size: int

    @property
    def rows(self) -> int:
        """Rows in flight."""
        return self.batch_size * self.chunk_size


@dataclass
class Budget:
    """Seconds that the search may take, given an estimate of the run.

    These are a share of a short run, at most `most`, and 4 % of a long run.

    Attributes:
        share: Fraction of a short run.
        most: Limit on that share in seconds; it does not limit the 4 %.
        run_seconds: The best estimate of the run so far.
        clock: Returns the time in seconds.
    """

    share: float = 0.25
    most: float = 1.8
    run_seconds: float = math.inf
    clock: Callable[[], float] = monotonic
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since the search began, without what is not charged."""
        return self.clock() - self._started

    @contextmanager
    def not_charged(self) -> Iterator[None]:
        """Around what is paid once, whatever is chosen: tracing, loading torch's batching rules."""
        began = self.clock()
        try:
            yield
        finally:
            self._started += self.clock() - began

    def learn(self, run_seconds: float) -> None:
        """Take note of what the run would take by one more plan."""
        self.run_seconds = min(self.run_seconds, run_seconds)

    def for_a_part(self) -> Budget:
        """The same for a part of the network, whose estimates are not those of the run."""
        part = replace(self)
        part._started = self._started
        return part

    @property
    def allowed(self) -> float:
        """Seconds in all, by the current estimate of the run."""
        return max(0.04 * self.run_seconds, min(self.share * self.run_seconds, self.most))

    @property
    def patience(self) -> float:
        """Longest first pass, in seconds, after which a second, warm pass is timed too."""
        return max(0.0, self.allowed - self.spent) / 4 if math.isfinite(self.run_seconds) else 0.3

    def left_for(self, seconds: float) -> bool:
        """Whether the budget has room for something that takes this long."""
        return self.spent + seconds <= self.allowed


def methods_in_order(shapes: Shapes, request: Request, refused: Mapping[str, str | None]) -> list[Method]:
    """Methods that apply to the whole network, the likeliest first.

    Forward mode costs n_in passes and reverse n_out; a program, where there is one, runs them fastest.
    Batched cotangents, or copies of the input, fill a pass where there are few samples; else a plain
    reverse pass over many samples does.

    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=10, fixed_batch=None, itemsize=4)
    >>> [method.name for method in methods_in_order(shapes, Request(), refused={"adjoint": "not traced"})]
    ['loop', 'vmap']
    """
    if request.method in METHODS:
        return [METHODS[request.method]]
    n_in, n_out = shapes.n_in, shapes.n_selected
    served = [method for method in METHODS.values() if refused.get(method.name) is None]
    if not request.is_exact:
        served = [method for method in served if method.runs_program]
        return sorted(served, key=lambda method: method.by_columns != (n_in < n_out))
    samples = shapes.fixed_batch or min(shapes.n_samples, request.batch_size or FEW_SAMPLES)
    few = samples < FEW_SAMPLES and n_out > 1

    def rank(method: Method) -> tuple[bool, int]:
        by_primitive = ("program", "batched", "tape") if few else ("program", "tape", "batched")
        return not method.by_columns, 2 * by_primitive.index(method.primitive) + method.is_reference

    applies = [m for m in served if (n_in < n_out or not m.by_columns) and (few or not m.repeats_batch)]
    return sorted(applies, key=rank)


def ladder(
    method: Method,
    shapes: Shapes,
    request: Request,
    *,
    most_samples: int,
    rows: int | None = None,
    least_rows: int = 1,
) -> Iterator[Candidate]:
    """Candidates of a method, from few rows in flight to all of them, each size once.

    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=10, fixed_batch=None, itemsize=4)
    >>> candidates = ladder(METHODS["loop"], shapes, Request(), most_samples=100)
    >>> [(candidate.batch_size, candidate.chunk_size) for candidate in candidates]
    [(32, 1), (100, 1)]

    Args:
        method: The method.
        shapes: The run's shapes.
        request: Sizes asked for are kept.
        most_samples: Samples whose results fit in memory.
        rows: Rows in flight to start with; None leaves it to the method.
        least_rows: Lower limit on that start: see `START_ROWS_ON_GPU`.
    """
    vectors = shapes.vectors(method)
    rows = max(rows or method.first_rows or _few(method, vectors), least_rows)
    last, most = None, min(shapes.n_samples, max(most_samples, 1)) * vectors
    while True:
        candidate = with_rows(rows, method, shapes, request, most_samples=most_samples)
        if candidate != last:
            yield candidate
        if rows >= most:
            return
        last, rows = candidate, rows * _STEP


def with_rows(rows: int, method: Method, shapes: Shapes, request: Request, *, most_samples: int) -> Candidate:
    """Batch size and chunk size with about ``rows`` = batch_size * chunk_size vectors in flight.

    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=10, fixed_batch=None, itemsize=4)
    >>> candidate = with_rows(80, METHODS["vmap"], shapes, Request(), most_samples=100)
    >>> candidate.batch_size, candidate.chunk_size
    (8, 10)
    """
    vectors = shapes.vectors(method)
    most = max(1, min(shapes.n_samples, most_samples))
    fixed = shapes.fixed_batch or (request.batch_size and min(request.batch_size, shapes.n_samples))
    if method.single_vector:
        return Candidate(method, fixed or min(most, rows), 1)
    if method.reruns_network and not fixed:
        # Every forward pass runs the network anew: the more tangents share it the better.
        samples = min(most, max(1, rows // min(request.chunk_size or vectors, vectors)))
        return Candidate(method, samples, min(request.chunk_size or max(1, rows // samples), vectors))
    samples = fixed or min(most, _few(method, vectors), rows)
    chunk = request.chunk_size or max(1, rows // samples)
    if request.method == method.name and method.known_as_one_call and request.chunk_size is None:
        chunk = vectors
    if not fixed and chunk >= vectors:
        samples = min(most, max(samples, rows // vectors))
    return Candidate(method, samples, min(chunk, vectors))


def _few(method: Method, vectors: int) -> int:
    """Samples per batch to begin with: few vectors through a program should share its linearisation."""
    return max(FEW_SAMPLES, min(_MANY_SAMPLES, 320 // vectors)) if method.runs_program else FEW_SAMPLES


def climb(
    candidates: Iterator[Candidate],
    measure: Measure,
    seconds: Callable[[Measured], float],
    budget: Budget,
    *,
    fits: Callable[[Measured, float], bool],
    best: float = math.inf,
    trifle: float = 0.0,
) -> list[Measured]:
    """Measure larger and larger candidates of one method, as long as that pays.

    >>> sizes = [Candidate(METHODS["loop"], samples, 1) for samples in (8, 32, 128)]
    >>> seconds = {8: 1000.0, 32: 600.0, 128: 700.0}
    >>> tried = climb(
    ...     iter([*sizes, Candidate(METHODS["loop"], 512, 1)]),
    ...     lambda candidate, patience: Measured("loop", candidate.batch_size, 1, 0.0, 0.1),
    ...     lambda measured: seconds[measured.batch_size],
    ...     Budget(run_seconds=1e6, clock=lambda: 0.0),
    ...     fits=lambda measured, growth: True,
    ... )
    >>> [measured.batch_size for measured in tried]  # the last one no longer paid
    [8, 32, 128]

    Args:
        candidates: From small to large.
        measure: Measures a candidate.
        seconds: Seconds that the run would take with these measurements.
        budget: Ends the climb; its estimate of the run is updated.
        fits: Whether a candidate would fit in memory with this many times its rows.
        best: Seconds of the run with the best other method.  A method that takes more than half as long again
            is given up, unless its passes are short: then the overhead of calls dominates, and larger sizes
            reduce it.
        trifle: Part of the run that a trial may take even when the budget is spent.
    """
    tried: list[Measured] = []
    for candidate in candidates:
        before = tried[-1] if tried else None
        if before is not None:
            growth = candidate.rows / max(1, before.batch_size * before.chunk_size)
            more_samples = candidate.batch_size / max(1, before.batch_size)
            expected = 2 * growth * before.vector_seconds * before.chunk_size
            expected += more_samples * before.setup_seconds
            affordable = expected <= trifle * budget.run_seconds or budget.left_for(expected)
            if before.failure or not fits(before, growth) or not affordable:
                break
        measured = measure(candidate, budget.patience)
        took = seconds(measured)
        budget.learn(took)
        tried.append(measured)
        short = measured.vector_seconds * measured.chunk_size < _SHORT
        if measured.failure or (took > 1.5 * best and not short):
            break
        if before and took > _PAYS * seconds(before) and not (short and took < _NOISE * seconds(before)):
            break
    return tried
