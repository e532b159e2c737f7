"""The edges of a linear program with fewer, cheaper maps that are the same.

Values that one edge enters and one leaves are contracted, so that what lies between two branchings is one
chain of maps; neighbours in a chain are then folded into one another (`_fold`).  All of it is exact algebra:
only the order of rounding changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from jacli.linear_program.call import Edge
from jacli.linear_program.local_map import (
    Diagonal,
    FlattenedImage,
    LocalMap,
    Multiple,
    Permuted,
    Reshaped,
    Scale,
)
from jacli.linear_program.rules.convolution import Convolution
from jacli.linear_program.rules.pooling import ApartWinners, Winners
from jacli.linear_program.rules.products import Product


def simplify(edges: Sequence[Edge], source: Hashable, target: Hashable) -> list[Edge]:
    """Contract, then fold.

    Args:
        edges: In the order of the forward pass.
        source: Where tangents start.
        target: Where they arrive.
    """
    chains = _contracted(_used(edges, target), source, target)
    return [replace(edge, maps=_folded(edge.maps)) for edge in chains]


def _used(edges: Sequence[Edge], target: Hashable) -> list[Edge]:
    """Those from which a way leads to the target."""
    reached, used = {target}, list[Edge]()
    for edge in reversed(edges):
        if edge.target in reached:
            reached.add(edge.source)
            used.append(edge)
    return used[::-1]


def _contracted(edges: Sequence[Edge], source: Hashable, target: Hashable) -> list[Edge]:
    entering = Counter(edge.target for edge in edges)
    leaving = Counter(edge.source for edge in edges)
    ended: dict[Hashable, Edge] = {}
    chains: list[Edge] = []
    for edge in edges:
        before = ended.pop(edge.source, None)
        chain = edge if before is None else Edge(before.source, edge.target, before.maps + edge.maps)
        value = edge.target
        if entering[value] == 1 and leaving[value] == 1 and value not in (source, target):
            ended[value] = chain
        else:
            chains.append(chain)
    return chains


def _folded(maps: Sequence[LocalMap]) -> list[LocalMap]:
    """Neighbours folded into one another until nothing changes."""
    chain = _without_scales(list(maps))
    at = 0
    while at + 1 < len(chain):
        folded = _fold(chain[at], chain[at + 1])
        if folded is None:
            at += 1
        else:
            chain[at : at + 2] = folded
            at = max(0, at - 1)
    return chain


def _fold(first: LocalMap, second: LocalMap) -> list[LocalMap] | None:
    """Two neighbours (first, then second) as fewer or cheaper ones; None where they stay."""
    if isinstance(first, Multiple) and isinstance(second, Multiple):
        return [Multiple(first.factor * second.factor)]
    if isinstance(first, Reshaped) and isinstance(second, Reshaped):
        same = first.shape_in == second.shape_out
        return [] if same else [Reshaped(first.shape_in, second.shape_out)]
    if isinstance(first, Permuted) and isinstance(second, Permuted):
        dims = tuple(first.dims[i] for i in second.dims)
        return [] if dims == tuple(range(len(dims))) else [Permuted(dims)]
    if isinstance(first, Diagonal) and isinstance(second, Diagonal):
        return [Diagonal(first.factors * second.factors)]
    if isinstance(first, Diagonal) and isinstance(second, Winners):
        # The pool has fewer numbers than what it looks at.
        return [second, second.behind(first.factors)]
    if isinstance(first, ApartWinners) and isinstance(second, Diagonal):
        return [first.times(second.factors)]
    if isinstance(first, Reshaped) and isinstance(second, Product):
        return _flattened_image(first, second)
    return None


def _flattened_image(first: Reshaped, second: Product) -> list[LocalMap] | None:
    """An image that is flattened for a product: in the order in which convolutions hold it."""
    if len(first.shape_in) != 4 or len(first.shape_out) != 2 or math.prod(first.shape_in[2:]) == 1:
        return None
    if first.shape_out[0] != first.shape_in[0]:
        return None
    return [FlattenedImage(first.shape_in), second.of_channels_last(first.shape_in[1:])]


def _without_scales(chain: list[LocalMap]) -> list[LocalMap]:
    """Every scale folded into the next product, where only maps of each channel by itself lie between."""
    at = 0
    while at < len(chain):
        scale = chain[at]
        if isinstance(scale, Scale) and (_fold_scale(chain, at, -1) or _fold_scale(chain, at, 1)):
            at = 0
        else:
            at += 1
    return chain


def _fold_scale(chain: list[LocalMap], at: int, step: int) -> bool:
    """Fold the scale at a place into the next product before (step -1) or behind (1) it; whether it could."""
    scale = chain[at]
    assert isinstance(scale, Scale)
    # A pool takes the pixels of a channel for one another: only what they all have in common passes it.
    passed = (Diagonal, Multiple, Winners) if scale.axis == -3 else (Diagonal, Multiple)
    to = at + step
    while 0 <= to < len(chain) and isinstance(chain[to], passed):
        to += step
    if not 0 <= to < len(chain):
        return False
    found = chain[to]
    if not isinstance(found, (Convolution, Product)):
        return False
    folded = found.scaled_out(scale) if step < 0 else found.scaled_in(scale)
    if folded is None:
        return False
    chain[to] = folded
    del chain[at]
    return True
