"""``jacli bench``: every method that applies, side by side on the first batch of a run."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jacli.choice.choose import Choice, choose
from jacli.choice.halving import halving
from jacli.choice.memory_limit import MemoryLimit, memory_errors
from jacli.commands.timed_batch import RowsInFloat64, TimedBatch, chain_batch, dense_batch
from jacli.device.allocator import give_back, reused_memory
from jacli.device.clock import now
from jacli.device.memory import release_cached_memory
from jacli.device.precision import precisions_of
from jacli.engine.batch_checks import plan_is_reference
from jacli.errors import JacliError, MethodError, OutOfMemoryError
from jacli.errors.numbers import json_ready
from jacli.network import exact_arithmetic
from jacli.options.methods import AUTOGRAD_METHODS, METHOD_NAMES, METHODS, REFERENCE
from jacli.options.table import RunConfig
from jacli.plans.factorization import Factorization
from jacli.plans.plan import ChainPlan, MatrixFreePlan, Plan, Shapes, WholePlan
from jacli.plans.request import Request
from jacli.plans.search import FEW_SAMPLES
from jacli.run.batches import Run
from jacli.run.prepare import Prepared, prepare
from jacli.run.recheck import tolerance_of
from jacli.verify import row_error, row_tolerance

LIMIT = 20.0
"""Seconds a method, unless told otherwise."""

_TIMES = 3
_REPEATED_SECONDS = 0.5
"""A batch is computed up to so many times, within so many seconds in all: short ones are timed badly."""

_SHARE = 1000.0
"""The search for a method's sizes may take its full time, however short the run: it is what is asked for."""

_TRYING = "trying the model on the first samples"


@dataclass(frozen=True)
class BenchRow:
    """One method in one precision.

    Attributes:
        method: Its name.
        precision: Of its linear passes.
        plan: Its best sizes and its passes; None if it cannot serve.
        seconds: Of the run's Jacobians, from the first batch.
        seconds_a_sample: Likewise.
        relative: Seconds of the run in multiples of the fastest method's in ``ieee``.
        estimated: Whether the batch was stopped, and the rest of its seconds extrapolated.
        peak_bytes: Most that was held during the batch beyond what was held before it.
        error_median: Relative error of some rows (Frobenius), over the first samples; None if not compared.
        error_worst: Likewise.
        notes: What the user must be told.
        refused: Why it cannot serve, or None.
    """

    method: str
    precision: str = "ieee"
    plan: Plan | None = None
    seconds: float | None = None
    seconds_a_sample: float | None = None
    relative: float | None = None
    estimated: bool = False
    peak_bytes: int | None = None
    error_median: float | None = None
    error_worst: float | None = None
    notes: tuple[str, ...] = ()
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; an error that is not finite as text."""
        sizes = (
            {
                "samples": self.plan.batch_size,
                "vectors": self.plan.chunk_size,
                "passes": self.plan.passes,
            }
            if self.plan
            else dict.fromkeys(("samples", "vectors", "passes"))
        )
        return {
            "method": self.method,
            "precision": self.precision,
            **sizes,
            "seconds_a_sample": self.seconds_a_sample,
            "seconds": self.seconds,
            "relative": self.relative,
            "estimated": self.estimated,
            "peak_bytes": self.peak_bytes,
            "error_median": json_ready(self.error_median),
            "error_worst": json_ready(self.error_worst),
            "notes": list(self.notes),
            "refused": self.refused,
        }


@dataclass(frozen=True)
class BenchResult:
    """Result of `bench`.

    Attributes:
        rows: The fastest method first, the refused ones last.
        shapes: Of the run.
        device: Where it computed.
        dtype: Its arithmetic.
        reference_dtype: Arithmetic of the reverse passes that the errors are against.
        limit: Seconds a batch might take.
        auto: The plan that ``--method auto`` would choose; None if it finds none.
        auto_seconds: How long that choice took.
        notes: What the user must be told.
    """

    rows: tuple[BenchRow, ...]
    shapes: Shapes
    device: str
    dtype: str
    reference_dtype: str
    limit: float
    auto: Plan | None
    auto_seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "samples": self.shapes.n_samples,
            "input": list(self.shapes.input_shape),
            "output": list(self.shapes.output_shape),
            "outputs_differentiated": self.shapes.n_selected,
            "device": self.device,
            "dtype": self.dtype,
            "reference_dtype": self.reference_dtype,
            "limit": self.limit,
            "auto": self.auto and {"method": self.auto.method, "why": self.auto.why},
            "auto_seconds": self.auto_seconds,
            "methods": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
        }


def bench(
    config: RunConfig, *, limit: float = LIMIT, progress: Callable[[str], None] = lambda method: None
) -> BenchResult:
    """Time every method on the first batch of a run, each with its best sizes, and compare what it gives.

    Args:
        config: As of `jacli compute`; its method and precision do not matter.
        limit: A batch that takes more seconds is stopped, and its seconds are extrapolated.
        progress: Called with a method before it is tried.

    Raises:
        JacliError: As the run itself would; a method that cannot serve is no error while another can.

    Cost a method: the search for its sizes (`jacli.plans.search`) and up to three batches; and the reference,
    eight reverse passes over four samples in float64.
    """
    config = replace(config, method="auto", precision="ieee")
    with exact_arithmetic(), reused_memory():
        prepared = prepare(config)
        with prepared.source:
            tried = _Bench(Run(config, prepared), limit)
            auto, auto_seconds = tried.choose_auto()
            rows: list[BenchRow] = []
            for name in METHOD_NAMES:
                progress(name)
                rows.append(tried.row(name, rows))
                for precision in _reduced(name, prepared) if rows[-1].refused is None else ():
                    progress(f"{name} in {precision}")
                    rows.append(tried.row(name, rows, precision))
        if all(row.refused for row in rows):
            why = "; ".join(f"{row.method}: {row.refused}" for row in rows)
            raise tried.failure or MethodError("No method works with this model.", why=why)
        notes = [*prepared.notes, *(auto.notes if auto else ())]
        reference = tried.reference.dtype or prepared.dtype
        if reference != torch.float64:
            unable = f"the model does not run in float64: errors are against {config.dtype}"
            notes += tried.reference.notes or [unable]
        return BenchResult(
            rows=_in_order(rows, auto),
            shapes=prepared.shapes,
            device=str(prepared.device),
            dtype=config.dtype,
            reference_dtype=str(reference).removeprefix("torch."),
            limit=limit,
            auto=auto,
            auto_seconds=auto_seconds,
            notes=tuple(notes),
        )


def _reduced(method: str, prepared: Prepared) -> tuple[str, ...]:
    """The precisions beside ``ieee`` that a method has on this device."""
    if method in AUTOGRAD_METHODS:
        return ()
    return tuple(p for p in precisions_of(prepared.device, prepared.dtype) if p != "ieee")


def _in_order(rows: Sequence[BenchRow], auto: Plan | None) -> tuple[BenchRow, ...]:
    """The fastest first, with their seconds in multiples of the fastest in ``ieee``; refused ones last."""
    served = sorted((row for row in rows if row.seconds is not None), key=lambda row: row.seconds or 0.0)
    fastest = next((row.seconds for row in served if row.precision == "ieee"), None) or math.inf
    ordered = [replace(row, relative=(row.seconds or 0.0) / fastest) for row in served]
    ordered += [row for row in rows if row.seconds is None]
    chosen = auto.method if auto else None
    return tuple(
        replace(row, notes=("auto", *row.notes)) if (row.method, row.precision) == (chosen, "ieee") else row
        for row in ordered
    )


class _Bench:
    """A run, and the methods tried on its first batch."""

    def __init__(self, run: Run, limit: float) -> None:
        self._config = run.config
        self._request = run.request
        self._problem = run.problem
        self._device = run.prepared.device
        self._limit = limit
        self.reference = RowsInFloat64(run.request, run.problem, run.prepared)
        self.failure: JacliError | None = None

    def choose_auto(self) -> tuple[Plan | None, float]:
        """The plan that a run would choose, and how long the choice takes."""
        began = now(self._device)
        try:
            with memory_errors(_TRYING):
                plan: Plan | None = choose(self._request, self._problem).plans[0]
        except (MethodError, OutOfMemoryError) as failure:
            plan, self.failure = None, failure
        return plan, now(self._device) - began

    def row(self, name: str, before: Sequence[BenchRow], precision: str = "ieee") -> BenchRow:
        """One method: its best sizes, its first batch, its error; or why not."""
        notes: list[str] = []
        request = replace(self._request, method=name, precision=precision, search_share=_SHARE)
        if name in METHODS and METHODS[name].known_as_one_call and request.chunk_size is None:
            request = replace(request, chunk_size=self._copies(before))
            if request.chunk_size:
                notes.append("in several calls: a single one would take too much memory or time")
        _release(self._device)
        try:
            with memory_errors(_TRYING):
                choice = choose(request, self._problem, timed=True)
            return replace(self._served(request, choice, notes), precision=precision)
        except (MethodError, OutOfMemoryError) as failure:
            return BenchRow(name, precision, refused=failure.why or failure.what)

    def _copies(self, before: Sequence[BenchRow]) -> int | None:
        """Copies of a batch that fit, by what `loop` took; None where those of all outputs do.

        ``replicate`` is known as a single call, so its search begins with that, however large.
        """
        loop = next((row for row in before if row.method == REFERENCE.name), BenchRow(REFERENCE.name))
        if loop.plan is None or loop.peak_bytes is None or loop.seconds_a_sample is None:
            return None
        shapes, size = self._problem.shapes, loop.plan.batch_size
        held = max(0, loop.peak_bytes - size * shapes.sample_bytes) / size + shapes.n_in * shapes.itemsize
        seconds = loop.seconds_a_sample / shapes.n_selected
        rows = min(0.5 * self._problem.memory.limit / held, self._limit / seconds)
        samples = min(shapes.n_samples, self._request.batch_size or FEW_SAMPLES)
        copies = max(1, int(rows / samples))
        return copies if copies < shapes.n_selected else None

    def _served(self, request: Request, choice: Choice, notes: list[str]) -> BenchRow:
        plan, shapes = choice.plans[0], self._problem.shapes
        count = plan.batch_size
        if isinstance(plan, ChainPlan):
            notes.append(_narrowest(plan.factorization, shapes))
            # Its factors come all at once, and cannot be stopped halfway: fewer samples it is.
            expected = (plan.seconds or 0.0) / plan.n_batches
            count = min(count, int(count * self._limit / max(expected, 1e-9)))
            if count == 0:
                notes.append("not computed: a sample would take longer than --limit")
                return _row(plan, shapes, expected, notes, estimated=True)
        with MemoryLimit.of_run(request.memory, self._device).peak() as held:
            plan, computed = self._fitting(request, choice, plan, count)
        try:
            with memory_errors("comparing rows with float64"):
                errors = self.reference.errors(computed)
                config = replace(self._config, precision=request.precision)
                notes += _doubts(plan, computed, errors, config, self.reference.reduced)
        finally:
            computed.linearization.close()
        row = _row(plan, shapes, computed.seconds, notes, estimated=computed.estimated)
        return replace(
            row,
            peak_bytes=max(held[0], computed.matrices.nbytes),
            error_median=float(errors.median()),
            error_worst=float(errors.max()),
        )

    def _fitting(self, request: Request, choice: Choice, plan: Plan, count: int) -> tuple[Plan, TimedBatch]:
        """The batch by the plan, or by one with half the sizes, and so on, if memory runs out."""
        return halving(
            plan,
            lambda plan: self._fastest(request, choice, plan, min(count, plan.batch_size)),
            smaller=lambda plan: plan.smaller(self._problem.shapes),
            release=lambda: _release(self._device),
            give_up=lambda plan, said: OutOfMemoryError(
                f"The method {plan.method} does not fit in memory.",
                why="Out of memory with one sample and one vector per pass.",
            ),
        )

    def _fastest(self, request: Request, choice: Choice, plan: Plan, count: int) -> TimedBatch:
        """The batch, computed a few times if that is short."""
        computed = self._once(request, choice, plan, count)
        best = spent = computed.seconds
        for _ in range(_TIMES - 1):
            if computed.estimated or spent + best > min(self._limit, _REPEATED_SECONDS):
                break
            computed.linearization.close()
            del computed  # before the next one takes its place in memory
            computed = self._once(request, choice, plan, count)
            best, spent = min(best, computed.seconds), spent + computed.seconds
        return replace(computed, seconds=best)

    def _once(self, request: Request, choice: Choice, plan: Plan, count: int) -> TimedBatch:
        graph = choice.graph_of(plan)
        match plan:
            case ChainPlan():
                return chain_batch(request, self._problem, plan, graph, count)
            case WholePlan():
                return dense_batch(request, self._problem, plan, graph, self._limit)
            case MatrixFreePlan():
                raise AssertionError("bench asks for matrices")


def _row(
    plan: Plan, shapes: Shapes, batch_seconds: float, notes: Sequence[str], *, estimated: bool
) -> BenchRow:
    """A row from the seconds of a whole batch; the last batch is as long as the others only if padded."""
    batches = plan.n_batches if shapes.fixed_batch else shapes.n_samples / plan.batch_size
    seconds = batches * batch_seconds
    return BenchRow(
        plan.method,
        plan=plan,
        seconds=seconds,
        seconds_a_sample=seconds / shapes.n_samples,
        estimated=estimated,
        notes=tuple(notes),
    )


def _narrowest(factorization: Factorization, shapes: Shapes) -> str:
    """The cuts of the network, and whether they save work."""
    width, name = min(zip(factorization.widths[1:-1], factorization.cuts, strict=True))
    useful = width < min(shapes.n_in, shapes.n_selected)
    return f"{'' if useful else 'no useful cut: '}{width} wide at {name}"


def _doubts(
    plan: Plan, computed: TimedBatch, errors: Tensor, config: RunConfig, reduced: str | None
) -> Iterator[str]:
    """Notes on wrong results, in the run's own arithmetic or against the reference alone."""
    linearization, matrices = computed.linearization, computed.matrices
    complete = (computed.n_rows, computed.n_columns) == (matrices.n_out, matrices.n_in)
    if complete and not plan_is_reference(plan):  # which consists of the passes of the check
        own = row_error(linearization.tape(), matrices, seed=config.seed)
        if not own <= row_tolerance(linearization.dtype, config.precision, reduced):
            yield f"wrong on this model: off by {own:.1e} from plain reverse passes in {config.dtype}"
            return
    if errors.max() <= tolerance_of(replace(config, save="none", tolerance=None), reduced):
        return
    if reduced is None:
        yield "a sample differs in float64: it lies at a kink, or is badly conditioned"
    else:
        yield f"a sample differs by more than the rounding of {reduced}, in which the model computes inside"


def _release(device: torch.device) -> None:
    """Give back what was freed, so that the next method's peak counts it anew."""
    gc.collect()
    release_cached_memory(device)
    give_back()
