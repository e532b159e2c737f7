"""What large runs cost: the tables of docs/scale.md, from the layout of the files and measured constants.

python -m benchmarks.planning [--markdown docs/scale.md]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.report import refresh
from jacli.store import ResultLayout, bytes_on_disk


@dataclass(frozen=True)
class Network:
    """A network whose Jacobians are wanted at many samples.

    Attributes:
        name: In words.
        input_shape: Of a sample.
        classes: Outputs.
        width: Of its narrowest cut (`jacli inspect --inputs`); 0 where it is not cut.
        flops: Of one forward pass of a sample (``torch.utils.flop_counter``).
        cpu_seconds: Measured a sample on two cores (RESULTS.md, AMD EPYC, 2026-11-25); None if it was not.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    width: int
    flops: int
    cpu_seconds: float | None

    @property
    def passes(self) -> int:
        """Reverse passes per sample."""
        return self.width or self.classes

    @property
    def teraflop(self) -> float:
        """Arithmetic a sample: a reverse pass to the input has the products of the forward pass."""
        return self.passes * self.flops / 1e12

    def layout(self, samples: int) -> ResultLayout:
        """What ``--save full`` stores, with all singular values."""
        return ResultLayout(
            samples,
            self.input_shape,
            (self.classes,),
            n_singular_values=min(self.classes, math.prod(self.input_shape)),
            nuclear_norm=True,
        )


NETWORKS = (
    Network("ResNet-18", (3, 224, 224), 1000, 512, 3_628_146_688, 8.89),
    Network("ViT-B/16", (3, 224, 224), 1000, 768, 35_127_656_448, None),
    Network("ResNet-20, CIFAR-10", (3, 32, 32), 10, 0, 81_102_080, 0.133 / 32),
)
SAMPLES = (50_000, 10_000_000)
TERAFLOPS = 10.0
"""Sustained by a device that is only an example."""


def disk_table() -> str:
    """Bytes of each kind of result."""
    lines = [
        "| network | samples | `--save full` | `--save factors` | `--save none` | with `--no-save-inputs` |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network in NETWORKS:
        for samples in (1, *SAMPLES):
            full = network.layout(samples)
            none = replace(full, save_jacobian=False)
            factors = replace(none, factor_width=network.width) if network.width else None
            kinds = (full, factors, none, replace(none, save_inputs=False))
            cells = (_bytes(sum(bytes_on_disk(kind).values())) if kind else "-" for kind in kinds)
            lines.append(f"| {network.name} | {samples:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table() -> str:
    """Arithmetic, measured seconds, and the hours that follow."""
    hours = " | ".join(f"hours, {samples:,} samples" for samples in SAMPLES)
    example = " | ".join(f"hours at {TERAFLOPS:.0f} TFLOP/s, {samples:,}" for samples in SAMPLES)
    lines = [
        f"| network | passes | TFLOP per sample | s per sample, 2 cores | {hours} | {example} |",
        f"| --- {'| ---: ' * 7}|",
    ]
    for network in NETWORKS:
        seconds = network.cpu_seconds
        measured = ["not measured"] * 3
        if seconds is not None:
            measured = [f"{seconds:.3g}", *(_count(samples * seconds / 3600) for samples in SAMPLES)]
        ideal = [_count(samples * network.teraflop / TERAFLOPS / 3600) for samples in SAMPLES]
        cells = [str(network.passes), f"{network.teraflop:.2g}", *measured, *ideal]
        lines.append(f"| {network.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _bytes(count: int) -> str:
    for unit, size in (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _count(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.10g}"


def main() -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    if asked.markdown is None:
        print(time_table(), disk_table(), sep="\n\n")
        return
    refresh(asked.markdown, "planning time", f"{time_table()}\n", title="Hours")
    refresh(asked.markdown, "planning disk", f"{disk_table()}\n", title="Disk")


if __name__ == "__main__":
    main()
