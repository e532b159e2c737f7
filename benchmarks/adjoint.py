"""Where the time of the adjoint program goes: building it, and one chunk of vectors map by map.

    python -m benchmarks.adjoint                        # all networks of the comparison; a few minutes
    python -m benchmarks.adjoint --only resnet18 --top 20
    python -m benchmarks.adjoint --quick                # tiny batches: does everything run?

``JACLI_TEST_DEVICE=cuda`` runs on a GPU.  Networks are whole, not cut, so that every layer is seen.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.compare import LARGE, device_asked, matrix_product_rate, synchronize
from benchmarks.workloads import WORKLOADS, Sizes, Workload, sizes_of
from jacli.network import TensorNetwork, TracedNetwork, exact_arithmetic, trace_network
from jacli.network.adjoint import Program, ProgramMap
from jacli.network.adjoint.local_map import Collecting, LocalMap, Placing
from jacli.run.precision import precisions_of

_LONG_RUN = 120.0
"""Seconds of the run of which building the program may take 5 %."""

_MOST_SAMPLES, _MOST_VECTORS, _MOST_BYTES = 32, 32, 32 << 20
"""Of a block, of a chunk, and of the largest tensor: larger ones are bound by page faults."""

HEADER = """\
The program of each network, not cut, at one block of samples. `build`: seconds of tracing and of what the
first linearisation and the first chunk prepare for all later ones, and their share of a run of two minutes.
`linearise`: seconds of a later linearisation; `forward`: of the model's own forward pass. `chunk`: of one
pass of so many vectors a sample; `GFLOP/s`: of its products. `maps`: seconds of the chunk inside the local
maps, each timed by itself, over its seconds; the rest are sums where branches meet. `as traced`: operators
that have no rule. Each time is the least of several runs.
"""

LAYERS = """\
The chunk's local maps that take longest, by kind and layer: milliseconds (share of all maps), and GFLOP/s
where it is a product.
"""

Result = TypeVar("Result")


class Watch(Protocol):
    """Runs a piece of work and notes something of it."""

    def __call__(self, step: Step, work: Callable[[], Result]) -> Result: ...


@dataclass
class Step:
    """A local map: its class, the layer it belongs to or follows, seconds of each run, FLOPs of products."""

    kind: str
    layer: str
    seconds: list[float] = field(default_factory=list)
    flops: int = 0


@dataclass
class Profile:
    """A network's program in one precision.

    Attributes:
        title: Network, samples of the block, vectors of the chunk, and which way they go.
        precision: Of the passes.
        build: Seconds of tracing, and of the first linearisation and chunk beyond those of later ones.
        linearise: Seconds of a later one.
        forward: Seconds of the model's own forward pass.
        chunk: Seconds of a chunk, nothing watched.
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

    def layers(self) -> dict[tuple[str, str], tuple[float, int]]:
        """Kind and layer to seconds and FLOPs, the longest first."""
        found: dict[tuple[str, str], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for step in self.steps:
            seconds, flops = found[step.kind, step.layer]
            found[step.kind, step.layer] = seconds + min(step.seconds), flops + step.flops
        return dict(sorted(found.items(), key=lambda item: -item[1][0]))


class _Watched:
    """A local map whose runs are watched."""

    def __init__(self, inner: LocalMap, step: Step, watch: Watch) -> None:
        self._inner, self._step, self._watch = inner, step, watch

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return self._watch(self._step, lambda: self._inner.pull(g, mine=mine))

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return self._watch(self._step, lambda: self._inner.push(t, mine=mine))


class _WatchedPlacing(_Watched):
    def pull_into(self, g: Tensor, into: Tensor) -> None:
        assert isinstance(self._inner, Placing)
        inner = self._inner
        self._watch(self._step, lambda: inner.pull_into(g, into))


class _WatchedCollecting(_Watched):
    def push_into(self, t: Tensor, into: Tensor) -> None:
        assert isinstance(self._inner, Collecting)
        inner = self._inner
        self._watch(self._step, lambda: inner.push_into(t, into))


def _watched(inner: LocalMap, step: Step, watch: Watch) -> _Watched:
    if isinstance(inner, Placing):
        return _WatchedPlacing(inner, step, watch)
    return (_WatchedCollecting if isinstance(inner, Collecting) else _Watched)(inner, step, watch)


def _count(step: Step, work: Callable[[], Result]) -> Result:
    with FlopCounterMode(display=False) as counter:
        result = work()
    step.flops += counter.get_total_flops()
    return result


def _clock(device: torch.device) -> Watch:
    def time_(step: Step, work: Callable[[], Result]) -> Result:
        result, seconds = _timed(work, device)
        step.seconds.append(seconds)
        return result

    return time_


def _timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start


@contextmanager
def _watching(linear: ProgramMap, steps: dict[int, Step], watch: Watch) -> Iterator[None]:
    """The maps of a program watched; ``steps`` by the map's `id`."""
    edges = [edge for entering in linear._chains._into.values() for edge in entering]
    plain = [edge.maps for edge in edges]
    for edge in edges:
        edge.maps = [_watched(inner, steps[id(inner)], watch) for inner in edge.maps]
    try:
        yield
    finally:
        for edge, maps in zip(edges, plain, strict=True):
            edge.maps = maps


def steps_of(linear: ProgramMap, traced: TracedNetwork) -> dict[int, Step]:
    """A step for each local map, by the map's `id`.

    A map with weights names the node of its weights; the others follow the last such map of their chain.
    """
    owners = {node.name: layer for node, layer in traced.layers.items()}
    for node, layer in traced.layers.items():
        owners |= {before.name: layer for before in node.all_input_nodes if before.op == "get_attr"}
    steps = {}
    for entering in linear._chains._into.values():
        for edge in entering:
            layer = traced.layers.get(edge.source, "") if isinstance(edge.source, fx.Node) else ""
            if not layer and isinstance(edge.target, fx.Node):
                layer = traced.layers.get(edge.target, "") if len(edge.maps) == 1 else ""
            for inner in edge.maps:
                key = getattr(inner, "key", None)
                layer = owners.get(str(key[0]), layer) if key else layer
                steps[id(inner)] = Step(type(inner).__name__, layer)
    return steps


def profile(workload: Workload, precision: str, device: torch.device, *, rounds: int, quick: bool) -> Profile:
    """Build the program of a network and time its parts."""
    model, x = workload.make(min(workload.quick_batch if quick else workload.batch, _MOST_SAMPLES), device)
    sizes = sizes_of(model, x)
    pushed = sizes.n_in < sizes.n_out
    vectors = _vectors(sizes)
    network = TensorNetwork.of_module(model)
    with exact_arithmetic():
        traced, tracing = _timed(lambda: trace_network(network, x, {}), device)
        program = Program(traced.graph)

        def linearize() -> ProgramMap:
            return program.linearize(x, precision=precision)

        with torch.inference_mode():
            forward = min([_timed(lambda: model(x), device)[1] for _ in range(rounds + 1)])
        width = sizes.n_in if pushed else sizes.n_out
        given = torch.randn(vectors, len(x), width, device=device)
        # The first chunk lays out the kernels, which is a part of building.
        linear, first = _timed(linearize, device)
        first += _timed(lambda: _chunk(linear, given, pushed=pushed), device)[1]
        again = []
        for _ in range(rounds):
            linear, seconds = _timed(linearize, device)
            again.append(seconds)
        chunks = [_timed(lambda: _chunk(linear, given, pushed=pushed), device)[1] for _ in range(rounds + 1)]
        steps = steps_of(linear, traced)
        with _watching(linear, steps, _count):
            _chunk(linear, given, pushed=pushed)
        with _watching(linear, steps, _clock(device)):
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


def _chunk(linear: ProgramMap, given: Tensor, *, pushed: bool) -> Tensor:
    return linear.jvp(given) if pushed else linear.vjp(given)


def _vectors(sizes: Sizes) -> int:
    """Of a chunk: as many as keep the largest tensor small."""
    each = max(sizes.largest, sizes.n_in, sizes.n_out) * sizes.itemsize * sizes.batch
    return max(1, min(_MOST_BYTES // each, _MOST_VECTORS, sizes.passes))


def _gflops(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.0f}" if flops else "-"


def layers_table(profiles: Sequence[Profile], top: int) -> list[list[str]]:
    """The longest maps of one network, a column a precision."""
    found = [(one, one.layers(), sum(seconds for seconds, _ in one.layers().values())) for one in profiles]
    head = ["map", "layer"]
    for one in profiles:
        head += [f"{one.precision}: ms", "GFLOP/s"]
    longest = {
        key: sum(layers.get(key, (0.0, 0))[0] / whole for _, layers, whole in found)
        for _, layers, _ in found
        for key in layers
    }
    rows = [head]
    for key in sorted(longest, key=lambda key: -longest[key])[:top]:
        cells = list(key)
        for _, layers, whole in found:
            seconds, flops = layers.get(key, (math.nan, 0))
            cells += [f"{seconds * 1e3:.3g} ({seconds / whole:.0%})", _gflops(flops, seconds)]
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
        prog="python -m benchmarks.adjoint", description="Where the time of the adjoint program goes."
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
        title = f"Where the adjoint program spends its time ({device.type})"
        report.refresh(options.markdown, f"adjoint {device.type}", text, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
