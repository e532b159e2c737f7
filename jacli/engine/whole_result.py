"""The whole Jacobian in memory, into which batches are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from jacli.choice.problem import Problem
from jacli.device.matrix_product import product
from jacli.device.torch_switches import reduced_precision
from jacli.engine.computed_batch import ComputedBatch
from jacli.linear_maps import FactoredMap
from jacli.plans.plan import ChainPlan, MatrixFreePlan, Plan, WholePlan
from jacli.plans.request import Request


class WholeResult:
    """The whole result; batches are computed into it.

    Attributes:
        matrices: ``(n_samples, n_out, n_in)``.
    """

    def __init__(self, request: Request, problem: Problem) -> None:
        self._request = request
        self._problem = problem
        self.matrices = torch.empty(0)

    def out_buffer(self, plan: Plan, start: int, count: int) -> Tensor | None:
        """The part of it that belongs to some samples; None where the only batch can be the result."""
        shapes = self._problem.shapes
        match plan:
            case ChainPlan():
                return None
            case MatrixFreePlan():
                return None  # nothing is formed
            case WholePlan(filled_by=method):
                if count == shapes.n_samples and plan.chunk_size >= shapes.vectors(method):
                    return None
        if len(self.matrices) == 0:
            x, _, _ = self._problem.points(0, 1)
            n_samples, n_out, n_in = shapes.n_samples, shapes.n_selected, shapes.n_in
            self.matrices = (
                x.new_empty(n_samples, n_in, n_out).mT
                if method.by_columns
                else x.new_empty(n_samples, n_out, n_in)
            )
        return self.matrices[start : start + count]

    def take(self, batch: ComputedBatch) -> None:
        """A batch that was computed elsewhere; of factors, their product."""
        matrices, stop = batch.matrices, batch.start + batch.count
        if isinstance(matrices, FactoredMap):
            if len(self.matrices) == 0:
                shape = (self._problem.shapes.n_samples, matrices.n_out, matrices.n_in)
                self.matrices = matrices.left.new_empty(shape)
            factors = matrices.take(slice(batch.count))
            # Their error is that of reduced passes: an exact product would cost more than them on a GPU.
            reduced = "ieee" if self._request.is_exact else "tf32"
            with reduced_precision(reduced):
                product(factors.left, factors.right, self.matrices[batch.start : stop])
            return
        dense = matrices.take(slice(batch.count)).dense()
        if len(self.matrices) == 0:
            self.matrices = dense
        elif dense.data_ptr() != self.matrices[batch.start : stop].data_ptr():
            self.matrices[batch.start : stop] = dense
