"""Jacobians of a cut network as two factors: ``J = L R``, L (outputs by cut) and R (cut by inputs).

With a cut of width r the two factors cost about r passes in place of n_out: the lower one r reverse
passes, the upper one r forward passes or n_out reverse passes of what is often one layer.  With more
cuts the network is a chain of links, and the order of work is a bracketing of it
(`jacli.plans.bracketing`).  Each link is filled in by its own cheapest method.

Memory: the factors, and the activations of one link at a time: the upper factor is done and its link
freed before the lower one is linearised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jacli.device.matrix_product import product
from jacli.errors import MethodError, telling_line, translating
from jacli.linear_maps import CutLinearization, FactoredMap
from jacli.methods.filling import assemble, primitive, slabs
from jacli.plans.bracketing import Bracketing, Product, Pull, Push, Seed
from jacli.plans.factorization import Factorization


def factors_of(linearization: CutLinearization, factorization: Factorization) -> FactoredMap:
    """The two factors of each sample's Jacobian at ``factorization.split``.

    Args:
        linearization: The network at a batch, cut as planned.
        factorization: Where, in which order, and how.

    Raises:
        MethodError: A link has no rule for its method, or the graph is not the network.
        MemoryError: An allocation failed.
    """

    def refusal(error: Exception) -> MethodError:
        return MethodError(
            "The method factored does not work with this model.",
            why=f"torch says: {telling_line(error)}",
            hint="Leave --method out, or choose --method loop.",
        )

    evaluator = _ChainEvaluator(linearization, factorization)
    upper, lower = factorization.factors
    with translating(refusal):
        left = evaluator.matrix(upper)
        return FactoredMap(left, evaluator.matrix(lower))


@dataclass(frozen=True)
class _ChainEvaluator:
    """Evaluates a bracketing of a network's links."""

    linearization: CutLinearization
    factorization: Factorization

    def matrix(self, tree: Bracketing) -> Tensor:
        """The matrix of a span of links, ``(b, width of its top, width of its bottom)``."""
        match tree:
            case Product(upper=upper, lower=lower):
                left = self.matrix(upper)
                return product(left, self.matrix(lower))
            case Seed(first=first, last=last, direction=direction):
                return self._seeded(first, last, by_columns=direction == "forward")
            case Pull(upper=upper, through_first=first, through_last=last):
                rows = self.matrix(upper).transpose(0, 1)  # b k w -> k b w
                return self._through(rows, first, last, by_columns=False).transpose(0, 1)
            case Push(lower=lower, through_first=first, through_last=last):
                columns = self.matrix(lower).permute(2, 0, 1)  # b w k -> k b w
                return self._through(columns, first, last, by_columns=True).permute(1, 2, 0)

    def _seeded(self, first: int, last: int, *, by_columns: bool) -> Tensor:
        """A span's matrix by unit vectors; how, says its first link: the lower ones are the larger ones."""
        how = self.factorization.links[first]
        method, chunk = how.method(by_columns=by_columns), how.chunk(by_columns=by_columns)
        with self.linearization.span(first, last) as link:
            return assemble(slabs(method, link, chunk_size=chunk), link)

    def _through(self, vectors: Tensor, first: int, last: int, *, by_columns: bool) -> Tensor:
        """Vectors carried on through a span, ``(k, b, m) -> (k, b, n)``."""
        how = self.factorization.links[first]
        method, chunk = how.method(by_columns=by_columns), how.chunk(by_columns=by_columns)
        with self.linearization.span(first, last) as link:
            linear_map = primitive(method, link, chunk_size=chunk)
            return _in_chunks(linear_map.jvp if by_columns else linear_map.vjp, vectors, chunk)


def _in_chunks(passes: Callable[[Tensor], Tensor], vectors: Tensor, chunk: int) -> Tensor:
    """``(k, b, m) -> (k, b, n)``, a chunk of vectors at a time, each into its place."""
    result: Tensor | None = None
    for start in range(0, len(vectors), chunk):
        part = passes(vectors[start : start + chunk].contiguous())
        if result is None:
            result = part.new_empty(len(vectors), *part.shape[1:])
        result[start : start + chunk] = part
    assert result is not None  # widths are at least 1
    return result
