"""The choice of a run's method and sizes, by measurement on its first samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from jacli.choice.cutting import Cutting
from jacli.choice.fallback_notes import as_traced
from jacli.choice.lazy_trace import FEW, Graphs
from jacli.choice.measure import OUT_OF_MEMORY
from jacli.choice.problem import Graph, Task
from jacli.choice.recorded_plan import check_plan
from jacli.choice.sizes import Sizes, load_batching_rules
from jacli.errors import JacliError, MethodError, OutOfMemoryError, OutputError, UsageError
from jacli.errors.printable import count_of
from jacli.methods import METHODS, load_method
from jacli.network import NotTraceableError
from jacli.options.config import AUTOGRAD_METHODS, COLUMN_METHODS, PROGRAM_METHODS, RunConfig
from jacli.plans.plan import FactoredPlan, Measured, Plan, Shapes, check_batch_size, make_plan, with_counts
from jacli.plans.search import Budget, methods_in_order
from jacli.verify import check_batch

_CLEARLY = 0.7
"""A cut network that takes less than this part of a first size's time is not compared with more of them."""


def refusals(fixed_batch: int | None) -> dict[str, str | None]:
    """Every method with the reason why it cannot serve this model, or None."""
    return {name: load_method(name).refusal(fixed_batch=fixed_batch) for name in METHODS}


def require_served(method: str, refused: Mapping[str, str | None]) -> None:
    """Refuse by name a method that was asked for and cannot serve the model.

    Raises:
        MethodError: Always with the reason and the methods that remain.
    """
    reason = refused.get(method)
    if reason:
        others = ", ".join(name for name, why in refused.items() if why is None)
        raise MethodError(
            f"The method {method} cannot serve this model.",
            why=f"{reason[0].upper()}{reason[1:]}.",
            todo=f"Leave --method out, or choose one of: {others}.",
        )


def check_asked(shapes: Shapes, config: RunConfig) -> dict[str, str | None]:
    """Refuse a batch size or method that cannot serve the model; gives every method's reason, see `refusals`.

    Raises:
        MethodError: The method asked for cannot serve.
        UsageError: The batch size asked for is not possible.
    """
    check_batch_size(shapes, config)
    refused = refusals(shapes.fixed_batch)
    require_served(config.method, refused)
    return refused


class Choice:
    """Plans in the order in which to try them on the first block.

    Args:
        task: What is to be computed.
        kept: A plan and the traced network, where its method runs that, of an earlier run of the same task:
            taken over without measuring.
        timed: Measure even where there is nothing to choose: somebody wants to know the seconds.
        continued: The plan to be repeated is that of the unfinished file: nothing else will do.

    Attributes:
        plans: The fastest first.
        taken_over: Whether the plan is that of an earlier run or call.
        notes: What the user must be told.
        not_cut: Why the network is not cut; None if it is, or was not to be.

    Raises:
        MethodError: No method can serve the model.
        OutOfMemoryError: One sample with one vector a pass is too large.
        OutputError: The plan of the unfinished file cannot be followed.
        UsageError: The batch size asked for is not possible.
    """

    def __init__(
        self,
        task: Task,
        *,
        kept: tuple[Plan, Graph] | None = None,
        timed: bool = False,
        continued: bool = False,
    ) -> None:
        self._refused = check_asked(task.shapes, task.config)
        self._task = task
        self._timed = timed
        self._continued = continued
        self._measured: list[Measured] = []
        self._budget = Budget(task.share)
        self._graphs = Graphs(task, self._budget)
        self._sizes = Sizes(task, self._graphs, self._budget)
        self.notes: list[str] = []
        self.not_cut: str | None = None
        self.plans = self._taken_over(kept)
        self.taken_over = bool(self.plans)
        if not self.plans:
            self.plans = self._by_measurement()
        if not self.plans:
            raise self._nothing_serves()

    def graph_of(self, plan: Plan) -> Graph:
        """The traced network that a plan's method runs; None for plain methods."""
        return self._graphs.of_plan(plan)

    @property
    def not_traced(self) -> str | None:
        """Why no graph of the network was taken; None if one was, or was not to be."""
        return self._graphs.not_traced

    def _taken_over(self, kept: tuple[Plan, Graph] | None) -> list[Plan]:
        """The plan of an earlier call or of the result file that is repeated; empty if there is none."""
        task = self._task
        if kept is not None:
            plan, graph = kept
            self._graphs.take_over(graph)
            counted = with_counts(plan, task.shapes, load_method(plan.method).passes)
            return [replace(counted, seconds=None, notes=())]
        if task.config.repeated_plan is None:
            return []
        try:
            asked = task.config.repeated_plan
            check_plan(asked)
            factored = FactoredPlan.from_dict(asked["factored"]) if asked.get("factored") else None
            sizes = int(asked["batch_size"]), int(asked["chunk_size"])
            if min(sizes) < 1 or (asked["method"] == "factored") != (factored is not None):
                raise ValueError("its sizes are no sizes")
            if asked["method"] in PROGRAM_METHODS:
                self._graphs.trace()
            if factored:
                cuts = tuple((cut.name, cut.width) for cut in self._graphs.cut().cuts)
                if cuts != tuple(zip(factored.cuts, factored.widths[1:-1], strict=True)):
                    raise ValueError("the network is cut elsewhere")
            why = str(asked["why"]) if self._continued else "as in the run that is repeated"
            plan = self._plan(str(asked["method"]), why, *sizes, factored)
            measured = tuple(Measured(**tried) for tried in asked.get("measured", ()))
            notes = tuple(map(str, asked.get("notes", ()))) if self._continued else ()
            return [replace(plan, seconds=asked.get("seconds"), measured=measured, notes=notes)]
        except (KeyError, TypeError, ValueError, NotTraceableError) as failure:
            if self._continued:
                lacking = isinstance(failure, KeyError)
                raise OutputError(
                    "The plan of the unfinished run cannot be followed here.",
                    why=f"There is no {failure}." if lacking else f"{failure}.",
                    todo="Go on where it began (the same versions), or start anew with --no-resume.",
                ) from failure
            self.notes.append(f"the plan of the run that is repeated was not taken over: {failure}")
            return []

    def _by_measurement(self) -> list[Plan]:
        config = self._task.config
        if config.method == "factored" or config.save == "factors":
            plans = self._factored()
        elif config.method in PROGRAM_METHODS or config.precision != "ieee":
            self._graphs.require(self._refused["adjoint"])
            plans = self._plain() if config.method != "auto" else self._with_cut(math.inf)
        elif config.method != "auto":
            plans = self._plain()
        else:
            plans = self._of_all()
        notes = [f"not traced: {self.not_traced}"] if self.not_traced else []
        notes += [f"not cut: {self.not_cut}"] if self.not_cut else []
        wanted = config.method
        if len(plans) == 1 and len({m.method for m in self._measured}) == 1 and wanted == "auto":
            plans = [replace(plans[0], why="the first in line; the run is too short to try others")]
        return [
            replace(
                plan, measured=tuple(self._measured), notes=(*notes, *as_traced(plan, self.graph_of(plan)))
            )
            for plan in sorted(plans, key=lambda plan: plan.seconds or 0.0)
        ]

    def _of_all(self) -> list[Plan]:
        """Of plain methods, of programs and cuts of the traced network where tracing pays."""
        without_graph = {**self._refused, **dict.fromkeys(PROGRAM_METHODS, "not traced")}
        refused, self._refused = self._refused, without_graph
        first = self._first_estimate()
        tried = self._graphs.worth_it()
        if tried and self._graphs.try_to_trace():
            self._refused = refused
            return self._with_cut(first)
        plans = self._plain()
        if not plans and not tried and not refused["factored"] and self._graphs.try_to_trace():
            self._refused = refused
            plans = self._with_cut(math.inf)  # nothing else fits
        return plans

    def _with_cut(self, first: float) -> list[Plan]:
        """Of everything, a graph being there; ``first``: seconds of the run by the first plain size.

        A cut is looked for before the other sizes and methods are: it may save more than they.
        """
        first = min(first, self._first_estimate())
        shapes = self._task.shapes
        cut = self._factored() if min(shapes.n_in, shapes.n_selected) > FEW else []
        clearly = bool(cut) and (cut[0].seconds or 0.0) < _CLEARLY * first
        plans = self._plain(first_only=clearly)
        return plans + self._without_graph(plans) + cut

    def _without_graph(self, plans: list[Plan]) -> list[Plan]:
        """The best autograd method tried, where none is among the plans: a wrong graph spoils all others."""
        if any(plan.method in AUTOGRAD_METHODS for plan in plans):
            return []
        tried = self._sizes.tried.values()
        served = [m for m in tried if m.method in AUTOGRAD_METHODS and m.failure is None]
        fitting = [m for m in served if self._sizes.fits(m, 1)]
        if not fitting:
            return []
        self._measured += [m for m in served if m not in self._measured]
        return [self._measured_plan(min(fitting, key=self._sizes.run_seconds))]

    def _first_estimate(self) -> float:
        """Seconds of the run with the first size of the first method; infinite where that fails."""
        name = methods_in_order(self._task.shapes, self._task.config, self._refused)[0]
        return self._sizes.run_seconds(self._sizes.first(name))

    def _nothing_serves(self) -> JacliError:
        self._check_first_block()
        shapes, memory = self._task.shapes, self._task.memory
        # Of parts of a cut network one may have been served where the others were not.
        whole = [m for m in self._measured if m.method in METHODS]
        failures = {m.method: m.failure for m in whole if m.failure}
        if all(m.failure not in (None, OUT_OF_MEMORY) for m in whole):
            listed = "; ".join(f"{name}: {why}" for name, why in failures.items())
            if self._task.config.precision != "ieee":
                return MethodError(
                    "No program can serve this model.", why=listed, todo="Leave --precision out."
                )
            return MethodError(
                "No method can serve this model.", why=listed, todo="Give --method loop to see its error."
            )
        least = min((m.bytes_held for m in self._measured if m.bytes_held), default=0)
        cut = f"; not cut: {self.not_cut or self.not_traced}" if self.not_cut or self.not_traced else ""
        return OutOfMemoryError(
            "Out of memory: not even one sample with one vector a pass fits.",
            why=f"That holds {least:,} bytes and the Jacobian of a sample {shapes.sample_bytes:,}; "
            f"{memory.limit:,} may be held on {memory.device}{cut}.",
            todo="Give more --memory, or differentiate fewer outputs (--classes).",
        )

    def _check_first_block(self) -> None:
        """Where every method fails it may be the model that does, on blocks of that size: then it says so."""
        task = self._task
        for size in {m.batch_size for m in self._measured if m.failure not in (None, OUT_OF_MEMORY)}:
            block = task.linearize(task.points(0, size))
            fixed = task.shapes.fixed_batch is not None
            check_batch(block, task.network.module, seed=task.config.seed, alone=1, fixed_batch=fixed)

    def _plain(self, *, first_only: bool = False) -> list[Plan]:
        """The best sizes of every plain method that applies; or the first size of the first that serves."""
        task, best = self._task, math.inf
        plans: list[Plan] = []
        for name in methods_in_order(task.shapes, task.config, self._refused):
            if plans and (first_only or not self._budget.left_for(0.0)):
                break
            sizes = self._sizes.ladder(name)
            unlimited = not (self._timed or task.memory.asked)
            if task.config.method == name and len(sizes) == 1 and unlimited:
                return [self._plan(name, "asked for", sizes[0].batch_size, sizes[0].chunk_size)]
            tried = [self._sizes.first(name)] if first_only else self._sizes.climb(name, best=best)
            self._measured += tried
            fitting = [m for m in tried if m.failure is None and self._sizes.fits(m, 1)]
            if not fitting and tried[0].failure in (None, OUT_OF_MEMORY):
                fitting = self._descend(name, tried[0])
            if fitting:
                chosen = min(fitting, key=self._sizes.run_seconds)
                best = min(best, self._sizes.run_seconds(chosen))
                plans.append(self._measured_plan(chosen))
            elif task.config.method == name and tried[0].failure not in (None, OUT_OF_MEMORY):
                self._check_first_block()
                # The first block meets what is wrong with the method, and says it as an error.
                plans.append(self._plan(name, self._why(name), tried[0].batch_size, tried[0].chunk_size))
        return plans

    def _descend(self, name: str, tried: Measured) -> list[Measured]:
        """A smaller size that fits; empty if there is none."""
        smaller = self._sizes.descend(name, tried)
        self._measured += smaller
        last = smaller[-1] if smaller else tried
        if last.failure is None and self._sizes.fits(last, 1):
            return [last]
        # A share of what is free is a guess, which one may try to exceed; what was asked for is not.
        return [] if self._task.memory.asked or last.failure else [last]

    def _measured_plan(self, measured: Measured) -> Plan:
        name = measured.method
        plan = self._plan(name, self._why(name), measured.batch_size, measured.chunk_size)
        return replace(plan, seconds=self._sizes.run_seconds(measured))

    def _why(self, name: str) -> str:
        if self._task.config.method == name:
            return "asked for"
        if name in COLUMN_METHODS:
            shapes = self._task.shapes
            return f"{count_of(shapes.n_in, 'input')}, {count_of(shapes.n_selected, 'output')}"
        return "the fastest measured"

    def _plan(
        self, method: str, why: str, batch_size: int, chunk_size: int, factored: FactoredPlan | None = None
    ) -> Plan:
        return make_plan(
            method,
            why,
            self._task.shapes,
            self._task.config,
            batch_size=batch_size,
            chunk_size=chunk_size,
            passes=load_method(method).passes,
            factored=factored,
        )

    def _factored(self) -> list[Plan]:
        """The cut network's plan; forced, an error where there is none."""
        try:
            cut = self._graphs.cut()
            if self._task.config.precision == "ieee":
                load_batching_rules("vmap", self._budget)  # its links are tried by plain methods too
            return [Cutting(self._task, cut, self._budget, self._measured).plan(self._plan)]
        except OutOfMemoryError as failure:
            if self._task.config.method == "factored" or self._task.config.save == "factors":
                raise
            self.not_cut = failure.why.rstrip(".")
            return []
        except (NotTraceableError, MethodError) as failure:
            why = failure.why if isinstance(failure, MethodError) else f"{failure}."
            if isinstance(failure, MethodError) and not failure.what:
                failure.what = "The method factored cannot serve this model."
            if self._task.config.save == "factors":
                raise UsageError(
                    "--save factors is not possible with this model.",
                    why=f"There are no two narrow factors: {why}",
                    todo="Give --save full or none.",
                ) from failure
            if self._task.config.method == "factored":
                raise MethodError(
                    "The method factored cannot serve this model.",
                    why=f"{why[0].upper()}{why[1:]}",
                    todo="Leave --method out, or choose another.",
                ) from failure
            self.not_cut = why.rstrip(".")
            return []
