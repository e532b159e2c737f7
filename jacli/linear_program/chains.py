"""Vectors through chains of local maps: pulled backwards, pushed forwards, in place where nobody else reads.

The program is a graph: values are its nodes, chains of maps its edges.  A tangent of a value is the sum of
what its incoming edges push into it; a cotangent the sum of what its outgoing edges pull.

Whether a map may write into the vectors that it is given is known as they come: they were made here, and
no other value holds the same memory at the time.  On a network of convolutions that halves the time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor

from jacli.linear_program.call import Edge
from jacli.linear_program.local_map import LocalMap, is_dense


class Chains:
    """The linear program, ready to be run.

    Args:
        edges: In the order of the forward pass: every edge into a value comes before those out of it.
        source: The value tangents start from and cotangents arrive at.
        target: The other end.
    """

    def __init__(self, edges: Iterable[Edge], source: Hashable, target: Hashable) -> None:
        self._source = source
        self._target = target
        self._into: dict[Hashable, list[Edge]] = defaultdict(list)
        for edge in edges:
            self._into[edge.target].append(edge)

    def pull(self, g: Tensor, *, mine: bool) -> Tensor | None:
        """Cotangents of the target to cotangents of the source; None where no way leads there.

        Args:
            g: ``(k, *shape of the target)``.
            mine: Whether ``g`` may be written to.
        """
        vectors = _Vectors(g, mine=mine)
        vectors.add(self._target, g)
        for value in reversed(self._into):
            arrived = vectors.take(value)
            if arrived is None:
                continue
            edges = self._into[value]
            for i, edge in enumerate(edges):
                vectors.hold(arrived, more=len(edges) - 1 - i)
                _run(vectors, edge.source, edge.maps[::-1], arrived, pulled=True)
            vectors.hold(arrived, more=0)
        return vectors.take(self._source)

    def push(self, t: Tensor, *, mine: bool) -> Tensor | None:
        """Tangents of the source to tangents of the target; None where no way leads there.

        Args:
            t: ``(k, *shape of the source)``.
            mine: Whether ``t`` may be written to.
        """
        vectors = _Vectors(t, mine=mine)
        vectors.add(self._source, t)
        waiting = Counter(edge.source for edges in self._into.values() for edge in edges)
        for value, edges in self._into.items():
            for edge in edges:
                waiting[edge.source] -= 1
                last = waiting[edge.source] == 0 and edge.source != self._target
                given = vectors.take(edge.source) if last else vectors.see(edge.source)
                if given is not None:
                    _run(vectors, value, edge.maps, given, pulled=False)
        return vectors.take(self._target)


def _run(vectors: _Vectors, into: Hashable, maps: Sequence[LocalMap], v: Tensor, *, pulled: bool) -> None:
    """One chain, its result added to what is held at a value."""
    for i, local_map in enumerate(maps):
        if i == len(maps) - 1 and vectors.placed(into, local_map, v, pulled=pulled):
            return
        mine = vectors.may_write(v)
        v = local_map.pull(v, mine=mine) if pulled else local_map.push(v, mine=mine)
    vectors.add(into, v)


class _Vectors:
    """The vectors of each value, and who holds which memory."""

    def __init__(self, given: Tensor, *, mine: bool) -> None:
        self._at: dict[Hashable, Tensor] = {}
        self._holders: Counter[int] = Counter()
        self._held_now: tuple[int, int] | None = None
        if not mine:
            self._holders[_memory(given)] += 1  # the caller

    def see(self, value: Hashable) -> Tensor | None:
        return self._at.get(value)

    def take(self, value: Hashable) -> Tensor | None:
        """The vectors of a value, held there no more."""
        found = self._at.pop(value, None)
        if found is not None:
            self._holders[_memory(found)] -= 1
        return found

    def hold(self, vectors: Tensor, *, more: int) -> None:
        """Vectors taken that are still needed by so many more edges."""
        if self._held_now is not None:
            memory, count = self._held_now
            self._holders[memory] -= count
        self._held_now = (_memory(vectors), more)
        self._holders[_memory(vectors)] += more

    def may_write(self, vectors: Tensor) -> bool:
        return self._holders[_memory(vectors)] == 0 and is_dense(vectors)

    def add(self, value: Hashable, vectors: Tensor) -> None:
        """Add to what is held at a value."""
        before = self.take(value)
        if before is None:
            total = vectors
        elif _memory(before) == _memory(vectors):  # the same numbers, perhaps in another order
            total = before + vectors
        elif self.may_write(before):
            total = before.add_(vectors)
        elif self.may_write(vectors):
            total = vectors.add_(before)
        else:
            total = before + vectors
        self._at[value] = total
        self._holders[_memory(total)] += 1

    def placed(self, value: Hashable, local_map: LocalMap, vectors: Tensor, *, pulled: bool) -> bool:
        """Whether a map that only puts numbers into place could add them to what is held at a value."""
        add_into = getattr(local_map, "pull_into" if pulled else "push_into", None)
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
