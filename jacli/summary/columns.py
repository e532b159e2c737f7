"""The columns of a summary: pure functions from statistics of Jacobians to one number per sample.

A column is a function and a line in `COLUMNS`.  It maps the `Statistics` of some samples to one number per
sample, or to None where the statistics do not determine it.  With sigma_1 >= sigma_2 >= ... the
singular values of a sample's Jacobian (n_out, n_in), all columns but the condition number and the ranks
have the unit of the Jacobian: outputs per input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """What is known of the Jacobians of b samples; None where it is not known.

    Attributes:
        frobenius_norm: ``(b,)``.
        spectral_norm: ``(b,)``.
        nuclear_norm: ``(b,)``.
        class_norms: ``(b, c)``, the 2-norm of each output's input-gradient.
        singular_values: ``(b, s)``, decreasing, all ``s = min(n_out, n_in)`` of them.
        singular_value_error: ``(b, s)``, a bound on their absolute errors.
    """

    frobenius_norm: Array | None = None
    spectral_norm: Array | None = None
    nuclear_norm: Array | None = None
    class_norms: Array | None = None
    singular_values: Array | None = None
    singular_value_error: Array | None = None


@dataclass(frozen=True)
class Column:
    """One number per sample.

    Attributes:
        name: As in tables and in ``--sort``.
        unit: ``output/input``, or ``1`` for pure numbers.
        reference: Who defined it.
        function: ``Statistics -> (b,)``, or None where it is not determined.
    """

    name: str
    unit: str
    reference: str
    function: Callable[[Statistics], Array | None]


def _ratio(above: Array, below: Array) -> Array:
    """``above / below``; x / 0 is infinite and 0 / 0 NaN, silently: tables count both apart."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below


def stable_rank(known: Statistics) -> Array | None:
    """``||J||_F^2 / sigma_1^2``: at most the rank, and unmoved by tiny singular values.

    >>> stable_rank(Statistics(frobenius_norm=np.array([5.0]), spectral_norm=np.array([4.0])))
    array([1.5625])
    """
    if known.frobenius_norm is None or known.spectral_norm is None:
        return None
    return _ratio(known.frobenius_norm, known.spectral_norm) ** 2


def effective_rank(known: Statistics) -> Array | None:
    """``exp(-sum p log p)``, ``p = sigma / sum sigma``: as many equal values have the same entropy.

    >>> effective_rank(Statistics(singular_values=np.array([[2.0, 2.0, 0.0]]))).round(6)
    array([2.])
    """
    if known.singular_values is None:
        return None
    share = _ratio(known.singular_values, known.singular_values.sum(axis=1, keepdims=True))
    log_share = np.log(np.where(share > 0, share, 1.0))  # p log p -> 0 as p -> 0
    return np.asarray(np.exp(-(share * log_share).sum(axis=1)))


def condition_number(known: Statistics) -> Array | None:
    """``sigma_1 / sigma_min``; infinite where sigma_min is within its error of zero.

    >>> condition_number(Statistics(singular_values=np.array([[6.0, 2.0], [6.0, 0.0]])))
    array([ 3., inf])
    """
    if known.singular_values is None or known.singular_values.shape[1] == 0:
        return None
    smallest = known.singular_values[:, -1]
    if known.singular_value_error is not None:
        smallest = np.where(smallest <= known.singular_value_error[:, -1], 0.0, smallest)
    return _ratio(known.singular_values[:, 0], smallest)


def largest_class_norm(known: Statistics) -> Array | None:
    """The largest 2-norm of an output's input-gradient.

    >>> largest_class_norm(Statistics(class_norms=np.array([[1.0, 3.0, 2.0]])))
    array([3.])
    """
    if known.class_norms is None or known.class_norms.shape[1] == 0:
        return None
    return np.asarray(known.class_norms.max(axis=1))


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("frobenius_norm", "output/input", "Frobenius (1911)", lambda known: known.frobenius_norm),
        Column(
            "spectral_norm", "output/input", "the largest singular value", lambda known: known.spectral_norm
        ),
        Column(
            "nuclear_norm", "output/input", "the sum of the singular values", lambda known: known.nuclear_norm
        ),
        Column("stable_rank", "1", "Rudelson & Vershynin (2007)", stable_rank),
        Column("effective_rank", "1", "Roy & Vetterli (2007)", effective_rank),
        Column("condition_number", "1", "Turing (1948)", condition_number),
        Column("largest_class_norm", "output/input", "the largest row norm", largest_class_norm),
    )
}


def joined(parts: Sequence[Array | None]) -> Array | None:
    """A column out of its blocks; None if it is not determined.

    >>> joined([np.array([1.0]), np.array([2.0, 3.0])]), joined([None])
    (array([1., 2., 3.]), None)
    """
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
