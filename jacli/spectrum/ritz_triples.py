"""Ritz triples on their way: what is asked of them, how good they are now, and what is kept of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from jacli.spectrum.exact import EPS
from jacli.spectrum.search_space import Oriented, Ritz, SearchSpace


@dataclass(frozen=True)
class Goal:
    """What is asked of a search; as `largest_singular_triples` has it."""

    k: int
    rtol: float
    max_basis: int
    max_matvecs: int | None
    certify: float | None
    shrink: bool


@dataclass
class Found:
    """What a search has found of each sample, in the order of the batch.

    Attributes:
        values: ``(b, k)``.
        errors: ``(b, k)``, as `largest_singular_triples` gives them.
        residuals: ``(b, k)``, with rounding.
        next_value: ``(b,)``, the largest value seen beside the k.
        short: U as rows, ``(b, k, s)``.
        long: V as rows, ``(b, k, l)``.
        complete: ``(b,)``, whether the space was the whole one: nothing can be missed.
        gave_up: ``(b,)``, whether the limit on products came first.
        not_finite: ``(b,)``.
        matvecs: ``(b,)``.
        probability: ``(b,)``, of having missed a larger value.
    """

    values: Tensor
    errors: Tensor
    residuals: Tensor
    next_value: Tensor
    short: Tensor
    long: Tensor
    complete: Tensor
    gave_up: Tensor
    not_finite: Tensor
    matvecs: Tensor
    probability: Tensor

    @classmethod
    def of(cls, maps: Oriented, k: int) -> Found:
        """Nothing yet."""
        batch, device = maps.map.batch, maps.map.device
        numbers = torch.zeros(batch, k, dtype=torch.float64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        return cls(
            values=numbers,
            errors=numbers.clone(),
            residuals=numbers.clone(),
            next_value=numbers.new_zeros(batch),
            short=numbers.new_zeros(batch, k, maps.short),
            long=torch.zeros(batch, k, maps.long, dtype=maps.map.dtype, device=device),
            complete=no,
            gave_up=no.clone(),
            not_finite=no.clone(),
            matvecs=torch.zeros(batch, dtype=torch.int64, device=device),
            probability=numbers.new_zeros(batch),
        )

    def put(self, samples: Tensor, other: Found, at: Tensor) -> None:
        """Take over samples ``at`` of another search as samples ``samples`` of this one."""
        for name in (each.name for each in fields(self)):
            if name != "matvecs":
                getattr(self, name)[samples] = getattr(other, name)[at]
        self.matvecs[samples] += other.matvecs[at]


@dataclass(frozen=True)
class Judged:
    """The k leading Ritz triples of a space, judged.

    Attributes:
        space: The space.
        ritz: Its Ritz values.
        errors: ``(b, k)``, residual plus rounding; at least what was asked for where more may be missed.
        residuals: ``(b, k)``, with rounding.
        small: ``(b, k)``, which of the residuals are as small as asked for.
        complete: ``(b,)``, whether the space is whole.
        gave_up: ``(b,)``, whether no more products are allowed, though it has not converged.
    """

    space: SearchSpace
    ritz: Ritz
    errors: Tensor
    residuals: Tensor
    small: Tensor
    complete: Tensor
    gave_up: Tensor

    @property
    def converged(self) -> Tensor:
        """``(b,)``."""
        return self.small.all(dim=1)

    @property
    def not_finite(self) -> Tensor:
        """``(b,)``."""
        return self.space.not_finite

    def put_into(self, found: Found, samples: Tensor, at: Tensor) -> None:
        """Store samples ``at`` of the space as samples ``samples`` of the batch."""
        k = self.errors.shape[1]
        values = self.ritz.values[at, :k]
        weights = self.ritz.weights[at, :k]
        long = self.space.combined(weights, at)
        found.values[samples] = values
        found.errors[samples] = self.errors[at]
        found.residuals[samples] = self.residuals[at]
        found.next_value[samples] = self.ritz.values[at, k:].amax(dim=1) if self.space.size > k else 0.0
        found.short[samples] = weights @ self.space.basis[at]
        found.long[samples] = long / torch.where(values > 0, values, 1.0)[:, :, None].to(long.dtype)
        for name in ("complete", "gave_up", "not_finite"):
            getattr(found, name)[samples] = getattr(self, name)[at]
        found.matvecs[samples] += self.space.matvecs


def judge(space: SearchSpace, ritz: Ritz, goal: Goal, *, used_up: bool) -> Judged:
    """Residuals and rounding of the leading Ritz triples.

    A residual of the squared problem is ``rho = ||M'M u - theta^2 u||``: a singular value lies within ``rho /
    theta`` of theta, and within ``sqrt(rho)``.  Where theta is no more than rounding, ``||M u||`` itself says
    that one is as small.
    """
    k, values = goal.k, ritz.values[:, : goal.k + 1]
    eps = torch.finfo(space.maps.map.dtype).eps
    rho = torch.linalg.vector_norm(ritz.residuals, dim=2)
    residuals = _from_squares(rho, values)
    unit = 4 * eps * values[:, :1]
    null = values <= math.sqrt(space.maps.long) * unit
    residuals = torch.where(null, torch.minimum(values, residuals), residuals)
    of_gram = 8 * EPS * values[:, :1].square()
    rounding = 2 * _from_squares(ritz.mismatch + of_gram, values) + unit
    small = residuals <= torch.maximum(goal.rtol * values[:, :1], rounding)
    whole = torch.full_like(space.not_finite, space.is_whole)
    floor = torch.where(whole[:, None], 0.0, goal.rtol * values[:, :1])
    return Judged(
        space=space,
        ritz=ritz,
        errors=(torch.maximum(residuals, floor) + rounding)[:, :k],
        residuals=(residuals + rounding)[:, :k],
        small=small[:, :k],
        complete=whole,
        gave_up=~(whole | small[:, :k].all(dim=1)) & used_up,
    )


def _from_squares(rho: Tensor, values: Tensor) -> Tensor:
    """From a distance of squares: ``|sigma - theta| <= min(rho / theta, sqrt(rho))``."""
    root = rho.sqrt()
    return rho / torch.maximum(values, root).clamp(min=torch.finfo(torch.float64).tiny)


def gap_angles(values: Tensor, residuals: Tensor, next_value: Tensor) -> Tensor:
    """Bounds on the angles between Ritz and singular vectors: ``sin <= residual / gap``.

    The sin-theta theorem (Davis & Kahan, 1970; Wedin, 1972; 10.1007/BF01932678), with the gap to the nearest
    other value that was seen, moved by its own residual.

    >>> angles = gap_angles(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.1, 0.0]]), torch.tensor([0.5]))
    >>> [round(sine, 3) for sine in angles.sin()[0].tolist()]
    [0.111, 0.0]

    Args:
        values: ``(b, k)``.
        residuals: ``(b, k)``.
        next_value: The largest beside them, ``(b,)``; minus infinity if there is none.

    Returns:
        ``(b, k)`` in radians; pi / 2 where there is no gap.
    """
    moved = residuals[:, None, :] + residuals[:, :, None]
    gaps = (values[:, :, None] - values[:, None, :]).abs() - moved
    itself = torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
    beside = (values - next_value[:, None] - residuals)[:, :, None]
    gap = torch.cat([gaps.masked_fill(itself, math.inf), beside], dim=2).amin(dim=2)
    sine = torch.where(gap > 0, residuals / gap.clamp(min=torch.finfo(values.dtype).tiny), 1.0)
    return sine.clamp(max=1.0).asin()
