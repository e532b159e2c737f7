"""The k largest singular values of a `LinearMap`, by block Lanczos: matvecs only, no matrix.

Golub-Kahan-Lanczos bidiagonalisation (Golub & Kahan, 1965; 10.1137/0702016) in blocks of k vectors (Golub,
Luk & Overton, 1981; 10.1145/355945.355946).  M is the map from its smaller side to its larger side.  The
method grows two orthonormal bases, P of the smaller side and Q of the larger side, with

    M P = Q T,      M' Q = P T' + R E',

T upper block-bidiagonal and R the last residual.  With ``T = X diag(theta) Y'`` the triples
``(Q x_i, theta_i, P y_i)`` approximate singular triples of M with residual norm ``||R E' x_i||``: a
singular value lies within it of ``theta_i``.

Why blocks: with a single starting vector, a repeated singular value appears once, and the next smaller one is
reported in place of its second copy, with a tiny residual.  A random block of k vectors sees k copies.

Why full reorthogonalisation: without it, rounding creates spurious copies of converged values (Paige, 1971;
Larsen, 1998).  The bases are float64 whatever the map's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jacli.errors import UsageError
from jacli.linear_map import LinearMap
from jacli.spectrum.exact import EPS, Spectrum

NEGLIGIBLE = 64 * EPS
"""Norm of a vector after orthogonalisation, relative to the largest image so far, that is only rounding."""

NO_ROOM = 1e-8
"""Norm of a random unit vector after orthogonalisation against a basis of the whole space."""

Product = Callable[[Tensor], Tensor]


@torch.no_grad()
def largest_singular_values(
    linear_map: LinearMap,
    k: int,
    *,
    rtol: float = 1e-6,
    seed: int = 0,
    max_matvecs: int | None = None,
) -> Spectrum:
    """The k largest singular values of each sample's matrix, without forming it.

    Stops when every residual is below ``rtol * sigma_1`` or below the map's own rounding, when P spans the
    smaller side (the values are then complete), or at ``max_matvecs``.  In every case `errors` bounds the
    error of each value.

    Args:
        linear_map: The maps; called with one vector per sample at a time, so that no batching rule of
            ``vmap`` is involved.
        k: How many; more than ``min(n_out, n_in)`` means all of them.
        rtol: Wanted error relative to the largest singular value.
        seed: Of the random starting block.
        max_matvecs: Limit on products (a `jvp` or a `vjp` of the whole batch is one); None: no limit.

    Returns:
        ``(batch, min(k, n_out, n_in))`` values and errors; NaN where the map yields NaN or infinity.

        The error is the residual (at least ``rtol * sigma_1`` unless P spans the smaller side) plus
        rounding.  Rounding of the map itself is measured: ``q'(M p)`` and
        ``(M' q)'p`` are one number, computed once by `jvp` and once by `vjp`, and ``theta_i`` is off, to
        first order, by the error of such a number.  Twice the Frobenius norm of all these
        differences is added, and a floor of ``4 eps(dtype) theta_1``.

    Cost: in j steps ``2 j k`` products; memory: ``(n_out + n_in) j k`` float64 numbers per sample.

    Raises:
        UsageError: ``k < 1``.
    """
    if k < 1:
        raise UsageError(f"k = {k} singular values cannot be computed.", todo="Ask for 1 or more.")
    small, large = sorted((linear_map.n_out, linear_map.n_in))
    k, dtype, device = min(k, small), linear_map.dtype, linear_map.device
    if k == 0 or linear_map.batch == 0:
        empty = torch.zeros(linear_map.batch, k, dtype=torch.float64, device=device)
        return Spectrum(empty, empty.clone())
    from_inputs = linear_map.n_in == small
    forward, backward = (linear_map.jvp, linear_map.vjp) if from_inputs else (linear_map.vjp, linear_map.jvp)
    space = _Bidiagonalisation(
        _one_by_one(forward, dtype),
        _one_by_one(backward, dtype),
        torch.zeros(linear_map.batch, small, 0, dtype=torch.float64, device=device),
        torch.zeros(linear_map.batch, large, 0, dtype=torch.float64, device=device),
        torch.Generator().manual_seed(seed),
    )
    return _iterate(space, k, rtol=rtol, limit=max_matvecs, eps=torch.finfo(dtype).eps)


def _iterate(space: _Bidiagonalisation, k: int, *, rtol: float, limit: int | None, eps: float) -> Spectrum:
    """Grow the space until the k largest values have converged."""
    batch, small, _ = space.p.shape
    start = torch.randn(batch, small, k, generator=space.generator, dtype=torch.float64)
    space.grow(start.to(space.p.device))
    check_at = 0
    while True:
        exhausted = space.p.shape[2] >= small
        stopped = limit is not None and space.num_matvecs + 2 * k > limit
        if exhausted or stopped or space.p.shape[2] >= check_at:
            values, residuals, rounding = space.ritz(k, eps)
            enough = torch.maximum(rtol * values[:, :1], rounding)
            if exhausted or stopped or bool((residuals <= enough).all()):
                break
            # The SVD of T costs its size cubed: checking after every step would dominate small maps.
            check_at = math.ceil(1.1 * space.p.shape[2])
        space.grow(space.residual)
    if not exhausted:
        # The residual bounds the distance to *a* singular value.  Inside a cluster tighter than the
        # residuals asked for, that need not be the i-th one: nothing below rtol is claimed.
        residuals = torch.maximum(residuals, rtol * values[:, :1])
    bad = space.not_finite[:, None]
    return Spectrum(values.masked_fill(bad, math.nan), (residuals + rounding).masked_fill(bad, math.nan))


@dataclass
class _Bidiagonalisation:
    """The two bases and T between them; d1 is the smaller side, d2 the larger.

    Attributes:
        forward: ``(batch, d1, b) -> (batch, d2, b)``.
        backward: Its adjoint.
        p: ``(batch, d1, j)`` orthonormal (or zero) columns.
        q: ``(batch, d2, j)``.
        generator: Of the random directions; on the CPU, so that all devices start alike.
        t: ``(batch, j, j)``, ``q' M p`` from products with M.
        t_adjoint: ``(batch, j, j)``, the same numbers from products with M'; NaN where the column
            of p came after the product.
        residual: ``(batch, d1, b)``: the part of M' q of the last block that is orthogonal to p.
        scale: ``(batch,)``, norm of the largest image so far.
        not_finite: ``(batch,)``, whether the map yielded NaN or infinity for the sample.
        num_matvecs: Products so far.
    """

    forward: Product
    backward: Product
    p: Tensor
    q: Tensor
    generator: torch.Generator
    t: Tensor = field(init=False)
    t_adjoint: Tensor = field(init=False)
    residual: Tensor = field(init=False)
    scale: Tensor = field(init=False)
    not_finite: Tensor = field(init=False)
    num_matvecs: int = 0

    def __post_init__(self) -> None:
        batch = self.p.shape[0]
        self.t = self.p.new_zeros(batch, 0, 0)
        self.t_adjoint = self.p.new_zeros(batch, 0, 0)
        self.scale = self.p.new_zeros(batch)
        self.not_finite = torch.zeros(batch, dtype=torch.bool, device=self.p.device)

    def grow(self, directions: Tensor) -> None:
        """One block step: add directions ``(batch, d1, b)`` to p, their images to q, and map these back."""
        new_p = self._orthonormalise(directions, self.p)
        self.p = torch.cat([self.p, new_p], dim=2)
        images = self._apply(self.forward, new_p)
        new_q = self._orthonormalise(images, self.q)
        self.q = torch.cat([self.q, new_q], dim=2)
        returned = self._apply(self.backward, new_q)
        # Column j of T has entries only up to row j: M p_j lies in the span of the columns of q so far.
        old, new = self.t.shape[2], self.q.shape[2]
        self.t = torch.nn.functional.pad(self.t, (0, 0, 0, new - old))
        self.t = torch.cat([self.t, self.q.mT @ images], dim=2)
        inside = self.p.mT @ returned
        self.t_adjoint = torch.nn.functional.pad(self.t_adjoint, (0, new - old), value=math.nan)
        self.t_adjoint = torch.cat([self.t_adjoint, inside.mT], dim=1)
        outside = returned - self.p @ inside
        self.residual = outside - self.p @ (self.p.mT @ outside)

    def ritz(self, k: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest values, their residual norms ``(batch, k)``, and the rounding ``(batch, 1)``."""
        x, values, _ = torch.linalg.svd(self.t)
        width = self.residual.shape[2]
        residuals = torch.linalg.vector_norm(self.residual @ x[:, -width:, :k], dim=1)
        mismatch = (self.t - self.t_adjoint).nan_to_num(nan=0.0)
        rounding = 2 * torch.linalg.matrix_norm(mismatch)[:, None] + 4 * eps * values[:, :1]
        return values[:, :k], residuals, rounding

    def _apply(self, product: Product, block: Tensor) -> Tensor:
        """Images of a block; samples with NaN or infinity are set to zero and marked in `not_finite`."""
        images = product(block)
        self.num_matvecs += block.shape[2]
        self.not_finite |= ~images.isfinite().all(dim=2).all(dim=1)
        images = torch.where(self.not_finite[:, None, None], 0.0, images)
        self.scale = torch.maximum(self.scale, torch.linalg.vector_norm(images, dim=1).amax(dim=1))
        return images

    def _orthonormalise(self, block: Tensor, basis: Tensor) -> Tensor:
        """Columns ``(batch, d, b)`` that extend an orthonormal basis ``(batch, d, j)`` to span the block.

        A column inside the span of the basis (an invariant subspace: a rank-deficient map, repeated values)
        is replaced by a random direction, or by zeros if the basis spans the whole space; these add only
        zeros to T.
        """
        columns = basis
        for i in range(block.shape[2]):
            new, left = _unit_remainder(block[:, :, i : i + 1], columns)
            random = torch.randn(new.shape, generator=self.generator, dtype=torch.float64).to(new.device)
            random, room = _unit_remainder(
                random / torch.linalg.vector_norm(random, dim=1, keepdim=True), columns
            )
            new = torch.where((left > NEGLIGIBLE * self.scale)[:, None, None], new, random)
            spent = (left <= NEGLIGIBLE * self.scale) & (room <= NO_ROOM)
            columns = torch.cat([columns, torch.where(spent[:, None, None], 0.0, new)], dim=2)
        return columns[:, :, basis.shape[2] :]


def _unit_remainder(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of ``(batch, d, 1)`` orthogonal to the basis, normalised, and its norm ``(batch,)``.

    Two projections ("twice is enough", Parlett, 1998, after Kahan), and a third after normalising, because
    the remainder may be as small as the rounding of the first two.
    """
    for _ in range(2):
        vector = vector - basis @ (basis.mT @ vector)
    norm = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    unit = vector / torch.where(norm > 0, norm, 1.0)
    unit = unit - basis @ (basis.mT @ unit)
    length = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    return unit / torch.where(length > 0, length, 1.0), norm[:, 0, 0]


def _one_by_one(product: Product, dtype: torch.dtype) -> Product:
    """A matvec, one vector at a time, in its dtype: ``(batch, d, k) -> (batch, e, k)`` in float64."""

    def apply(block: Tensor) -> Tensor:
        vectors = block.to(dtype).unbind(dim=2)
        return torch.stack([product(v[None])[0].to(torch.float64) for v in vectors], dim=2)

    return apply
