"""How much memory a run may hold, and how much it does hold.

"Held" is what the process holds on the run's device (`jacli.device.memory`) beyond what it held when the run
began, after imports and loading.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from jacli.device.hardware import is_gpu
from jacli.device.memory import free_memory, held_memory, peak_memory, reset_peak_memory
from jacli.errors import OutOfMemoryError, allocation_failure, means_out_of_memory
from jacli.plans.plan import SINGULAR_VALUES_LIMIT, Shapes

SAFE_SHARE = 0.7
"""Share of the free memory that a run may hold, unless ``--memory`` says otherwise."""

_PIECE_BYTES = 64 * 2**20
"""Size of the float64 pieces in which Gram matrices are summed (`jacli.spectrum.exact`)."""


def spectrum_bytes(shapes: Shapes, *, rank: int | None = None) -> int:
    """Memory for norms and singular values, without the matrices: two float64 pieces, four Gram matrices.

    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=10, fixed_batch=None, itemsize=4)
    >>> spectrum_bytes(shapes)  # 2 x 10 x 3072 and 4 x 10 x 10 float64 numbers
    494720

    Args:
        shapes: Of the run.
        rank: Width of the factors that they are computed from; None for dense matrices.
    """
    small = min(shapes.n_in, shapes.n_selected) if rank is None else rank
    piece = min(_PIECE_BYTES, 8 * small * shapes.n_in)
    return 2 * piece + 4 * 8 * min(small, SINGULAR_VALUES_LIMIT) ** 2


@dataclass(frozen=True)
class MemoryLimit:
    """What a run may hold.

    Attributes:
        device: Where it computes.
        limit: Bytes on that device.
        host: Bytes on the host; the same number on a CPU.
        asked: Whether the user gave the limit.
        before: Bytes that the process held on the device before the run.
        watched: Whether `peak` measures; not in a repeated call of which an earlier one held little.
    """

    device: torch.device
    limit: int
    host: int
    asked: bool
    before: int
    watched: bool = True

    @classmethod
    def of_run(cls, asked: int | None, device: torch.device) -> MemoryLimit:
        """``--memory``, or a safe share of what is free now."""
        host = torch.device("cpu")
        limit = asked or int(SAFE_SHARE * free_memory(device))
        on_host = asked or (limit if device.type == "cpu" else int(SAFE_SHARE * free_memory(host)))
        return cls(device, limit, on_host, asked is not None, held_memory(device))

    def samples(self, shapes: Shapes, *, singular_values: bool, written: bool) -> int:
        """Most samples per batch: the dense Jacobians take half of the room left by their spectrum at most.

        Args:
            shapes: Of the run.
            singular_values: Whether they are computed.
            written: Whether another batch waits to be written meanwhile; they then take a third at most.
        """
        room = min(self.limit, self.host) - (spectrum_bytes(shapes) if singular_values else 0)
        return max(1, room // (3 if written else 2) // max(1, shapes.sample_bytes))

    def holds(self, held: int, waiting: int) -> bool:
        """Does a batch that waits to be written fit into memory together with the work on the next one?

        Args:
            held: Bytes on the device of the work on a batch, with its results.
            waiting: Bytes of the batch that waits: on the device, and from a GPU also in two host buffers.
        """
        if is_gpu(self.device):
            return held + waiting <= self.limit and 2 * waiting <= self.host
        return held + waiting <= self.limit

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Most bytes held inside the ``with`` block: the list's only item, once the block has ended.

        0 if nothing is watched.
        """
        peak_bytes: list[int] = [0]
        if not self.watched:
            yield peak_bytes
            return
        reset_peak_memory(self.device)
        try:
            yield peak_bytes
        finally:
            peak_bytes[0] = max(0, peak_memory(self.device) - self.before)


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Turn an out-of-memory failure outside the batches into an error that says what to do.

    >>> with memory_errors("the model is traced"):
    ...     raise MemoryError("tried to allocate 40 GiB")
    Traceback (most recent call last):
        ...
    jacli.errors.OutOfMemoryError: Out of memory while the model is traced.
    tried to allocate 40 GiB
    Give more --memory, a smaller --batch-size, fewer outputs (--classes), or another device.

    Args:
        doing: What is being done, as a phrase for the message.

    Raises:
        OutOfMemoryError: Memory ran out inside.
    """
    try:
        yield
    except Exception as error:
        if not means_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Out of memory while {doing}.",
            why=allocation_failure(error),
            hint="Give more --memory, a smaller --batch-size, fewer outputs (--classes), or another device.",
        ) from error
