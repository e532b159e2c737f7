"""Where the time of a linear program goes: building it, and one chunk of vectors map by map.

    python -m benchmarks.adjoint                        # all networks of the comparison; a few minutes
    python -m benchmarks.adjoint --only resnet18 --top 20
    python -m benchmarks.adjoint --quick                # tiny batches: does everything run?

``JACLI_TEST_DEVICE=cuda`` runs on a GPU.  Networks are whole, not cut, so that every layer is seen.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.compare import LARGE, device_asked, matrix_product_rate
from benchmarks.profile_maps import Step, clock, count, steps_of, timed, watching
from benchmarks.workloads import WORKLOADS, Sizes, Workload, sizes_of
from jacli.device.allocator import reused_memory
from jacli.device.precision import precisions_of
from jacli.linear_program import LinearizedGraph, LinearProgram
from jacli.network import TensorNetwork, exact_arithmetic, trace_network

_LONG_RUN = 120.0
"""Seconds of the run of which building the program may take 5 %."""

_MOST_SAMPLES, _MOST_VECTORS, _MOST_BYTES = 32, 32, 32 << 20
"""Limits on a batch, a chunk and the largest tensor: beyond them page faults dominate."""

HEADER = """\
The linear program of each network, not cut, at one batch. `build`: seconds of tracing and of what the
first linearisation and the first chunk prepare for all later ones, and their share of a run of two minutes.
`linearise`: seconds of a later linearisation; `forward`: of the model's own forward pass. `chunk`: of one
pass of so many vectors per sample; `GFLOP/s`: of its products. `maps`: seconds of the chunk inside the local
maps, each timed by itself, over its seconds; the rest are sums where branches meet. `as traced`: operators
without a rule. Each time is the least of several runs.
"""

LAYERS = """\
The chunk's local maps by kind, and those that take longest: milliseconds (share of all maps), and GFLOP/s
where they are products.
"""


@dataclass
class Profile:
    """A network's program in one precision.

    Attributes:
        title: Network, samples of the batch, vectors of the chunk, and their direction.
        precision: Of the passes.
        build: Seconds of tracing, and of the first linearisation and chunk beyond those of later ones.
        linearise: Seconds of a later one.
        forward: Seconds of the model's own forward pass.
        chunk: Seconds of a chunk, without profiling.
        steps: Of the chunk.
        as_traced: Operators without a rule, with their number.
    """

    title: str
    precision: str
    build: float
    linearise: float
    forward: float
    chunk: float
    steps: list[Step]
    as_traced: dict[str, int]

    def cells(self) -> list[str]:
        """Of the table of programs."""
        inside = sum(min(step.seconds) for step in self.steps)
        return [
            self.title,
            self.precision,
            f"{self.build:.2f} ({self.build / _LONG_RUN:.1%})",
            f"{self.linearise:.3g}",
            f"{self.forward:.3g}",
            f"{self.chunk:.3g}",
            _gflops(sum(step.flops for step in self.steps), self.chunk),
            f"{inside / self.chunk:.0%}",
            ", ".join(f"{count} {name}" for name, count in self.as_traced.items()) or "none",
        ]

    def times(self, *, of_layers: bool) -> dict[tuple[str, str], tuple[float, int]]:
        """Kind and layer, or kind and ``all``, to seconds and FLOPs."""
        found: dict[tuple[str, str], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for step in self.steps:
            key = step.kind, step.layer if of_layers else "all"
            seconds, flops = found[key]
            found[key] = seconds + min(step.seconds), flops + step.flops
        return dict(found)


def profile(workload: Workload, precision: str, device: torch.device, *, rounds: int, quick: bool) -> Profile:
    """Build the program of a network and time its parts."""
    model, x = workload.make(min(workload.quick_batch if quick else workload.batch, _MOST_SAMPLES), device)
    sizes = sizes_of(model, x)
    pushed = sizes.n_in < sizes.n_out
    vectors = _vectors(sizes)
    network = TensorNetwork.of_module(model)
    with exact_arithmetic(), reused_memory():
        traced, tracing = timed(lambda: trace_network(network, x, {}), device)
        program = LinearProgram(traced.graph)

        def linearize() -> LinearizedGraph:
            return program.linearize(x, precision=precision)

        with torch.inference_mode():
            forward = min([timed(lambda: model(x), device)[1] for _ in range(rounds + 1)])
        width = sizes.n_in if pushed else sizes.n_out
        given = torch.randn(vectors, len(x), width, device=device)
        # The first chunk lays out the kernels, which is a part of building.
        linear, first = timed(linearize, device)
        first += timed(lambda: _chunk(linear, given, pushed=pushed), device)[1]
        again = []
        for _ in range(rounds):
            linear, seconds = timed(linearize, device)
            again.append(seconds)
        chunks = [timed(lambda: _chunk(linear, given, pushed=pushed), device)[1] for _ in range(rounds + 1)]
        steps = steps_of(linear, traced)
        with watching(linear, steps, count):
            _chunk(linear, given, pushed=pushed)
        with watching(linear, steps, clock(device)):
            for _ in range(rounds):
                _chunk(linear, given, pushed=pushed)
    return Profile(
        title=f"{workload.name}, {len(x)} x {vectors} {'tangents' if pushed else 'cotangents'}",
        precision=precision,
        build=tracing + max(0.0, first - min(again) - min(chunks)),
        linearise=min(again),
        forward=forward,
        chunk=min(chunks),
        steps=[step for step in steps.values() if step.seconds],
        as_traced=dict(program.without_rule),
    )


def _chunk(linear: LinearizedGraph, given: Tensor, *, pushed: bool) -> Tensor:
    return linear.jvp(given) if pushed else linear.vjp(given)


def _vectors(sizes: Sizes) -> int:
    """Of a chunk: as many as keep the largest tensor small."""
    each = max(sizes.largest, sizes.n_in, sizes.n_out) * sizes.itemsize * sizes.batch
    return max(1, min(_MOST_BYTES // each, _MOST_VECTORS, sizes.passes))


def _gflops(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.0f}" if flops else "-"


def layers_table(profiles: Sequence[Profile], top: int) -> list[list[str]]:
    """All kinds of maps of one network, and the longest single ones; two columns a precision."""
    head = ["map", "layer"]
    for one in profiles:
        head += [f"{one.precision}: ms", "GFLOP/s"]
    kinds = _longest([one.times(of_layers=False) for one in profiles])
    return [head, *kinds, *_longest([one.times(of_layers=True) for one in profiles])[:top]]


def _longest(found: Sequence[dict[tuple[str, str], tuple[float, int]]]) -> list[list[str]]:
    """Cells of each key, by its share of the time in all columns."""
    whole = [sum(seconds for seconds, _ in times.values()) for times in found]
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for times, total in zip(found, whole, strict=True):
        for key, (seconds, _) in times.items():
            shares[key] += seconds / total
    rows = []
    for key in sorted(shares, key=lambda key: -shares[key]):
        cells = list(key)
        for times, total in zip(found, whole, strict=True):
            seconds, flops = times.get(key, (0.0, 0))  # other maps in the other precision
            cells += [f"{seconds * 1e3:.3g} ({seconds / total:.0%})", _gflops(flops, seconds)]
        rows.append(cells)
    return rows


def section(about: str, profiles: Sequence[Profile], top: int) -> str:
    """All tables in Markdown."""
    head = ["program", "precision", "build", "linearise", "forward", "chunk", "GFLOP/s", "maps", "as traced"]
    lines = [about, "", HEADER, *report.table([head, *(one.cells() for one in profiles)]), "", LAYERS]
    for title in dict.fromkeys(one.title for one in profiles):
        lines += [f"{title}:", ""]
        lines += report.table(layers_table([one for one in profiles if one.title == title], top))
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 0 if it ran."""
    device = device_asked()
    precisions = precisions_of(device, torch.float32)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adjoint", description="Where the linear program spends its time."
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=WORKLOADS, help=", ".join(WORKLOADS))
    parser.add_argument("--precision", nargs="+", choices=precisions, default=precisions)
    parser.add_argument("--rounds", type=int, metavar="N", default=7, help="runs of everything (7)")
    parser.add_argument("--top", type=int, metavar="N", default=8, help="maps shown of a network (8)")
    parser.add_argument("--quick", action="store_true", help="tiny batches, to see that everything runs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="refresh this device's section of FILE")
    options = parser.parse_args(arguments)
    names = options.only or [name for name in WORKLOADS if not (options.quick and name in LARGE)]
    size = 512 if options.quick else 2048
    rates = {precision: matrix_product_rate(device, size, precision) for precision in options.precision}
    profiles = []
    for name in names:
        for precision in options.precision:
            print(f"{name}, {precision}", file=sys.stderr, flush=True)
            found = profile(WORKLOADS[name], precision, device, rounds=options.rounds, quick=options.quick)
            profiles.append(found)
    text = section(report.about(device, rates), profiles, options.top)
    print(text)
    if options.markdown:
        title = f"Where the linear program spends its time ({device.type})"
        report.refresh(options.markdown, f"adjoint {device.type}", text, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
