"""Profile a linear program map by map: the seconds of each local map, and the FLOPs of its products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compare import synchronize
from jacli.linear_program import LinearizedGraph
from jacli.linear_program.local_map import LocalMap
from jacli.network import TracedNetwork

Result = TypeVar("Result")


class Watch(Protocol):
    """Runs a piece of work and records a measurement of it in a step."""

    def __call__(self, step: Step, work: Callable[[], Result]) -> Result: ...


@dataclass
class Step:
    """A local map: its class, the layer it belongs to or follows, the seconds of each run, its FLOPs."""

    kind: str
    layer: str
    seconds: list[float] = field(default_factory=list)
    flops: int = 0


class _Watched:
    """A local map whose runs are measured."""

    def __init__(self, inner: LocalMap, step: Step, watch: Watch) -> None:
        self._inner, self._step, self._watch = inner, step, watch

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return self._watch(self._step, lambda: self._inner.vjp(g, may_overwrite=may_overwrite))

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return self._watch(self._step, lambda: self._inner.jvp(t, may_overwrite=may_overwrite))


def _watched(inner: LocalMap, step: Step, watch: Watch) -> _Watched:
    """The map, measured, with the same in-place directions as the original."""
    watched = _Watched(inner, step, watch)
    for name in ("add_vjp_to", "add_jvp_to"):
        into_place = getattr(inner, name, None)
        if into_place is not None:
            setattr(watched, name, partial(_into_place, into_place, step, watch))
    return watched


def _into_place(
    add: Callable[[Tensor, Tensor], None], step: Step, watch: Watch, v: Tensor, into: Tensor
) -> None:
    watch(step, lambda: add(v, into))


def count(step: Step, work: Callable[[], Result]) -> Result:
    """Count the FLOPs of products."""
    with FlopCounterMode(display=False) as counter:
        result = work()
    step.flops += counter.get_total_flops()
    return result


def clock(device: torch.device) -> Watch:
    """Measure seconds."""

    def time_(step: Step, work: Callable[[], Result]) -> Result:
        result, seconds = timed(work, device)
        step.seconds.append(seconds)
        return result

    return time_


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """The result of a piece of work, and its seconds."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start


@contextmanager
def watching(linear: LinearizedGraph, steps: dict[int, Step], watch: Watch) -> Iterator[None]:
    """Measure every map of the linearised graph in the body; ``steps`` by the `id` of the map."""
    plain = [edge.maps for edge in linear.edges]
    for edge in linear.edges:
        edge.maps = [_watched(inner, steps[id(inner)], watch) for inner in edge.maps]
    try:
        yield
    finally:
        for edge, maps in zip(linear.edges, plain, strict=True):
            edge.maps = maps


def steps_of(linear: LinearizedGraph, traced: TracedNetwork) -> dict[int, Step]:
    """One step per local map of the linearised graph, by the `id` of the map.

    A map with weights names the node of its weights; the others follow the last such map of their chain.
    """
    owners = {node.name: layer for node, layer in traced.layers.items()}
    for node, layer in traced.layers.items():
        owners |= {before.name: layer for before in node.all_input_nodes if before.op == "get_attr"}
    steps = {}
    for edge in linear.edges:
        end = edge.source if isinstance(edge.source, fx.Node) else edge.target
        layer = traced.layers.get(end, "") if isinstance(end, fx.Node) else ""
        for inner in edge.maps:
            key = getattr(inner, "key", None)
            layer = owners.get(str(key[0]), layer) if key else layer
            steps[id(inner)] = Step(type(inner).__name__, layer)
    return steps
