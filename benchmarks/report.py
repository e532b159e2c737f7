"""Tables of a comparison: plain text, Markdown, and its section of a results file."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contest import KINK, Contestant

HEADER = f"""\
Seconds for all Jacobians of a batch, the fastest of several interleaved runs; float32 (no TF32), frozen
parameters. `~`: scaled from a part of the work. `-`: not run, see the notes. `ratio`: the best peer's
seconds over jacli's. `first call`: jacli's first in this process, with tracing, cutting and measuring.
`floor`: seconds of the plain passes of the cheaper direction, min(n_in, n_out) times the FLOPs of a forward
pass, at the rate of a large matrix product, over jacli's seconds; it may exceed 1 where jacli saves passes
by cutting the network. `error`: median over the samples of jacli's relative Frobenius error against
float64; `kinks`: samples above {KINK:g}, where float32 takes the other side of a ReLU or a pool (of the best
peer / of jacli).
"""


@dataclass
class Row:
    """A workload's outcome."""

    workload: str
    batch: int
    n_in: int
    n_out: int
    floor_seconds: float
    first_call: float
    jacli: Contestant
    peers: list[Contestant]

    @property
    def best_peer(self) -> Contestant | None:
        """The fastest that ran the whole work."""
        measured = [peer for peer in self.peers if peer.measured]
        return min(measured, key=lambda peer: peer.best, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's seconds over jacli's."""
        best = self.best_peer
        return best.best / self.jacli.best if best else None

    @property
    def floor_fraction(self) -> float:
        """Seconds of the arithmetic floor over jacli's."""
        return self.floor_seconds / self.jacli.best

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        best = self.best_peer
        return {
            "workload": self.workload,
            "batch": self.batch,
            "n_in": self.n_in,
            "n_out": self.n_out,
            "floor_seconds": self.floor_seconds,
            "floor_fraction": self.floor_fraction,
            "first_call": self.first_call,
            "best_peer": best.name if best else None,
            "ratio": self.ratio,
            "jacli": self.jacli.as_dict(),
            "peers": [peer.as_dict() for peer in self.peers],
        }

    def cells(self, names: list[str]) -> list[str]:
        """Of the table, with a column for each of the peers ``names``."""
        by_name = {peer.name: peer for peer in self.peers}
        best = self.best_peer
        return [
            f"{self.workload} {self.batch} x {self.n_in} -> {self.n_out}",
            *(_seconds(by_name.get(name)) for name in names),
            _seconds(self.jacli),
            f"x{self.ratio:.2f} ({best.name})" if best and self.ratio else "-",
            f"{self.first_call:.3g}",
            f"{self.floor_fraction:.2f}",
            f"{self.jacli.error:.1e}",
            f"{best.kinks if best else '-'}/{self.jacli.kinks}",
        ]

    def notes(self) -> list[str]:
        """What the cells leave out, a line a contestant."""
        lines = []
        for entry in (*self.peers, self.jacli):
            runs = f"runs: {len(entry.seconds)}" if entry.measured else "estimate" if entry.seconds else ""
            parts = [entry.variant, runs, f"error {entry.error:.1e}" if entry.error is not None else ""]
            parts += [f"kinks {entry.kinks}" if entry.kinks else "", entry.note]
            lines.append(f"{self.workload}, {entry.name}: " + "; ".join(part for part in parts if part))
        return lines


def _seconds(entry: Contestant | None) -> str:
    if entry is None or not entry.seconds:
        return "-"
    return f"{'' if entry.measured else '~'}{entry.best:.3g}"


def geometric_mean(rows: list[Row]) -> float | None:
    """Of the ratios."""
    ratios = [row.ratio for row in rows if row.ratio]
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios)) if ratios else None


def machine(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its cores and torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads"


def _grid(rows: list[Row]) -> list[list[str]]:
    names = list(dict.fromkeys(peer.name for row in rows for peer in row.peers))
    head = ["workload", *names, "jacli", "ratio", "first call", "floor", "error", "kinks"]
    return [head, *(row.cells(names) for row in rows)]


def text(rows: list[Row]) -> str:
    """The table in columns, its notes, and the mean ratio."""
    grid = _grid(rows)
    # Transposed: a dozen peers do not fit beside one another on a terminal.
    columns = [list(column) for column in zip(*grid, strict=True)]
    widths = [max(len(column[i]) for column in columns) for i in range(len(grid))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(column, widths, strict=True)).rstrip()
        for column in columns
    ]
    return "\n".join([*lines, "", *_mean_line(rows), "", *(note for row in rows for note in row.notes())])


def markdown(rows: list[Row], about: str) -> str:
    """The same as a section of a Markdown file."""
    grid = _grid(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in grid]
    lines.insert(1, "| --- " * len(grid[0]) + "|")
    notes = [f"- {note}" for row in rows for note in row.notes()]
    return "\n".join([about, "", HEADER, *lines, "", *_mean_line(rows), "", "Notes:", "", *notes, ""])


def _mean_line(rows: list[Row]) -> list[str]:
    mean = geometric_mean(rows)
    return [f"Geometric mean of the ratios: x{mean:.2f}."] if mean else []


def about(device: torch.device, rate: float, jax: str) -> str:
    """Date, machine and versions, in a sentence."""
    date = time.strftime("%Y-%m-%d")
    return (
        f"{date}; {machine(device)}; torch {torch.__version__}; {jax}; "
        f"float32 matrix product {rate / 1e9:.0f} GFLOP/s."
    )


def refresh(path: Path, key: str, section: str, *, title: str | None = None) -> None:
    """Replace the section ``key`` of the file, between its marks; add it, or the file, where missing."""
    start, end = f"<!-- {key}: begin -->", f"<!-- {key}: end -->"
    old = path.read_text() if path.exists() else "# Results of the benchmarks\n"
    title = title or f"Against what a PyTorch user could write ({key.split()[-1]})"
    body = f"{start}\n## {title}\n\n{section}{end}"
    if start in old and end in old:
        before, rest = old.split(start, 1)
        path.write_text(before + body + rest.split(end, 1)[1])
    else:
        path.write_text(f"{old.rstrip()}\n\n{body}\n")
