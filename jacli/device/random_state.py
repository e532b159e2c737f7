"""The states of torch's random number generators, put back after code that may draw from them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from jacli.device.hardware import is_gpu


def fork_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Put back the generators of the host and of one device after a ``with`` block.

    >>> with fork_random_state(torch.device("cpu")):
    ...     inside = torch.rand(1)
    >>> bool(torch.rand(1) == inside)  # as if nothing had been drawn
    True
    """
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices=[device] if is_gpu(device) else [])
    return fork


def fork_every_random_state() -> AbstractContextManager[None]:
    """Put back the generators of the host and of every GPU after a ``with`` block.

    >>> with fork_every_random_state():
    ...     inside = torch.rand(1)
    >>> bool(torch.rand(1) == inside)  # as if nothing had been drawn
    True
    """
    fork: AbstractContextManager[None] = torch.random.fork_rng(range(torch.cuda.device_count()))
    return fork
