"""The recheck: what a file holds of a sample, compared with reverse passes through the original model.

It is independent of how the sample was computed: no traced graph, no batching rule, no cut, only plain
reverse passes, one per vector, in float64 if the model runs in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_maps import Linearization, LinearMap
from jacli.linear_maps.agreement import finite, gaps, norms, ratios, relative_errors
from jacli.verify.passes import PlainPasses
from jacli.verify.probe import CROSS_SAMPLE_LIMIT

N_ROWS = 4
"""Seeded rows that are compared entry by entry."""

N_PROBES = 4
"""Random combinations of all rows that are compared."""

N_NEARBY = 8
"""If a sample differs, the reference is computed at so many points near it, at each distance."""

NEARBY = (8, 64)
"""The distances of these points from the sample, in rounding errors of the run's dtype."""

_SPREAD = 4
"""A difference counts as rounding up to this many times the spread of the reference over these points."""

MOST_ROWS = 4096
"""If rounding hides combinations of rows, rows are compared one by one, if there are at most so many."""

_ROWS_BYTES = 2**27
"""Rows compared at a time, in bytes of float64."""


@dataclass(frozen=True)
class StoredProducts:
    """A stored Jacobian of one sample, multiplied; float64, on the CPU.

    Attributes:
        rows: The rows asked for, ``(k, n_in)``.
        pulled: ``u @ J`` for every cotangent u asked for, ``(p, n_in)``.
        row_norms: 2-norms of all rows, ``(n_out,)``; None if they would cost more than the rest.
    """

    rows: Tensor
    pulled: Tensor
    row_norms: Tensor | None = None


@dataclass(frozen=True)
class StoredSample:
    """What a file holds of one sample; float64, on the CPU.

    Attributes:
        outputs: All outputs, flat.
        class_norms: 2-norm of each (selected) output's input-gradient, ``(n_out,)``.
        products: ``(index (k,), cotangents (p, n_out)) -> StoredProducts``, reading the Jacobian once;
            None if the file holds none.
    """

    outputs: Tensor
    class_norms: Tensor
    products: Callable[[Tensor, Tensor], StoredProducts] | None = None


@dataclass(frozen=True)
class Rechecked:
    """What the recheck of one sample found.

    Attributes:
        error: The worst relative error, see `recheck`; infinite if only one of the two is finite.
        part: Which part of the sample has it: ``jacobian``, ``class_norms`` or ``outputs``.
        near_kink: It differs from the reference, but not from plain reverse passes in the run's own dtype and
            batch, and the derivative is shown to jump within rounding of the sample.
        failed: It differs and is not at a kink; or its outputs have gradients at other samples.
        rounding: It failed, but agrees with plain reverse passes in the run's own dtype and batch: these
            differ from the reference as much.
        cross_sample: Largest gradient at another sample, relative to the largest at this one; in the
            reference's batch and, if the sample differs from the reference, in the run's own.
        dtype: Arithmetic of the reference.
    """

    error: float
    part: str
    near_kink: bool
    failed: bool
    rounding: bool
    cross_sample: float
    dtype: str

    @property
    def mixes(self) -> bool:
        """Whether the sample's outputs have a gradient at other samples."""
        return not self.cross_sample <= CROSS_SAMPLE_LIMIT


def recheck(
    stored: StoredSample,
    exact: Linearization,
    own: Callable[[], Iterable[tuple[PlainPasses, int]]],
    *,
    position: int,
    tolerance: float,
    seed: int,
    fixed_batch: bool = False,
) -> Rechecked:
    """Compare one stored sample ``J`` with the reference ``R``, the original model's Jacobian.

    *Rows and probes.*  Four seeded rows are compared entry by entry, and four random combinations of all
    rows, by Gaussian probes ``u``.  Since ``E |u'(J - R)|^2 = |J - R|_F^2`` (Hutchinson 1989), the root of
    the ratio of two sums over the probes, ``sum |u'(J - R)|^2 / sum |u'R|^2``, estimates the relative
    Frobenius error.  With up to eight outputs, every row is compared and the error is exact.

    *What four probes miss.*  An error of ten tolerances passes if the ratio comes out at less than a
    hundredth of its mean.  The worst case is a ``J - R`` of rank one (one row, one column, two rows
    exchanged): the sum is then ``|J - R|_F^2`` times a chi-square variable with four degrees of freedom, and
    ``P(chi2_4 < 4/100) = 1 - exp(-0.02) (1 + 0.02) = 2e-4``; half as much again if ``R``, too, has rank one.
    A single Gaussian probe would miss 8 %, and one of random signs half of all exchanged rows.

    *Rounding.*  The reverse pass of a confident softmax subtracts numbers of the size of the probes, and the
    rounding error that remains can be larger than a Jacobian of 1e-20.  If the probes differ and the four
    rows do not, all rows are compared instead, by a pass for each, if there are at most `MOST_ROWS`.

    *Norms and outputs* are compared as well.  The class norms of the rows must be those of ``R`` (eight rows,
    without probes, if no Jacobian is stored), and all class norms those of the stored Jacobian.  Errors of
    outputs are relative to their norm or to a tenth of ``|R|_F``, whichever is larger: outputs that nearly
    cancel have rounding errors of the size of what cancels.

    *Kinks.*  A sample that differs is at a kink only if three things hold.  It agrees with plain reverse
    passes in the run's own dtype and batch.  These have no gradient at other samples.  And the reference
    itself, computed at eight points within 8 and eight within 64 rounding errors of the sample, changes by at
    least a quarter of the difference in every part that differs (which outputs, being continuous, do not).
    At a tie of a single ReLU, about half of these points lie on the other side: with probability ``2 ** -16``
    none does, and the sample counts as wrong.  A badly conditioned sample, whose derivative changes as much
    without a jump, also counts as being at a kink.

    Args:
        stored: What the file holds.
        exact: The reference at a small batch, with the sample at ``position`` and at least one other.
        own: Yields plain reverse passes in the run's own dtype over the run's own batch, with the sample's
            position in it, for each way in which the run's forward pass may have rounded; called only if the
            sample differs from the reference.
        position: Of the sample in the batch of ``exact``.
        tolerance: Largest relative error of a correct result.
        seed: Chooses rows and probes.
        fixed_batch: Whether the model accepts no other batch size than that of ``exact``.

    Cost: at most eight reverse passes over the batch of ``exact``, and reading the stored Jacobian once.  If
    the sample differs, as many passes over the run's batch and twice as many over eight samples; ``n_out`` of
    each if rounding hides the probes.
    """
    n_out = exact.n_out
    every = n_out <= N_ROWS + N_PROBES
    n_probes = 0 if every or stored.products is None else N_PROBES
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(n_out, generator=generator)[: N_ROWS + N_PROBES - n_probes]
    # float32 numbers in a float64 tensor: the same probe, whichever of the two the passes take.
    probes = torch.randn(n_probes, n_out, generator=generator, dtype=torch.float32).double()
    held = stored.products(index, probes) if stored.products else None

    plain = PlainPasses.at(exact)
    reference = _pull_all(plain, position, index, probes)
    errors, _ = _errors(stored, held, plain, position, reference, index, tolerance)
    part = max(errors, key=errors.__getitem__)
    as_run, near_kink, cross_sample = False, False, reference.cross_sample
    if not errors[part] <= tolerance:
        for passes, where in own():
            itself = _pull_all(passes, where, index, probes)
            cross_sample = max(cross_sample, itself.cross_sample)
            ours, by_rows = _errors(stored, held, passes, where, itself, index, tolerance)
            if max(ours.values()) <= tolerance:
                as_run = True
                if by_rows:  # rounding would hide a jump too
                    break
                eps = torch.finfo(passes.dtype).eps
                size = exact.batch if fixed_batch else N_NEARBY
                places = torch.full((size,), position, device=exact.device)
                nearby = (PlainPasses.at(exact.at(places, noise=steps * eps, seed=seed)) for steps in NEARBY)
                near_kink = _jumps(errors, reference, nearby, index, probes, tolerance)
                break
    mixes = not cross_sample <= CROSS_SAMPLE_LIMIT
    return Rechecked(
        error=errors[part],
        part=part,
        near_kink=near_kink and not mixes,
        failed=mixes or not (errors[part] <= tolerance or near_kink),
        rounding=as_run and not mixes and not near_kink,
        cross_sample=cross_sample,
        dtype=str(exact.dtype).removeprefix("torch."),
    )


@dataclass(frozen=True)
class _Reference:
    rows: Tensor
    pulled: Tensor
    outputs: Tensor
    cross_sample: float = 0.0


def _pull_all(passes: PlainPasses, position: int, index: Tensor, probes: Tensor) -> _Reference:
    """Rows and probes by plain reverse passes one after another, with a cotangent at ``position`` only."""
    own_largest = others_largest = torch.zeros((), dtype=torch.float64)
    images = []
    for vector in _vectors(passes.map, index, probes):
        cotangents = torch.zeros(
            passes.map.batch, passes.map.n_out, dtype=passes.dtype, device=passes.map.device
        )
        cotangents[position] = vector
        gradient = passes.pull(cotangents).detach()
        images.append(gradient[position].cpu().double())
        # At another sample, a cotangent of zero times an infinite slope is NaN: that does not mean influence.
        largest = finite(gradient).abs().amax(1).cpu() if passes.map.n_in else torch.zeros(1).double()
        own_largest = torch.maximum(own_largest, largest[position])
        largest[position] = 0
        others_largest = torch.maximum(others_largest, largest.max())
    products = torch.stack(images)
    return _Reference(
        products[: len(index)],
        products[len(index) :],
        passes.outputs[position].detach().flatten().cpu().double(),
        float(ratios(others_largest, own_largest)),
    )


def _errors(
    stored: StoredSample,
    held: StoredProducts | None,
    passes: PlainPasses,
    position: int,
    reference: _Reference,
    index: Tensor,
    tolerance: float,
) -> tuple[dict[str, float], bool]:
    """The relative error of every part, and whether all rows were compared because only the probes differ."""
    errors = _compare(stored, held, reference, index)
    if held is None or not len(reference.pulled) or errors["jacobian"] <= tolerance:
        return errors, False
    of_rows, _ = _sizes(reference, passes.map.n_out)
    if passes.map.n_out > MOST_ROWS or not _relative(held.rows, reference.rows, of_rows) <= tolerance:
        return errors, False
    return errors | _row_by_row(stored, passes, position), True


def _row_by_row(stored: StoredSample, passes: PlainPasses, position: int) -> dict[str, float]:
    """The errors of the Jacobian and its class norms, each row compared with a reverse pass of its own."""
    assert stored.products is not None
    n_out = passes.map.n_out
    none = torch.zeros(0, n_out, dtype=torch.float64)
    difference, size, row_norms = 0.0, 0.0, []
    for index in torch.arange(n_out).split(max(1, _ROWS_BYTES // (8 * max(1, passes.map.n_in)))):
        plain = _pull_all(passes, position, index, none).rows
        held = stored.products(index, none).rows
        difference = math.hypot(difference, float(norms(gaps(held, plain).flatten()[None])))
        size = math.hypot(size, _norm(plain))
        row_norms.append(torch.linalg.vector_norm(plain, dim=1))
    error = ratios(*torch.tensor([difference, size], dtype=torch.float64))
    return {"jacobian": float(error), "class_norms": _relative(stored.class_norms, torch.cat(row_norms))}


def _pull_each(passes: PlainPasses, index: Tensor, probes: Tensor) -> list[_Reference]:
    """As `_pull_all`, at the first `N_NEARBY` samples of a batch of independent ones, by the same passes."""
    some = slice(min(N_NEARBY, passes.map.batch))
    products = torch.stack(
        [
            passes.pull(vector.expand(passes.map.batch, -1)).detach()[some].cpu().double()
            for vector in _vectors(passes.map, index, probes)
        ],
        dim=1,
    )
    outputs = passes.outputs[some].detach().flatten(1).cpu().double()
    return [
        _Reference(products[i, : len(index)], products[i, len(index) :], outputs[i])
        for i in range(len(products))
    ]


def _vectors(linear_map: LinearMap, index: Tensor, probes: Tensor) -> Iterator[Tensor]:
    """Cotangents of one sample, ``(n_out,)``: unit vectors of the rows, and the probes."""
    for row in index.tolist():
        unit = torch.zeros(linear_map.n_out, dtype=linear_map.dtype, device=linear_map.device)
        unit[row] = 1
        yield unit
    for probe in probes:
        yield probe.to(linear_map.device, linear_map.dtype)


def _jumps(
    errors: Mapping[str, float],
    reference: _Reference,
    nearby: Iterable[PlainPasses],
    index: Tensor,
    probes: Tensor,
    tolerance: float,
) -> bool:
    """Does every part that differs change as much, within a factor, between points near the sample?"""
    spread = dict.fromkeys(errors, 0.0)
    for passes in nearby:
        n_out = passes.map.n_out
        for there in _pull_each(passes, index, probes):
            row_norms = torch.linalg.vector_norm(there.rows, dim=1)
            moved = _distances(reference, n_out, row_norms, there.outputs, there.rows, there.pulled)
            spread = {part: max(spread[part], moved[part]) for part in spread}
        # The stored norms have the error of the Jacobian that they are of.
        spread["class_norms"] = max(spread["class_norms"], spread["jacobian"])
        if all(errors[part] <= max(tolerance, _SPREAD * spread[part]) for part in errors):
            return True
    return False


def _compare(
    stored: StoredSample, held: StoredProducts | None, reference: _Reference, index: Tensor
) -> dict[str, float]:
    """The relative error of every part."""
    rows, pulled = (held.rows, held.pulled) if held else (None, None)
    n_out = len(stored.class_norms)
    errors = _distances(reference, n_out, stored.class_norms[index], stored.outputs, rows, pulled)
    if held is not None and held.row_norms is not None:
        all_norms = _relative(stored.class_norms, held.row_norms)
        errors["class_norms"] = max(errors["class_norms"], all_norms)
    return errors


def _distances(
    reference: _Reference,
    n_out: int,
    row_norms: Tensor,
    outputs: Tensor,
    rows: Tensor | None,
    pulled: Tensor | None,
) -> dict[str, float]:
    """The relative errors of norms, outputs, rows and probes, part by part."""
    of_rows, frobenius = _sizes(reference, n_out)
    distances = {
        "jacobian": 0.0,
        "class_norms": _relative(row_norms, torch.linalg.vector_norm(reference.rows, dim=1), of_rows),
        "outputs": _relative(outputs, reference.outputs, 0.1 * frobenius),
    }
    if rows is not None and pulled is not None:
        probes = _relative(pulled, reference.pulled)
        distances["jacobian"] = max(_relative(rows, reference.rows, of_rows), probes)
    return distances


def _sizes(reference: _Reference, n_out: int) -> tuple[float, float]:
    """2-norms of the rows at hand and of the whole Jacobian, the latter as the probes estimate it.

    Rows that are zero up to cancellation (a saturated softmax) are not compared with their own size.
    """
    of_rows = _norm(reference.rows)
    share = (len(reference.rows) / n_out) ** 0.5
    if not len(reference.pulled):
        return of_rows, of_rows / share
    frobenius = _norm(reference.pulled) / len(reference.pulled) ** 0.5
    return max(of_rows, frobenius * share), frobenius


def _relative(computed: Tensor, reference: Tensor, scale: float = 0.0) -> float:
    """`relative_errors` of everything together."""
    size = torch.tensor([scale], dtype=torch.float64)
    return float(relative_errors(computed.flatten()[None], reference.flatten()[None], scale=size))


def _norm(values: Tensor) -> float:
    """2-norm of the finite entries."""
    return float(norms(finite(values).flatten()[None]))
