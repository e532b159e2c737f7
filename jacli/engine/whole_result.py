"""The whole Jacobian in memory, into which batches are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from jacli.choice.problem import ComputedBlock, Task
from jacli.device.matrix_product import product
from jacli.device.torch_switches import reduced_precision
from jacli.linear_map import FactoredMap
from jacli.options.config import COLUMN_METHODS
from jacli.plans.plan import Plan


class WholeResult:
    """The whole result; blocks are computed into it.

    Attributes:
        matrices: ``(n_samples, n_out, n_in)``.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.matrices = torch.empty(0)

    def place(self, plan: Plan, start: int, count: int) -> Tensor | None:
        """The part of it that belongs to some samples; None where the only block can be the result."""
        shapes = self._task.shapes
        vectors = shapes.n_in if plan.method in COLUMN_METHODS else shapes.n_selected
        if count == shapes.n_samples and plan.chunk_size >= vectors:
            return None
        if len(self.matrices) == 0:
            x, _, _ = self._task.points(0, 1)
            n_samples, n_out, n_in = shapes.n_samples, shapes.n_selected, shapes.n_in
            by_columns = plan.method in COLUMN_METHODS
            self.matrices = (
                x.new_empty(n_samples, n_in, n_out).mT if by_columns else x.new_empty(n_samples, n_out, n_in)
            )
        return self.matrices[start : start + count]

    def take(self, block: ComputedBlock) -> None:
        """A block that was computed elsewhere; of factors, their product."""
        matrices, stop = block.matrices, block.start + block.count
        if isinstance(matrices, FactoredMap):
            if len(self.matrices) == 0:
                shape = (self._task.shapes.n_samples, matrices.n_out, matrices.n_in)
                self.matrices = matrices.left.new_empty(shape)
            factors = matrices.samples(0, block.count)
            # Their error is that of reduced passes: an exact product would cost more than them on a GPU.
            reduced = "ieee" if self._task.config.precision == "ieee" else "tf32"
            with reduced_precision(reduced):
                product(factors.left, factors.right, self.matrices[block.start : stop])
            return
        dense = matrices.samples(0, block.count).dense()
        if len(self.matrices) == 0:
            self.matrices = dense
        elif dense.data_ptr() != self.matrices[block.start : stop].data_ptr():
            self.matrices[block.start : stop] = dense
