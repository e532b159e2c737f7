"""How much of the time a device works: the union of its kernels' intervals over the wall clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from jacli.device.clock import now


@dataclass(frozen=True)
class Activity:
    """What a device did during a piece of work.

    Attributes:
        wall: Seconds of the work.
        busy: Seconds in which a kernel or a copy ran.
        launches: Kernels and copies.
        kernels: Name to seconds and launches, the longest first.
    """

    wall: float
    busy: float
    launches: int
    kernels: Mapping[str, tuple[float, int]]

    def summary(self, top: int = 0) -> dict[str, object]:
        """For a record."""
        found: dict[str, object] = {
            "wall": self.wall,
            "busy_share": round(self.busy / self.wall, 3) if self.wall else 0.0,
            "launches": self.launches,
        }
        if top:
            found["kernels"] = [
                f"{seconds * 1e3:.3g} ms ({seconds / max(self.busy, 1e-12):.0%}) x{count} {name[:90]}"
                for name, (seconds, count) in list(self.kernels.items())[:top]
            ]
        return found


def activity_of(work: Callable[[], object], device: torch.device) -> Activity:
    """Run a piece of work under CUPTI's eyes; of a CPU only the wall clock is known."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return Activity(time.perf_counter() - began, 0.0, 0, {})
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = now(device)
        work()
        wall = now(device) - began
    spans: list[tuple[float, float]] = []
    kernels: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for event in profiler.events() or []:
        if event.device_type != DeviceType.CUDA:
            continue
        start, end = event.time_range.start * 1e-6, event.time_range.end * 1e-6
        spans.append((start, end))
        seconds, count = kernels[event.name]
        kernels[event.name] = seconds + end - start, count + 1
    longest = dict(sorted(kernels.items(), key=lambda item: -item[1][0]))
    return Activity(wall, _union(spans), len(spans), longest)


def _union(spans: list[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
