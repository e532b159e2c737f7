"""The primitives of a linearisation as linear maps: a tape, batched passes, the linear program.

Each is a map to all outputs of the network at all samples of the batch; `jacli.network.linearize` selects
outputs of it.  What they hold belongs to the linearisation, and ends with it.

Indices: ``k`` vectors, ``b`` samples of the batch, ``o`` outputs, ``i`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jacli.errors import MethodError, telling_line, translating
from jacli.linear_maps import LinearMap, Samples, Wrapper

if TYPE_CHECKING:
    from jacli.network.linearize import Linearized


Passes = Callable[[Tensor], Tensor]
"""Products with all vectors of a chunk, ``(k, b, m) -> (k, b, n)``."""


class PrimitiveMap(Wrapper):
    """A primitive of a linearisation as a `jacli.linear_maps.LinearMap`.

    Args:
        of: The linearisation, which owns what the primitive holds.
        vjp: ``(k, b, o) -> (k, b, i)``.
        jvp: ``(k, b, i) -> (k, b, o)``.
        again: The same primitive of another linearisation, for `take`.
    """

    whole: Linearized

    def __init__(
        self, of: Linearized, *, vjp: Passes, jvp: Passes, again: Callable[[Linearized], LinearMap]
    ) -> None:
        self.whole = of
        self._vjp = vjp
        self._jvp = jvp
        self._again = again

    @property
    def n_out(self) -> int:
        """Flattened outputs, all of them."""
        return self.whole.n_all

    def vjp(self, cotangents: Tensor) -> Tensor:
        """``(k, b, o) -> (k, b, i)``."""
        self.whole.require_open()
        return self._vjp(cotangents)

    def jvp(self, tangents: Tensor) -> Tensor:
        """``(k, b, i) -> (k, b, o)``."""
        self.whole.require_open()
        return self._jvp(tangents)

    def take(self, samples: Samples) -> LinearMap:
        """The map of some samples: these are linearised anew."""
        return self._again(self.whole.part(samples))


def one_by_one(pass_: Callable[[Tensor], Tensor]) -> Passes:
    """One vector after another, ``(k, b, m) -> (k, b, n)``, by a pass of one, ``(b, m) -> (b, n)``.

    >>> tuple(one_by_one(lambda v: v @ torch.ones(3, 2))(torch.ones(5, 4, 3)).shape)
    (5, 4, 2)
    """

    def passes(vectors: Tensor) -> Tensor:
        if len(vectors) == 1:
            return pass_(vectors[0])[None]
        return torch.stack([pass_(vector) for vector in vectors])

    return passes


def on_copies(passes: Callable[[Tensor], Tensor], copies: int) -> Passes:
    """A pass over ``copies`` copies of a batch, ``(copies b, m) -> (copies b, n)``, for a vector each.

    ``(k, b, m) -> (k, b, n)``, ``copies`` vectors at a time; the copies left over in the last pass have none.

    >>> called = []
    >>> tuple(on_copies(lambda v: (called.append(len(v)), v)[1], copies=2)(torch.ones(3, 4, 6)).shape), called
    ((3, 4, 6), [8, 8])
    """

    def all_passes(vectors: Tensor) -> Tensor:
        k, batch, _ = vectors.shape
        done = []
        for start in range(0, k, copies):
            chunk = vectors[start : start + copies]
            count = len(chunk)
            if count < copies:
                chunk = torch.cat([chunk, chunk.new_zeros(copies - count, *chunk.shape[1:])])
            images = passes(chunk.reshape(copies * batch, -1))
            done.append(images.reshape(copies, batch, -1)[:count])
        return done[0] if len(done) == 1 else torch.cat(done)

    return all_passes


def on_first_samples(passes: Callable[[Tensor], Tensor], padded: int) -> Passes:
    """Passes over ``padded`` samples, of which the first ones count; the others are copies of them.

    >>> tuple(on_first_samples(lambda v: 2 * v, padded=8)(torch.ones(1, 5, 3)).shape)
    (1, 5, 3)
    """

    def first_samples(vectors: Tensor) -> Tensor:
        k, batch, n = vectors.shape
        filled_up = torch.cat([vectors, vectors.new_zeros(k, padded - batch, n)], dim=1)
        return passes(filled_up)[:, :batch]

    return first_samples


def naming(primitive: str, passes: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Passes whose errors name the primitive.

    >>> def fail(vectors):
    ...     raise RuntimeError("no batching rule for aten::histc")
    >>> naming("batched jvp", fail)(torch.ones(1, 1, 1))
    Traceback (most recent call last):
        ...
    jacli.errors.MethodError: The network has no batched jvp.
    torch says: no batching rule for aten::histc.
    Take another primitive: tape, batched or program.

    Raises:
        MethodError: It has no such product for this network.
        MemoryError: An allocation failed.
    """

    def refusal(error: Exception) -> MethodError:
        return MethodError(
            f"The network has no {primitive}.",
            why=f"torch says: {telling_line(error)}",
            hint="Take another primitive: tape, batched or program.",
        )

    def named(vectors: Tensor) -> Tensor:
        with translating(refusal):
            return passes(vectors)

    return named
