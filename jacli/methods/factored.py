"""``factored``: the network cut where it is narrow, J = (outputs by cut)(cut by inputs).

With a cut of width r the two factors cost about r passes in place of n_out: the lower one r reverse
passes, the upper one r forward passes or n_out reverse passes of what is often one layer.  With more
cuts the network is a chain of links, and the order of work is a bracketing of it
(`jacli.plans.bracketing`).  Each link is filled in by its own cheapest plain method.

Memory: the factors, and the activations of one link at a time: the upper factor is done and its link
freed before the lower one is linearised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from jacli.device.matrix_product import product
from jacli.linear_map import Block, ClosableLinearization, CutLinearization, FactoredMap, Linearization
from jacli.methods import adjoint, forward, loop, replicate, tangent, vmap
from jacli.methods.assemble import assemble
from jacli.plans import bracketing
from jacli.plans.bracketing import Bracketing, Product, Pull, Push, Seed
from jacli.plans.plan import FactoredPlan, LinkPlan

_PLAIN = {
    "loop": loop.blocks,
    "vmap": vmap.blocks,
    "replicate": replicate.blocks,
    "forward": forward.blocks,
    "adjoint": adjoint.blocks,
    "tangent": tangent.blocks,
}
"""The methods that fill in a link."""


def plan_by_passes(linearization: CutLinearization, *, chunk_size: int) -> FactoredPlan:
    """A plan without measurement: every link costs the same a vector, forward twice what reverse does."""
    widths = linearization.widths
    links = [
        bracketing.Link(width_in, width_out, reverse_seconds=1.0, forward_seconds=2.0)
        for width_in, width_out in pairwise(widths)
    ]
    tree = bracketing.cheapest(links, seconds_per_multiply=1e-9, split=linearization.narrowest)
    return FactoredPlan(
        cuts=tuple(f"cut {i}" for i in range(1, linearization.n_links)),
        widths=widths,
        split=linearization.narrowest,
        tree=tree,
        links=tuple(LinkPlan("vmap", chunk_size, chunk_size) for _ in links),
    )


def factors(linearization: CutLinearization, plan: FactoredPlan) -> FactoredMap:
    """The two factors at ``plan.split``.

    Args:
        linearization: The network at a block of samples, cut as planned.
        plan: Where, in which order, and how.
    """
    assert isinstance(plan.tree, Product)  # what FactoredPlan holds
    work = _Work(linearization, plan)
    left = work.matrix(plan.tree.upper)
    return FactoredMap(left, work.matrix(plan.tree.lower))


class _Work:
    def __init__(self, linearization: CutLinearization, plan: FactoredPlan) -> None:
        self._linearization = linearization
        self._plan = plan

    def matrix(self, tree: Bracketing) -> Tensor:
        """The matrix of a span of links, ``(batch, width of its top, width of its bottom)``."""
        if isinstance(tree, Seed):
            link = self._span(tree.first, tree.last)
            how = self._how(tree.first, tree.last)
            method, chunk = how.reverse_method, how.reverse_chunk
            if tree.direction == "forward":
                method, chunk = how.forward_method, how.forward_chunk
            return self._closing(link, lambda: assemble(_PLAIN[method](link, chunk_size=chunk), link))
        if isinstance(tree, Product):
            upper = self.matrix(tree.upper)
            return product(upper, self.matrix(tree.lower))
        if isinstance(tree, Pull):
            rows = self.matrix(tree.upper).transpose(0, 1)
            link = self._span(tree.through_first, tree.through_last)
            how = self._how(tree.through_first, tree.through_last)
            pulled, chunk = _reverse(link, how)
            return self._closing(link, lambda: _in_chunks(pulled, rows, chunk).transpose(0, 1))
        assert isinstance(tree, Push)
        columns = self.matrix(tree.lower)
        link = self._span(tree.through_first, tree.through_last)
        how = self._how(tree.through_first, tree.through_last)
        pushed: Callable[[Tensor], Tensor] = link.tangent if how.forward_method == "tangent" else link.jvp
        return self._closing(
            link, lambda: _in_chunks(pushed, columns.permute(2, 0, 1), how.forward_chunk).permute(1, 2, 0)
        )

    def _span(self, first: int, last: int) -> ClosableLinearization:
        return self._linearization.span(first, last)

    def _how(self, first: int, last: int) -> LinkPlan:
        """That of the first link of a span: the lower ones are the larger ones."""
        return self._plan.links[first]

    @staticmethod
    def _closing(link: ClosableLinearization, work: Callable[[], Tensor]) -> Tensor:
        try:
            return work()
        finally:
            link.close()


def _reverse(link: ClosableLinearization, how: LinkPlan) -> tuple[Callable[[Tensor], Tensor], int]:
    """How cotangents are pulled through a link, as its price was measured, and how many at a time."""
    if how.reverse_method == "loop":
        return lambda vectors: link.pull(vectors[0])[None], 1
    return link.adjoint if how.reverse_method == "adjoint" else link.vjp, how.reverse_chunk


def _in_chunks(through: Callable[[Tensor], Tensor], vectors: Tensor, chunk: int) -> Tensor:
    """``(k, batch, d) -> (k, batch, e)``, some vectors at a time, each chunk into its place."""
    result: Tensor | None = None
    for start in range(0, len(vectors), chunk):
        part = through(vectors[start : start + chunk].contiguous())
        if result is None:
            result = part.new_empty(len(vectors), *part.shape[1:])
        result[start : start + chunk] = part
    assert result is not None  # widths are at least 1
    return result


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` rows of the product at a time, planned by passes alone.

    A run that has measured multiplies out, or keeps, what `factors` gives.
    """
    cut = cast(CutLinearization, linearization)
    found = factors(cut, plan_by_passes(cut, chunk_size=chunk_size))
    for start in range(0, found.n_out, chunk_size):
        rows = torch.arange(start, min(start + chunk_size, found.n_out), device=linearization.device)
        yield Block(range(start, start + len(rows)), range(found.n_in), found.rows(rows))


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """At most those of the plain methods; a plan counts those of its bracketing."""
    return math.ceil(min(n_in, n_out) / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """A graph is taken at two batch sizes."""
    if fixed_batch is not None:
        return f"the network is cut by looking at two batch sizes, and the model accepts {fixed_batch} only"
    return None
