"""The recheck: what a file holds of a sample, against reverse passes through the original model.

Independent of how it was computed: no traced graph, no batching rule, no cut; one plain reverse pass
a vector, in float64 where the model runs in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

N_ROWS = 4
N_PROBES = 4

CROSS_SAMPLE_LIMIT = 1e-6
"""Largest gradient at other samples, relative to the sample's own; as in the probe before the run."""

_ARITHMETIC = {"float32": 1e-4, "float64": 1e-9}
"""float32 and float64 Jacobians usually agree to 1e-6 and at worst to 1e-5, away from kinks."""

PASSES = {"ieee": 0.0, "tf32": 1e-2, "bf16": 5e-2}
"""What reduced passes add, by precision.  Rounding weights and cotangents to bfloat16 leaves 0.6 to 1.9 % of
the Frobenius norm in most of torchvision's networks, 2.4 % in ResNet-152; to TF32, of three bits more, an
eighth of that.  A wrong rule leaves 10 % and more."""

_STORAGE = {"float16": 1e-3, "float32": 1e-6}
"""Rounding (2^-11 and 2^-24, relative), with room for what is small."""


class ReversePasses(Protocol):
    """All that the recheck uses of a `jacli.linear_map.Linearization`."""

    @property
    def batch(self) -> int: ...

    @property
    def n_out(self) -> int: ...

    @property
    def n_in(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def outputs(self) -> Tensor: ...

    def pull(self, cotangents: Tensor) -> Tensor:
        """``(batch, n_out) -> (batch, n_in)``."""
        ...


@dataclass(frozen=True)
class StoredProducts:
    """A stored Jacobian of one sample, multiplied; float64, on the CPU.

    Attributes:
        rows: The rows asked for, ``(k, n_in)``.
        pulled: ``u @ J`` for every cotangent u asked for, ``(p, n_in)``.
        row_norms: 2-norms of all rows, ``(n_out,)``; None where they would cost more than the rest.
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
            None where the file holds none.
    """

    outputs: Tensor
    class_norms: Tensor
    products: Callable[[Tensor, Tensor], StoredProducts] | None = None


@dataclass(frozen=True)
class Rechecked:
    """What the recheck of one sample found.

    Attributes:
        error: The worst relative error, see `recheck`; infinite where one of the two is not finite.
        part: Which part of the sample has it: ``jacobian``, ``class_norms`` or ``outputs``.
        near_kink: It differs from the reference, but not from plain reverse passes in the run's own
            dtype and block: the derivative jumps within rounding of the sample.
        failed: It differs from both, or the cross-sample block is not zero.
        cross_sample: Largest gradient at another sample over the largest at this one.
        dtype: Arithmetic of the reference.
    """

    error: float
    part: str
    near_kink: bool
    failed: bool
    cross_sample: float
    dtype: str

    @property
    def mixes(self) -> bool:
        """Whether the sample's outputs have a gradient at other samples."""
        return not self.cross_sample <= CROSS_SAMPLE_LIMIT


def recheck_tolerance(dtype: str, save_dtype: str, precision: str = "ieee") -> float:
    """Largest relative error of a right result: of the run's arithmetic, its passes and the file's dtype."""
    narrower = save_dtype != dtype and (save_dtype, dtype) != ("float64", "float32")
    return _ARITHMETIC[dtype] + PASSES[precision] + (_STORAGE[save_dtype] if narrower else 0.0)


def recheck(
    stored: StoredSample,
    exact: ReversePasses,
    own: Callable[[], Iterable[tuple[ReversePasses, int]]],
    *,
    position: int,
    tolerance: float,
    seed: int,
) -> Rechecked:
    """Compare one stored sample ``J`` with the reference ``R``, the original model's Jacobian.

    Four seeded rows are compared entry by entry, and four Gaussian probes ``u`` stand for all rows:
    ``E |u'(J - R)|^2 = |J - R|_F^2`` (Hutchinson 1989), so the root of the ratio of two sums over the probes,
    ``sum |u'(J - R)|^2 / sum |u'R|^2``, estimates the relative Frobenius error.  Up to eight
    outputs, every row is compared and the error is exact.

    What four probes miss: an error of ten tolerances passes if the ratio comes out at less than a
    hundredth of its mean.  The worst case is a ``J - R`` of rank one (one row, one column, two rows
    exchanged), where the sum is ``|J - R|_F^2`` times a chi-square variable of four degrees of
    freedom: ``P(chi2_4 < 4/100) = 1 - exp(-0.02) (1 + 0.02) = 2e-4``, half as much again where ``R``
    is of rank one too.  One probe would miss 8 %, one of random signs half of all exchanged rows.

    Norms and outputs are compared as well: the class norms of the rows with those of ``R`` (without a
    stored Jacobian eight rows take the probes' place), all of them with the stored Jacobian's own.
    Outputs are relative to their norm, or a tenth of ``|R|_F`` if that is larger: outputs that cancel
    to almost nothing round as if they did not.

    Args:
        stored: What the file holds.
        exact: The reference at a small batch, with the sample at ``position`` and at least one other.
        own: Gives plain reverse passes in the run's own dtype at the run's own block, and the sample's
            position in it, for each way in which the run's forward pass may have rounded; asked only
            where the sample differs from the reference.
        position: Of the sample in the batch of ``exact``.
        tolerance: Largest relative error of a right result.
        seed: Chooses rows and probes.

    Cost: at most eight reverse passes over the batch of ``exact`` (and as many over the run's block if
    the sample differs), one reading of the stored Jacobian.
    """
    n_out = exact.n_out
    every = n_out <= N_ROWS + N_PROBES
    n_probes = 0 if every or stored.products is None else N_PROBES
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(n_out, generator=generator)[: N_ROWS + N_PROBES - n_probes]
    # float32 numbers in a float64 tensor: the same probe, whichever of the two the passes take.
    probes = torch.randn(n_probes, n_out, generator=generator, dtype=torch.float32).double()
    held = stored.products(index, probes) if stored.products else None

    reference = _pull_all(exact, position, index, probes)
    error, part = _compare(stored, held, reference, index)
    near_kink = False
    if not error <= tolerance:
        near_kink = any(
            _compare(stored, held, _pull_all(passes, where, index, probes), index)[0] <= tolerance
            for passes, where in own()
        )
    differs = not (error <= tolerance or near_kink)
    return Rechecked(
        error=error,
        part=part,
        near_kink=near_kink,
        failed=differs or not reference.cross_sample <= CROSS_SAMPLE_LIMIT,
        cross_sample=reference.cross_sample,
        dtype=str(exact.dtype).removeprefix("torch."),
    )


@dataclass(frozen=True)
class _Reference:
    rows: Tensor
    pulled: Tensor
    outputs: Tensor
    cross_sample: float


def _pull_all(linearization: ReversePasses, position: int, index: Tensor, probes: Tensor) -> _Reference:
    """Rows and probes by plain reverse passes one after another, with a cotangent at ``position`` only."""
    own_largest = others_largest = 0.0
    found = []
    for vector in (*index.tolist(), *probes):
        cotangents = torch.zeros(
            linearization.batch, linearization.n_out, dtype=linearization.dtype, device=linearization.device
        )
        if isinstance(vector, Tensor):
            cotangents[position] = vector.to(cotangents)
        else:
            cotangents[position, vector] = 1
        gradient = linearization.pull(cotangents).detach()
        found.append(gradient[position].cpu().double())
        # At another sample, a cotangent of zero meets its infinite slopes as NaN: that is no mixing.
        largest = gradient.abs().nan_to_num(0, 0, 0).amax(1) if linearization.n_in else gradient.new_zeros(1)
        own_largest = max(own_largest, float(largest[position]))
        largest[position] = 0
        others_largest = max(others_largest, float(largest.max()))
    products = torch.stack(found)
    return _Reference(
        products[: len(index)],
        products[len(index) :],
        linearization.outputs[position].detach().flatten().cpu().double(),
        _ratio(others_largest, own_largest),
    )


def _compare(
    stored: StoredSample, held: StoredProducts | None, reference: _Reference, index: Tensor
) -> tuple[float, str]:
    """The worst relative error and the part that has it."""
    rows = _finite_norm(reference.rows)
    share = (len(index) / len(stored.class_norms)) ** 0.5
    # Rows that are zero but for cancellation (a saturated softmax) are not held to their own size.
    if len(reference.pulled):
        frobenius = _finite_norm(reference.pulled) / len(reference.pulled) ** 0.5
        rows = max(rows, frobenius * share)
    else:
        frobenius = rows / share
    row_norms = torch.linalg.vector_norm(reference.rows, dim=1)
    errors = {
        "jacobian": 0.0,
        "class_norms": _ratio(_gap(stored.class_norms[index], row_norms), rows),
        "outputs": _ratio(
            _gap(stored.outputs, reference.outputs),
            max(_finite_norm(reference.outputs), 0.1 * frobenius),
        ),
    }
    if held is not None:
        errors["jacobian"] = max(
            _ratio(_gap(held.rows, reference.rows), rows),
            _ratio(_gap(held.pulled, reference.pulled), _finite_norm(reference.pulled)),
        )
        if held.row_norms is not None:
            all_norms = _ratio(_gap(stored.class_norms, held.row_norms), _finite_norm(held.row_norms))
            errors["class_norms"] = max(errors["class_norms"], all_norms)
    part = max(errors, key=errors.__getitem__)
    return errors[part], part


def _gap(stored: Tensor, reference: Tensor) -> float:
    """2-norm of the difference; numbers that are not finite in both agree, in one only are infinitely far."""
    both = ~torch.isfinite(stored) & ~torch.isfinite(reference)
    difference = (stored - reference).masked_fill(both, 0).abs()
    return _norm(difference.nan_to_num(nan=torch.inf, posinf=torch.inf))


def _finite_norm(values: Tensor) -> float:
    return _norm(values.masked_fill(~torch.isfinite(values), 0))


def _norm(values: Tensor) -> float:
    """2-norm, scaled so that no square leaves the range of float64."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest in (0.0, float("inf")):
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))


def _ratio(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return part / whole if whole > 0 else float("inf")
