"""Peephole fusion: the linearised graph with fewer and cheaper maps that have the same product.

*Vertex elimination* contracts every value with one incoming and one outgoing edge, so that all maps between
two branchings form one chain (Griewank & Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, ch. 9;
10.1137/1.9780898717761).  Then scales are folded into weights (`_fold_scales`), and neighbours in each chain
are fused (`_fuse_pair`).  All of it is exact algebra: only the order of rounding changes.
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
from jacli.linear_program.rules.pooling import MaxPool, NonOverlappingMaxPool
from jacli.linear_program.rules.products import Product


def fuse(edges: Sequence[Edge], source: Hashable, target: Hashable) -> list[Edge]:
    """Drop edges that do not reach the target, eliminate vertices, fuse maps.

    Args:
        edges: Topologically sorted.
        source: Where tangents start: the input.
        target: Where they arrive: the output.
    """
    chains = _eliminate_vertices(_reaching(edges, target), source, target)
    return [replace(edge, maps=_fused(edge.maps)) for edge in chains]


def _reaching(edges: Sequence[Edge], target: Hashable) -> list[Edge]:
    """The edges on a path to the target."""
    reached, used = {target}, list[Edge]()
    for edge in reversed(edges):
        if edge.target in reached:
            reached.add(edge.source)
            used.append(edge)
    return used[::-1]


def _eliminate_vertices(edges: Sequence[Edge], source: Hashable, target: Hashable) -> list[Edge]:
    """Join the two edges at every value with one incoming and one outgoing edge."""
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


def _fused(maps: Sequence[LocalMap]) -> list[LocalMap]:
    """A chain of maps, fused until nothing changes."""
    chain = _fold_scales(list(maps))
    at = 0
    while at + 1 < len(chain):
        pair = _fuse_pair(chain[at], chain[at + 1])
        if pair is None:
            at += 1
        else:
            chain[at : at + 2] = pair
            at = max(0, at - 1)
    return chain


def _fuse_pair(first: LocalMap, second: LocalMap) -> list[LocalMap] | None:
    """Fewer or cheaper maps for the product ``second first``; None if there are none."""
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
    if isinstance(first, Diagonal) and isinstance(second, MaxPool):
        # There are fewer windows than pixels.
        return [second, second.commute_diagonal(first.factors)]
    if isinstance(first, NonOverlappingMaxPool) and isinstance(second, Diagonal):
        return [first.absorb_diagonal(second.factors)]
    if isinstance(first, Reshaped) and isinstance(second, Product):
        return _flattened_image(first, second)
    return None


def _flattened_image(first: Reshaped, second: Product) -> list[LocalMap] | None:
    """Flatten an image in the order ``h w c``, in which convolutions store it, and reorder the weights."""
    if len(first.shape_in) != 4 or len(first.shape_out) != 2 or math.prod(first.shape_in[2:]) == 1:
        return None
    if first.shape_out[0] != first.shape_in[0]:
        return None
    return [FlattenedImage(first.shape_in), second.channels_last(first.shape_in[1:])]


def _fold_scales(chain: list[LocalMap]) -> list[LocalMap]:
    """Fold every scale into the nearest weights, where all maps between act on each channel by itself."""
    at = 0
    while at < len(chain):
        scale = chain[at]
        if isinstance(scale, Scale) and (_fold_scale(chain, at, -1) or _fold_scale(chain, at, 1)):
            at = 0
        else:
            at += 1
    return chain


def _fold_scale(chain: list[LocalMap], at: int, step: int) -> bool:
    """Fold the scale at an index into the nearest weights before (step -1) or after (1) it, if possible."""
    scale = chain[at]
    assert isinstance(scale, Scale)
    # A max-pool selects among the pixels of a channel: it commutes with a factor that they all share.
    commutes = (Diagonal, Multiple, MaxPool) if scale.axis == -3 else (Diagonal, Multiple)
    to = at + step
    while 0 <= to < len(chain) and isinstance(chain[to], commutes):
        to += step
    if not 0 <= to < len(chain):
        return False
    weighted = chain[to]
    if not isinstance(weighted, (Convolution, Product)):
        return False
    folded = weighted.scaled_out(scale) if step < 0 else weighted.scaled_in(scale)
    if folded is None:
        return False
    chain[to] = folded
    del chain[at]
    return True
