"""Hill climbing by measurement: which method, with which batch and chunk size?  No torch.

No method is fastest everywhere, and the batch size alone is worth a factor of 1.6.  Candidates are therefore
timed on the first samples.  For each method that applies, the number of *rows in flight* (samples per batch
times vectors per pass) grows in steps, as long as that pays and fits in memory.  The time for all of this is
limited to a small part of the run's own time, by the best estimate so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic

from jacli.options.config import COLUMN_METHODS, PROGRAM_METHODS, RunConfig
from jacli.plans.plan import Measured, Shapes

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

_STARTS = {"loop": 32, "forward": 16}

Measure = Callable[["Candidate", float], Measured]
"""Tries a candidate; of a first pass of more than so many seconds no second one is timed."""


@dataclass(frozen=True)
class Candidate:
    """A method and its sizes.

    Attributes:
        method: Name in ``METHODS``.
        batch_size: Samples a block.
        chunk_size: Outputs (or tangents) a pass.
    """

    method: str
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
        share: Part of a short run.
        most: Seconds, for runs too short for the 4 % to be more.
        run_seconds: The best estimate of the run so far.
        started: When the search began.
    """

    share: float = 0.25
    most: float = 1.8
    run_seconds: float = math.inf
    started: float = field(default_factory=monotonic)

    @property
    def spent(self) -> float:
        """Seconds since the search began."""
        return monotonic() - self.started

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


def methods_in_order(shapes: Shapes, config: RunConfig, refused: Mapping[str, str | None]) -> list[str]:
    """Plain methods that apply, the likeliest first.

    Forward mode costs n_in passes and reverse n_out; a program, where there is one, runs them fastest.
    Batched cotangents, or copies of the input, fill a pass where there are few samples; else a plain
    reverse pass over many samples does.
    """
    if config.method not in ("auto", "factored"):
        return [config.method]
    if config.precision != "ieee":
        served = [name for name in PROGRAM_METHODS if refused.get(name) is None]
        return served[::-1] if shapes.n_in < shapes.n_selected else served
    n_in, n_out = shapes.n_in, shapes.n_selected
    samples = shapes.fixed_batch or min(shapes.n_samples, config.batch_size or FEW_SAMPLES)
    order = ["tangent", "forward"] if n_in < n_out else []
    few = samples < FEW_SAMPLES and n_out > 1
    order += ["adjoint", "vmap", "replicate", "loop"] if few else ["adjoint", "loop", "vmap"]
    return [name for name in order if refused.get(name) is None]


def ladder(
    method: str,
    shapes: Shapes,
    config: RunConfig,
    *,
    most_samples: int,
    rows: int | None = None,
    least_rows: int = 1,
) -> Iterator[Candidate]:
    """Candidates of a method, from few rows in flight to all of them, each size once.

    Args:
        method: Name in ``METHODS``.
        shapes: The run's shapes.
        config: Sizes asked for are kept.
        most_samples: Samples whose results fit in memory.
        rows: Rows in flight to start with; None leaves it to the method.
        least_rows: Lower limit on that start: see `START_ROWS_ON_GPU`.
    """
    vectors = shapes.n_in if method in COLUMN_METHODS else shapes.n_selected
    rows = max(rows or _STARTS.get(method, _few(method, vectors)), least_rows)
    last, most = None, min(shapes.n_samples, max(most_samples, 1)) * vectors
    while True:
        candidate = sized(method, rows, shapes, config, vectors=vectors, most_samples=most_samples)
        if candidate != last:
            yield candidate
        if rows >= most:
            return
        last, rows = candidate, rows * _STEP


def sized(
    method: str, rows: int, shapes: Shapes, config: RunConfig, *, vectors: int, most_samples: int
) -> Candidate:
    """The samples a block and vectors a pass that keep so many rows in flight."""
    most = max(1, min(shapes.n_samples, most_samples))
    fixed = shapes.fixed_batch or (config.batch_size and min(config.batch_size, shapes.n_samples))
    if method == "loop":
        return Candidate(method, fixed or min(most, rows), 1)
    if method == "forward" and not fixed:
        # Every forward pass runs the network anew: the more tangents share it the better.
        samples = min(most, max(1, rows // min(config.chunk_size or vectors, vectors)))
        return Candidate(method, samples, min(config.chunk_size or max(1, rows // samples), vectors))
    samples = fixed or min(most, _few(method, vectors), rows)
    chunk = config.chunk_size or max(1, rows // samples)
    if config.method == "replicate" and config.chunk_size is None:
        chunk = vectors  # what is known by that name: one call
    if not fixed and chunk >= vectors:
        samples = min(most, max(samples, rows // vectors))
    return Candidate(method, samples, min(chunk, vectors))


def _few(method: str, vectors: int) -> int:
    """Samples a block to begin with: a program that few vectors go through wants its linearisation shared."""
    return max(FEW_SAMPLES, min(_MANY_SAMPLES, 320 // vectors)) if method in PROGRAM_METHODS else FEW_SAMPLES


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
        budget.run_seconds = min(budget.run_seconds, took)
        tried.append(measured)
        short = measured.vector_seconds * measured.chunk_size < _SHORT
        if measured.failure or (took > 1.5 * best and not short):
            break
        if before and took > _PAYS * seconds(before) and not (short and took < _NOISE * seconds(before)):
            break
    return tried
