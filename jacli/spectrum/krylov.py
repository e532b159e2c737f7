"""The k largest singular triples of a `LinearMap`, from products with vectors: no matrix is formed.

A block Krylov method with full reorthogonalisation, as a sequence of Rayleigh-Ritz steps in a growing search
space (`jacli.spectrum.search_space`).  The residuals of the k leading Ritz vectors extend the space; in exact
arithmetic it is the one of block Golub-Kahan-Lanczos bidiagonalisation (Golub, Luk & Overton, 1981;
10.1145/355945.355946) until some triples have converged, whose residuals are then left out.

Why blocks: with a single starting vector, a repeated singular value appears once, and the next smaller one is
reported in place of its second copy, with a tiny residual.  A random block of k vectors sees k copies.

Why the longer side needs no basis: Ritz vectors there are images of those of the shorter side.  Their Gram
matrix takes a half of the work and memory of an orthonormal basis, and a map of deficient rank does not break
it down.

Two questions, two answers.  How near is *some* singular value?  The residual bounds that.  Is it the i-th?  A
random start can only say so with a probability (`jacli.spectrum.missed_values`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from jacli.errors import UsageError
from jacli.linear_maps import LinearMap
from jacli.spectrum.exact import Spectrum
from jacli.spectrum.missed_values import fresh_start
from jacli.spectrum.ritz_triples import Found, Goal, Judged, gap_angles, judge
from jacli.spectrum.search_space import Oriented, RandomVectors, Ritz, SearchSpace

FRESH_STEPS = 3
"""Steps of the fresh start that follows convergence: enough for a value that stands out."""

MAX_BASIS = 512
"""Basis vectors after which the search restarts, where nothing else limits them; at least six times k."""

MAX_REOPENED = 4
"""Fresh starts that may reopen a search: rounding makes an inconsistent map look as if it had more values."""

SHRINK_BELOW = 0.5
"""Part of the samples in a pass; if fewer are not yet done, these are linearised anew without the others."""

SPOILT = 1.5
"""A bound of more than this many times the error asked for is one of rounding."""

MAX_REFINED = 3
"""Searches from the Ritz vectors that are to mend that."""

CHECK_EVERY = 1.1
"""Growth of the basis from one Rayleigh-Ritz step to the next: its cost is the size of the basis cubed."""


@dataclass(frozen=True)
class Triples(Spectrum):
    """The k largest singular values, their vectors, and how sure they are.

    Attributes:
        left: ``(batch, n_out, k)`` float64, orthonormal columns where the values are not zero.
        right: ``(batch, n_in, k)``.
        vector_errors: ``(batch, k)``, bound in radians on the angles to the singular vectors; pi / 2 where a
            neighbouring value is too near to tell them apart.
        failure_probability: ``(batch,)``, that a larger value was missed though none is reported.
        matvecs: ``(batch,)``, products with J and with its transpose.
        gave_up: ``(batch,)``, whether the limit on these came before convergence.
    """

    left: Tensor
    right: Tensor
    vector_errors: Tensor
    failure_probability: Tensor
    matvecs: Tensor
    gave_up: Tensor

    def take(self, samples: slice | Tensor) -> Triples:
        """Those of some samples."""
        return Triples(**{each.name: getattr(self, each.name)[samples] for each in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Triples]) -> Triples:
        """Those of several batches, one after another."""
        return cls(**{each.name: torch.cat([getattr(p, each.name) for p in parts]) for each in fields(cls)})


@torch.no_grad()
def largest_singular_triples(
    linear_map: LinearMap,
    k: int,
    *,
    rtol: float = 1e-6,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    vectors_per_pass: int = 1,
    max_basis: int | None = None,
    max_matvecs: int | None = None,
    certify: float | None = None,
    start: Tensor | None = None,
    shrink: bool = True,
) -> Triples:
    """The k largest singular values of each sample's matrix with their vectors, without forming it.

    A sample is done when each residual is below ``rtol sigma_1`` or below the map's own rounding, and a fresh
    random start outside of the vectors found shows no larger value.  It then leaves the passes, and later
    ones do not change what it got.

    >>> from jacli.linear_maps import DenseMap
    >>> diagonal = DenseMap(torch.diag(torch.tensor([1.0, 5.0, 2.0, 3.0]))[None])
    >>> triples = largest_singular_triples(diagonal, 2)
    >>> triples.values.round(decimals=4).tolist()
    [[5.0, 3.0]]
    >>> triples.right[0, :, 0].abs().round(decimals=3).tolist()  # the leading right singular vector
    [0.0, 1.0, 0.0, 0.0]

    Args:
        linear_map: The maps.
        k: How many; more than ``min(n_out, n_in)`` means all of them.
        rtol: Wanted error relative to the largest singular value.
        seed: Of the random vectors.
        samples: Number of each sample in the whole run, so that shards draw what one run draws; else counted
            from 0.
        vectors_per_pass: Most vectors per sample in one product; 1 involves no batching rule of ``vmap``.
        max_basis: Restart with more basis vectors than this; the least that serves is ``3 k``.
        max_matvecs: Limit on products per sample; the errors say what is then left.
        certify: Go on until the failure probability is no more than this.
        start: Vectors to begin with, ``(batch, any, min(n_out, n_in))`` (of the side that is shorter, the
            outputs' where both are alike); random vectors fill them up to k.
        shrink: Whether `LinearMap.take` may give maps of fewer samples: not where the batch size is fixed.

    Returns:
        ``min(k, n_out, n_in)`` triples per sample; NaN where the map yields NaN or infinity.

        The error is the residual, at least ``rtol sigma_1`` unless the basis spans the whole space, plus
        rounding.  That is measured: ``u' (J v)`` and ``(J' u)' v`` are one number, computed once by `jvp` and
        once by `vjp`; twice their difference is added, and ``4 eps(dtype) sigma_1``.

    Cost: two products for each vector of the basis, and two per step of the fresh start.  Memory per sample
    and basis vector: ``2 min(n_out, n_in)`` float64 numbers, and ``max(n_out, n_in)`` of the map's dtype.

    Raises:
        UsageError: ``k < 1``.
    """
    if k < 1:
        raise UsageError(f"k = {k} singular values cannot be computed.", hint="Ask for 1 or more.")
    maps = Oriented(linear_map, vectors_per_pass)
    k = min(k, maps.short)
    if k == 0 or linear_map.batch == 0:
        return _triples(maps, Found.of(maps, k))
    numbers = range(linear_map.batch) if samples is None else samples
    maps = maps.in_range(RandomVectors([seed, 2], numbers))
    searching, looking = (RandomVectors([seed, purpose], numbers) for purpose in (0, 1))
    goal = Goal(k, rtol, max(3 * k, max_basis or max(MAX_BASIS, 6 * k)), max_matvecs, certify, shrink)
    found = _converge(maps, searching, goal, start)
    _refine(maps, searching, goal, found)
    for _ in range(MAX_REOPENED):
        missed = _look_for_missed(maps, looking, goal, found)
        if missed is None:
            break
        which = missed.flatten(1).any(dim=1)
        _search_on(maps, searching, goal, found, which, torch.cat([found.short, missed], dim=1))
        _refine(maps, searching, goal, found)
    return _triples(maps, found)


def _converge(maps: Oriented, random: RandomVectors, goal: Goal, start: Tensor | None) -> Found:
    """Grow a search space until the k leading triples of every sample have converged.

    What is found of a sample is taken when it has; later steps, for the samples beside it, do not change it.
    """
    k, found = goal.k, Found.of(maps, goal.k)
    space = SearchSpace(maps, random)
    directions = random.draw(k, maps.short, maps.map.device)
    if start is not None:
        directions = torch.cat([start, directions], dim=1)[:, : max(k, start.shape[1])]
    working = torch.arange(maps.map.batch, device=maps.map.device)  # of the batch: the samples in the space
    open_ = torch.ones_like(working, dtype=torch.bool)  # of these: not yet done
    check_at = 0
    while True:
        space.expand(directions)
        used_up = goal.max_matvecs is not None and space.matvecs + 2 * k > goal.max_matvecs
        full = space.size + k > goal.max_basis
        if not (space.is_whole or used_up or full or space.size >= check_at):
            directions = space.returned[:, -directions.shape[1] :]
            continue
        ritz = space.ritz(k + 1)
        judged = judge(space, ritz, goal, used_up=used_up)
        ended = open_ & (judged.complete | judged.gave_up | judged.not_finite | judged.converged)
        if ended.any():
            judged.put_into(found, working[ended], ended.nonzero()[:, 0])
            open_ &= ~ended
            if not open_.any():
                return found
        if goal.shrink and int(open_.sum()) <= SHRINK_BELOW * len(working):
            left = open_.nonzero()[:, 0]
            space, ritz, working, open_ = space.take(left), ritz.take(left), working[left], open_[left]
            judged = judge(space, ritz, goal, used_up=False)
        if full:
            space.restart(ritz, max(k + 1, goal.max_basis // 2))
            check_at = 0
        directions = _residuals_to_add(ritz, judged, open_, k)
        check_at = max(check_at, math.ceil(CHECK_EVERY * space.size))


def _residuals_to_add(ritz: Ritz, judged: Judged, open_: Tensor, k: int) -> Tensor:
    """The residuals of triples that have not converged, ``(b, any, s)``."""
    waiting = ~judged.small & open_[:, None]
    count = max(1, int(waiting.sum(1).max()))
    order = torch.argsort(waiting.to(torch.int8), dim=1, descending=True, stable=True)[:, :count]
    residuals = ritz.residuals[:, :k]
    return residuals.gather(1, order[:, :, None].expand(-1, -1, residuals.shape[2]))


def _refine(maps: Oriented, random: RandomVectors, goal: Goal, found: Found) -> None:
    """Search on from the Ritz vectors alone, where rounding has spoilt the bounds of small values.

    Images of a basis are known to the map's rounding relative to sigma_1.  In a basis of mixed vectors,
    products of two such images are known to that times sigma_1, which is much beside a small ``theta^2``; in
    one of Ritz vectors the images are as small as their theta, and the bound is that rounding itself.
    """
    for _ in range(MAX_REFINED):
        wanted = SPOILT * goal.rtol * found.values[:, 0]
        spoilt = (found.errors.amax(dim=1) > wanted) & ~(found.not_finite | found.gave_up)
        if not spoilt.any():
            return
        before = found.errors.amax(dim=1)
        _search_on(maps, random, goal, found, spoilt, found.short)
        if not (found.errors.amax(dim=1) < 0.5 * before)[spoilt].any():
            return


def _search_on(
    maps: Oriented, random: RandomVectors, goal: Goal, found: Found, which: Tensor, start: Tensor
) -> None:
    """Another search for some samples, from given vectors; what it finds replaces what was found."""
    these = which.nonzero()[:, 0]
    part = these if goal.shrink else torch.arange(len(which), device=which.device)
    more = _converge(maps.take(part) if goal.shrink else maps, random.take(part), goal, start[part])
    found.put(these, more, torch.isin(part, these).nonzero()[:, 0])


def _look_for_missed(maps: Oriented, random: RandomVectors, goal: Goal, found: Found) -> Tensor | None:
    """Fresh starts outside of what was found; the vectors of larger values, where there are any.

    Sets the failure probabilities.  Samples that are complete, not finite or given up have nothing to look
    for.
    """
    nothing = found.complete | found.not_finite | found.gave_up
    found.probability = torch.where(found.complete | found.not_finite, 0.0, 1.0).to(found.values)
    if nothing.all():
        return None
    above = torch.maximum(goal.rtol * found.values[:, 0], found.errors[:, -1])
    threshold = (found.values[:, -1] + above).masked_fill(nothing, math.inf)
    space = SearchSpace(maps, random)
    fresh = fresh_start(space, found.short, threshold, steps=FRESH_STEPS, certify=goal.certify)
    found.matvecs += space.matvecs
    found.not_finite |= space.not_finite
    found.next_value = torch.where(nothing, found.next_value, found.next_value.maximum(fresh.largest))
    found.probability = torch.where(nothing, found.probability, fresh.probability)
    missed = ~nothing & (fresh.largest > threshold)
    found.probability[missed] = 1.0
    return torch.where(missed[:, None, None], fresh.vectors, 0.0) if missed.any() else None


def _triples(maps: Oriented, found: Found) -> Triples:
    """As outputs and inputs, NaN where something is not finite."""
    bad = found.not_finite
    scale = 1.0 if maps.scale is None else maps.scale[:, None]
    short, long = found.short.mT, found.long.mT.to(torch.float64)
    left, right = (short, long) if maps.from_outputs else (long, short)
    return Triples(
        values=(found.values * scale).masked_fill(bad[:, None], math.nan),
        errors=(found.errors * scale).masked_fill(bad[:, None], math.nan),
        left=left.masked_fill(bad[:, None, None], math.nan),
        right=right.masked_fill(bad[:, None, None], math.nan),
        vector_errors=gap_angles(found.values, found.residuals, found.next_value).masked_fill(
            bad[:, None], math.nan
        ),
        failure_probability=found.probability,
        matvecs=found.matvecs,
        gave_up=found.gave_up,
    )
