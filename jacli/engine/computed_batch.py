"""Jacobians of some consecutive samples, as the engine hands them over."""

from __future__ import annotations

from dataclasses import dataclass

from jacli.linear_maps import Matrices
from jacli.network import Linearized
from jacli.spectrum import Triples


@dataclass(frozen=True)
class ComputedBatch:
    """Jacobians of a batch.

    Attributes:
        start: First sample.
        count: Samples; the linearisation and the matrices may have more, where the batch was padded.
        linearization: The network there: outputs, selected outputs.
        matrices: ``(>= count, n_out, n_in)``, written where they were to be placed.
        triples: Of the ``count`` samples, where no matrix was formed; else None.
    """

    start: int
    count: int
    linearization: Linearized
    matrices: Matrices
    triples: Triples | None = None
