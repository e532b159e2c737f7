"""The traced network that programs and cuts run: taken where that pays, at most once per choice."""

from __future__ import annotations

from jacli.choice.problem import Graph, Problem, cut_network, program_of
from jacli.network import CutNetwork, LinearProgram, NotTraceableError, TracedNetwork, no_program
from jacli.options.methods import METHODS, Method
from jacli.plans.request import Request
from jacli.plans.search import Budget

MAX_PLAIN_VECTORS = 2
"""Outputs (or inputs) up to which a few plain passes are all there is to do."""

_TRACE_SECONDS = 0.05
_TRACE_SECONDS_PER_LAYER = 0.005
"""Expected of the two traces of a network, and of each module without modules inside: 0.1 to 1 s in all."""


class LazyTrace:
    """The network as a graph: whole as a program, or cut.

    Args:
        request: What is asked.
        problem: Whose network.
        budget: Time budget of the search.  Tracing is not charged to it: `worth_tracing` decides beforehand.

    Attributes:
        not_traced: Why no graph was taken; None if one was, or was not to be.
    """

    def __init__(self, request: Request, problem: Problem, budget: Budget) -> None:
        self._request = request
        self._problem = problem
        self._budget = budget
        self._traced: TracedNetwork | None = None
        self.program: LinearProgram | None = None
        self.cut_network: CutNetwork | None = None
        self.not_traced: str | None = None

    def take_over(self, graph: Graph) -> None:
        """That of an earlier call."""
        self.cut_network = graph if isinstance(graph, CutNetwork) else None
        self.program = graph if isinstance(graph, LinearProgram) else None

    def of_method(self, method: Method) -> LinearProgram | None:
        """The program, for the methods that run one."""
        return self.program if method.runs_program else None

    def trace(self) -> TracedNetwork:
        """The traced network.

        Raises:
            NotTraceableError: It cannot be traced.
        """
        if self._traced is None:
            with self._budget.not_charged():
                self._traced = self._problem.trace()
                self.program = program_of(self._traced)
        return self._traced

    def cut(self) -> CutNetwork:
        """The network cut where it is narrow.

        Raises:
            NotTraceableError: It cannot be traced, or is nowhere narrow.
        """
        if self.cut_network is None:
            self.cut_network = cut_network(self._request, self._problem, self.trace())
        return self.cut_network

    def try_to_trace(self) -> bool:
        """Whether the network can be traced; `not_traced` says why not."""
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
        method = METHODS.get(self._request.method)
        asked = f"--method {method.name}" if method is not None and method.runs_program else "--precision"
        raise no_program(why, asked=asked)

    def worth_tracing(self) -> bool:
        """Whether tracing takes little of what a program or a cut may save."""
        shapes, budget = self._problem.shapes, self._budget
        if shapes.fixed_batch is not None or min(shapes.n_in, shapes.n_selected) <= MAX_PLAIN_VECTORS:
            return False
        layers = sum(1 for part in self._problem.network.module.modules() if not list(part.children()))
        seconds = _TRACE_SECONDS + _TRACE_SECONDS_PER_LAYER * layers
        most = max(2.0, 0.05 * budget.run_seconds)
        share = self._request.search_share
        if seconds < 2 * share * budget.run_seconds and budget.spent + seconds < most:
            return True
        self.not_traced = "the run is too short to pay for it"
        return False
