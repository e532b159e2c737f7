"""What is to be computed, as the choice of a method and the engine see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jacli.choice.memory_limit import MemoryLimit
from jacli.linear_map import Matrices
from jacli.network import (
    CutLinearized,
    CutNetwork,
    Linearized,
    NotTraceableError,
    Program,
    TensorNetwork,
    TracedNetwork,
    any_cut,
    trace_network,
    useful_cuts,
)
from jacli.options.config import RunConfig
from jacli.plans.plan import Shapes

Points = tuple[Tensor, dict[str, Tensor], Tensor | None]
"""Points ``(batch, *input)``, their further arguments, and the selected outputs (None for all)."""


Graph = CutNetwork | Program | None
"""The network as traced, in links or as one program; None: as it is."""


@dataclass(frozen=True)
class Task:
    """What is to be computed, as the choice sees it.

    Attributes:
        network: The network.
        shapes: Its shapes and the number of samples.
        config: What was asked.
        points: Samples from the first number on, as many as the second; padded where the batch size is fixed.
        memory: What may be held.
        keeps_dense: Whether the whole Jacobian is wanted in the end; else factors do.
        written: Whether blocks are written while the next one is computed, and so held beside it.
        share: Part of the time of a short run that finding the method may take.
    """

    network: TensorNetwork
    shapes: Shapes
    config: RunConfig
    points: Callable[[int, int], Points]
    memory: MemoryLimit
    keeps_dense: bool
    written: bool = False
    share: float = 0.25

    def linearize(self, points: Points, graph: Graph = None, outputs: Tensor | None = None) -> Linearized:
        """The network at these points: as it is, with its program, or cut; its outputs where known."""
        x, extra, selected = points
        n_out, precision = self.shapes.n_out, self.config.precision
        if isinstance(graph, CutNetwork):
            return CutLinearized(
                self.network, x, extra, selected, cut_network=graph, n_out=n_out, precision=precision
            )
        return Linearized(
            self.network,
            x,
            extra,
            selected,
            outputs=outputs,
            n_out=n_out,
            program=graph,
            precision=precision,
        )

    def trace(self) -> TracedNetwork:
        """The network as a graph.

        Raises:
            NotTraceableError: It cannot be traced.
        """
        x, extra, _ = self.points(0, 1)
        return trace_network(self.network, x, extra)


@dataclass(frozen=True)
class ComputedBlock:
    """Jacobians of some consecutive samples.

    Attributes:
        start: First sample.
        count: Samples; the linearisation and the matrices may have more, where the batch was padded.
        linearization: The network there: outputs, selected outputs.
        matrices: ``(>= count, n_out, n_in)``, written where they were to be placed.
    """

    start: int
    count: int
    linearization: Linearized
    matrices: Matrices


def program_of(traced: TracedNetwork) -> Program:
    """A traced network as one program of linear maps."""
    return Program(traced.graph, names=traced.extra)


def cut_network(task: Task, traced: TracedNetwork) -> CutNetwork:
    """The network cut where it is narrower than its output; forced, at its narrowest place.

    Raises:
        NotTraceableError: It is nowhere narrower.
    """
    cuts = useful_cuts(traced, n_out=task.shapes.n_selected)
    if not cuts:
        wide = any_cut(traced)
        where = f"its narrowest place is {wide[0].width} wide" if wide else "there is no place to cut it"
        if task.config.method != "factored" or task.config.save == "factors" or not wide:
            raise NotTraceableError(f"{where}, its outputs are {task.shapes.n_selected}")
        cuts = wide
    return CutNetwork(traced, cuts, recurrent=task.network.recurrent, lone=task.network.lone)
