"""Repeated calls from Python: what a call costs beside its work, and a shorter last batch.

Run ``python -m benchmarks.calls``.  Times are those of the processor (`time.process_time`), on one thread,
the least of several calls: another process on the machine moves them little.  The calls that are compared
take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import jacli
from jacli.choice.memory_limit import MemoryLimit
from jacli.engine import module_cache as kept
from jacli.engine.same_module import equals_copy
from jacli.network import frozen_twin

REPEATS = 7


def main() -> None:
    """Print a line for each comparison."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':<44}{'jacli':>10}{'beside it':>12}{'ratio':>8}")
    _report("tiny MLP 8-16-4, 4 samples; jacrev", *_against_jacrev(_mlp(8, 16, 4), torch.randn(4, 8)))
    sizes = {"method": "adjoint", "batch_size": 128, "chunk_size": 100}  # whatever the load of the machine
    _report(
        "MLP 3072-256-256-100, 128 samples; jacrev",
        *_against_jacrev(_mlp(3072, 256, 256, 100), torch.randn(128, 3072), **sizes),
    )
    _report("decoder 12-3x32x32, 16 samples; jacfwd", *_against_jacfwd(_decoder(), torch.randn(16, 12)))
    for outputs, k in ((10, 1), (50, 1), (200, 1), (300, 5)):
        of_k, of_all = _few_and_all(_convolutions(outputs), torch.randn(8, 3, 24, 24), k)
        _report(f"singular_values k={k} of {outputs}; all of them", of_k, of_all)
    first, later = _epochs(_convolutions(40), torch.randn(64, 3, 24, 24), last=37)
    _report("last batch of 37 after 64: first epoch; later", first, later)
    tiny, x = _mlp(8, 16, 4), torch.randn(4, 8)
    jacli.jacobian(tiny, x)
    (twin,) = (entry.twin or frozen_twin(tiny) for entry in kept._ENTRIES[tiny].values())
    print("beside the work of a call on the tiny MLP:")
    for name, function in {
        "comparing the module": lambda: equals_copy(tiny, twin),
        "looking up the plan": lambda: kept.CachedPlan.of(tiny, x, (), {}, {}),
        "copying the module (before)": lambda: frozen_twin(tiny),
        "reading the memory's state (before)": lambda: MemoryLimit.of_run(None, x.device),
    }.items():
        (seconds,) = least(partial(_often, function))
        print(f"  {name:<42}{seconds * 10:>9.3f} ms")


def least(*functions: Callable[[], object]) -> tuple[float, ...]:
    """The least processor seconds of each, after two calls that are not counted; they take turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS + 2):
        for taken, function in zip(seconds, functions, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return tuple(min(taken[2:]) for taken in seconds)


def _against_jacrev(model: nn.Module, x: Tensor, **options: Any) -> tuple[float, ...]:
    per_sample = torch.func.vmap(torch.func.jacrev(lambda point: model(point[None])[0]))
    return least(lambda: jacli.jacobian(model, x, **options), lambda: per_sample(x))


def _against_jacfwd(model: nn.Module, x: Tensor) -> tuple[float, ...]:
    per_sample = torch.func.vmap(torch.func.jacfwd(lambda point: model(point[None])[0]))
    return least(lambda: jacli.jacobian(model, x), lambda: per_sample(x))


def _few_and_all(model: nn.Module, x: Tensor, k: int) -> tuple[float, ...]:
    return least(lambda: jacli.singular_values(model, x, k=k), lambda: jacli.singular_values(model, x))


def _epochs(model: nn.Module, x: Tensor, *, last: int) -> tuple[float, float]:
    """Seconds of the shorter batch in the first epoch, and the least in three later ones."""
    seconds = []
    for _ in range(4):
        jacli.jacobian(model, x)
        start = time.process_time()
        jacli.jacobian(model, x[:last])
        seconds.append(time.process_time() - start)
    return seconds[0], min(seconds[1:])


def _report(name: str, ours: float, beside: float) -> None:
    print(f"{name:<44}{ours * 1e3:>7.1f} ms{beside * 1e3:>9.1f} ms{ours / beside:>8.2f}", flush=True)


def _often(function: Callable[[], object]) -> None:
    for _ in range(100):
        function()


def _mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).eval()


def _decoder() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(12, 128 * 4 * 4), nn.Unflatten(1, (128, 4, 4)), nn.ReLU()]
    for before, after in ((128, 64), (64, 32), (32, 3)):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def _convolutions(n_out: int) -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, n_out)).eval()


if __name__ == "__main__":
    main()
