"""What is to be computed, as the choice of a plan and the engine see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jacli.choice.memory_limit import MemoryLimit
from jacli.network import (
    CutLinearized,
    CutNetwork,
    Linearized,
    LinearProgram,
    NotTraceableError,
    TensorNetwork,
    TracedNetwork,
    any_cut,
    trace_network,
    useful_cuts,
)
from jacli.plans.plan import Shapes
from jacli.plans.request import Request

Points = tuple[Tensor, dict[str, Tensor], Tensor | None]
"""Points ``(batch, *input)``, their further arguments, and the selected outputs (None for all)."""


Graph = CutNetwork | LinearProgram | None
"""The network as traced, in links or as one program; None: as it is."""


@dataclass(frozen=True)
class Problem:
    """A network and its points; what is asked of them comes in a `Request`.

    Attributes:
        network: The network.
        shapes: Its shapes and the number of samples.
        points: (start, size) -> ``size`` samples from ``start`` on; padded where the batch size is fixed.
        memory: What may be held.
    """

    network: TensorNetwork
    shapes: Shapes
    points: Callable[[int, int], Points]
    memory: MemoryLimit

    def linearize(
        self,
        points: Points,
        graph: Graph = None,
        outputs: Tensor | None = None,
        *,
        precision: str = "ieee",
    ) -> Linearized:
        """The network at these points: as it is, or with its program, and its outputs where known."""
        x, extra, selected = points
        if isinstance(graph, CutNetwork):
            return self.cut(points, graph, precision=precision)
        return Linearized(
            self.network,
            x,
            extra,
            selected,
            outputs=outputs,
            n_out=self.shapes.n_out,
            program=graph,
            precision=precision,
        )

    def cut(self, points: Points, graph: CutNetwork, *, precision: str = "ieee") -> CutLinearized:
        """The network at these points, cut."""
        x, extra, selected = points
        n_out = self.shapes.n_out
        return CutLinearized(
            self.network, x, extra, selected, cut_network=graph, n_out=n_out, precision=precision
        )

    def trace(self) -> TracedNetwork:
        """The network as a graph.

        Raises:
            NotTraceableError: It cannot be traced.
        """
        x, extra, _ = self.points(0, 1)
        return trace_network(self.network, x, extra)


def program_of(traced: TracedNetwork) -> LinearProgram:
    """A traced network as one program of linear maps.

    >>> import torch
    >>> traced = trace_network(TensorNetwork.of_module(torch.nn.Linear(3, 2).eval()), torch.zeros(1, 3), {})
    >>> program_of(traced).linearize(torch.ones(5, 3)).n_out
    2
    """
    return LinearProgram(traced.graph, names=traced.extra)


def cut_network(request: Request, problem: Problem, traced: TracedNetwork) -> CutNetwork:
    """The network cut where it is narrower than its output; asked for by name, at its narrowest place.

    Raises:
        NotTraceableError: It is nowhere narrower.
    """
    n_out = problem.shapes.n_selected
    cuts = useful_cuts(traced, n_out=n_out)
    if not cuts:
        wide = any_cut(traced)
        where = f"its narrowest place is {wide[0].width} wide" if wide else "there is no place to cut it"
        if not request.needs_chain or request.keep == "factors" or not wide:
            raise NotTraceableError(f"{where}, its outputs are {n_out}")
        cuts = wide
    return CutNetwork(
        traced,
        cuts,
        recurrent=problem.network.recurrent,
        squeezes_batch_of_one=problem.network.squeezes_batch_of_one,
    )
