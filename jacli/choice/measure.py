"""Candidates tried on the first samples: seconds, bytes, and whether they serve at all."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from functools import cache

import torch

from jacli.choice.memory_limit import MemoryLimit
from jacli.device.allocator import give_back
from jacli.device.clock import now
from jacli.device.matrix_product import product
from jacli.errors import MethodError, means_out_of_memory
from jacli.linear_map import ClosableLinearization
from jacli.methods import Method, checked_blocks, load_method
from jacli.options.config import COLUMN_METHODS
from jacli.plans.plan import Measured
from jacli.plans.search import Candidate

_LONG = 1.0
"""A first pass of fewer seconds is followed by others in any case: the first one fills caches."""

_MIDDLING = 0.3
"""A first pass of more seconds, half of which the vectors took, tells well enough what linearising takes."""

_ENOUGH = 0.03
"""Seconds of passes after the first that are enough to believe the fastest of them, """

_MOST_PASSES = 5
"""and so many passes."""

OUT_OF_MEMORY = "out of memory"
"""The failure of a candidate of which a smaller one may fit."""


def measure(
    candidate: Candidate,
    linearize: Callable[[int], ClosableLinearization],
    memory: MemoryLimit,
    *,
    patience: float,
    name: str = "",
) -> Measured:
    """Time a block's linearisation and its first vectors under a candidate.

    Args:
        candidate: Method and sizes.
        linearize: The network at the first ``batch_size`` samples.
        memory: What may be held.
        patience: A first pass that took longer than this many seconds is believed.
        name: How it is called in the plan, if not as the method.

    Returns:
        With ``failure`` where the method has no rule for the network, or memory ran out.

    Cost: one linearisation and two passes; one pass where it takes long, two linearisations and up to seven
    passes where these are short.
    """
    method, device = load_method(candidate.method), memory.device
    named = Measured(name or candidate.method, candidate.batch_size, candidate.chunk_size)
    if candidate.method in ("vmap", "forward"):
        load_rules()
    try:
        give_back()
        with memory.peak() as held:
            setup, vector = _Stopwatch(method, linearize, candidate, device).seconds(patience)
    except MethodError as failure:
        return _failed(named, f"{failure.what} {failure.why}")
    except Exception as error:
        if not means_out_of_memory(error):
            raise
        return _failed(named, OUT_OF_MEMORY)
    return replace(named, setup_seconds=setup, vector_seconds=vector, bytes_held=held[0])


class _Stopwatch:
    """Times the passes of a candidate."""

    def __init__(
        self,
        method: Method,
        linearize: Callable[[int], ClosableLinearization],
        candidate: Candidate,
        device: torch.device,
    ) -> None:
        self._method = method
        self._linearize = linearize
        self._candidate = candidate
        self._device = device

    def seconds(self, patience: float) -> tuple[float, float]:
        """Of a block before its first vector, and of a vector.

        The first pass fills caches; a second one is timed unless the first took long, and more of them where
        they are so short that a single one tells little.  Then a second block tells what linearising takes.
        """
        block = self._passes()
        try:
            first, n_first = next(block)
            if first > max(_LONG, patience):
                return 0.0, first / n_first
            times: list[float] = []
            for seconds, n_vectors in block:
                times.append(seconds / n_vectors)
                if len(times) == _MOST_PASSES or sum(times) * n_vectors > _ENOUGH:
                    break
        finally:
            block.close()
        if times and first > _MIDDLING and n_first * min(times) > first / 2:
            return max(0.0, first - n_first * min(times)), min(times)
        second = self._passes()
        again, n_again = next(second)
        second.close()
        if not times:  # all in one pass
            return 0.0, again / n_again
        return max(0.0, again - n_again * min(times)), min(times)

    def _passes(self) -> Generator[tuple[float, int]]:
        """Seconds and vectors of a block's passes; the first one's with the linearisation."""
        began = now(self._device)
        linearization = self._linearize(self._candidate.batch_size)
        columns = self._candidate.method in COLUMN_METHODS
        try:
            for block in checked_blocks(self._method, linearization, chunk_size=self._candidate.chunk_size):
                ended = now(self._device)
                n_vectors = len(block.inputs) if columns else len(block.outputs)
                yield ended - began, n_vectors
                del block
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


def _failed(named: Measured, why: str) -> Measured:
    return Measured(named.method, named.batch_size, named.chunk_size, failure=why)


def seconds_per_multiply(dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one multiply-and-add in a product of two matrices of middling size."""
    a = torch.ones(512, 512, dtype=dtype, device=device)
    b = torch.ones(512, 2048, dtype=dtype, device=device)
    product(a[None], b[None])  # the first product starts threads
    began = now(device)
    product(a[None], b[None])
    return (now(device) - began) / (512 * 512 * 2048)


def seconds_per_byte(device: torch.device) -> float:
    """Seconds of writing one byte of a result into memory that was not touched before."""
    values = torch.ones(2**22, device=device)
    began = now(device)
    torch.empty_like(values).copy_(values)
    return (now(device) - began) / values.nbytes
