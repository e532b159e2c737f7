"""A search space for singular triples: orthonormal vectors, their images, and the Rayleigh-Ritz values.

M is the map from the shorter side of each matrix to its longer side, ``J'`` where ``n_out <= n_in``.  The
space has an orthonormal basis P of the shorter side, the images ``W = M P`` and their images ``Z = M' W``.
With the eigenvectors y of the Gram matrix ``W' W`` and its eigenvalues ``theta^2``, the Ritz triples

    u = P y,    theta = ||W y||,    v = W y / theta

satisfy ``M u = theta v`` by construction, and ``M' v = theta u + r`` with ``r = (Z y - theta^2 u) / theta``:
a singular value of M lies within ``||r||`` of theta.  The Gram matrix is one of float64 products of images in
the map's dtype, and not of products with M and M', so that theta is not spoilt by squaring.

Any vector may enter the basis.  Residuals make it a block Krylov space (in exact arithmetic: that of block
Golub-Kahan-Lanczos bidiagonalisation), random ones go on after a breakdown, and a restart replaces the basis
by its leading Ritz vectors, which costs no product with M (thick restart: Wu & Simon, 2000;
10.1137/S0895479898334605).

Indices: ``b`` samples, ``j`` basis vectors, ``s`` the shorter side, ``l`` the longer side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from jacli.linear_maps import LinearMap, Samples
from jacli.spectrum.exact import EPS, at_once

NEGLIGIBLE = 64 * EPS
"""Norm of a vector after orthogonalisation, relative to before, that is only rounding."""

NO_ROOM = 1e-8
"""Norm of a random unit vector after orthogonalisation against a basis of the whole space."""

MAX_EXPONENT = 200
"""Images between 2 to the minus this and 2 to this have squares, and products of these, within float64."""


@dataclass(frozen=True)
class Oriented:
    """A batch of maps seen from their shorter side.

    Attributes:
        map: The maps ``J``.
        vectors_per_pass: Most vectors per sample in one product.
        scale: ``(b,)``, a power of two that products are divided by; None: 1.
    """

    map: LinearMap
    vectors_per_pass: int
    scale: Tensor | None = None

    @property
    def from_outputs(self) -> bool:
        """Whether the shorter side is that of the outputs, and M is ``J'``."""
        return self.map.n_out <= self.map.n_in

    @property
    def short(self) -> int:
        """Length of the vectors of the shorter side."""
        return min(self.map.n_out, self.map.n_in)

    @property
    def long(self) -> int:
        """Length of the vectors of the longer side."""
        return max(self.map.n_out, self.map.n_in)

    def forward(self, vectors: Tensor) -> Tensor:
        """Products with M, ``(b, j, s) -> (b, j, l)``, in the map's dtype."""
        return self._pass(self.map.vjp if self.from_outputs else self.map.jvp, vectors)

    def adjoint(self, vectors: Tensor) -> Tensor:
        """Products with ``M'``, ``(b, j, l) -> (b, j, s)``, in the map's dtype."""
        return self._pass(self.map.jvp if self.from_outputs else self.map.vjp, vectors)

    def take(self, samples: Tensor) -> Oriented:
        """The maps of some samples."""
        scale = None if self.scale is None else self.scale[samples]
        return Oriented(self.map.take(samples), self.vectors_per_pass, scale)

    def in_range(self, random: RandomVectors) -> Oriented:
        """The same, scaled where squares of its singular values lie outside of float64.

        Cost: one product, in float64 alone: squares of float32 numbers never do.
        """
        if self.map.dtype != torch.float64:
            return self
        images = self.forward(random.draw(1, self.short, self.map.device))
        _, exponents = torch.frexp(images.abs().amax(dim=(1, 2)).nan_to_num(0.0, 0.0, 0.0))
        extreme = exponents.abs() > MAX_EXPONENT
        if not extreme.any():
            return self
        scale = torch.ldexp(torch.ones_like(images[:, 0, 0]), torch.where(extreme, exponents, 0))
        return Oriented(self.map, self.vectors_per_pass, scale)

    def _pass(self, product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        chunks = vectors.to(self.map.dtype).transpose(0, 1).split(self.vectors_per_pass)
        images = torch.cat([product(chunk.contiguous()) for chunk in chunks]).transpose(0, 1)
        return images if self.scale is None else images / self.scale[:, None, None]


class RandomVectors:
    """Gaussian vectors, a sequence for each sample that does not depend on the other samples.

    Args:
        seed: Of all of them.
        samples: The number of each sample in the whole run, so that shards draw what one run draws.
    """

    def __init__(self, seed: Sequence[int], samples: Sequence[int]) -> None:
        states = [np.random.SeedSequence([*seed, n]).generate_state(1, np.uint64)[0] for n in samples]
        self._generators = [torch.Generator().manual_seed(int(state) % 2**63) for state in states]

    def draw(self, count: int, length: int, device: torch.device) -> Tensor:
        """``(b, count, length)`` float64; made on the CPU, so that all devices draw alike."""
        vectors = [
            torch.randn(count, length, generator=generator, dtype=torch.float64)
            for generator in self._generators
        ]
        return torch.stack(vectors).to(device)

    def take(self, samples: Tensor) -> RandomVectors:
        """Those of some samples, going on where they are."""
        some = RandomVectors((), ())
        some._generators = [self._generators[i] for i in samples.tolist()]
        return some


@dataclass
class Ritz:
    """The Ritz triples of a space, the largest first.

    Attributes:
        values: theta, ``(b, j)``.
        weights: The eigenvectors y as rows, ``(b, j, j)``.
        residuals: ``theta r = Z y - theta^2 u``, ``(b, k, s)``, of the first k.
        mismatch: ``(b, k)``, by how much ``u' (M' M u)`` and ``(M u)' (M u)`` differ, for all of them with u.
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor
    mismatch: Tensor

    def take(self, samples: Tensor) -> Ritz:
        """Those of some samples."""
        return Ritz(*(getattr(self, each.name)[samples] for each in fields(self)))


@dataclass
class SearchSpace:
    """Basis, images and their Gram matrix.

    Attributes:
        maps: The maps, seen from their shorter side.
        random: Fresh directions.
        basis: P as rows, ``(b, j, s)`` float64; rows of zeros where the whole space is spanned.
        returned: Z as rows, ``(b, j, s)`` float64.
        images: W as rows in blocks, ``(b, any, l)`` in the map's dtype.
        gram: ``W' W``, ``(b, j, j)`` float64.
        not_finite: ``(b,)``, whether a product gave NaN or infinity; these samples go on with zeros.
        matvecs: Products with M or ``M'`` so far, per sample.
    """

    maps: Oriented
    random: RandomVectors
    basis: Tensor = field(init=False)
    returned: Tensor = field(init=False)
    images: list[Tensor] = field(init=False, default_factory=list)
    gram: Tensor = field(init=False)
    not_finite: Tensor = field(init=False)
    matvecs: int = 0

    def __post_init__(self) -> None:
        batch, device = self.maps.map.batch, self.maps.map.device
        self.basis = torch.zeros(batch, 0, self.maps.short, dtype=torch.float64, device=device)
        self.returned = self.basis.clone()
        self.gram = self.basis.new_zeros(batch, 0, 0)
        self.not_finite = torch.zeros(batch, dtype=torch.bool, device=device)

    @property
    def size(self) -> int:
        """Number of basis vectors."""
        return self.basis.shape[1]

    @property
    def is_whole(self) -> bool:
        """Whether it spans the shorter side: its values are then all there are."""
        return self.size >= self.maps.short

    def expand(self, directions: Tensor) -> None:
        """Add the span of directions ``(b, any, s)``: two products with each."""
        count = min(directions.shape[1], self.maps.short - self.size)
        new = orthonormal(directions[:, :count], self.basis, self.random)
        images = self.finite(self.maps.forward(new))
        returned = self.finite(self.maps.adjoint(images)).to(torch.float64)
        self.matvecs += 2 * count
        self.basis = torch.cat([self.basis, new], dim=1)
        self.returned = torch.cat([self.returned, returned], dim=1)
        self.images.append(images)
        beside = torch.cat([product_in_float64(block, images) for block in self.images], dim=1)
        old = self.gram.shape[1]
        gram = self.gram.new_zeros(len(self.gram), old + count, old + count)
        gram[:, :old, :old] = self.gram
        gram[:, :, old:] = beside
        gram[:, old:, :old] = beside[:, :old].mT
        self.gram = gram

    def ritz(self, k: int) -> Ritz:
        """The Ritz values, and residuals of the k largest."""
        squares, vectors = torch.linalg.eigh(self.gram)
        weights = vectors.flip(2).mT
        values = squares.flip(1).clamp(min=0).sqrt()
        leading = weights[:, :k]
        back, products = leading @ self.returned, leading @ self.gram
        within = back @ self.basis.mT - products
        residuals = back - products @ self.basis
        return Ritz(values, weights, residuals, torch.linalg.vector_norm(within, dim=2))

    def restart(self, ritz: Ritz, keep: int) -> None:
        """Replace the basis by its leading Ritz vectors."""
        weights = ritz.weights[:, :keep]
        self.basis = weights @ self.basis
        self.returned = weights @ self.returned
        self.images = [self.combined(weights)]
        self.gram = torch.diag_embed(ritz.values[:, :keep].square())

    def combined(self, weights: Tensor, samples: Samples = slice(None)) -> Tensor:
        """Combinations of the images of some samples, ``(m, k, j) -> (m, k, l)``, in the map's dtype."""
        parts = weights.to(self.images[0].dtype).split([block.shape[1] for block in self.images], dim=2)
        total: Tensor = parts[0] @ self.images[0][samples]
        for part, block in zip(parts[1:], self.images[1:], strict=True):
            total.baddbmm_(part, block[samples])
        return total

    def take(self, samples: Tensor) -> SearchSpace:
        """That of some samples."""
        some = SearchSpace(self.maps.take(samples), self.random.take(samples))
        some.basis, some.returned = self.basis[samples], self.returned[samples]
        some.images = [block[samples] for block in self.images]
        some.gram, some.not_finite = self.gram[samples], self.not_finite[samples]
        some.matvecs = self.matvecs
        return some

    def finite(self, vectors: Tensor) -> Tensor:
        """Vectors ``(b, any, any)``; zeros, and a mark, for a sample with NaN or infinity."""
        self.not_finite |= ~vectors.isfinite().all(dim=2).all(dim=1)
        if not self.not_finite.any():
            return vectors
        return torch.where(self.not_finite[:, None, None], 0.0, vectors)


def orthonormal(directions: Tensor, basis: Tensor, random: RandomVectors) -> Tensor:
    """Orthonormal vectors that extend a basis to span the directions: rows, ``(b, any, s)``.

    A direction inside the span of the basis (an invariant subspace: repeated values, a deficient rank) is
    replaced by a random one, or by zeros if the basis spans the whole space.  Two projections ("twice is
    enough", Parlett, 1998, after Kahan) and a third one after normalising, because the remainder may be as
    small as the rounding of the first two.
    """
    before = torch.linalg.vector_norm(directions, dim=2)
    block = _outside(_outside(directions, basis), basis)
    done = basis[:, :0]
    for i in range(block.shape[1]):
        new, norm = _unit_remainder(block[:, i : i + 1], basis, done)
        lost = ~(norm > NEGLIGIBLE * before[:, i])
        if lost.any():
            fresh = random.draw(1, basis.shape[2], basis.device)
            fresh = fresh / torch.linalg.vector_norm(fresh, dim=2, keepdim=True)
            fresh, room = _unit_remainder(fresh, basis, done)
            fresh = torch.where((room > NO_ROOM)[:, None, None], fresh, 0.0)
            new = torch.where(lost[:, None, None], fresh, new)
        done = torch.cat([done, new], dim=1)
    return done


def product_in_float64(a: Tensor, b: Tensor) -> Tensor:
    """Products ``a b'`` of rows, ``(b, m, l), (b, n, l) -> (b, m, n)``, of float64 copies, piece by piece."""
    step = at_once(a.shape[0] * (a.shape[1] + b.shape[1]))
    total = torch.zeros(a.shape[0], a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[2], step):
        piece = slice(start, start + step)
        total.baddbmm_(a[:, :, piece].to(torch.float64), b[:, :, piece].to(torch.float64).mT)
    return total


def _outside(vectors: Tensor, basis: Tensor) -> Tensor:
    return vectors - (vectors @ basis.mT) @ basis


def _unit_remainder(vector: Tensor, basis: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
    """The part of ``(b, 1, s)`` orthogonal to both bases, normalised, and its norm ``(b,)``."""
    for _ in range(2):
        vector = _outside(_outside(vector, basis), done) if done.shape[1] else _outside(vector, basis)
    norm = torch.linalg.vector_norm(vector, dim=2, keepdim=True)
    unit = vector / torch.where(norm > 0, norm, 1.0)
    unit = _outside(_outside(unit, basis), done)
    length = torch.linalg.vector_norm(unit, dim=2, keepdim=True)
    return unit / torch.where(length > 0, length, 1.0), norm[:, 0, 0]
