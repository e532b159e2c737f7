"""Results that are written down as they come, under a deadline."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


class Record:
    """Appends one JSON object per step to a file, and prints it.

    A machine that is lent by the minute may go away at any time: what was measured by then must be on disk.

    Args:
        path: The file, one line per step; created or appended to.
        seconds: From now; no step begins after them.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._deadline = time.monotonic() + seconds
        self.failures = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def add(self, step: str, values: Mapping[str, object]) -> None:
        """Write down a step."""
        line = json.dumps({"step": step, **values}, default=str)
        with self._path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(self, step: str, work: Callable[[], Mapping[str, object] | None], *, needs: float = 0.0) -> None:
        """Run a step and write down what it returns, or how it failed; skip it without time for it.

        Args:
            step: Its name.
            work: Returns what to write down; raises where something is wrong.
            needs: Seconds that it is expected to take.
        """
        if self.left < needs or self.left <= 0:
            self.add(step, {"skipped": f"{self.left:.0f} s left"})
            return
        began = time.monotonic()
        try:
            values = dict(work() or {})
        except Exception as error:
            self.failures += 1
            where = traceback.extract_tb(error.__traceback__)[-4:]
            frames = [f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in where]
            values = {"failed": f"{type(error).__name__}: {error}"[:800], "where": frames}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.add(step, {"seconds": round(time.monotonic() - began, 2), **values})


def parser(prog: str, description: str, *, seconds: float) -> argparse.ArgumentParser:
    """The options that the three scripts share."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.device.{prog}", description=description)
    found.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda, cpu (cuda)")
    found.add_argument("--seconds", type=float, default=seconds, help=f"no step begins later ({seconds:g})")
    found.add_argument("--out", type=Path, default=Path("."), help="folder for the results (this one)")
    found.add_argument("--small", action="store_true", help="a tenth of the size: does everything run?")
    return found
