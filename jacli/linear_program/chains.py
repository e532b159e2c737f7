"""Reverse and forward accumulation over the linearised graph, in place where nobody else reads the memory.

Values are the vertices of the graph, chains of local maps its edges.  The tangent of a value is the sum of
what its incoming edges push forward; the cotangent of a value is the sum of what its outgoing edges pull
back (Griewank & Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, ch. 3; 10.1137/1.9780898717761).

Whether a map may overwrite its argument is known only while the pass runs: the memory was allocated in this
pass, and no other value holds it at that moment.  On convolutional networks this halves the time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor

from jacli.linear_program.call import Edge
from jacli.linear_program.local_map import LocalMap, is_dense


class Chains:
    """The linearised graph, ready for passes.

    Args:
        edges: Topologically sorted: every edge into a value comes before those out of it.
        source: The value where tangents start and cotangents arrive: the input.
        target: The other end: the output.

    Attributes:
        edges: The same, edges with the same target side by side.
    """

    def __init__(self, edges: Iterable[Edge], source: Hashable, target: Hashable) -> None:
        self._source = source
        self._target = target
        self._into: dict[Hashable, list[Edge]] = defaultdict(list)
        for edge in edges:
            self._into[edge.target].append(edge)
        self.edges = tuple(edge for entering in self._into.values() for edge in entering)

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor | None:
        """Cotangents of the target to cotangents of the source; None if no path connects them.

        Args:
            g: ``(k, *shape of the target)``.
            may_overwrite: Whether the pass may reuse the memory of ``g``.
        """
        vectors = _Vectors(g, may_overwrite=may_overwrite)
        vectors.add(self._target, g)
        for value in reversed(self._into):
            arrived = vectors.take(value)
            if arrived is None:
                continue
            edges = self._into[value]
            for i, edge in enumerate(edges):
                vectors.hold(arrived, more=len(edges) - 1 - i)
                _propagate(vectors, edge.source, edge.maps[::-1], arrived, reverse=True)
            vectors.hold(arrived, more=0)
        return vectors.take(self._source)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor | None:
        """Tangents of the source to tangents of the target; None if no path connects them.

        Args:
            t: ``(k, *shape of the source)``.
            may_overwrite: Whether the pass may reuse the memory of ``t``.
        """
        vectors = _Vectors(t, may_overwrite=may_overwrite)
        vectors.add(self._source, t)
        waiting = Counter(edge.source for edges in self._into.values() for edge in edges)
        for value, edges in self._into.items():
            for edge in edges:
                waiting[edge.source] -= 1
                last = waiting[edge.source] == 0 and edge.source != self._target
                given = vectors.take(edge.source) if last else vectors.see(edge.source)
                if given is not None:
                    _propagate(vectors, value, edge.maps, given, reverse=False)
        return vectors.take(self._target)


def _propagate(
    vectors: _Vectors, into: Hashable, maps: Sequence[LocalMap], v: Tensor, *, reverse: bool
) -> None:
    """Apply the maps of one edge and add the result to the vectors of a value."""
    for i, local_map in enumerate(maps):
        if i == len(maps) - 1 and vectors.added_in_place(into, local_map, v, reverse=reverse):
            return
        free = vectors.may_overwrite(v)
        v = local_map.vjp(v, may_overwrite=free) if reverse else local_map.jvp(v, may_overwrite=free)
    vectors.add(into, v)


class _Vectors:
    """The vectors accumulated at each value, with a reference count for each piece of memory."""

    def __init__(self, given: Tensor, *, may_overwrite: bool) -> None:
        self._at: dict[Hashable, Tensor] = {}
        self._holders: Counter[int] = Counter()
        self._held_now: tuple[int, int] | None = None
        if not may_overwrite:
            self._holders[_memory(given)] += 1  # the caller

    def see(self, value: Hashable) -> Tensor | None:
        return self._at.get(value)

    def take(self, value: Hashable) -> Tensor | None:
        """Remove and return the vectors of a value."""
        taken = self._at.pop(value, None)
        if taken is not None:
            self._holders[_memory(taken)] -= 1
        return taken

    def hold(self, vectors: Tensor, *, more: int) -> None:
        """Count ``more`` edges that still read the vectors taken; forget those of the call before."""
        if self._held_now is not None:
            memory, count = self._held_now
            self._holders[memory] -= count
        self._held_now = (_memory(vectors), more)
        self._holders[_memory(vectors)] += more

    def may_overwrite(self, vectors: Tensor) -> bool:
        return self._holders[_memory(vectors)] == 0 and is_dense(vectors)

    def add(self, value: Hashable, vectors: Tensor) -> None:
        """Add to the vectors of a value."""
        before = self.take(value)
        if before is None:
            total = vectors
        elif _memory(before) == _memory(vectors):  # the same numbers, perhaps in another order
            total = before + vectors
        elif self.may_overwrite(before):
            total = before.add_(vectors)
        elif self.may_overwrite(vectors):
            total = vectors.add_(before)
        else:
            total = before + vectors
        self._at[value] = total
        self._holders[_memory(total)] += 1

    def added_in_place(self, value: Hashable, local_map: LocalMap, vectors: Tensor, *, reverse: bool) -> bool:
        """Let a map add its result to the vectors of a value, if it can; returns whether it did."""
        add_into = getattr(local_map, "add_vjp_to" if reverse else "add_jvp_to", None)
        before = self._at.get(value)
        if add_into is None or before is None:
            return False
        others = self._holders[_memory(before)] - 1
        if others or not is_dense(before) or _memory(before) == _memory(vectors):
            return False
        add_into(vectors, before)
        return True


def _memory(vectors: Tensor) -> int:
    return vectors.untyped_storage().data_ptr()
