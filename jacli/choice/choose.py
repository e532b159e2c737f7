"""The choice of a run's plan, by measurement on its first samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jacli.choice.cutting import Cutting, NotServedError
from jacli.choice.fallback_notes import fallback_notes
from jacli.choice.lazy_trace import MAX_PLAIN_VECTORS, LazyTrace
from jacli.choice.matrix_free import MatrixFree, MeasuringProducts, measure_products
from jacli.choice.measure import OUT_OF_MEMORY, Measuring, measure
from jacli.choice.problem import Graph, Problem
from jacli.choice.refusals import check_asked
from jacli.choice.repeated_plan import repeated_plan
from jacli.choice.sizes import Sizes, load_batching_rules
from jacli.errors import JacliError, MethodError, OutOfMemoryError, UsageError
from jacli.errors.printable import capitalised, count_of
from jacli.network import CutNetwork, LinearProgram, NotTraceableError
from jacli.options.methods import CHAIN, METHODS, PROGRAM_METHODS, Method, trace_refusal
from jacli.plans.plan import (
    ChainPlan,
    MatrixFreePlan,
    Measured,
    Plan,
    WholePlan,
    whole_plan,
)
from jacli.plans.request import Request
from jacli.plans.search import Budget, methods_in_order
from jacli.verify import check_batch

CLEARLY_FASTER = 0.7
"""A cut network that takes less than this part of a first size's time is not compared with more of them."""


@dataclass(frozen=True)
class Choice:
    """Plans in the order in which to try them on the first batch.

    Attributes:
        plans: The fastest first; one at least.
        program: The traced network as a linear program; None where no plan runs it.
        cut: The network cut; None where no plan runs it.
        notes: What the user must be told.
        not_traced: Why no graph of the network was taken; None if one was, or was not to be.
        not_cut: Why the network is not cut; None if it is, or was not to be.
        taken_over: Whether the plan is that of an earlier run or call.
    """

    plans: tuple[Plan, ...]
    program: LinearProgram | None = None
    cut: CutNetwork | None = None
    notes: tuple[str, ...] = ()
    not_traced: str | None = None
    not_cut: str | None = None
    taken_over: bool = False

    def graph_of(self, plan: Plan) -> Graph:
        """The traced network that a plan runs; None for methods that run the model itself."""
        match plan:
            case ChainPlan():
                return self.cut
            case WholePlan(filled_by=method):
                return self.program if method.runs_program else None
            case MatrixFreePlan(primitive=primitive):
                return self.program if primitive == "program" else None

    def noted(self, plan: Plan) -> Plan:
        """The plan, with a note of the operators that its program leaves to autograd, as far as known."""
        notes = dict.fromkeys((*plan.notes, *fallback_notes(plan, self.graph_of(plan))))
        return replace(plan, notes=tuple(notes))


def choose(
    request: Request,
    problem: Problem,
    *,
    kept: tuple[Plan, Graph] | None = None,
    timed: bool = False,
    measure: Measuring = measure,
    measure_products: MeasuringProducts = measure_products,
) -> Choice:
    """Choose plans for a problem.

    Args:
        request: What is asked.
        problem: What is to be computed.
        kept: A plan and the traced network, where it runs that, of an earlier run of the same problem:
            taken over without measuring.
        timed: Measure even where there is nothing to choose: somebody wants to know the seconds.
        measure: Times a candidate.
        measure_products: Times products with vectors, where no matrix need be formed.

    Raises:
        MethodError: No method can serve the model.
        OutOfMemoryError: One sample with one vector per pass is too large.
        OutputError: The plan that must be followed cannot be.
        UsageError: The batch size asked for is not possible.
    """
    search = _Search(request, problem, timed=timed, measure=measure, measure_products=measure_products)
    return search.choice(kept)


class _Search:
    """One search for a plan; the arguments are those of `choose`."""

    def __init__(
        self,
        request: Request,
        problem: Problem,
        *,
        timed: bool,
        measure: Measuring,
        measure_products: MeasuringProducts,
    ) -> None:
        self._refused = check_asked(request, problem.shapes)
        self._request = request
        self._problem = problem
        self._timed = timed
        self._measure = measure
        self._measured: list[Measured] = []
        self._budget = Budget(request.search_share)
        self._trace = LazyTrace(request, problem, self._budget)
        self._sizes = Sizes(request, problem, self._trace, self._budget, measure)
        self._matrix_free = MatrixFree(request, problem, self._trace, self._measured, measure_products)
        self._notes: list[str] = []
        self._not_cut: str | None = None

    def choice(self, kept: tuple[Plan, Graph] | None) -> Choice:
        """What is chosen."""
        earlier = self._taken_over(kept)
        plans = [earlier] if earlier is not None else self._by_measurement()
        if not plans:
            raise self._nothing_serves()
        found = Choice(
            tuple(plans),
            program=self._trace.program,
            cut=self._trace.cut_network,
            notes=tuple(self._notes),
            not_traced=self._trace.not_traced,
            not_cut=self._not_cut,
            taken_over=earlier is not None,
        )
        return replace(found, plans=tuple(map(found.noted, plans)))

    def _taken_over(self, kept: tuple[Plan, Graph] | None) -> Plan | None:
        """The plan of an earlier call or of the result file that is repeated; None if there is none."""
        if kept is not None:
            plan, graph = kept
            self._trace.take_over(graph)
            return replace(plan.counted(self._problem.shapes), seconds=None, notes=())
        if self._request.earlier_plan is None:
            return None
        plan_or_why = repeated_plan(self._request, self._problem.shapes, self._trace)
        if isinstance(plan_or_why, str):
            self._notes.append(f"the plan of the run that is repeated was not taken over: {plan_or_why}")
            return None
        return plan_or_why

    def _by_measurement(self) -> list[Plan]:
        request, method = self._request, METHODS.get(self._request.method)
        plans: list[Plan]
        if request.spectrum == "krylov":
            plans = self._matrix_free.required()
        elif request.needs_chain:
            plans = self._cut_plan()
        elif not request.is_exact or (method is not None and method.runs_program):
            self._trace.require(trace_refusal(fixed_batch=self._problem.shapes.fixed_batch))
            plans = self._with_cut(math.inf) if request.is_free else self._whole()
        else:
            plans = self._of_all() if request.is_free else self._whole()
        notes = [f"not traced: {self._trace.not_traced}"] if self._trace.not_traced else []
        notes += [f"not cut: {self._not_cut}"] if self._not_cut else []
        alone = len(plans) == 1 and len({m.name for m in self._measured}) == 1
        if alone and request.is_free and request.spectrum != "krylov":
            plans = [replace(plans[0], why="not compared with others: the run is too short")]
        plans.sort(key=lambda plan: plan.seconds or 0.0)
        if request.spectrum == "auto":
            plans = [*self._matrix_free.instead_of(plans), *plans]
        return [replace(plan, measured=tuple(self._measured), notes=tuple(notes)) for plan in plans]

    def _of_all(self) -> list[Plan]:
        """Of methods that run the model itself; of programs and cuts, where tracing pays."""
        refused = self._refused
        self._refused = {**refused, **dict.fromkeys(PROGRAM_METHODS, "not traced")}
        first = self._first_estimate()
        tried = self._trace.worth_tracing()
        if tried and self._trace.try_to_trace():
            self._refused = refused
            return self._with_cut(first)
        plans = self._whole()
        if not plans and not tried and not refused[CHAIN] and self._trace.try_to_trace():
            self._refused = refused
            plans = self._with_cut(math.inf)  # nothing else fits
        return plans

    def _with_cut(self, first: float) -> list[Plan]:
        """Of everything, a graph being there; ``first``: seconds of the run by the first plain size.

        A cut is looked for before the other sizes and methods are: it may save more than they.
        """
        first = min(first, self._first_estimate())
        shapes = self._problem.shapes
        worth_cutting = min(shapes.n_in, shapes.n_selected) > MAX_PLAIN_VECTORS
        cut = self._cut_plan() if worth_cutting else []
        clearly = bool(cut) and (cut[0].seconds or 0.0) < CLEARLY_FASTER * first
        plans = self._whole(first_only=clearly)
        return [*plans, *self._without_graph(plans), *cut]

    def _without_graph(self, plans: list[Plan]) -> list[Plan]:
        """The best method tried that runs the model itself, where none is among the plans.

        A wrong graph spoils all others.
        """
        if not all(METHODS[plan.method].runs_program for plan in plans):
            return []
        tried = self._sizes.tried.values()
        served = [m for m in tried if not METHODS[m.method].runs_program and m.failure is None]
        fitting = [m for m in served if self._sizes.fits(m, 1)]
        if not fitting:
            return []
        self._measured += [m for m in served if m not in self._measured]
        return [self._measured_plan(min(fitting, key=self._sizes.run_seconds))]

    def _first_estimate(self) -> float:
        """Seconds of the run with the first size of the first method; infinite where that fails."""
        method = methods_in_order(self._problem.shapes, self._request, self._refused)[0]
        return self._sizes.run_seconds(self._sizes.first(method))

    def _nothing_serves(self) -> JacliError:
        self._check_first_batch()
        shapes, memory = self._problem.shapes, self._problem.memory
        # Of parts of a cut network one may have been served where the others were not.
        per_method = [m for m in self._measured if m.link is None]
        failures = {m.method: m.failure for m in per_method if m.failure}
        if all(m.failure not in (None, OUT_OF_MEMORY) for m in per_method):
            listed = "; ".join(f"{name}: {why}" for name, why in failures.items())
            if not self._request.is_exact:
                return MethodError(
                    "The network has no linear program.", why=listed, hint="Leave --precision out."
                )
            return MethodError(
                "No method works with this model.", why=listed, hint="Give --method loop to see its error."
            )
        least = min((m.bytes_held for m in self._measured if m.bytes_held), default=0)
        why_whole = self._not_cut or self._trace.not_traced
        cut = f"; not cut: {why_whole}" if why_whole else ""
        return OutOfMemoryError(
            "Out of memory: not even one sample with one vector per pass fits.",
            why=f"That holds {least:,} bytes and the Jacobian of a sample {shapes.sample_bytes:,}; "
            f"{memory.limit:,} may be held on {memory.device}{cut}.",
            hint="Give more --memory, or differentiate fewer outputs (--classes).",
        )

    def _check_first_batch(self) -> None:
        """Where every method fails, the model itself may fail on batches of that size: then it says so."""
        problem = self._problem
        for size in {m.batch_size for m in self._measured if m.failure not in (None, OUT_OF_MEMORY)}:
            linearization = problem.linearize(problem.points(0, size))
            check_batch(
                linearization,
                problem.network.module,
                seed=self._request.seed,
                alone=1,
                fixed_batch=problem.shapes.fixed_batch is not None,
            )

    def _whole(self, *, first_only: bool = False) -> list[Plan]:
        """The best sizes of every method that applies; or the first size of the first that serves."""
        problem, best = self._problem, math.inf
        plans: list[Plan] = []
        for method in methods_in_order(problem.shapes, self._request, self._refused):
            asked = self._request.method == method.name
            if plans and (first_only or not self._budget.left_for(0.0)):
                break
            sizes = self._sizes.ladder(method)
            unlimited = not (self._timed or problem.memory.asked)
            if asked and len(sizes) == 1 and unlimited:
                return [self._plan(method, sizes[0].batch_size, sizes[0].chunk_size)]
            tried = [self._sizes.first(method)] if first_only else self._sizes.climb(method, best=best)
            self._measured += tried
            fitting = [m for m in tried if m.failure is None and self._sizes.fits(m, 1)]
            if not fitting and tried[0].failure in (None, OUT_OF_MEMORY):
                fitting = self._descend(method, tried[0])
            if fitting:
                chosen = min(fitting, key=self._sizes.run_seconds)
                best = min(best, self._sizes.run_seconds(chosen))
                plans.append(self._measured_plan(chosen))
            elif asked and tried[0].failure not in (None, OUT_OF_MEMORY):
                self._check_first_batch()
                # The first batch meets what is wrong with the method, and says it as an error.
                plans.append(self._plan(method, tried[0].batch_size, tried[0].chunk_size))
        return plans

    def _descend(self, method: Method, tried: Measured) -> list[Measured]:
        """A smaller size that fits; empty if there is none."""
        smaller = self._sizes.descend(method, tried)
        self._measured += smaller
        last = smaller[-1] if smaller else tried
        if last.failure is None and self._sizes.fits(last, 1):
            return [last]
        # A share of what is free is a guess, which one may try to exceed; what was asked for is not.
        return [] if self._problem.memory.asked or last.failure else [last]

    def _measured_plan(self, measured: Measured) -> WholePlan:
        plan = self._plan(METHODS[measured.method], measured.batch_size, measured.chunk_size)
        return replace(plan, seconds=self._sizes.run_seconds(measured))

    def _plan(self, method: Method, batch_size: int, chunk_size: int) -> WholePlan:
        return whole_plan(
            method,
            self._why(method),
            self._problem.shapes,
            self._request,
            batch_size=batch_size,
            chunk_size=chunk_size,
        )

    def _why(self, method: Method) -> str:
        if self._request.method == method.name:
            return "asked for"
        if method.by_columns:
            shapes = self._problem.shapes
            return f"{count_of(shapes.n_in, 'input')}, {count_of(shapes.n_selected, 'output')}"
        return "the fastest measured"

    def _cut_plan(self) -> list[Plan]:
        """The cut network's plan; an error where there is none and nothing else will do."""
        request = self._request
        try:
            cut = self._trace.cut()
            if request.is_exact:  # its links are tried by methods that run the model itself too
                for method in METHODS.values():
                    load_batching_rules(method, self._budget)
            return [Cutting(request, self._problem, cut, self._budget, self._measured, self._measure).plan()]
        except OutOfMemoryError as failure:
            if request.needs_chain:
                raise
            self._not_cut = failure.reason
        except (NotTraceableError, NotServedError) as failure:
            if request.needs_chain:
                raise self._must_be_cut(str(failure)) from failure
            self._not_cut = str(failure)
        return []

    def _must_be_cut(self, why: str) -> JacliError:
        if self._request.keep == "factors":
            return UsageError(
                "--save factors is not possible with this model.",
                why=f"There are no two narrow factors: {why}.",
                hint="Give --save full or none.",
            )
        return MethodError(
            f"The method {CHAIN} does not work with this model.",
            why=f"{capitalised(why)}.",
            hint="Leave --method out, or choose another.",
        )
