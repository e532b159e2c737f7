"""A computed Jacobian against plain reverse passes: some rows, and a random combination of all rows.

A wrong batching rule does not raise (PReLU under ``vmap``: relative error 0.85), so whatever the
method, its matrices are compared with what a tape gives (`jacli.linear_maps.Linearization.tape`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jacli.linear_maps import LinearMap, Matrices
from jacli.linear_maps.agreement import finite, gaps, norms, ratios, relative_errors
from jacli.verify.tolerances import PASSES, REDUCED_INSIDE

N_ROWS = 4

N_SIZES = 4
"""Further Gaussian cotangents that the method's matrices are multiplied by, to estimate their norms."""


def row_tolerance(dtype: torch.dtype, precision: str = "ieee", reduced: str | None = None) -> float:
    """Largest relative error of a correct method: rounding causes 1e-6 (1e-15), a wrong rule at least 0.1.

    >>> row_tolerance(torch.float32), row_tolerance(torch.float64), row_tolerance(torch.float32, "tf32")
    (0.001, 1e-08, 0.011)

    Args:
        dtype: The run's.
        precision: Of the linear passes; a reduced one adds its own error (`PASSES`).
        reduced: A dtype below the run's in which the model computes inside: its plain passes round in it,
        too.
    """
    inside = REDUCED_INSIDE[reduced] if reduced else 0.0
    return (1e-8 if dtype == torch.float64 else 1e-3) + PASSES[precision] + inside


def row_error(tape: LinearMap, matrices: Matrices, *, seed: int) -> float:
    """Worst relative error over the samples: of seeded rows, and of ``u'J`` with u Gaussian.

    The rows are compared entry by entry.  ``u'J`` depends on all rows (`cotangent_error`), so that a method
    that is wrong in a few of them is found, too.  Errors of rows are relative to the norm of the reference
    rows or to their share of ``||J||_F``, estimated by ``||u'J||``, whichever is larger: rows that are zero
    up to cancellation (a saturated softmax) do not count as wrong.  `gaps` says how entries that are not
    finite are compared.

    >>> from jacli.linear_maps import DenseMap
    >>> J, scaled = DenseMap(torch.ones(4, 3, 2)), DenseMap(torch.full((4, 3, 2), 1.5))
    >>> row_error(J, J, seed=0), row_error(J, scaled, seed=0)
    (0.0, 0.5)

    Args:
        tape: Plain reverse passes at the batch the method was given.
        matrices: What the method computed, of all samples or of the first ones.
        seed: Chooses the rows and u.

    Cost: ``1 + min(N_ROWS, n_out)`` reverse passes, and one product of five vectors with the matrices.
    """
    batch, n_out = matrices.batch, matrices.n_out
    dtype, device = tape.dtype, tape.device
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n_out, generator=generator)[:N_ROWS]
    image, combined = _combined(tape, matrices, generator)
    own = norms(finite(image)) * (len(rows) / n_out) ** 0.5
    computed = matrices.rows(rows.to(device))
    difference = torch.zeros(batch, dtype=torch.float64, device=device)
    reference = torch.zeros_like(difference)
    for position, row in enumerate(rows.tolist()):
        cotangents = torch.zeros(1, tape.batch, n_out, dtype=dtype, device=device)
        cotangents[..., row] = 1
        plain = tape.vjp(cotangents)[0, :batch]
        difference = torch.hypot(difference, norms(gaps(computed[:, position], plain)))
        reference = torch.hypot(reference, norms(finite(plain)))
    errors = ratios(difference, torch.maximum(reference, own))
    return float(torch.maximum(errors, combined).max())


def cotangent_error(tape: LinearMap, matrices: LinearMap, *, seed: int) -> float:
    """Worst relative error over the samples of ``u'J``, with a Gaussian u for each sample.

    ``E ||u'E||^2 = ||E||_F^2`` for any error E, so that one pass covers all rows.  The error is relative to
    ``||J||_F``, estimated by five such products.  In the worst case, an error of rank one, it is estimated at
    less than a tenth of its size in 8 % of samples, and at less than a hundredth in 0.8 %.  A derivative that
    is wrong by 10 % thus passes a tolerance of 1e-3 with probability 0.8 % if one sample has it, and
    ``0.008 ** n`` if n samples have it.

    >>> from jacli.linear_maps import DenseMap
    >>> J, scaled = DenseMap(torch.ones(4, 3, 2)), DenseMap(torch.full((4, 3, 2), 1.5))
    >>> cotangent_error(J, J, seed=0), cotangent_error(J, scaled, seed=0) > 0.05
    (0.0, True)

    Args:
        tape: Plain reverse passes at the batch the method was given.
        matrices: What the method computed.
        seed: Of u.

    Cost: one reverse pass, and one product of five vectors with the matrices.
    """
    _, errors = _combined(tape, matrices, torch.Generator().manual_seed(seed))
    return float(errors.max())


def batch_errors(tape: LinearMap, matrices: LinearMap, *, seed: int) -> tuple[float, float]:
    """`cotangent_error`, and whether samples have gradients at others, by the same reverse pass.

    A seeded eighth of the samples, at least one, gets a cotangent of zero: any gradient there comes from
    other samples.  If two of the remaining samples influence one another, ``u'J`` is wrong, because their
    cotangents are drawn independently, while a row of a method's matrices has the same cotangent in every
    sample.

    >>> from jacli.linear_maps import DenseMap
    >>> J, scaled = DenseMap(torch.ones(4, 3, 2)), DenseMap(torch.full((4, 3, 2), 1.5))
    >>> batch_errors(J, J, seed=0)
    (0.0, 0.0)

    Args:
        tape: Plain reverse passes at the batch the method was given, of at least two samples.
        matrices: What the method computed.
        seed: Of u and of the samples without a cotangent.

    Returns:
        The error of ``u'J``; and the largest gradient where the cotangent is zero, relative to the largest
        elsewhere.  There, NaN (zero times an infinite slope) counts as zero.

    Cost: that of `cotangent_error`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(matrices.batch, generator=generator).to(tape.device)
    silent = order[: max(1, matrices.batch // 8)]
    image, errors = _combined(tape, matrices, generator, silent)
    largest = finite(image).abs().amax(1) if tape.n_in else finite(image).sum(1)
    crossed = largest[silent].max()
    largest[silent] = 0
    errors[silent] = 0
    return float(errors.max()), float(ratios(crossed, largest.max()))


def every_row_errors(
    pull: Callable[[Tensor], Tensor], matrices: Matrices, like: Tensor, *, seed: int
) -> Tensor:
    """Relative error of all rows, row by row, for cases in which rounding hides ``u'J``.

    The reverse pass of a confident softmax subtracts numbers of the size of the cotangents.  For Gaussian
    ones, the rounding error that remains can be larger than the Jacobian (1e-7 against 1e-9); the rows
    themselves round as the method's rows did.  In each pass, a seeded half of the samples gets the unit
    vector of one row and the others that of the next row, so that gradients at other samples show.

    >>> from jacli.linear_maps import DenseMap
    >>> J, scaled = DenseMap(torch.ones(4, 3, 2)), DenseMap(torch.full((4, 3, 2), 1.5))
    >>> pull = lambda cotangents: J.vjp(cotangents[None])[0]
    >>> every_row_errors(pull, scaled, torch.ones(4, 1), seed=0).tolist()
    [0.5, 0.5, 0.5, 0.5]

    Args:
        pull: A plain reverse pass, ``(samples, n_out) -> (samples, n_in)``.
        matrices: What the method computed, of all samples or of the first ones.
        like: Of the cotangents' dtype and device, and as long as there are samples.
        seed: Of the halves.

    Returns:
        ``(batch,)``, relative to the Frobenius norms; 0 if the difference is near the smallest number of the
        dtype, so that numbers have underflowed on the way.

    Cost: ``n_out`` reverse passes.
    """
    batch, n_out = matrices.batch, matrices.n_out
    generator = torch.Generator().manual_seed(seed)
    after = torch.randint(2, (len(like),), generator=generator).to(like.device)
    everyone = torch.arange(len(like), device=like.device)
    difference = torch.zeros(batch, dtype=torch.float64, device=like.device)
    reference = torch.zeros_like(difference)
    for row in range(n_out):
        which = (row + after) % n_out
        cotangents = like.new_zeros(len(like), n_out)
        cotangents[everyone, which] = 1
        plain = pull(cotangents)[:batch]
        pair = matrices.rows(torch.tensor([row, (row + 1) % n_out], device=like.device))
        computed = pair[everyone[:batch], after[:batch]]
        difference = torch.hypot(difference, norms(gaps(computed, plain)))
        reference = torch.hypot(reference, norms(finite(plain)))
    smallest = torch.finfo(like.dtype).tiny / torch.finfo(like.dtype).eps
    return ratios(difference.masked_fill(difference <= smallest, 0), reference)


def transpose_error(tape: LinearMap, products: LinearMap, *, seed: int) -> float:
    """How far ``products.jvp`` is from the transpose of a plain reverse pass: the worst of the samples.

    ``|u'(Jv) - (u'J)v| / ||u'J||`` with u and v Gaussian: of size r for a relative error r of ``Jv``.

    >>> from jacli.linear_maps import DenseMap
    >>> J, scaled = DenseMap(torch.ones(4, 3, 2)), DenseMap(torch.full((4, 3, 2), 1.5))
    >>> transpose_error(J, J, seed=0) < 1e-6, transpose_error(J, scaled, seed=0) > 0.05
    (True, True)

    Cost: one reverse pass and one forward-mode pass.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = tape.n_out, tape.n_in
    u, v = (torch.randn(tape.batch, size, generator=generator).to(tape.device, tape.dtype) for size in sizes)
    image, moved = tape.vjp(u[None])[0], products.jvp(v[None])[0]
    one, other = ((a.double() * b.double()).sum(1, keepdim=True) for a, b in ((u, moved), (image, v)))
    return float(ratios(gaps(one, other)[:, 0], norms(finite(image))).max())


def _combined(
    tape: LinearMap,
    matrices: LinearMap,
    generator: torch.Generator,
    silent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``u'J`` by a plain pass, ``(batch, n_in)``, and how far the matrices' own is from it, ``(batch,)``."""
    vectors = torch.randn(1 + N_SIZES, tape.batch, tape.n_out, generator=generator)
    vectors = vectors.to(tape.device, tape.dtype)
    if silent is not None:
        vectors[:, silent] = 0
    image = tape.vjp(vectors[:1])[0, : matrices.batch]
    products = matrices.vjp(vectors[:, : matrices.batch])
    return image, relative_errors(products[0], image, scale=estimated_norms(products))


def estimated_norms(products: Tensor) -> Tensor:
    """``||J||_F`` of each sample, ``(batch,)``, from products with Gaussian vectors, ``(k, batch, n)``.

    >>> J = torch.diag(torch.tensor([3.0, 4.0]))  # norm 5
    >>> products = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0)) @ J
    >>> estimated_norms(products).round(decimals=1)
    tensor([5.], dtype=torch.float64)
    """
    return torch.stack([norms(finite(product)).square() for product in products]).mean(0).sqrt()
