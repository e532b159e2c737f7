"""A network in links, and how the matrix of each is filled in.  No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jacli.options.methods import METHODS, Method
from jacli.plans import bracketing
from jacli.plans.bracketing import Bracketing, Product, Pull, Push, Seed


@dataclass(frozen=True)
class LinkPlan:
    """How the matrix of a link is filled in.

    Attributes:
        reverse_method: Name of the method that fills in rows.
        reverse_chunk: Cotangents per pass.
        forward_chunk: Tangents per pass.
        forward_method: Name of the method that fills in columns.
    """

    reverse_method: str
    reverse_chunk: int
    forward_chunk: int
    forward_method: str = "forward"

    def __post_init__(self) -> None:
        rows, columns = METHODS[self.reverse_method], METHODS[self.forward_method]
        if rows.by_columns or not columns.by_columns:
            raise ValueError(f"{rows.name} fills in no rows, or {columns.name} no columns")

    def method(self, *, by_columns: bool) -> Method:
        """The one for a direction."""
        return METHODS[self.forward_method if by_columns else self.reverse_method]

    def chunk(self, *, by_columns: bool) -> int:
        """Vectors per pass in a direction."""
        if by_columns:
            return self.forward_chunk
        return 1 if METHODS[self.reverse_method].single_vector else self.reverse_chunk

    def halved(self) -> LinkPlan:
        """The same with half the vectors per pass."""
        return replace(
            self,
            reverse_chunk=max(1, self.reverse_chunk // 2),
            forward_chunk=max(1, self.forward_chunk // 2),
        )


@dataclass(frozen=True)
class Factorization:
    """A network in links, and the order in which their Jacobians are multiplied: ``J = left @ right``.

    Attributes:
        cuts: Where, in words, from the input to the output.
        widths: Numbers per sample at the input, at each cut and at the output.
        split: Number of the cut, from 1, at which the two factors meet.
        tree: A product whose upper part ends, and lower part begins, at that cut.
        links: A plan each, from the input to the output.
    """

    cuts: tuple[str, ...]
    widths: tuple[int, ...]
    split: int
    tree: Bracketing
    links: tuple[LinkPlan, ...]

    def __post_init__(self) -> None:
        fits = len(self.widths) == len(self.links) + 1 == len(self.cuts) + 2
        spans = (self.tree.first, self.tree.last) == (0, len(self.links))
        if not (fits and spans and isinstance(self.tree, Product) and self.tree.upper.first == self.split):
            raise ValueError("a factorization is a product at one of its cuts")

    @property
    def order(self) -> str:
        """The order of work in words: which part in which direction."""
        return bracketing.describe(self.tree, self.cuts)

    @property
    def width(self) -> int:
        """R of ``J = (n_out, r)(r, n_in)``."""
        return self.widths[self.split]

    @property
    def factors(self) -> tuple[Bracketing, Bracketing]:
        """What gives ``left``, and what gives ``right``."""
        assert isinstance(self.tree, Product)  # `__post_init__` sees to it
        return self.tree.upper, self.tree.lower

    @property
    def passes(self) -> int:
        """Batched passes per batch of samples, through one or more links at once."""
        return sum(_passes_of(self.tree, self))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "tree": bracketing.to_dict(self.tree)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Factorization:
        """Back from JSON; ``ValueError``, ``KeyError`` or ``TypeError`` if it is none."""
        return cls(
            cuts=tuple(map(str, values["cuts"])),
            widths=tuple(map(int, values["widths"])),
            split=int(values["split"]),
            tree=bracketing.from_dict(values["tree"]),
            links=tuple(LinkPlan(**link) for link in values["links"]),
        )


def _passes_of(tree: Bracketing, factorization: Factorization) -> Iterator[int]:
    """Batched passes of each part of a bracketing, through one or more links at once."""
    widths, links = factorization.widths, factorization.links
    match tree:
        case Product(upper=upper, lower=lower):
            yield from _passes_of(upper, factorization)
            yield from _passes_of(lower, factorization)
        case Seed(first=first, last=last, direction=direction):
            forward = direction == "forward"
            yield math.ceil(widths[first if forward else last] / links[first].chunk(by_columns=forward))
        case Pull(upper=upper):
            yield from _passes_of(upper, factorization)
            yield math.ceil(widths[tree.last] / links[tree.through_first].chunk(by_columns=False))
        case Push(lower=lower):
            yield from _passes_of(lower, factorization)
            yield math.ceil(widths[tree.first] / links[tree.through_first].chunk(by_columns=True))
