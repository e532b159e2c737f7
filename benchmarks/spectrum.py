"""Singular values without the matrix beside jacli's own dense way, and beside ``scipy.sparse.linalg.svds``.

    python -m benchmarks.spectrum                              # on a quiet machine
    python -m benchmarks.spectrum --only resnet18 --samples 2 --no-scipy

Each is called twice: the first call traces, measures and chooses, the second one is timed, with its own
linearisation.  The dense way computes all singular values by the fastest plan for the matrices; values are
compared with these.  A third call, of `jacli.svd`, tells the bounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import jacli
from benchmarks.workloads import LARGE_WORKLOADS, WORKLOADS, Workload

NETWORKS: dict[str, Workload] = {
    name: (WORKLOADS | LARGE_WORKLOADS)[name] for name in ("resnet18", "resnet50", "vit_ti16", "mlp")
}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each network and number of values."""
    options = _options(arguments)
    heads = ("dense s", "free s", "ratio", "error", "bound", "p", "svds")
    print(f"{'':<12}{'k':>4}" + "".join(f"{head:>10}" for head in heads))
    for name in options.only:
        module, x = _network(name, options.samples)
        few = x[: options.dense_samples or len(x)]
        seconds, exact = _second_call(partial(jacli.singular_values, module, few))
        dense = seconds / len(few)
        for k in options.k:
            seconds, _ = _second_call(partial(jacli.singular_values, module, x, k=k))
            free, found = seconds / len(x), jacli.svd(module, x, k=k)
            largest = exact[:, :1]
            error = float(((found.S[: len(few)] - exact[:, :k]).abs() / largest).max())
            bound = float((found.errors[: len(few)] / largest).max())
            by_scipy = "" if options.no_scipy else f"{_svds(module, x[:1], k) / free:>10.2f}"
            print(
                f"{name:<12}{k:>4}{dense:>10.2f}{free:>10.2f}{dense / free:>8.2f}{error:>10.1e}{bound:>10.1e}"
                f"{float(found.failure_probability.max()):>10.1e}{by_scipy}",
                flush=True,
            )
    return 0


def _network(name: str, samples: int) -> tuple[nn.Module, Tensor]:
    return NETWORKS[name].make(samples, torch.device("cpu"))


def _second_call(call: Callable[[], Any]) -> tuple[float, Any]:
    call()
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _svds(module: nn.Module, x: Tensor, k: int) -> float:
    """Seconds of ARPACK on the same operator, to the same residual."""
    from scipy.sparse.linalg import svds

    with jacli.linear_map(module, x) as products:
        operator = products.to_scipy(0)
        began = time.perf_counter()
        svds(operator, k=k, tol=1e-3, return_singular_vectors=False)
        return time.perf_counter() - began


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Spectra without the matrix beside the dense way.")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS)[:3], metavar="NAME")
    parser.add_argument("--k", nargs="+", type=int, default=[1, 10], help="how many values (1 10)")
    parser.add_argument("--samples", type=int, default=8, help="in the batch (8)")
    parser.add_argument("--dense-samples", type=int, help="of these, by the dense way (all)")
    parser.add_argument("--no-scipy", action="store_true", help="leave scipy.sparse.linalg.svds out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
