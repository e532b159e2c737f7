"""Matrix chain ordering for Jacobians: the cheapest order of multiplication, by measured seconds.  No torch.

A network cut at ``p - 1`` places is a chain of ``p`` linear maps per sample, ``J = L[p-1] ... L[1] L[0]``.
Link ``i`` maps width ``d[i]`` to width ``d[i+1]``, link 0 is nearest the input, cut ``k`` lies between links
``k - 1`` and ``k``.  The links are matrix-free: each maps one tangent forward or one cotangent in reverse at
a measured price.  The Jacobian of a sub-chain can be obtained by pulling or pushing identity vectors
(`Seed`), by propagating a known matrix through further links (`Pull`, `Push`), or as the product of two known
matrices (`Product`).  A tree of these is a `Bracketing` of ``J``; all bracketings yield the same matrix.

This is the Jacobian chain product problem with matrix-free, dense links (Naumann, 2024, arXiv:2406.11862;
Maertens & Naumann, 2025, arXiv:2505.06056).  It is solved like the matrix chain problem, by dynamic
programming over spans of links.  The cost is seconds alone, not memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["reverse", "forward"]

_Best = dict[tuple[int, int], tuple["Bracketing", float]]
"""Span to its cheapest tree and the seconds it takes."""

_TIE = 1e-12
"""Relative difference in cost up to which two trees tie, such as ``d (a + b)`` and ``d a + d b``."""


@dataclass(frozen=True)
class Link:
    """A linear map between two cuts, and its cost for one vector per sample.

    Attributes:
        width_in: Numbers per sample at the cut nearer the input.
        width_out: Numbers per sample at the cut nearer the output.
        reverse_seconds: Of one cotangent per sample, for the whole batch.
        forward_seconds: Of one tangent per sample, for the whole batch; infinite without a forward mode.

    Raises:
        ValueError: A width is not positive, or a cost is negative or NaN.
    """

    width_in: int
    width_out: int
    reverse_seconds: float
    forward_seconds: float

    def __post_init__(self) -> None:
        if not (self.width_in > 0 and self.width_out > 0):
            raise ValueError(f"widths must be positive: {self}")
        if not (self.reverse_seconds >= 0 and self.forward_seconds >= 0):
            raise ValueError(f"seconds must be at least 0: {self}")


@dataclass(frozen=True)
class Seed:
    """The matrix of links ``[first, last)`` from identity vectors: rows in reverse, columns forward.

    In reverse, ``d[last]`` cotangents are pulled through the links; forward, ``d[first]`` tangents are
    pushed.
    """

    first: int
    last: int
    direction: Direction

    def __post_init__(self) -> None:
        _check_span(self.first, self.last)
        if self.direction not in ("reverse", "forward"):
            raise ValueError(f"direction is reverse or forward, not {self.direction!r}")


@dataclass(frozen=True)
class Product:
    """The dense product ``upper @ lower`` of two matrices that meet at a cut."""

    upper: Bracketing
    lower: Bracketing

    def __post_init__(self) -> None:
        _check_meeting(self.upper.first, self.lower.last)

    @property
    def first(self) -> int:
        return self.lower.first

    @property
    def last(self) -> int:
        return self.upper.last


@dataclass(frozen=True)
class Pull:
    """The ``d[last]`` rows of ``upper``, pulled in reverse through ``[through_first, through_last)``."""

    upper: Bracketing
    through_first: int
    through_last: int

    def __post_init__(self) -> None:
        _check_span(self.through_first, self.through_last)
        _check_meeting(self.upper.first, self.through_last)

    @property
    def first(self) -> int:
        return self.through_first

    @property
    def last(self) -> int:
        return self.upper.last


@dataclass(frozen=True)
class Push:
    """The ``d[first]`` columns of ``lower``, pushed forward through ``[through_first, through_last)``."""

    lower: Bracketing
    through_first: int
    through_last: int

    def __post_init__(self) -> None:
        _check_span(self.through_first, self.through_last)
        _check_meeting(self.through_first, self.lower.last)

    @property
    def first(self) -> int:
        return self.lower.first

    @property
    def last(self) -> int:
        return self.through_last


Bracketing = Seed | Product | Pull | Push
"""How to obtain the matrix of links ``[tree.first, tree.last)``."""


def cheapest(links: Sequence[Link], *, seconds_per_multiply: float, split: int | None = None) -> Bracketing:
    """The bracketing of the whole chain that costs the fewest seconds.

    A chain narrows from 100 inputs to 2 numbers and widens to 50 outputs.  Two passes each way and a product
    replace the 50 reverse passes through both links:

    >>> chain = [Link(100, 2, 1.0, 1.0), Link(2, 50, 1.0, 1.0)]
    >>> tree = cheapest(chain, seconds_per_multiply=1e-6)
    >>> describe(tree, ["code"])
    '(forward code..output) x (reverse input..code)'
    >>> [round(cost(t, chain, seconds_per_multiply=1e-6), 2) for t in (tree, Seed(0, 2, "reverse"))]
    [4.01, 100.0]

    Ties go to the simpler bracketing: a `Seed`, else a `Pull` or `Push`, else a `Product`; within one kind to
    the one with fewer parts.

    Args:
        links: The chain, from the input to the output.
        seconds_per_multiply: Of one multiply-add of a dense product, for the whole batch.
        split: A cut in ``1..p-1`` whose two factors are wanted: the root is then their product, and each
            factor is the cheapest for its own links.

    Raises:
        ValueError: The chain is empty or its widths do not match, or there is no such cut.

    Cost: ``O(p^3)`` trees in ``O(p^4)`` time: milliseconds for 10 links, half a second for 50.

    Example:
        >>> wide, narrow = Link(100, 2, 1.0, 1.0), Link(2, 100, 1.0, 1.0)
        >>> describe(cheapest([wide, narrow], seconds_per_multiply=1e-6), ["fc1"])
        '(forward fc1..output) x (reverse input..fc1)'
    """
    _check_chain(links, seconds_per_multiply)
    if split is not None and not 0 < split < len(links):
        raise ValueError(f"split must be a cut in 1..{len(links) - 1}, not {split}")
    best: _Best = {}
    for length in range(1, len(links) + 1):
        for first in range(len(links) - length + 1):
            last = first + length
            chosen: Bracketing = Seed(first, last, "reverse")
            least = _root_cost(chosen, links, seconds_per_multiply)
            for tree in _alternatives(first, last, best):
                seconds = _root_cost(tree, links, seconds_per_multiply)
                seconds += sum(best[part.first, part.last][1] for part in _parts(tree))
                tie = seconds <= least * (1 + _TIE) and type(tree) is type(chosen)
                if seconds < least * (1 - _TIE) or (tie and _nodes(tree) < _nodes(chosen)):
                    chosen, least = tree, seconds
            best[first, last] = chosen, least
    if split is None:
        return best[0, len(links)][0]
    return Product(best[split, len(links)][0], best[0, split][0])


def cost(tree: Bracketing, links: Sequence[Link], *, seconds_per_multiply: float) -> float:
    """Seconds per batch: vectors times seconds per vector, and ``m k n`` multiply-adds per product.

    The arguments are those of `cheapest`; the tree may span a part of the links.  The cost is infinite where
    a tangent is pushed through a link without a forward mode.

    >>> chain = [Link(100, 2, 1.0, 1.0), Link(2, 50, 1.0, 1.0)]
    >>> cost(Seed(0, 2, "reverse"), chain, seconds_per_multiply=1e-6)  # 50 rows through both links
    100.0

    Raises:
        ValueError: The chain is empty or its widths do not match, or the tree spans more links.
    """
    _check_chain(links, seconds_per_multiply)
    if tree.last > len(links):
        raise ValueError(f"the bracketing ends at link {tree.last}, the chain at {len(links)}")
    parts = sum(cost(part, links, seconds_per_multiply=seconds_per_multiply) for part in _parts(tree))
    return _root_cost(tree, links, seconds_per_multiply) + parts


def describe(tree: Bracketing, names: Sequence[str]) -> str:
    """Describe a bracketing in one line: ``(reverse conv2..output) x (reverse input..conv2)``.

    >>> describe(Product(Seed(1, 2, "reverse"), Seed(0, 1, "reverse")), ["conv2"])
    '(reverse conv2..output) x (reverse input..conv2)'

    Args:
        tree: A bracketing.
        names: Of the cuts ``1..p-1``; the ends of the chain are called input and output.

    Raises:
        ValueError: The tree spans more links than there are names for.
    """
    ends = ["input", *names, "output"]
    if tree.last >= len(ends):
        raise ValueError(f"{tree.last} links have at least {tree.last - 1} cuts, got {len(names)} names")
    match tree:
        case Seed(first, last, direction):
            return f"{direction} {ends[first]}..{ends[last]}"
        case Product(upper, lower):
            return f"({describe(upper, names)}) x ({describe(lower, names)})"
        case Pull(upper, first, last):
            return f"({describe(upper, names)}) pulled through {ends[first]}..{ends[last]}"
        case Push(lower, first, last):
            return f"({describe(lower, names)}) pushed through {ends[first]}..{ends[last]}"


def to_dict(tree: Bracketing) -> dict[str, Any]:
    """The bracketing as JSON values: the fields of the root and its ``kind``, with the parts nested.

    >>> to_dict(Pull(Seed(1, 2, "reverse"), 0, 1))["upper"]
    {'kind': 'seed', 'first': 1, 'last': 2, 'direction': 'reverse'}
    """
    fields = vars(tree).items()
    parts = {name: to_dict(value) if isinstance(value, Bracketing) else value for name, value in fields}
    return {"kind": type(tree).__name__.lower(), **parts}


def from_dict(tree: object) -> Bracketing:
    """Inverse of `to_dict`, also after a round trip through JSON.

    >>> tree = Product(Seed(1, 2, "forward"), Seed(0, 1, "reverse"))
    >>> from_dict(to_dict(tree)) == tree
    True

    Raises:
        ValueError: The value is something else, or its parts do not meet.
    """
    if isinstance(tree, dict):
        fields = dict(tree)
        match fields.pop("kind", None), fields, len(fields):
            case "seed", {"first": first, "last": last, "direction": direction}, 3:
                return Seed(first, last, direction)
            case "product", {"upper": upper, "lower": lower}, 2:
                return Product(from_dict(upper), from_dict(lower))
            case "pull", {"upper": upper, "through_first": first, "through_last": last}, 3:
                return Pull(from_dict(upper), first, last)
            case "push", {"lower": lower, "through_first": first, "through_last": last}, 3:
                return Push(from_dict(lower), first, last)
    raise ValueError(f"not a bracketing: {tree!r:.200}")


def _alternatives(first: int, last: int, best: _Best) -> Iterator[Bracketing]:
    """All other roots over the cheapest parts, the simple ones first."""
    yield Seed(first, last, "forward")
    for cut in range(first + 1, last):
        yield Pull(best[cut, last][0], first, cut)
    for cut in range(first + 1, last):
        yield Push(best[first, cut][0], cut, last)
    for cut in range(first + 1, last):
        yield Product(best[cut, last][0], best[first, cut][0])


def _parts(tree: Bracketing) -> tuple[Bracketing, ...]:
    match tree:
        case Seed():
            return ()
        case Product(upper, lower):
            return upper, lower
        case Pull(part) | Push(part):
            return (part,)


def _nodes(tree: Bracketing) -> int:
    return 1 + sum(map(_nodes, _parts(tree)))


def _root_cost(tree: Bracketing, links: Sequence[Link], seconds_per_multiply: float) -> float:
    """Seconds of the root alone, without its parts."""
    columns, rows = links[tree.first].width_in, links[tree.last - 1].width_out
    match tree:
        case Product(upper):
            return rows * links[upper.first].width_in * columns * seconds_per_multiply
        case Seed(first, last, "reverse") | Pull(_, first, last):
            return rows * math.fsum(link.reverse_seconds for link in links[first:last])
        case Seed(first, last) | Push(_, first, last):
            return columns * math.fsum(link.forward_seconds for link in links[first:last])


def _check_chain(links: Sequence[Link], seconds_per_multiply: float) -> None:
    if not links:
        raise ValueError("a chain has at least one link")
    for cut in range(1, len(links)):
        below, above = links[cut - 1].width_out, links[cut].width_in
        if below != above:
            raise ValueError(f"at cut {cut} the link below has width {below} and the link above {above}")
    if not seconds_per_multiply >= 0:
        raise ValueError(f"seconds_per_multiply must be at least 0, not {seconds_per_multiply}")


def _check_span(first: object, last: object) -> None:
    if type(first) is not int or type(last) is not int or not 0 <= first < last:  # a bool is no index
        raise ValueError(f"links [{first}, {last}) are not a span")


def _check_meeting(upper_first: int, lower_last: int) -> None:
    if upper_first != lower_last:
        raise ValueError(f"the upper part begins at link {upper_first}, the lower one ends at {lower_last}")
