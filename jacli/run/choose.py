"""The choice of a run's method and sizes, by measurement on its first samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from time import monotonic

from jacli.config import AUTOGRAD_METHODS, COLUMN_METHODS, PROGRAM_METHODS
from jacli.errors import JacliError, MethodError, OutOfMemoryError, OutputError, UsageError
from jacli.methods import METHODS, load_method
from jacli.network import CutNetwork, NotTraceableError, Program, TracedNetwork
from jacli.plan import FactoredPlan, Measured, Plan, check_batch_size, make_plan, with_counts
from jacli.run.as_traced import as_traced
from jacli.run.cutting import Cutting
from jacli.run.measure import OUT_OF_MEMORY, load_rules, measure, seconds_per_byte
from jacli.run.task import Graph, Task, cut_network, program_of
from jacli.search import Budget, Candidate, climb, ladder, methods_in_order, sized
from jacli.verify import check_alone

_CLEARLY = 0.7
"""A cut network that takes less than this part of a first size's time is not compared with more of them."""

_FEW = 2
"""Outputs (or inputs) up to which a few plain passes are all there is to do."""

_MODULE_SECONDS = 0.005
"""Of the two traces a network, a module without modules inside: 0.1 to 1 s in all."""


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
        not_traced: Why no graph of it was taken; None if one was, or was not to be.

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
        check_batch_size(task.shapes, task.config)
        self._task = task
        self._timed = timed
        self._continued = continued
        self._refused = refusals(task.shapes.fixed_batch)
        self._traced: TracedNetwork | None = None
        self._cut: CutNetwork | None = None
        self._program: Program | None = None
        require_served(task.config.method, self._refused)
        self._measured: list[Measured] = []
        self._tried: dict[Candidate, Measured] = {}
        self._budget = Budget(task.share)
        self.notes: list[str] = []
        self.not_cut: str | None = None
        self.not_traced: str | None = None
        self.plans = self._taken_over(kept)
        self.taken_over = bool(self.plans)
        if not self.plans:
            self.plans = self._by_measurement()
        if not self.plans:
            raise self._nothing_serves()

    def graph_of(self, plan: Plan) -> Graph:
        """The traced network that a plan's method runs; None for plain methods."""
        if plan.factored:
            return self._cut
        return self._program if plan.method in PROGRAM_METHODS else None

    def _taken_over(self, kept: tuple[Plan, Graph] | None) -> list[Plan]:
        """The plan of an earlier call or of the result file that is repeated; empty if there is none."""
        task = self._task
        if kept is not None:
            plan, graph = kept
            self._cut = graph if isinstance(graph, CutNetwork) else None
            self._program = graph if isinstance(graph, Program) else None
            counted = with_counts(plan, task.shapes, load_method(plan.method).passes)
            return [replace(counted, seconds=None, notes=())]
        if task.config.repeated_plan is None:
            return []
        try:
            asked = task.config.repeated_plan
            factored = FactoredPlan.from_dict(asked["factored"]) if asked.get("factored") else None
            sizes = int(asked["batch_size"]), int(asked["chunk_size"])
            if min(sizes) < 1 or (asked["method"] == "factored") != (factored is not None):
                raise ValueError("its sizes are no sizes")
            if asked["method"] in PROGRAM_METHODS:
                self._trace()
            if factored:
                self._cut = cut_network(task, self._trace())
                cuts = tuple((cut.name, cut.width) for cut in self._cut.cuts)
                if cuts != tuple(zip(factored.cuts, factored.widths[1:-1], strict=True)):
                    raise ValueError("the network is cut elsewhere")
            why = str(asked["why"]) if self._continued else "as in the run that is repeated"
            plan = self._plan(str(asked["method"]), why, *sizes, factored)
            measured = tuple(Measured(**tried) for tried in asked.get("measured", ()))
            notes = tuple(map(str, asked.get("notes", ()))) if self._continued else ()
            return [replace(plan, seconds=asked.get("seconds"), measured=measured, notes=notes)]
        except (KeyError, TypeError, ValueError, NotTraceableError) as failure:
            if self._continued:
                raise OutputError(
                    "The plan of the unfinished run cannot be followed here.",
                    why=f"{failure}.",
                    todo="Go on where it began (the same versions), or start anew with --no-resume.",
                ) from failure
            self.notes.append(f"the plan of the run that is repeated was not taken over: {failure}")
            return []

    def _by_measurement(self) -> list[Plan]:
        config = self._task.config
        if config.method == "factored" or config.save == "factors":
            plans = self._factored()
        elif config.method in PROGRAM_METHODS or config.precision != "ieee":
            self._require_program()
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
        tried = self._worth_tracing()
        if tried and self._try_to_trace():
            self._refused = refused
            return self._with_cut(first)
        plans = self._plain()
        if not plans and not tried and not refused["factored"] and self._try_to_trace():
            self._refused = refused
            plans = self._with_cut(math.inf)  # nothing else fits
        return plans

    def _with_cut(self, first: float) -> list[Plan]:
        """Of everything, a graph being there; ``first``: seconds of the run by the first plain size.

        A cut is looked for before the other sizes and methods are: it may save more than they.
        """
        first = min(first, self._first_estimate())
        shapes = self._task.shapes
        cut = self._factored() if min(shapes.n_in, shapes.n_selected) > _FEW else []
        clearly = bool(cut) and (cut[0].seconds or 0.0) < _CLEARLY * first
        plans = self._plain(first_only=clearly)
        return plans + self._without_graph(plans) + cut

    def _without_graph(self, plans: list[Plan]) -> list[Plan]:
        """The best autograd method tried, where none is among the plans: a wrong graph spoils all others."""
        if any(plan.method in AUTOGRAD_METHODS for plan in plans):
            return []
        served = [m for m in self._tried.values() if m.method in AUTOGRAD_METHODS and m.failure is None]
        best = min(filter(lambda m: self._fits(m, 1), served), key=self._run_seconds, default=None)
        if best is None:
            return []
        self._measured += [m for m in served if m not in self._measured]
        plan = self._plan(best.method, self._why(best.method), best.batch_size, best.chunk_size)
        return [replace(plan, seconds=self._run_seconds(best))]

    def _trace(self) -> TracedNetwork:
        """The traced network, and its program; traced at most once.

        Raises:
            NotTraceableError: No graph can be had.
        """
        if self._traced is None:
            began = monotonic()
            self._traced = self._task.trace()
            self._program = program_of(self._traced)
            self._budget.started += monotonic() - began  # whether it pays was thought of before
        return self._traced

    def _try_to_trace(self) -> bool:
        try:
            self._trace()
        except NotTraceableError as failure:
            self.not_traced = str(failure)
        return self._traced is not None

    def _require_program(self) -> None:
        """Trace, where nothing but a program serves.

        Raises:
            MethodError: It cannot be traced.
        """
        require_served("adjoint", self._refused)
        if not self._try_to_trace():
            config = self._task.config
            asked = f"--method {config.method}" if config.method in PROGRAM_METHODS else "--precision"
            raise MethodError(
                "The network does not run as a program.",
                why=f"Of its operators no graph can be had: {self.not_traced}.",
                todo=f"Leave {asked} out: plain methods serve it.",
            )

    def _first_estimate(self) -> float:
        """Seconds of the run with the first size of the first method; infinite where that fails."""
        task = self._task
        name = methods_in_order(task.shapes, task.config, self._refused)[0]
        self._load_rules(name)
        size = next(ladder(name, task.shapes, task.config, most_samples=self._most_samples()))
        self._budget.run_seconds = self._run_seconds(self._try_plain(size, self._budget.patience))
        return self._budget.run_seconds

    def _load_rules(self, name: str) -> None:
        if name in ("vmap", "forward"):
            began = monotonic()
            load_rules()
            self._budget.started += monotonic() - began  # once a process, whatever is chosen

    def _nothing_serves(self) -> JacliError:
        self._check_first_block()
        shapes, memory = self._task.shapes, self._task.memory
        failures = {m.method: m.failure for m in self._measured if m.failure}
        if all(m.failure not in (None, OUT_OF_MEMORY) for m in self._measured):
            listed = "; ".join(f"{name}: {why}" for name, why in failures.items())
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
            check_alone(block, task.network.module, position=size // 2, fixed_batch=fixed)

    def _most_samples(self) -> int:
        wants_values = self._task.config.singular_values != "none"
        task = self._task
        return task.memory.samples(
            task.shapes, singular_values=wants_values, written=task.written and task.keeps_dense
        )

    def _fits(self, measured: Measured, growth: float) -> bool:
        """Whether a candidate so many times the size would fit beside its results."""
        results = min(self._most_samples(), growth * measured.batch_size) * self._task.shapes.sample_bytes
        return results + growth * measured.bytes_held <= self._task.memory.limit

    def _plain(self, *, first_only: bool = False) -> list[Plan]:
        """The best sizes of every plain method that applies; or the first size of the first that serves."""
        task, best = self._task, math.inf
        plans: list[Plan] = []
        for name in methods_in_order(task.shapes, task.config, self._refused):
            if plans and (first_only or not self._budget.left_for(0.0)):
                break
            self._load_rules(name)
            sizes = list(ladder(name, task.shapes, task.config, most_samples=self._most_samples()))
            unlimited = not (self._timed or task.memory.asked)
            if task.config.method == name and len(sizes) == 1 and unlimited:
                return [self._plan(name, "asked for", sizes[0].batch_size, sizes[0].chunk_size)]
            tried = climb(
                iter(sizes[:1] if first_only else sizes),
                self._try_plain,
                self._run_seconds,
                self._budget,
                fits=self._fits,
                best=best,
            )
            tried += [] if first_only else self._all_at_once(name, tried)
            self._measured += tried
            fitting = [m for m in tried if m.failure is None and self._fits(m, 1)]
            if not fitting and tried[0].failure in (None, OUT_OF_MEMORY):
                fitting = self._descend(name, tried[0])
            if fitting:
                chosen = min(fitting, key=self._run_seconds)
                best = min(best, self._run_seconds(chosen))
                plan = self._plan(name, self._why(name), chosen.batch_size, chosen.chunk_size)
                plans.append(replace(plan, seconds=self._run_seconds(chosen)))
            elif task.config.method == name and tried[0].failure not in (None, OUT_OF_MEMORY):
                self._check_first_block()
                # The first block meets what is wrong with the method, and says it as an error.
                plans.append(self._plan(name, self._why(name), tried[0].batch_size, tried[0].chunk_size))
        return plans

    def _all_at_once(self, name: str, tried: list[Measured]) -> list[Measured]:
        """The whole work in one pass, where it fits: then nothing is put together afterwards."""
        task, shapes = self._task, self._task.shapes
        size = Candidate(name, shapes.n_samples, shapes.n_selected)
        last = tried[-1]
        worth = (
            name in ("vmap", "adjoint")
            and shapes.fixed_batch is None
            and task.config.batch_size is None
            and task.config.chunk_size is None
        )
        if (
            not worth
            or last.failure
            or (last.batch_size, last.chunk_size) == (size.batch_size, size.chunk_size)
        ):
            return []
        seconds = min(map(self._run_seconds, tried))
        growth = size.rows / (last.batch_size * last.chunk_size)
        fits = shapes.n_samples <= self._most_samples() and self._fits(last, growth)
        if fits and self._budget.left_for(seconds):
            return [self._try_plain(size, self._budget.patience)]
        return []

    def _descend(self, name: str, tried: Measured) -> list[Measured]:
        """Smaller sizes until one fits; empty if none does."""
        shapes, config = self._task.shapes, self._task.config
        vectors = shapes.n_in if name in COLUMN_METHODS else shapes.n_selected
        rows, measured = tried.batch_size * tried.chunk_size, tried
        while rows > 1:
            rows = max(1, rows // 4)
            smaller = sized(name, rows, shapes, config, vectors=vectors, most_samples=self._most_samples())
            measured = self._try_plain(smaller, 0.0)
            self._measured.append(measured)
            if measured.failure is None and self._fits(measured, 1):
                return [measured]
        # A share of what is free is a guess, which one may try to exceed; what was asked for is not.
        return [] if self._task.memory.asked or measured.failure else [measured]

    def _try_plain(self, candidate: Candidate, patience: float) -> Measured:
        task = self._task
        if candidate not in self._tried:
            self._tried[candidate] = measure(
                candidate,
                lambda size: task.linearize(task.points(0, size), self._graph_for(candidate.method)),
                task.memory,
                patience=patience,
            )
        return self._tried[candidate]

    def _graph_for(self, method: str) -> Graph:
        return self._program if method in PROGRAM_METHODS else None

    @cached_property
    def _seconds_per_byte(self) -> float:
        """Of putting results into place, where they are to be kept."""
        return seconds_per_byte(self._task.memory.device) if self._task.keeps_dense else 0.0

    def _run_seconds(self, measured: Measured) -> float:
        shapes = self._task.shapes
        vectors = shapes.n_in if measured.method in COLUMN_METHODS else shapes.n_selected
        seconds = math.ceil(shapes.n_samples / measured.batch_size) * measured.block_seconds(vectors)
        if measured.chunk_size == vectors and measured.batch_size == shapes.n_samples:
            return seconds  # the only pass yields the result itself
        return seconds + shapes.n_samples * shapes.sample_bytes * self._seconds_per_byte

    def _why(self, name: str) -> str:
        if self._task.config.method == name:
            return "asked for"
        if name in COLUMN_METHODS:
            return f"{self._task.shapes.n_in} inputs, {self._task.shapes.n_selected} outputs"
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

    def _worth_tracing(self) -> bool:
        """Whether tracing takes little of what a program or a cut may save."""
        task = self._task
        if self._refused["factored"] or min(task.shapes.n_in, task.shapes.n_selected) <= _FEW:
            return False
        leaves = sum(1 for part in task.network.module.modules() if not list(part.children()))
        seconds = 0.05 + _MODULE_SECONDS * leaves
        most = max(2.0, 0.05 * self._budget.run_seconds)
        if seconds < 2 * task.share * self._budget.run_seconds and self._budget.spent + seconds < most:
            return True
        self.not_traced = "the run is too short to pay for it"
        return False

    def _factored(self) -> list[Plan]:
        """The cut network's plan; forced, an error where there is none."""
        try:
            self._cut = self._cut or cut_network(self._task, self._trace())
            if self._task.config.precision == "ieee":
                self._load_rules("vmap")  # its links are tried by plain methods too
            return [Cutting(self._task, self._cut, self._budget, self._measured).plan(self._plan)]
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
