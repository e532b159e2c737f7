"""Candidates tried on the first samples: seconds, bytes, and whether they serve at all."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Protocol

import torch

from jacli.choice.memory_limit import MemoryLimit
from jacli.device.allocator import give_back
from jacli.device.clock import now
from jacli.device.matrix_product import product
from jacli.errors import MethodError, means_out_of_memory
from jacli.linear_maps import Linearization
from jacli.methods import checked_slabs
from jacli.plans.plan import Measured
from jacli.plans.search import Candidate

ALWAYS_WARMED_SECONDS = 1.0
"""A first pass of fewer seconds is followed by others in any case: the first one fills caches."""

SETUP_FROM_FIRST_PASS_SECONDS = 0.3
"""If the first pass took longer and at least half of it was vector work, setup = first pass - vector time."""

ENOUGH_WARM_SECONDS = 0.03
MAX_WARM_PASSES = 5
"""Passes after the first that are timed: until they add up to so many seconds, and no more than so many."""

OUT_OF_MEMORY = "out of memory"
"""The failure of a candidate of which a smaller one may fit."""


class Measuring(Protocol):
    """Times a candidate, as `measure` does."""

    def __call__(
        self,
        candidate: Candidate,
        linearize: Callable[[int], Linearization],
        memory: MemoryLimit,
        *,
        patience: float,
        link: int | None = None,
    ) -> Measured: ...


def measure(
    candidate: Candidate,
    linearize: Callable[[int], Linearization],
    memory: MemoryLimit,
    *,
    patience: float,
    link: int | None = None,
) -> Measured:
    """Time a batch's linearisation and its first vectors under a candidate.

    Args:
        candidate: Method and sizes.
        linearize: The network at the first ``batch_size`` samples.
        memory: What may be held.
        patience: A first pass that took longer than this many seconds is believed.
        link: Number of the link that it fills in; None for the whole network.

    Returns:
        With ``failure`` where the method has no rule for the network, or memory ran out.

    Cost: one linearisation and two passes; one pass where it takes long, two linearisations and up to seven
    passes where these are short.
    """
    method, device = candidate.method, memory.device
    named = Measured(method.name, candidate.batch_size, candidate.chunk_size, link=link)
    if method.needs_batching_rules:
        load_rules()
    try:
        give_back()
        with memory.peak() as held:
            setup, vector = _Stopwatch(linearize, candidate, device).seconds(patience)
    except MethodError as failure:
        return replace(named, failure=failure.summary)
    except Exception as error:
        if not means_out_of_memory(error):
            raise
        return replace(named, failure=OUT_OF_MEMORY)
    return replace(named, setup_seconds=setup, vector_seconds=vector, bytes_held=held[0])


class _Stopwatch:
    """Times the passes of a candidate."""

    def __init__(
        self,
        linearize: Callable[[int], Linearization],
        candidate: Candidate,
        device: torch.device,
    ) -> None:
        self._linearize = linearize
        self._candidate = candidate
        self._device = device

    def seconds(self, patience: float) -> tuple[float, float]:
        """Of a batch before its first vector, and of a vector.

        The first pass fills caches; a second one is timed unless the first took long, and more of them where
        they are so short that a single one tells little.  Then a second batch tells what linearising takes.
        """
        passes = self._passes()
        try:
            first, n_first = next(passes)
            if first > max(ALWAYS_WARMED_SECONDS, patience):
                return 0.0, first / n_first
            times: list[float] = []
            for seconds, n_vectors in passes:
                times.append(seconds / n_vectors)
                if len(times) == MAX_WARM_PASSES or sum(times) * n_vectors > ENOUGH_WARM_SECONDS:
                    break
        finally:
            passes.close()
        if times and first > SETUP_FROM_FIRST_PASS_SECONDS and n_first * min(times) > first / 2:
            return max(0.0, first - n_first * min(times)), min(times)
        second = self._passes()
        again, n_again = next(second)
        second.close()
        if not times:  # all in one pass
            return 0.0, again / n_again
        return max(0.0, again - n_again * min(times)), min(times)

    def _passes(self) -> Generator[tuple[float, int]]:
        """Seconds and vectors of a batch's passes; the first one's with the linearisation."""
        began = now(self._device)
        linearization = self._linearize(self._candidate.batch_size)
        method = self._candidate.method
        try:
            for slab in checked_slabs(method, linearization, chunk_size=self._candidate.chunk_size):
                ended = now(self._device)
                n_vectors = len(slab.inputs) if method.by_columns else len(slab.outputs)
                yield ended - began, n_vectors
                del slab
                began = now(self._device)
        finally:
            with suppress(Exception):
                linearization.close()


@cache
def load_rules() -> None:
    """Have torch load its batching rules and decompositions, a second that it takes at the first use.

    It is no part of a pass, and must not be timed as one.
    """
    one = torch.ones(1)
    torch.func.vmap(torch.func.vjp(torch.sin, one)[1])(one[None])
    torch.func.jvp(torch.sin, (one,), (one,))


@cache
def seconds_per_multiply(dtype: torch.dtype, device: torch.device, *, threads: int) -> float:
    """Seconds of one multiply-and-add in a product of two matrices of middling size.

    Measured once per process, as `seconds_per_byte` is: it belongs to the machine and not to a network.

    >>> 1e-13 < seconds_per_multiply(torch.float32, torch.device("cpu"), threads=1) < 1e-6
    True

    Args:
        dtype: Of the matrices.
        device: Where they are.
        threads: That torch uses; with another number it is measured anew.
    """
    a = torch.ones(512, 512, dtype=dtype, device=device)
    b = torch.ones(512, 2048, dtype=dtype, device=device)
    product(a[None], b[None])  # the first product starts threads
    began = now(device)
    product(a[None], b[None])
    return (now(device) - began) / (512 * 512 * 2048)


@cache
def seconds_per_byte(device: torch.device, *, threads: int) -> float:
    """Seconds of writing one byte of a result into memory that was not touched before.

    >>> 1e-13 < seconds_per_byte(torch.device("cpu"), threads=1) < 1e-6
    True

    Args:
        device: Where the memory is.
        threads: That torch uses.
    """
    values = torch.ones(2**22, device=device)
    began = now(device)
    torch.empty_like(values).copy_(values)
    return (now(device) - began) / values.nbytes
