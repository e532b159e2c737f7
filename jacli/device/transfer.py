"""Asynchronous copies of large arrays from a GPU to the host, through pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacli.device.hardware import is_gpu


class ArrivingArray:
    """An array that a GPU is still copying to the host; reading a piece waits for the whole copy.

    Args:
        values: The pinned memory that it is copied to.
        arrived: Recorded on the stream of the copy, after it.
    """

    def __init__(self, values: Tensor, arrived: torch.cuda.Event) -> None:
        self._values: np.ndarray = values.numpy()
        self._arrived = arrived
        self.shape: tuple[int, ...] = self._values.shape
        self.dtype: np.dtype = self._values.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, piece: Any) -> np.ndarray:
        self._arrived.synchronize()
        values: np.ndarray = self._values[piece]
        return values


class HostCopies:
    """Copies to the host on a stream of their own, double-buffered; on a CPU, the tensors themselves.

    Each name has two pinned buffers that take turns: a copy is valid until the second copy after it begins.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if is_gpu(device) else None
        self._buffers: dict[str, list[Tensor]] = {}

    def copy(self, name: str, tensor: Tensor) -> np.ndarray | ArrivingArray:
        """``tensor`` on the host: contiguous if it comes from a GPU, with its own strides on a CPU."""
        tensor = tensor.detach()
        if self._stream is None:
            values: np.ndarray = tensor.cpu().numpy()
            return values
        tensor = tensor.contiguous()  # the GPU is faster at moving the class axis to the end
        buffer = self._buffer(name, tensor)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(tensor, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        tensor.record_stream(self._stream)
        return ArrivingArray(buffer, arrived)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        """Pinned memory for ``tensor``: the buffer of that name that was used less recently."""
        pair = self._buffers.setdefault(name, [])
        held = pair.pop(0) if len(pair) == 2 else None
        if held is None or held.numel() < tensor.numel() or held.dtype != tensor.dtype:
            held = pinned(tensor.numel(), tensor.dtype)
        pair.append(held)
        return held[: tensor.numel()].view(tensor.shape)


class QueuedWork:
    """The work that is queued on a GPU's current stream when this is made; other streams can wait for it.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Let the stream that is current now go on only after that work; the host does not wait."""
        self._done.wait(torch.cuda.current_stream(self._device))


class StagingBuffer:
    """Pinned memory in which tensors arrive from a GPU one after the other."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def copy(self, tensor: Tensor) -> np.ndarray:
        """``tensor`` on the host, once all work on the current stream is done; valid until the next copy."""
        if self._memory is None or self._memory.numel() < tensor.numel():
            self._memory = pinned(tensor.numel(), tensor.dtype)
        arrived = self._memory[: tensor.numel()].view(tensor.shape)
        arrived.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        values: np.ndarray = arrived.numpy()
        return values


def pinned(count: int, dtype: torch.dtype) -> Tensor:
    """Page-locked memory, to which a GPU copies asynchronously; ordinary memory if there is none.

    >>> pinned(10, torch.float32).shape
    torch.Size([10])
    """
    try:
        return torch.empty(count, dtype=dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(count, dtype=dtype)


@contextmanager
def background_work(device: torch.device) -> Iterator[None]:
    """For a thread that works while others compute: one core, and on a GPU a stream of its own.

    On the stream of the computation, each of its operations would wait for all passes queued there.

    >>> with background_work(torch.device("cpu")):
    ...     torch.get_num_threads()
    1
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # for this thread, and for threads that begin later: hence restored
    stream = torch.cuda.stream(torch.cuda.Stream(device)) if is_gpu(device) else nullcontext()
    try:
        with torch.inference_mode(), stream:
            yield
    finally:
        torch.set_num_threads(cores)
