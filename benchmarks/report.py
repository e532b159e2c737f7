"""Tables of a comparison: plain text, Markdown, and its section of a results file."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import EXACT, KINK, Contestant
from jacli.device.hardware import device_name, is_gpu

HEADER = f"""\
Seconds for all Jacobians of a batch, the fastest of several interleaved runs; float32 (no TF32), frozen
parameters. `~`: scaled from a part of the work. `-`: not run, see the notes. `ratio`: the best peer's
seconds over jacli's. `first call`: jacli's first of this network, with tracing, cutting and measuring.
`floor`: seconds of the plain passes of the cheaper direction, min(n_in, n_out) times the FLOPs of a forward
pass, at the rate of a large matrix product, over jacli's seconds; it may exceed 1 where jacli saves passes
by cutting the network. `error`: median over the samples of jacli's relative Frobenius error against
float64; `kinks`: samples above {KINK:g}, where float32 takes the other side of a ReLU or a pool (of the best
peer / of jacli).
"""

REDUCED = """\
jacli with its linear passes in reduced precision, beside the same best peer in float32: the points of
linearisation (masks, pool winners, statistics) are the model's own. `floor`: the same passes at the rate of a
matrix product in that precision. `error`: as above, kinks of float32 included; `beside ieee`: median over the
samples of the relative Frobenius difference from jacli's own `ieee` result, which has the same kinks.
"""

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Of x86 CPUs, in /proc/cpuinfo: products of bfloat16 in hardware, the first much the faster."""


@dataclass
class Row:
    """A workload's outcome; ``floor_seconds`` and ``jacli`` by precision."""

    workload: str
    batch: int
    n_in: int
    n_out: int
    floor_seconds: dict[str, float]
    jacli: dict[str, Contestant]
    peers: list[Contestant]

    @property
    def best_peer(self) -> Contestant | None:
        """The fastest that ran the whole work."""
        measured = [peer for peer in self.peers if peer.measured]
        return min(measured, key=lambda peer: peer.best, default=None)

    def ratio(self, precision: str) -> float | None:
        """The best peer's seconds over jacli's; None without either."""
        best, entry = self.best_peer, self.jacli.get(precision)
        return best.best / entry.best if best and entry and entry.measured else None

    def floor_fraction(self, precision: str) -> float:
        """Seconds of the arithmetic floor over jacli's; 0 where it was refused."""
        return self.floor_seconds[precision] / self.jacli[precision].best

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        best = self.best_peer
        return {
            "workload": self.workload,
            "batch": self.batch,
            "n_in": self.n_in,
            "n_out": self.n_out,
            "best_peer": best.name if best else None,
            "jacli": {
                precision: entry.as_dict()
                | {
                    "ratio": self.ratio(precision),
                    "floor_seconds": self.floor_seconds[precision],
                    "floor_fraction": self.floor_fraction(precision),
                }
                for precision, entry in self.jacli.items()
            },
            "peers": [peer.as_dict() for peer in self.peers],
        }

    @property
    def title(self) -> str:
        """The workload and its sizes."""
        return f"{self.workload} {self.batch} x {self.n_in} -> {self.n_out}"

    def cells(self, names: list[str]) -> list[str]:
        """Of the table, with a column for each of the peers ``names``."""
        by_name = {peer.name: peer for peer in self.peers}
        best, exact = self.best_peer, self.jacli.get(EXACT)
        return [
            self.title,
            *(_seconds(by_name.get(name)) for name in names),
            *(self._cells_of(EXACT) if exact else ["-"] * 5),
            f"{best.kinks if best else '-'}/{exact.kinks if exact else '-'}",
        ]

    def reduced_cells(self) -> list[list[str]]:
        """Of the second table, a line a precision."""
        return [
            [self.title, precision, *self._cells_of(precision), _error(entry.beside_exact)]
            for precision, entry in self.jacli.items()
            if precision != EXACT
        ]

    def _cells_of(self, precision: str) -> list[str]:
        entry, best, ratio = self.jacli[precision], self.best_peer, self.ratio(precision)
        if not entry.measured:
            return ["-"] * 5
        return [
            _seconds(entry),
            f"x{ratio:.2f} ({best.name})" if best and ratio else "-",
            f"{entry.first_call:.3g}",
            f"{self.floor_fraction(precision):.2f}",
            _error(entry.error),
        ]

    def notes(self) -> list[str]:
        """What the cells leave out, a line a contestant."""
        lines = []
        for entry in (*self.peers, *self.jacli.values()):
            runs = f"runs: {len(entry.seconds)}" if entry.measured else "estimate" if entry.seconds else ""
            parts = [entry.variant, runs, f"error {entry.error:.1e}" if entry.error is not None else ""]
            parts += [f"kinks {entry.kinks}" if entry.kinks else "", entry.note]
            lines.append(f"{self.workload}, {entry.name}: " + "; ".join(part for part in parts if part))
        return lines


def _seconds(entry: Contestant | None) -> str:
    if entry is None or not entry.seconds:
        return "-"
    return f"{'' if entry.measured else '~'}{entry.best:.3g}"


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"


def geometric_means(rows: list[Row]) -> dict[str, float]:
    """Of the ratios, for each precision that has any."""
    means = {}
    for precision in dict.fromkeys(name for row in rows for name in row.jacli):
        ratios = [ratio for row in rows if (ratio := row.ratio(precision))]
        if ratios:
            means[precision] = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    return means


def machine(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its cores and torch's threads."""
    if is_gpu(device):
        return device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device_name(device)}, {cores} cores, {torch.get_num_threads()} threads"


def bfloat16_support(device: torch.device) -> str:
    """What the device has for products of bfloat16, and what torch's own kernels use."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    found = [f"{'' if flag in flags else 'no '}{flag}" for flag in BFLOAT16_FLAGS] if flags else []
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *found])


def _grid(rows: list[Row]) -> list[list[str]]:
    """The first table: peers, and jacli in their precision."""
    names = list(dict.fromkeys(peer.name for row in rows for peer in row.peers))
    head = ["workload", *names, "jacli", "ratio", "first call", "floor", "error", "kinks"]
    return [head, *(row.cells(names) for row in rows)]


def _reduced_grid(rows: list[Row]) -> list[list[str]]:
    """The second table: jacli in reduced precision; its head alone where it ran in none."""
    head = ["workload", "precision", "jacli", "ratio", "first call", "floor", "error", f"beside {EXACT}"]
    return [head, *(cells for row in rows for cells in row.reduced_cells())]


def text(rows: list[Row]) -> str:
    """The tables in columns, the mean ratios, and the notes."""
    # Transposed: a dozen peers do not fit beside one another on a terminal.
    lines = _columns([list(column) for column in zip(*_grid(rows), strict=True)])
    reduced = _reduced_grid(rows)
    if len(reduced) > 1:
        lines += ["", REDUCED, *_columns(reduced)]
    return "\n".join([*lines, "", *_mean_line(rows), "", *(note for row in rows for note in row.notes())])


def _columns(grid: list[list[str]]) -> list[str]:
    widths = [max(len(cells[i]) for cells in grid) for i in range(len(grid[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in grid
    ]


def markdown(rows: list[Row], about: str) -> str:
    """The same as a section of a Markdown file."""
    lines = table(_grid(rows))
    reduced = _reduced_grid(rows)
    if len(reduced) > 1:
        lines += ["", REDUCED, *table(reduced)]
    notes = [f"- {note}" for row in rows for note in row.notes()]
    return "\n".join([about, "", HEADER, *lines, "", *_mean_line(rows), "", "Notes:", "", *notes, ""])


def table(grid: list[list[str]]) -> list[str]:
    """In Markdown; the first line is the head."""
    lines = ["| " + " | ".join(cells) + " |" for cells in grid]
    return [lines[0], "| --- " * len(grid[0]) + "|", *lines[1:]]


def _mean_line(rows: list[Row]) -> list[str]:
    means = ", ".join(f"{precision} x{mean:.2f}" for precision, mean in geometric_means(rows).items())
    return [f"Geometric mean of the ratios: {means}."] if means else []


def about(device: torch.device, rates: dict[str, float], *, also: str = "") -> str:
    """Date, machine, versions and the rates of matrix products, in a sentence."""
    date = time.strftime("%Y-%m-%d")
    versions = "; ".join(part for part in (f"torch {torch.__version__}", also) if part)
    products = ", ".join(f"{precision} {rate / 1e9:.0f}" for precision, rate in rates.items())
    return (
        f"{date}; {machine(device)} ({bfloat16_support(device)}); {versions}; "
        f"matrix product in GFLOP/s: {products}."
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
