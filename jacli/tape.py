"""Reverse passes over one recorded forward pass (a tape), also where it holds reentrant checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tape:
    """A recorded forward pass and the points that it began at.

    Reentrant checkpoints (``torch.utils.checkpoint`` with ``use_reentrant=True``) refuse
    ``torch.autograd.grad``, which asks for the gradient of some tensors only.  On such a tape,
    ``Tensor.backward`` accumulates the gradient in the points instead: they are the only leaf, since
    parameters are frozen.

    Attributes:
        points: A leaf that requires a gradient.
        outputs: Computed from it.
    """

    points: Tensor
    outputs: Tensor
    _has_reentrant: bool = False

    def pull(
        self, cotangents: Tensor, *, batched: bool = False, may_be_unused: bool = False
    ) -> Tensor | None:
        """The gradient at the points, of their shape: the cotangents times the Jacobian.  The tape is kept.

        Args:
            cotangents: Of the outputs' shape; ``(k, *outputs.shape)`` if ``batched``.
            batched: Pull ``k`` cotangents in one pass, by batching rules: ``(k, *points.shape)``.
            may_be_unused: Return None where no path leads from the outputs to the points.

        Raises:
            RuntimeError: An operation has no derivative, a batched pass has no rule, or no path leads to the
                points.
        """
        if not self._has_reentrant:
            try:
                return torch.autograd.grad(
                    self.outputs,
                    self.points,
                    cotangents,
                    retain_graph=True,
                    allow_unused=may_be_unused,
                    is_grads_batched=batched,
                )[0]
            except RuntimeError as error:
                if batched or not _is_of_reentrant_checkpoint(error):
                    raise
                self._has_reentrant = True
        return self._accumulated(cotangents, may_be_unused=may_be_unused)

    def _accumulated(self, cotangents: Tensor, *, may_be_unused: bool) -> Tensor | None:
        self.points.grad = None
        self.outputs.backward(cotangents, retain_graph=True)
        gradient, self.points.grad = self.points.grad, None
        if gradient is None and not may_be_unused:
            raise RuntimeError("no path leads from the outputs to the points")
        return gradient


def _is_of_reentrant_checkpoint(error: RuntimeError) -> bool:
    return "checkpoint" in str(error).lower() and ".grad()" in str(error)
