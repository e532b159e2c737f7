"""The traced network that programs and cuts run: taken where that pays, at most once a choice."""

from __future__ import annotations

from time import monotonic

from jacli.choice.problem import Graph, Task, cut_network, program_of
from jacli.errors import MethodError
from jacli.network import CutNetwork, NotTraceableError, Program, TracedNetwork
from jacli.options.config import PROGRAM_METHODS
from jacli.plans.plan import Plan
from jacli.plans.search import Budget

FEW = 2
"""Outputs (or inputs) up to which a few plain passes are all there is to do."""

_MODULE_SECONDS = 0.005
"""Of the two traces a network, a module without modules inside: 0.1 to 1 s in all."""


class Graphs:
    """The network as a graph: whole as a program, or cut.

    Args:
        task: Whose network.
        budget: Of the choice; what tracing takes is no part of it, whether it pays being asked before.

    Attributes:
        not_traced: Why no graph was taken; None if one was, or was not to be.
    """

    def __init__(self, task: Task, budget: Budget) -> None:
        self._task = task
        self._budget = budget
        self._traced: TracedNetwork | None = None
        self._program: Program | None = None
        self._cut: CutNetwork | None = None
        self.not_traced: str | None = None

    def take_over(self, graph: Graph) -> None:
        """That of an earlier call."""
        self._cut = graph if isinstance(graph, CutNetwork) else None
        self._program = graph if isinstance(graph, Program) else None

    def of_plan(self, plan: Plan) -> Graph:
        """What a plan's method runs; None for plain methods."""
        return self._cut if plan.factored else self.of_method(plan.method)

    def of_method(self, method: str) -> Program | None:
        """The program, for the methods that run one."""
        return self._program if method in PROGRAM_METHODS else None

    def trace(self) -> TracedNetwork:
        """The traced network.

        Raises:
            NotTraceableError: No graph can be had.
        """
        if self._traced is None:
            began = monotonic()
            self._traced = self._task.trace()
            self._program = program_of(self._traced)
            self._budget.started += monotonic() - began
        return self._traced

    def cut(self) -> CutNetwork:
        """The network cut where it is narrow.

        Raises:
            NotTraceableError: No graph can be had, or it is nowhere narrow.
        """
        if self._cut is None:
            self._cut = cut_network(self._task, self.trace())
        return self._cut

    def try_to_trace(self) -> bool:
        """Whether a graph can be had; `not_traced` says why not."""
        try:
            self.trace()
        except NotTraceableError as failure:
            self.not_traced = str(failure)
        return self._traced is not None

    def require(self, refusal: str | None) -> None:
        """Trace, where nothing but a program serves.

        Args:
            refusal: Why none does, if that is known.

        Raises:
            MethodError: It cannot be traced.
        """
        if refusal is None and self.try_to_trace():
            return
        why = refusal or f"of its operators no graph can be had: {self.not_traced}"
        config = self._task.config
        asked = f"--method {config.method}" if config.method in PROGRAM_METHODS else "--precision"
        raise MethodError(
            "The network does not run as a program.",
            why=f"{why[0].upper()}{why[1:]}.",
            todo=f"Leave {asked} out: plain methods serve it.",
        )

    def worth_it(self) -> bool:
        """Whether tracing takes little of what a program or a cut may save."""
        task, budget = self._task, self._budget
        if task.shapes.fixed_batch is not None or min(task.shapes.n_in, task.shapes.n_selected) <= FEW:
            return False
        leaves = sum(1 for part in task.network.module.modules() if not list(part.children()))
        seconds = 0.05 + _MODULE_SECONDS * leaves
        most = max(2.0, 0.05 * budget.run_seconds)
        if seconds < 2 * task.share * budget.run_seconds and budget.spent + seconds < most:
            return True
        self.not_traced = "the run is too short to pay for it"
        return False
