"""Does `--memory` hold?  Peak resident memory of one run beyond what it held after loading.

    python -m benchmarks.memory [--memory 1GiB] [--model torchvision:resnet18] [--inputs random:1x3x224x224]

A thread reads the resident size every few milliseconds; the run itself is `jacli.compute`, with the whole
Jacobian saved.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jacli
from jacli.choice.memory_limit import MemoryLimit
from jacli.options.values import parse_size


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The largest resident size since the run began to compute."""

    def __init__(self) -> None:
        self.before = self.peak = 0
        self._ended = threading.Event()
        self._original = MemoryLimit.of_run

    def begin(self, *arguments: Any) -> MemoryLimit:
        """In place of `MemoryLimit.of_run`, which a run calls once everything is loaded."""
        self.before = self.peak = resident()
        threading.Thread(target=self._read, daemon=True).start()
        return self._original(*arguments)

    def _read(self) -> None:
        while not self._ended.is_set():
            self.peak = max(self.peak, resident())
            time.sleep(0.003)

    def end(self) -> None:
        """Stop reading."""
        self._ended.set()


def main() -> None:
    """Run once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--inputs", default="random:1x3x224x224")
    asked = parser.parse_args()
    watch = Watch()
    MemoryLimit.of_run = watch.begin  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        outcome = jacli.compute(asked.model, asked.inputs, f"{folder}/out.h5", memory=asked.memory)
        seconds = time.perf_counter() - began
    watch.end()
    held, allowed = watch.peak - watch.before, parse_size(asked.memory)
    assert outcome.chosen is not None  # the folder was empty
    plan = outcome.chosen.plan
    print(f"{asked.model} on {asked.inputs}: {plan.method}, blocks of {plan.batch_size}, {seconds:.1f} s")
    print(f"loaded {watch.before / 2**20:,.0f} MiB; peak {held / 2**20:,.0f} MiB beyond that")
    print(f"allowed {allowed / 2**20:,.0f} MiB: {'held' if held <= allowed else 'exceeded'}")
    for note in outcome.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
