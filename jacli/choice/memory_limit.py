"""How much memory a run may hold, and how much it does.

"Held" is what the process (on a GPU: torch on that device) holds beyond what it held when the run
began, after imports and loading.  On the host that is resident memory: what the allocator keeps for
reuse counts, since nobody else can have it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from jacli.errors import JacliError, OutOfMemoryError, means_out_of_memory
from jacli.plans.plan import SINGULAR_VALUES_LIMIT, Shapes

SAFE_SHARE = 0.7
"""Part of the free memory that a run takes unless told otherwise."""

_PIECE_BYTES = 64 * 2**20
"""Of the float64 pieces in which Gram matrices are summed (`jacli.spectrum.exact`)."""


def spectrum_bytes(shapes: Shapes, *, rank: int | None = None) -> int:
    """What norms and singular values take beside the matrices: two float64 pieces, and four Gram matrices.

    Args:
        shapes: Of the run.
        rank: Width of the factors they come from; None for dense matrices.
    """
    small = min(shapes.n_in, shapes.n_selected) if rank is None else rank
    piece = min(_PIECE_BYTES, 8 * small * shapes.n_in)
    return 2 * piece + 4 * 8 * min(small, SINGULAR_VALUES_LIMIT) ** 2


def free_memory(device: torch.device) -> int:
    """Bytes that may still be allocated, on the host or the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has cached is free for torch.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_system_free(), _group_free())


def _system_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _group_free() -> int:
    """What the control group leaves: batch systems and containers limit memory there (versions 2 and 1)."""
    root = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return sys.maxsize
    free = sys.maxsize
    for line in own:
        _, controllers, path = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if controllers and not version_1:
            continue
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if version_1
            else ("memory.max", "memory.current")
        )
        folder = (root / "memory" if version_1 else root) / path.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                break
            try:
                limit, used = (int((place / name).read_text()) for name in names)
            except (OSError, ValueError):  # no such file, or the limit is "max"
                continue
            free = min(free, max(0, limit - used))
    return free


@dataclass(frozen=True)
class MemoryLimit:
    """What a run may hold.

    Attributes:
        device: Where it computes.
        limit: Bytes, on that device.
        host: Bytes on the host; the same number on a CPU.
        asked: Whether the user said so.
        before: Bytes that the process held on the device before the run.
        watched: Whether it is looked at how much is held; not in a repeated call that held little.
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
        return cls(device, limit, on_host, asked is not None, _held_now(device))

    def samples(self, shapes: Shapes, *, singular_values: bool, written: bool) -> int:
        """Samples a block at most: its dense Jacobians leave as much room again beside their spectrum.

        Args:
            shapes: Of the run.
            singular_values: Whether they are wanted.
            written: Whether another block waits to be written meanwhile.
        """
        room = min(self.limit, self.host) - (spectrum_bytes(shapes) if singular_values else 0)
        return max(1, room // (3 if written else 2) // max(1, shapes.sample_bytes))

    def holds(self, held: int, waiting: int) -> bool:
        """Whether a block that waits to be written fits beside the work on the next one.

        Args:
            held: Bytes on the device of the work on a block, with its results.
            waiting: Bytes of the block that waits: on the device, or from a GPU on the host, in two buffers.
        """
        if self.device.type == "cuda":
            return held + waiting <= self.limit and 2 * waiting <= self.host
        return held + waiting <= self.limit

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Most that was held inside the ``with`` block: the list's only item, once it has ended.

        0 where nothing is watched.
        """
        found: list[int] = [0]
        if not self.watched:
            yield found
            return
        _reset_peak(self.device)
        try:
            yield found
        finally:
            found[0] = max(0, _peak(self.device) - self.before)


def _held_now(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return max(0, _status("VmRSS:") - _status("RssFile:")) or _most_resident()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Not Linux, or not allowed: the peak since the process began is then the (upper) bound.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Pages of files (inputs that are memory-mapped, code) can be dropped at any time: nobody holds them.
    return max(0, _status("VmHWM:") - _status("RssFile:")) or _most_resident()


def _status(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def _most_resident() -> int:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Turn running out of memory outside of the blocks into an error that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, JacliError) or not means_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Out of memory while {doing}.",
            why=str(error).strip().splitlines()[0] if str(error).strip() else "The allocation failed.",
            todo="Give more --memory, a smaller --batch-size, fewer outputs (--classes), or another device.",
        ) from error
