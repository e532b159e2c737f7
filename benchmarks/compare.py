"""How fast is jacli beside what a PyTorch user could write?  One run, the same work, results compared.

    python -m benchmarks.compare                        # all workloads; on a quiet machine
    python -m benchmarks.compare --only lenet decoder --budget 120
    python -m benchmarks.compare --quick                # tiny batches: does everything run?
    python -m benchmarks.compare --precision ieee       # jacli's passes in float32 only

``JACLI_TEST_DEVICE=cuda`` runs on a GPU.  JAX takes part where it is installed; it is no dependency.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import sys
import time
import warnings
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.peers import TORCH_PEERS, Peer, flat
from benchmarks.timing import Contest
from benchmarks.workloads import WORKLOADS, Workload, sizes_of
from jacli.device.precision import precisions_of

LARGE = {"resnet18", "vit_ti16", "regnet"}
"""Left out by ``--quick``: a thousand passes at 224 x 224."""


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, write; 0 if it ran."""
    device = device_asked()
    options = _options(arguments, device)
    _exact_float32()
    warnings.filterwarnings("ignore", message="There is a performance drop because")
    jax_peers, jax_about = _jax_peers(wanted=options.jax)
    size = 512 if options.quick else 2048
    rates = {precision: matrix_product_rate(device, size, precision) for precision in options.precision}
    about = report.about(device, rates, also=jax_about)
    print(about, report.HEADER, sep="\n\n", flush=True)
    rows = []
    for name in options.only:
        rows.append(compare(WORKLOADS[name], device, rates, jax_peers, options))
    print("\n" + report.text(rows))
    if options.json:
        outcome = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "machine": report.machine(device),
            "device": device.type,
            "torch": torch.__version__,
            "jax": jax_about,
            "quick": options.quick,
            "bfloat16": report.bfloat16_support(device),
            "flops_per_second": rates,
            "geometric_mean_ratio": report.geometric_means(rows),
            "workloads": [row.as_dict() for row in rows],
        }
        options.json.write_text(json.dumps(outcome, indent=2) + "\n")
    if options.markdown:
        report.refresh(options.markdown, f"compare {device.type}", report.markdown(rows, about))
    return 0


def device_asked() -> torch.device:
    """That of the environment."""
    return torch.device(os.environ.get("JACLI_TEST_DEVICE", "cpu"))


def _options(arguments: list[str] | None, device: torch.device) -> argparse.Namespace:
    precisions = precisions_of(device, torch.float32)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="jacli beside what a PyTorch user could write."
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=WORKLOADS, help=", ".join(WORKLOADS))
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=precisions,
        default=precisions,
        help=f"of jacli's passes ({' '.join(precisions)})",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of each contestant (7; quick: 2)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for each workload (600; quick: 10)")
    parser.add_argument("--quick", action="store_true", help="tiny batches, to see that everything runs")
    parser.add_argument("--no-jax", dest="jax", action="store_false", help="leave JAX out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="refresh this device's section of FILE")
    options = parser.parse_args(arguments)
    options.only = options.only or [name for name in WORKLOADS if not (options.quick and name in LARGE)]
    options.precision = [name for name in precisions if name in options.precision]  # the exact one first
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.budget = options.budget or (10.0 if options.quick else 600.0)
    return options


def compare(
    workload: Workload,
    device: torch.device,
    rates: dict[str, float],
    jax_peers: tuple[Peer, ...],
    options: argparse.Namespace,
) -> report.Row:
    """One workload: jacli's first calls, the peers' trials, the rounds."""
    model, x = workload.make(workload.quick_batch if options.quick else workload.batch, device)
    sizes = sizes_of(model, x)
    _log(f"{workload.name}: {len(x)} x {sizes.n_in} -> {sizes.n_out}; reference in float64")
    contest = Contest(
        model, x, sizes, rounds=options.rounds, budget=options.budget, precisions=options.precision
    )
    contest.first_calls()
    _log("first calls: " + ", ".join(f"{c.name} {c.first_call:.3g} s" for c in contest.jacli.values()))
    on_cpu = copy.deepcopy(model).cpu()  # what JAX's peers trace
    for peer in (*TORCH_PEERS, *jax_peers):
        if peer.attention and not workload.attention:
            continue
        if peer in jax_peers:
            contest.try_peer(peer, flat(on_cpu), x.cpu())
        else:
            contest.try_peer(peer, flat(model), x)
        entry = contest.peers[-1]
        foretold = f"{entry.best:.3g} s" if entry.seconds else "not run"
        _log(f"trial of {peer.name}: {entry.variant} {foretold} {entry.note}")
    contest.play(_log)
    return report.Row(
        workload=workload.name,
        batch=sizes.batch,
        n_in=sizes.n_in,
        n_out=sizes.n_out,
        floor_seconds={
            precision: sizes.passes * sizes.flops / rates[precision] for precision in options.precision
        },
        jacli=contest.jacli,
        peers=contest.peers,
    )


def matrix_product_rate(device: torch.device, n: int, precision: str) -> float:
    """FLOP/s of the fastest of ten products of matrices ``n x n``, float32 but for ``bf16``."""
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    out = torch.empty_like(a)
    best = float("inf")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    torch.backends.cuda.matmul.allow_tf32 = False
    return float(2 * n**3 / best)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _exact_float32() -> None:
    """TF32 off for all: jacli switches it off, and errors would not compare."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _jax_peers(*, wanted: bool) -> tuple[tuple[Peer, ...], str]:
    """JAX's peers and what JAX runs on; none where it is not installed."""
    if not wanted:
        return (), "without JAX"
    if importlib.util.find_spec("jax") is None:
        return (), "JAX is not installed"
    from benchmarks import jax_peers

    return jax_peers.JAX_PEERS, jax_peers.device_name()


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
