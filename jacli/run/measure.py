"""Candidates tried on the first samples: seconds, bytes, and whether they serve at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from time import perf_counter

import torch

from jacli.config import COLUMN_METHODS
from jacli.errors import MethodError, means_out_of_memory
from jacli.linear_map import ClosableLinearization
from jacli.methods import Method, checked_blocks, load_method
from jacli.plan import Measured
from jacli.run.memory import MemoryLimit
from jacli.search import Candidate

_LONG = 1.0
"""After a first pass of fewer seconds a second is timed in any case: the first one fills caches."""

_WARMING_UP = 3
"""Where a second pass is this many times as fast as the first, a third one tells whether it stays so."""


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

    Cost: one linearisation and two passes; one where it takes long, three where the second was much faster.
    """
    method, device = load_method(candidate.method), memory.device
    named = Measured(name or candidate.method, candidate.batch_size, candidate.chunk_size)
    linearization = None
    if candidate.method in ("vmap", "forward"):
        load_rules()
    try:
        with memory.peak() as held:
            linearization = linearize(candidate.batch_size)
            times = _times(method, linearization, candidate, patience, device)
            if len(times) == 1 and times[0][0] <= max(_LONG, patience):
                # All in one pass: a second block, its caches warm, linearisation included.
                linearization.close()
                linearization = linearize(candidate.batch_size)
                times = _times(method, linearization, candidate, patience, device)
    except MethodError as failure:
        return _failed(named, f"{failure.what} {failure.why}")
    except Exception as error:
        if not means_out_of_memory(error):
            raise
        return _failed(named, OUT_OF_MEMORY)
    finally:
        if linearization is not None:
            with suppress(Exception):
                linearization.close()
    (first, n_first), (last, n_last) = times[0], times[-1]
    per_vector = last / n_last
    return Measured(
        named.method,
        named.batch_size,
        named.chunk_size,
        setup_seconds=max(0.0, first - n_first * per_vector) if len(times) == 2 else 0.0,
        vector_seconds=per_vector,
        bytes_held=held[0],
    )


def _times(
    method: Method,
    linearization: ClosableLinearization,
    candidate: Candidate,
    patience: float,
    device: torch.device,
) -> list[tuple[float, int]]:
    """Seconds and vectors of a block's first passes; the first includes the linearisation."""
    times: list[tuple[float, int]] = []
    began = now(device)
    for block in checked_blocks(method, linearization, chunk_size=candidate.chunk_size):
        ended = now(device)
        n_vectors = len(block.inputs) if candidate.method in COLUMN_METHODS else len(block.outputs)
        times.append((ended - began, n_vectors))
        del block
        if len(times) == 3 or not _again(times, patience):
            break
        began = now(device)
    return times


def _again(times: list[tuple[float, int]], patience: float) -> bool:
    first, last = times[0][0], times[-1][0]
    return first <= max(_LONG, patience) if len(times) == 1 else _WARMING_UP * last < first


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


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def seconds_per_multiply(dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one multiply-and-add in a product of two matrices of middling size."""
    a = torch.ones(512, 512, dtype=dtype, device=device)
    b = torch.ones(512, 2048, dtype=dtype, device=device)
    (a @ b).sum()  # the first product starts threads
    began = now(device)
    a @ b
    return (now(device) - began) / (512 * 512 * 2048)


def seconds_per_byte(device: torch.device) -> float:
    """Seconds of writing one byte of a result into memory that was not touched before."""
    values = torch.ones(2**22, device=device)
    began = now(device)
    torch.empty_like(values).copy_(values)
    return (now(device) - began) / values.nbytes
