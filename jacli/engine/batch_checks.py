"""Checks of every batch before its results count; expensive ones are rationed to a share of the run time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import torch

from jacli.choice.problem import Problem
from jacli.engine.computed_batch import ComputedBatch
from jacli.engine.replicated_passes import as_run
from jacli.errors import JacliError, MethodError, ModelError, translating
from jacli.linear_maps import LinearMap, Matrices
from jacli.linear_maps.agreement import same_outputs
from jacli.network import OTHER_OUTPUTS, Linearized, Watched, no_program, watch
from jacli.plans.plan import ChainPlan, MatrixFreePlan, Plan, WholePlan
from jacli.plans.request import Request
from jacli.verify import (
    CROSS_SAMPLE_LIMIT,
    MOST_ROWS,
    PlainPasses,
    batch_errors,
    batch_failure,
    check_batch,
    check_gradients,
    check_state,
    cotangent_error,
    every_row_errors,
    mixing_error,
    row_error,
    row_tolerance,
    transpose_error,
)

_FEW_SAMPLES = 2
"""Samples in a quick check of a batch, once the method has proved right on all samples of an earlier one."""

_QUICK_CHECK_INTERVAL = 30
"""A quick check is due again after 30 times the duration of the last: they take at most 3 % of the time."""

_WHOLE_CHECK_INTERVAL = 100
"""The same for checks of a whole batch: they take at most 1 % of the time."""

_ALONE = 8
"""Samples run alone in the check of a whole batch; all of them if the model reads values."""


class _Ration:
    """A check that is due again once ``interval`` times the duration of the last one has passed."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._seconds = 0.0
        self._since = self._began = monotonic()

    @property
    def due(self) -> bool:
        return monotonic() - self._since > self._interval * self._seconds

    def begin(self) -> None:
        self._began = monotonic()

    def end(self) -> None:
        self._since = monotonic()
        self._seconds = self._since - self._began


@dataclass
class CheckHistory:
    """What was checked so far, in this run or in earlier calls.

    A later call may continue a history only if module, graph and plan are the same: its batches then count as
    further batches of the same run.

    Attributes:
        batches: How many were checked in one way or the other.
        sizes: Sizes of the batches that were checked as a whole.
        whole: When the next check of a whole batch is due.
        few: When the next quick check is due.
        watched: How the model computes, as observed in a forward pass of a few samples.
    """

    batches: int = 0
    sizes: set[int] = field(default_factory=set)
    whole: _Ration = field(default_factory=lambda: _Ration(_WHOLE_CHECK_INTERVAL))
    few: _Ration = field(default_factory=lambda: _Ration(_QUICK_CHECK_INTERVAL))
    watched: Watched | None = None


class BatchChecks:
    """Checks the batches of a run.

    *Every batch.*  The samples are run in another order, and one of them alone (eight if the model reads
    values); their outputs must stay the same (`check_batch`).  Cost: at most two forward passes.

    *Whole checks.*  A batch is checked as a whole if it is the first, second, fourth, eighth, ..., if it is
    the first of its size, or if 100 times the duration of the last such check has passed.  More samples are
    run alone; a reverse pass over the batch shows whether samples influence one another's gradients and
    whether the matrices are right in all rows (`batch_errors`); a reverse pass over two halves of the batch
    shows whether gradients depend on position or on the other samples (`check_gradients`).  In the first
    batch, some rows are compared as well (`row_error`).  Afterwards, and after the last batch, the first
    samples of the run must give the same outputs as before the run (`check_state`).

    *Quick checks.*  In between, two samples are checked (`cotangent_error`), rationed to 3 % of the run time;
    of a factored Jacobian, in every batch.

    *What escapes.*  A fault of the outputs that shows in another order is found in every batch.  A fault of
    the derivatives alone, in one of many equal batches, escapes with probability ``1 - p``, where
    ``p = min(1, batch seconds / (100 * check seconds))`` is the share of batches that are checked as a whole.
    Such a check costs about ten passes, so that p is about 1/10 if a batch takes 100 passes, and 1 from 1000
    passes on.  A branch on the whole batch that gives half of the samples another output, and in which no
    operation of torch is seen to read values, escapes with probability 1/2 in a batch, and ``2 ** -8`` in one
    that is checked as a whole.

    Args:
        request: What is asked.
        problem: What is computed.
        history: That of an earlier call with the same module, graph and plan; none if this is the first.
    """

    def __init__(self, request: Request, problem: Problem, history: CheckHistory | None = None) -> None:
        self._request = request
        self._problem = problem
        self._history = CheckHistory() if history is None else history
        self._doubted = False

    def doubt(self) -> None:
        """Check every further batch as a whole: the method was wrong in one."""
        self._doubted = True

    def error(self, plan: Plan, batch: ComputedBatch, *, taken_over: bool) -> float:
        """Check a batch.

        Args:
            plan: How it was computed.
            batch: What was computed.
            taken_over: Whether the method has proved itself in an earlier run.

        Returns:
            The worst relative error that was found; 0 if only outputs were compared.

        Raises:
            ModelError: Samples are not independent of one another and of their positions.
            MethodError: The method is wrong.
            MemoryError: An allocation failed.
        """
        history, size = self._history, batch.linearization.batch
        history.batches += 1
        whole = (
            size not in history.sizes or self._doubted or now_and_then(history.batches) or history.whole.due
        )
        history.whole.begin()
        try:
            self._check_outputs(batch.linearization, self._seed(batch), whole=whole)
        except ModelError:
            if (
                isinstance(plan, WholePlan) and plan.filled_by.runs_program
            ):  # the graph may be wrong, not the model
                _check_graph_outputs(batch)
            raise
        error = self._derivatives(plan, batch) if whole else 0.0
        if whole and isinstance(plan, MatrixFreePlan):
            error = max(error, self._checked(plan, batch, transpose_error, rows_decide=False))
        if whole:
            self._check_company(plan, batch)
            history.sizes.add(size)
            history.whole.end()
        if whole or batch.start + batch.count == self._problem.shapes.n_samples:
            self._check_state()
        if plan_is_reference(plan):
            return 0.0  # it is the reference of the checks itself
        if batch.start == 0 and not taken_over:
            return max(error, self._checked(plan, batch, row_error))
        if not whole and (isinstance(plan, ChainPlan) or history.few.due):
            error = self._error_of_few(plan, batch)
        return error

    def _seed(self, batch: ComputedBatch) -> int:
        return self._request.seed + batch.start

    def _check_outputs(self, linearization: Linearized, seed: int, *, whole: bool) -> None:
        """Run the batch in another order, and some samples alone."""
        reads = self._seen(linearization).reads_values
        most = linearization.batch if reads else _ALONE
        check_batch(
            linearization,
            self._problem.network.module,
            seed=seed,
            alone=most if whole else (_ALONE if reads else 1),
            rounding=self._rounding(linearization),
            fixed_batch=self._problem.shapes.fixed_batch is not None,
        )

    def _check_state(self) -> None:
        """Run the first samples again: their outputs must be the same as before the run."""
        network = self._problem.network
        if network.copy_each_call or network.anchor is None:
            return
        x, extra, before = network.anchor
        with torch.no_grad(), translating(lambda error: batch_failure(len(x), error)):
            check_state(before, network(x, extra), network.module)

    def _check_company(self, plan: Plan, batch: ComputedBatch) -> None:
        """Raise if gradients depend on position or other samples; or if it is the method that is wrong."""
        matrices = batch.matrices
        try:
            self._check_gradients(batch.linearization, matrices, self._seed(batch), rows=matrices)
        except ModelError:
            if not plan_is_reference(plan):
                self._checked(plan, batch, cotangent_error)
            raise

    def _check_gradients(
        self, linearization: Linearized, matrices: LinearMap, seed: int, *, rows: Matrices | None = None
    ) -> None:
        """Compare the gradients of each sample with those in another position and among other samples."""
        check_gradients(
            linearization,
            matrices,
            self._problem.network.module,
            rows=rows,
            seed=seed,
            tolerance=self._tolerance(linearization),
            rounding=self._rounding(linearization),
            fixed_batch=self._problem.shapes.fixed_batch is not None,
        )

    def _seen(self, linearization: Linearized) -> Watched:
        if self._history.watched is None:
            few = linearization.batch if self._problem.shapes.fixed_batch else _FEW_SAMPLES
            index = torch.arange(min(few, linearization.batch), device=linearization.device)
            with translating(lambda error: batch_failure(len(index), error)):
                self._history.watched = watch(lambda: linearization.at(index).outputs)
        return self._history.watched

    def _derivatives(self, plan: Plan, batch: ComputedBatch) -> float:
        """Raise if samples have gradients at others; the error of a random combination of all rows."""
        if batch.linearization.batch == 1:
            return 0.0 if plan_is_reference(plan) else self._checked(plan, batch, cotangent_error)
        return self._checked(plan, batch, self._batch_error)

    def _every_row(self, linearization: Linearized, matrices: Matrices, seed: int) -> float:
        like = torch.empty(linearization.batch, dtype=linearization.dtype, device=linearization.device)
        pull = PlainPasses.at(linearization).pull
        return float(every_row_errors(pull, matrices, like, seed=seed).max())

    def _batch_error(self, passes: LinearMap, matrices: LinearMap, *, seed: int) -> float:
        error, crossed = batch_errors(passes, matrices, seed=seed)
        if not crossed <= CROSS_SAMPLE_LIMIT:
            how = f"in a batch of {passes.batch}, the outputs of some samples have a gradient at others"
            raise mixing_error(self._problem.network.module, how)
        return error

    def _checked(
        self, plan: Plan, batch: ComputedBatch, check: Callable[..., float], *, rows_decide: bool = True
    ) -> float:
        """The error found by a check; raises if it is too large for a correct method.

        The run's forward pass may have used other kernels or a larger batch, so that a ReLU fell to the other
        side: if the error is too large, the check is repeated with passes that round as the run did.
        """
        linearization, seed, tolerance = (
            batch.linearization,
            self._seed(batch),
            self._tolerance(batch.linearization),
        )
        with translating(lambda error: batch_failure(linearization.batch, error)):
            error = check(linearization.tape(), batch.matrices, seed=seed)
            if error <= tolerance:
                return error
            for passes in as_run(linearization, plan.to_dict(), recurrent=self._problem.network.recurrent):
                error = min(error, check(passes.map, batch.matrices, seed=seed))
                if error <= tolerance:
                    return error
            if rows_decide and batch.matrices.n_out <= MOST_ROWS:
                by_rows = self._every_row(linearization, batch.matrices, seed)
                if by_rows <= tolerance:
                    return by_rows
        raise self._wrong(plan, error)

    def _tolerance(self, linearization: Linearized) -> float:
        reduced = self._seen(linearization).reduced(linearization.dtype)
        return row_tolerance(linearization.dtype, self._request.precision, reduced)

    def _rounding(self, linearization: Linearized) -> torch.dtype:
        """The coarsest dtype that the model computes in."""
        reduced = self._seen(linearization).reduced(linearization.dtype)
        return linearization.dtype if reduced is None else getattr(torch, reduced)

    def _wrong(self, plan: Plan, error: float) -> JacliError:
        if plan_is_reference(plan):
            return mixing_error(
                self._problem.network.module,
                "the gradients of samples are others where the rest of the batch has other cotangents",
            )
        apart = (
            f"Its rows differ from plain reverse passes by {error:.1e} (relative)."
            if math.isfinite(error)
            else "Its rows are finite where those of plain reverse passes are not, or the other way round."
        )
        return MethodError(
            f"The method {plan.method} is wrong on this model.",
            why=apart,
            hint="Leave --method out, or choose --method loop."
            if self._request.is_exact
            else "Leave --precision out.",
        )

    def _error_of_few(self, plan: Plan, batch: ComputedBatch) -> float:
        """The error at a few samples, by a pass over these alone; if that is too large, of the whole batch.

        Among the other samples, these few may have fallen to the other side of a kink: then their outputs
        differ, too, and only a pass over the whole batch can tell.
        """
        if self._problem.shapes.fixed_batch is not None:
            return self._checked(plan, batch, cotangent_error)
        self._history.few.begin()
        seed = self._seed(batch)
        count = min(_FEW_SAMPLES, batch.count)
        start = seed % (batch.count - count + 1)
        index = torch.arange(start, start + count, device=batch.linearization.device)
        with translating(lambda error: batch_failure(count, error)):
            some = batch.linearization.at(index)
            error = cotangent_error(some.tape(), batch.matrices.take(slice(start, start + count)), seed=seed)
            same = same_outputs(some.outputs, batch.linearization.outputs[index])
        self._history.few.end()
        if same and error <= self._tolerance(batch.linearization):
            return error
        error = self._checked(plan, batch, cotangent_error)
        self._check_company(plan, batch)
        return error


def now_and_then(number: int) -> bool:
    """Whether a batch is the first, the second, the fourth, the eighth, ...; counted from 1.

    >>> [number for number in range(1, 20) if now_and_then(number)]
    [1, 2, 4, 8, 16]
    """
    return number & (number - 1) == 0


def plan_is_reference(plan: Plan) -> bool:
    """Whether a plan consists of the plain reverse passes that all others are checked with."""
    match plan:
        case WholePlan(filled_by=method):
            return method.is_reference
        case ChainPlan() | MatrixFreePlan():
            return False


def _check_graph_outputs(batch: ComputedBatch) -> None:
    """Compare the outputs of the linear program at a batch with those of the model itself."""
    linearization = batch.linearization
    itself = linearization.at(torch.arange(linearization.batch, device=linearization.device))
    with translating(lambda error: batch_failure(linearization.batch, error)):
        same = same_outputs(itself.outputs, linearization.outputs)
    if not same:
        raise no_program(OTHER_OUTPUTS)
