"""Plain passes whose forward pass rounds as a method's own did, so that kinks fall alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jacli.device.torch_switches import batched_pass
from jacli.linear_maps import LinearMap, Samples, Wrapper
from jacli.network import Linearized
from jacli.options.methods import METHODS
from jacli.verify import PlainPasses

Kernels = Callable[[], AbstractContextManager[None]]


def as_run(batch: Linearized, plan: Mapping[str, Any], *, recurrent: bool) -> Iterator[PlainPasses]:
    """Plain passes over a batch, once for each way in which a run's forward pass may have rounded.

    Args:
        batch: The network at the batch; it may be closed.
        plan: How the run computed, as `Plan.to_dict` gives it.
        recurrent: Whether the network holds recurrent layers.
    """
    everyone = torch.arange(batch.batch, device=batch.device)
    method = METHODS.get(plan["method"])
    plain_cells = recurrent and method is not None and method.reruns_network
    for batched, copies in ways(plan):
        copies = min(copies, batch.n_out)
        kernels: Kernels = partial(batched_pass, recurrent=plain_cells) if batched else nullcontext
        with batch.at(everyone.repeat(copies)) as repeated:
            yield PlainPasses(SpreadOverCopies(repeated.tape(), copies, kernels), repeated)


def ways(plan: Mapping[str, Any]) -> list[tuple[bool, int]]:
    """Whether only kernels with batching rules serve, and how many copies of the batch; likeliest first.

    >>> ways({"method": "replicate", "chunk_size": 4}), ways({"method": "vmap"})
    ([(False, 4), (False, 1)], [(True, 1), (False, 1)])
    """
    links = (plan.get("factored") or {}).get("links", ())
    copies = [link["reverse_chunk"] for link in links if METHODS[link["reverse_method"]].repeats_batch]
    method = METHODS.get(plan["method"])
    if method is not None and method.repeats_batch:
        copies = [plan["chunk_size"]]
    batched = [] if method is not None and method.is_plain else [(True, 1)]
    return list(dict.fromkeys([*((False, int(n)) for n in copies), *batched, (False, 1)]))


@dataclass(frozen=True)
class SpreadOverCopies(Wrapper):
    """The Jacobians of a batch, whose row ``o`` comes from copy ``o % copies`` of it, as with ``replicate``.

    A cotangent u pulls back as the sum over the copies c of the parts of u at c, ``c + copies``, ...

    Attributes:
        whole: The map of the copies, one after another: ``(copies b)`` samples.
        copies: How many.
        kernels: Around each pass: which kernels may serve.
    """

    whole: LinearMap
    copies: int
    kernels: Kernels

    @property
    def batch(self) -> int:
        return self.whole.batch // self.copies

    def vjp(self, cotangents: Tensor) -> Tensor:
        k = len(cotangents)
        spread = (cotangents[:, None] * self._own_rows).reshape(k, -1, self.n_out)  # k (c b) o
        with self.kernels():
            rows = self.whole.vjp(spread)
        return rows.reshape(k, self.copies, self.batch, self.n_in).sum(1)

    def jvp(self, tangents: Tensor) -> Tensor:
        k = len(tangents)
        with self.kernels():
            columns = self.whole.jvp(tangents.repeat(1, self.copies, 1))
        return (columns.reshape(k, self.copies, self.batch, self.n_out) * self._own_rows).sum(1)

    def take(self, samples: Samples) -> SpreadOverCopies:
        everyone = torch.arange(self.whole.batch, device=self.device).reshape(self.copies, -1)
        return SpreadOverCopies(self.whole.take(everyone[:, samples].flatten()), self.copies, self.kernels)

    @property
    def _own_rows(self) -> Tensor:
        """1 where a row comes from a copy, ``(c, 1, o)``."""
        copy_of = torch.arange(self.n_out, device=self.device) % self.copies
        return (copy_of == torch.arange(self.copies, device=self.device)[:, None])[:, None, :]
