"""What is to be computed, as the choice of a method and the engine see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jacli.config import RunConfig
from jacli.network import (
    CutLinearized,
    CutNetwork,
    Linearized,
    NotTraceableError,
    TensorNetwork,
    any_cut,
    trace_network,
    useful_cuts,
)
from jacli.plan import Shapes
from jacli.run.memory import MemoryLimit

Points = tuple[Tensor, dict[str, Tensor], Tensor | None]
"""Points ``(batch, *input)``, their further arguments, and the selected outputs (None for all)."""


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

    def linearize(self, points: Points, cut_network: CutNetwork | None = None) -> Linearized:
        """The network at these points, cut or whole."""
        x, extra, selected = points
        n_out = self.shapes.n_out
        if cut_network is None:
            return Linearized(self.network, x, extra, selected, n_out=n_out)
        return CutLinearized(self.network, x, extra, selected, cut_network=cut_network, n_out=n_out)


def cut_network(task: Task) -> CutNetwork:
    """Trace the network and cut it where it is narrower than its output; forced, at its narrowest place.

    Raises:
        NotTraceableError: It cannot be traced, or is nowhere narrower.
    """
    x, extra, _ = task.points(0, 1)
    traced = trace_network(task.network, x, extra)
    cuts = useful_cuts(traced, n_out=task.shapes.n_selected)
    if not cuts:
        wide = any_cut(traced)
        where = f"its narrowest place is {wide[0].width} wide" if wide else "there is no place to cut it"
        if task.config.method != "factored" or task.config.save == "factors" or not wide:
            raise NotTraceableError(f"{where}, its outputs are {task.shapes.n_selected}")
        cuts = wide
    return CutNetwork(traced, cuts, recurrent=task.network.recurrent, lone=task.network.lone)
