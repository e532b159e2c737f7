"""Was a larger singular value missed?  A fresh random start, and the probability that it errs.

Let U be the k Ritz vectors of the shorter side.  To the residuals, the squared singular values of M are
theta^2 and the eigenvalues of the deflated ``A = (I - UU') M'M (I - UU')``:  if none of these is above
``theta_k^2``, theta_i is the i-th singular value for every i <= k, and not merely some.  That is asked of a
vector drawn after U was found, hence independent of it.  By s steps of the Lanczos method on A it gives a
value mu below the largest eigenvalue lambda, and whatever the other eigenvalues are (Kuczynski &
Wozniakowski, 1992; 10.1137/0613066, theorem 4.2),

    P( mu < (1 - eps) lambda )  <=  1.648 sqrt(n) exp(-(2 s - 1) sqrt(eps)),

n the dimension.  With ``eps = 1 - mu / t^2`` that bounds the probability of seeing so small a mu though some
singular value is above t, which is theta_k plus the accuracy asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.spectrum.search_space import SearchSpace, orthonormal


@dataclass(frozen=True)
class FreshStart:
    """What a fresh random start found.

    Attributes:
        vectors: ``(b, 1, short)``, of the largest value seen outside of the deflated vectors.
        largest: ``(b,)``, that value.
        probability: ``(b,)``, that so little is seen where a singular value above the threshold was missed.
    """

    vectors: Tensor
    largest: Tensor
    probability: Tensor


def fresh_start(
    space: SearchSpace, vectors: Tensor, threshold: Tensor, *, steps: int, certify: float | None
) -> FreshStart:
    """Look for a singular value above a threshold outside of some singular vectors.

    Args:
        space: Of the maps; supplies the random vectors, and counts the products.
        vectors: U as rows, ``(b, k, short)`` float64.
        threshold: t, ``(b,)``.
        steps: At least so many, fewer only where the space is exhausted.
        certify: Go on until the probability is no more than this, or a larger value was found.

    Cost: two products per step.
    """
    left = space.maps.short - vectors.shape[1]
    batch, device = len(vectors), vectors.device
    basis, returned = vectors[:, :0], vectors[:, :0]
    direction = space.random.draw(1, space.maps.short, device)
    largest, probability = vectors.new_zeros(batch), vectors.new_zeros(batch)
    leading = direction
    while basis.shape[1] < left:
        known = torch.cat([vectors, basis], dim=1)
        new = orthonormal(direction, known, space.random)
        image = space.finite(space.maps.forward(new))
        direction = space.finite(space.maps.adjoint(image)).to(torch.float64)
        space.matvecs += 2
        basis, returned = torch.cat([basis, new], dim=1), torch.cat([returned, direction], dim=1)
        small = basis @ returned.mT
        squares, weights = torch.linalg.eigh((small + small.mT) / 2)
        largest, leading = squares[:, -1].clamp(min=0).sqrt(), weights[:, :, -1:].mT @ basis
        done = basis.shape[1]
        probability = failure_probability(largest, threshold, done, left)
        enough = probability <= (1.0 if certify is None else certify)
        if done >= steps and bool((enough | (largest > threshold)).all()):
            break
    return FreshStart(leading, largest, probability)


def failure_probability(largest: Tensor, threshold: Tensor, steps: int, dimension: int) -> Tensor:
    """Bound on the probability of a Lanczos value this small, if the largest singular value is above t.

    >>> t = torch.tensor([1.0])
    >>> [failure_probability(torch.tensor([mu]), t, 10, 1000).item() < 1e-3 for mu in (0.5, 0.99)]
    [True, False]

    Args:
        largest: Square roots of the Lanczos values, ``(b,)``.
        threshold: t, ``(b,)``.
        steps: Products with ``M' M`` so far.
        dimension: Of the space searched.
    """
    if steps >= dimension:
        return torch.zeros_like(largest)
    relative = torch.where(threshold > 0, largest / threshold, largest.sign())
    eps = (1 - relative.square()).clamp(min=0)
    bound = 1.648 * math.sqrt(dimension) * torch.exp(-(2 * steps - 1) * eps.sqrt())
    # A random vector without any image is outside of the range: that has probability zero, unless M = 0.
    return torch.where(largest > 0, bound.clamp(max=1.0), 0.0)
