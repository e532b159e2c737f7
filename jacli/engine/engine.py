"""From a network and its points to Jacobians, batch by batch: what files and the Python API share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from torch import Tensor

from jacli.choice.choose import Choice, choose
from jacli.choice.halving import halving
from jacli.choice.problem import Graph, Points, Problem
from jacli.device.hardware import is_gpu
from jacli.device.memory import release_cached_memory
from jacli.engine.batch_checks import BatchChecks, CheckHistory, now_and_then, plan_is_reference
from jacli.engine.batch_graph import batch_graphs
from jacli.engine.computed_batch import ComputedBatch
from jacli.errors import MethodError, OutOfMemoryError
from jacli.errors.printable import count_of
from jacli.linear_maps import DenseMap, UnformedMap
from jacli.methods import factors_of, fill, primitive_map
from jacli.network import CutNetwork, Linearized, LinearProgram
from jacli.options.methods import REFERENCE, Method
from jacli.plans.plan import ChainPlan, MatrixFreePlan, Plan, WholePlan, whole_plan
from jacli.plans.request import Request
from jacli.spectrum import largest_singular_triples


@dataclass(frozen=True)
class Chosen:
    """A plan that has proved itself on the first batch.

    Attributes:
        plan: The plan.
        row_error: Worst relative error of its checked rows; 0 for plain passes, which they are checked with.
        passed_over: Methods tried before, with what was wrong with each.
        graph: The traced network, where the method runs it.
    """

    plan: Plan
    row_error: float = 0.0
    passed_over: Mapping[str, str] = field(default_factory=dict)
    graph: Graph = None

    def to_dict(self) -> dict[str, object]:
        """For the result file's ``plan``."""
        return {
            **self.plan.to_dict(),
            "row_check_error": self.row_error,
            "passed_over": dict(self.passed_over),
        }


OutBuffer = Callable[[Plan, int, int], Tensor | None]
"""Where the dense matrices of some samples go, ``(count, n_out, n_in)``: plan, first sample, count."""


class Engine:
    """Computes the batches of a problem under the plans of a choice.

    Args:
        request: What is asked.
        problem: What is to be computed.
        choice: Plans for it.
        out_buffer: Memory that dense matrices are written into; a batch has its own where it is None.
        start: First sample; those before it are done.
        proven: The plan they were done with, which is continued.
        history: What an earlier call with the same module, graph and plan has checked.

    Attributes:
        notes: What happened that the user must be told.
        held: Most that was held by the first batch, in bytes, beside results that are kept.
        chosen: The plan in force, once the first batch is done.
        accepted: The one that the first batch was computed with.
    """

    def __init__(
        self,
        request: Request,
        problem: Problem,
        choice: Choice,
        out_buffer: OutBuffer | None = None,
        *,
        start: int = 0,
        proven: Chosen | None = None,
        history: CheckHistory | None = None,
    ) -> None:
        self._request = request
        self._problem = problem
        self._choice = choice
        self._out_buffer = out_buffer
        self._start = start
        self._number = 0
        self._checks = BatchChecks(request, problem, history)
        self.notes: list[str] = []
        self.held = 0
        self.chosen = self.accepted = proven

    def batches(self) -> Iterator[ComputedBatch]:
        """All batches, in order; what does not fit in memory is tried again in halves.

        A batch is to be let go before the next one is asked for, or both are held.

        Raises:
            MethodError: No plan serves the first batch, or none serves a later one.
            ModelError: Samples are not independent of one another, or of their place in the batch.
            OutOfMemoryError: One sample with one vector per pass does not fit.
        """
        n_samples = self._problem.shapes.n_samples
        start = self._start
        while start < n_samples:
            # What a batch holds does not change from one to the next: it is measured now and then.
            self._number += 1
            watch = self._problem.memory.peak() if now_and_then(self._number) else nullcontext([0])
            with watch as held:
                batch = self._first(start) if self.chosen is None else self._next(start)
            batch.linearization.close()
            start += batch.count
            beside = held[0] - self._kept_bytes(start)
            self.held = self.held or beside  # of the first batch, when none waits to be written yet
            yield batch
            del batch
            self._stay_within(beside, start < n_samples)

    def _kept_bytes(self, count: int) -> int:
        """Bytes of the result of the first samples, where it is kept: it does not count as held."""
        return count * self._problem.shapes.sample_bytes if self._out_buffer else 0

    @property
    def _free(self) -> bool:
        """Whether plain passes may take the place of what was chosen."""
        request = self._request
        return request.is_free and request.is_exact and request.keep != "factors"

    def _first(self, start: int) -> ComputedBatch:
        """A batch by the first plan that serves it and whose rows are those of plain passes."""
        passed_over: dict[str, str] = {}
        last: MethodError | None = None
        for plan in self._choice.plans:
            try:
                plan, batch, error = self._fitting(plan, start)
            except MethodError as failure:
                passed_over[plan.method] = failure.summary
                last = failure
                continue
            plan, graph = self._choice.noted(plan), self._choice.graph_of(plan)
            self.chosen = Chosen(plan, error, passed_over, graph)
            self.accepted = self.chosen
            return batch
        if self._choice.taken_over:
            # The plan of an earlier run or call no longer serves: choose as if there had been none.
            self.notes += [f"an earlier plan did not serve: {why}" for why in passed_over.values()]
            self._choice = choose(replace(self._request, earlier_plan=None), self._problem)
            return self._first(start)
        assert last is not None  # there is a plan at least
        if not self._free or REFERENCE.name in passed_over:
            raise last
        return self._first_by_plain_passes(passed_over, start)

    def _plain(self, plan: Plan, why: str) -> WholePlan:
        """Plain passes in batches of a plan's size."""
        return whole_plan(
            REFERENCE,
            why,
            self._problem.shapes,
            self._request,
            batch_size=plan.batch_size,
            chunk_size=1,
        )

    def _first_by_plain_passes(self, passed_over: dict[str, str], start: int) -> ComputedBatch:
        """A batch by plain passes, where the choice is free and all that was chosen is wrong."""
        wrong = self._choice.plans[0]
        plain = replace(self._plain(wrong, "all others tried were wrong"), measured=wrong.measured)
        plan, batch, error = self._fitting(plain, start)
        self.chosen = self.accepted = Chosen(plan, error, passed_over, None)
        return batch

    def _next(self, start: int) -> ComputedBatch:
        """A later batch; by another plan where the one in force does not serve there."""
        assert self.chosen is not None
        try:
            plan, batch, _ = self._fitting(self.chosen.plan, start)
        except MethodError as failure:
            return self._instead(self.chosen.plan, start, failure)
        self._continue_with(plan)
        return batch

    def _instead(self, plan: Plan, start: int, failure: MethodError) -> ComputedBatch:
        """One batch by plain passes, which are right wherever the network has a derivative."""
        request = self._request
        if isinstance(plan, MatrixFreePlan) and request.spectrum == "auto":
            return self._with_matrices(start, failure)
        asked_for = not request.is_free and request.method != REFERENCE.name
        if plan_is_reference(plan) or asked_for or request.keep == "factors":
            raise self._stopped(plan, start, failure)
        self._checks.doubt()
        _, batch, _ = self._fitting(self._plain(plan, plan.why), start)
        stop = start + batch.count - 1
        self.notes.append(f"samples {start} to {stop} by loop, not {plan.method}: {failure.why}")
        return batch

    def _with_matrices(self, start: int, failure: MethodError) -> ComputedBatch:
        """A batch, and all further ones, by a plan that forms the matrices."""
        self._choice = choose(replace(self._request, spectrum="dense", earlier_plan=None), self._problem)
        self._checks = BatchChecks(self._request, self._problem)
        self.notes.append(f"from sample {start} on with matrices: {failure.why}")
        return self._first(start)

    def _stopped(self, plan: Plan, start: int, failure: MethodError) -> MethodError:
        """The method in force fails at a later batch, and no other may take its place."""
        if not self._request.written:
            hint = "Leave method out: what it cannot do is then computed by loop."
        elif self._request.keep == "factors":
            hint = "Start anew with --no-resume, and with --save full or none: other methods give no factors."
        elif plan_is_reference(plan):
            hint = "Leave those samples out with --samples; what is done cannot be finished with them."
        else:
            hint = (
                "Run the same command with --method auto: it keeps what is done, and computes by loop what "
                f"{plan.method} cannot."
            )
        return MethodError(
            f"The method {plan.method} works up to sample {start - 1}, and fails from there on.",
            why=failure.summary,
            hint=hint,
        )

    def _continue_with(self, plan: Plan) -> None:
        assert self.chosen is not None
        if plan is not self.chosen.plan:
            self.chosen = replace(self.chosen, plan=plan)

    def _fitting(self, plan: Plan, start: int) -> tuple[Plan, ComputedBatch, float]:
        """The batch by the plan, or by one with half the sizes, and so on, if memory runs out.

        And the worst error that its checks found (`BatchChecks`).
        """

        def checked(plan: Plan) -> tuple[ComputedBatch, float]:
            batch = self._batch(plan, start)
            error = self._checks.error(plan, batch, taken_over=self._choice.taken_over)
            return self._searched(plan, batch), error

        def note(plan: Plan, smaller: Plan) -> None:
            self.notes.append(f"out of memory: {_sizes(plan)} did not fit, going on with {_sizes(smaller)}")

        plan, (batch, error) = halving(
            plan,
            checked,
            smaller=self._smaller,
            release=self._release,
            give_up=self._out_of_memory,
            note=note,
        )
        return plan, batch, error

    def _smaller(self, plan: Plan) -> Plan | None:
        return plan.smaller(self._problem.shapes)

    def _batch(self, plan: Plan, start: int) -> ComputedBatch:
        problem, precision = self._problem, self._request.precision
        count = min(plan.batch_size, problem.shapes.n_samples - start)
        points, graph = problem.points(start, plan.batch_size), self._choice.graph_of(plan)
        match plan:
            case ChainPlan(factorization=factorization):
                assert isinstance(graph, CutNetwork)  # what the choice has for a chain
                cut = problem.cut(points, graph, precision=precision)
                return ComputedBatch(start, count, cut, factors_of(cut, factorization))
            case WholePlan(filled_by=method, vectors_per_pass=chunk_size):
                out = self._out_buffer(plan, start, count) if self._out_buffer else None
                linearization, dense = self._filled(method, chunk_size, points, graph, out)
                return ComputedBatch(start, count, linearization, DenseMap(dense))
            case MatrixFreePlan(primitive=primitive, vectors_per_pass=vectors):
                linearization = problem.linearize(points, graph, precision=precision)
                products = primitive_map(primitive, linearization)
                return ComputedBatch(start, count, linearization, UnformedMap(products, vectors))

    def _searched(self, plan: Plan, batch: ComputedBatch) -> ComputedBatch:
        """The batch with its singular triples, where the plan forms no matrix.

        Raises:
            MethodError: They did not converge in the time that the matrices take.
        """
        if not isinstance(plan, MatrixFreePlan):
            return batch
        request, batch_size = self._request, batch.linearization.batch
        triples = largest_singular_triples(
            batch.matrices,
            plan.singular_values,
            rtol=request.rtol,
            seed=request.seed,
            samples=range(batch.start, batch.start + batch_size),
            vectors_per_pass=plan.vectors_per_pass,
            max_basis=plan.max_basis,
            max_matvecs=plan.max_matvecs,
            certify=request.certify,
            shrink=self._problem.shapes.fixed_batch is None,
        ).take(slice(batch.count))
        if triples.gave_up.any():
            raise MethodError(
                f"The method {plan.method} does not pay on this model.",
                why=f"Its singular values have not converged after {plan.max_matvecs} products, which take "
                "as long as the matrix.",
                hint="Let the Jacobians be formed.",
            )
        return replace(batch, triples=triples)

    def _filled(
        self, method: Method, chunk_size: int, points: Points, graph: Graph, out: Tensor | None
    ) -> tuple[Linearized, Tensor]:
        """The network at a batch, and its dense Jacobians."""
        problem, precision = self._problem, self._request.precision
        if isinstance(graph, LinearProgram) and is_gpu(points[0].device):
            return batch_graphs(graph).fill(
                lambda points, outputs: problem.linearize(points, graph, outputs, precision=precision),
                points,
                method,
                chunk_size,
                out,
            )
        linearization = problem.linearize(points, graph, precision=precision)
        return linearization, fill(method, linearization, chunk_size=chunk_size, out=out)

    def _stay_within(self, held: int, more: bool) -> None:
        """Halve the batches to come if this one held more than it may."""
        chosen, memory = self.chosen, self._problem.memory
        assert chosen is not None
        if not more or held <= memory.limit:
            return
        smaller = self._smaller(chosen.plan)
        self._release()
        if smaller is not None:
            self.notes.append(
                f"{held:,} bytes were held, {memory.limit:,} are allowed: going on with {_sizes(smaller)}"
            )
            self._continue_with(smaller)

    def _release(self) -> None:
        if self.chosen is not None and isinstance(self.chosen.graph, LinearProgram):
            batch_graphs(self.chosen.graph).clear()
        gc.collect()
        release_cached_memory(self._problem.memory.device)

    def _out_of_memory(self, plan: Plan, said: str) -> OutOfMemoryError:
        shapes, memory = self._problem.shapes, self._problem.memory
        return OutOfMemoryError(
            f"Out of memory with {_sizes(plan)}: not even that fits.",
            why=f"The Jacobian of a sample takes {shapes.sample_bytes:,} bytes, "
            f"{memory.limit:,} may be held on {memory.device}; {said}.",
            hint="Take fewer outputs (--classes), more --memory, or another device; or --save factors.",
        )


def _sizes(plan: Plan) -> str:
    match plan:
        case (
            WholePlan(vectors_per_pass=vectors)
            | ChainPlan(largest_chunk=vectors)
            | MatrixFreePlan(vectors_per_pass=vectors)
        ):
            samples = count_of(plan.batch_size, "sample")
            return f"{samples} per batch and {count_of(vectors, 'vector')} per pass"
