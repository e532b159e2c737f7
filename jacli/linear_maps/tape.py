"""Reverse passes over one recorded forward pass (a tape), also where it holds reentrant checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Tape:
    """A recorded forward pass and the points that it began at.

    Reentrant checkpoints (``torch.utils.checkpoint`` with ``use_reentrant=True``) refuse
    ``torch.autograd.grad``, which asks for the gradient of some tensors only.  On such a tape,
    ``Tensor.backward`` accumulates the gradient in the points instead: they are the only leaf, since
    parameters are frozen.

    ``J^T v`` is computed as the gradient of the inner product ``<f(x), v>``, whose ``v`` is overwritten from
    pass to pass.  Handed over as ``grad_outputs``, ``v`` would make torch import sympy, which takes a quarter
    of the time of a small run.

    Attributes:
        points: A leaf that requires a gradient.
        outputs: Computed from it.
    """

    points: Tensor
    outputs: Tensor
    _has_reentrant: bool = False

    def backward(
        self, cotangents: Tensor, *, batched: bool = False, may_be_unused: bool = False
    ) -> Tensor | None:
        """The gradient at the points, of their shape: the vjp ``u @ J``.  The tape is kept.

        Args:
            cotangents: Of the outputs' shape; ``(k, *outputs.shape)`` if ``batched``.
            batched: Pull ``k`` cotangents in one pass, by batching rules: ``(k, *points.shape)``.
            may_be_unused: Return None where no path leads from the outputs to the points.

        Raises:
            RuntimeError: An operation has no derivative, a batched pass has no rule, or no path leads to the
                points.
        """
        if batched:
            return torch.autograd.grad(
                self.outputs,
                self.points,
                cotangents,
                retain_graph=True,
                allow_unused=may_be_unused,
                is_grads_batched=True,
            )[0]
        self._cotangents.data.copy_(
            cotangents
        )  # `data`, since the graph's reference to it would count as stale
        if not self._has_reentrant:
            try:
                return torch.autograd.grad(
                    self._inner_product, self.points, retain_graph=True, allow_unused=may_be_unused
                )[0]
            except RuntimeError as error:
                if not _is_of_reentrant_checkpoint(error):
                    raise
                self._has_reentrant = True
        return self._accumulated(may_be_unused=may_be_unused)

    def double_backward(self, tangents: Tensor) -> Tensor:
        """The jvp ``J v``, of the outputs' shape: the vjp is linear in its cotangents u, with derivative J'.

        ``J v = d/du <u @ J, v>`` at any u (Townsend, "A new trick for calculating Jacobian vector products",
        2017).  For this the reverse pass is recorded, once, and pulled back.

        Args:
            tangents: Of the points' shape.

        Raises:
            RuntimeError: An operation has no derivative, or none of its derivative.
        """
        image, cotangents = self._recorded_backward
        columns = None
        if image.requires_grad:
            columns = torch.autograd.grad(image, cotangents, tangents, retain_graph=True, allow_unused=True)[
                0
            ]
        if columns is not None:
            return columns
        if bool(image.any()):  # it is u @ J, and still no path leads back to u
            raise RuntimeError("an operation on the way is differentiable only once")
        return torch.zeros_like(cotangents)

    @cached_property
    def _recorded_backward(self) -> tuple[Tensor, Tensor]:
        """The vjp at some cotangents, with its own tape; and these cotangents."""
        with torch.enable_grad():
            cotangents = torch.ones_like(self.outputs, requires_grad=True)
            (image,) = torch.autograd.grad(self.outputs, self.points, cotangents, create_graph=True)
        return image, cotangents

    @cached_property
    def _cotangents(self) -> Tensor:
        return torch.zeros_like(self.outputs, memory_format=torch.contiguous_format, requires_grad=False)

    @cached_property
    def _inner_product(self) -> Tensor:
        with torch.enable_grad():
            return torch.dot(self.outputs.reshape(-1), self._cotangents.reshape(-1))

    def _accumulated(self, *, may_be_unused: bool) -> Tensor | None:
        self.points.grad = None
        self._inner_product.backward(retain_graph=True)
        gradient, self.points.grad = self.points.grad, None
        if gradient is None and not may_be_unused:
            raise RuntimeError("no path leads from the outputs to the points")
        return gradient


def _is_of_reentrant_checkpoint(error: RuntimeError) -> bool:
    return "checkpoint" in str(error).lower() and ".grad()" in str(error)
