"""Memory of the host and of GPUs: how much is free, and how much this process holds.

"Held" on a GPU is what torch has allocated there; on the host it is resident memory, which includes what the
allocator keeps for reuse, since no other process can have it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from jacli.device.hardware import is_gpu

CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts the hierarchy of control groups."""

OWN_CONTROL_GROUPS = Path("/proc/self/cgroup")
"""Where Linux names the control groups that this process is in."""


@dataclass(frozen=True)
class HostMemory:
    """The host's memory, as far as this process may use it.

    Attributes:
        free: Bytes that may still be allocated.
        total: Bytes.
    """

    free: int
    total: int


def free_memory(device: torch.device) -> int:
    """Bytes that may still be allocated, on the host or on a GPU.

    >>> free_memory(torch.device("cpu")) <= host_memory().total
    True
    """
    if is_gpu(device):
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has cached is free for torch.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_memory().free


def host_memory(
    *, control_groups: Path = CONTROL_GROUPS, own_control_groups: Path = OWN_CONTROL_GROUPS
) -> HostMemory:
    """The host's memory, or what its control groups leave of it where that is less.

    Control groups (cgroups, versions 1 and 2) are where batch systems and containers limit memory.  They are
    nested, and each group's limit holds for all groups inside it: the tightest one counts.

    >>> memory = host_memory()
    >>> 0 < memory.free <= memory.total
    True

    Args:
        control_groups: Where the hierarchy of groups is mounted.
        own_control_groups: The file that names the groups of this process.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _available(total)
    for limit, used in _group_limits(control_groups, own_control_groups):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return HostMemory(free, total)


def _available(total: int) -> int:
    """Bytes that the kernel can hand out without swapping; half of all memory where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return total // 2


def _group_limits(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group that this process is in and that has a limit."""
    try:
        own = membership.read_text().splitlines()
    except OSError:
        return
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
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            try:
                limit, used = (int((group / name).read_text()) for name in names)
            except (OSError, ValueError):  # no such file, or the limit is "max"
                continue
            yield limit, used


def held_memory(device: torch.device) -> int:
    """Bytes that this process holds on a device.

    >>> cpu = torch.device("cpu")
    >>> 0 < held_memory(cpu) <= peak_memory(cpu)
    True
    """
    if is_gpu(device):
        return torch.cuda.memory_allocated(device)
    return max(0, _status("VmRSS:") - _status("RssFile:")) or _most_resident()


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_memory` count from now on.

    >>> cpu = torch.device("cpu")
    >>> reset_peak_memory(cpu)
    >>> peak_memory(cpu) > 0
    True
    """
    if is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Not Linux, or not allowed: the peak since the process began is then the (upper) bound.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held on a device since `reset_peak_memory`.

    >>> cpu = torch.device("cpu")
    >>> reset_peak_memory(cpu)
    >>> values = torch.ones(2**24)  # 64 MiB
    >>> peak_memory(cpu) >= values.nbytes
    True
    """
    if is_gpu(device):
        return torch.cuda.max_memory_allocated(device)
    # Pages of files (inputs that are memory-mapped, code) can be dropped at any time: nobody holds them.
    return max(0, _status("VmHWM:") - _status("RssFile:")) or _most_resident()


def release_cached_memory(device: torch.device) -> None:
    """Return to the GPU what torch keeps there for its next tensors; nothing is to be done on the host."""
    if is_gpu(device):
        torch.cuda.empty_cache()


def _status(field: str) -> int:
    """A number of bytes from this process's ``/proc`` entry; 0 where there is none."""
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
