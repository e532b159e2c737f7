"""jacli beside what a PyTorch user could write, on one GPU, in under three minutes.

    python -m benchmarks.device.compare --out results
    python -m benchmarks.device.compare --device cpu --small   # rehearsal

Each peer is tried on a few outputs at several chunk sizes; the one that foretells the least time is run
whole.  It computes in IEEE float32, as jacli does but for the rows that say tf32 or bf16.  The most important
networks come first, since the script stops at its deadline.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import jacli
from benchmarks.device.busy import activity_of
from benchmarks.device.record import Record, parser
from benchmarks.peers import TORCH_PEERS, Peer, as_matrices, flat, part_of
from benchmarks.report import machine
from benchmarks.workloads import LARGE_WORKLOADS, WORKLOADS, Sizes, Workload, sizes_of
from jacli.device.clock import now
from jacli.device.memory import free_memory
from jacli.device.precision import precisions_of
from jacli.engine import module_cache as kept

TRIAL = {"samples": 2, "outputs": 64, "inputs": 16}
"""Samples, outputs or inputs of a peer's trial, or one chunk where that is more."""

MAX_TRIAL_SECONDS = 1.5
"""A peer whose trial took longer is not tried at other sizes."""

SMALL = ("lenet", "resnet20", "mlp", "decoder")
"""Networks of a rehearsal."""

CHECKED_SAMPLES, CHECKED_ROWS = 4, 12
"""Rows that are compared with float64."""


@dataclass(frozen=True)
class Race:
    """A network and a batch, and the seconds that its contest takes on an H100 or so."""

    network: str
    batch: int
    small: int
    needs: float


RACES = (
    Race("resnet18", 16, 1, 25),
    Race("vit_ti16", 16, 1, 20),
    Race("lenet", 1024, 16, 8),
    Race("resnet20", 128, 4, 8),
    Race("mlp", 1024, 4, 5),
    Race("decoder", 128, 4, 5),
    Race("convnext_t", 8, 1, 25),
    Race("vit_b16", 4, 1, 25),
    Race("resnet18", 64, 2, 30),
)

_NETWORKS = {race.network for race in RACES}


def main(arguments: list[str] | None = None) -> int:
    """Run the races; 0 if none failed."""
    words = parser("compare", "jacli beside its peers on one device.", seconds=160)
    words.add_argument("--only", nargs="+", metavar="NAME", help="networks, run, spectra (all)")
    words.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try all its kernels")
    options = words.parse_args(arguments)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    device: torch.device = options.device
    record = Record(options.out / "compare.jsonl", options.seconds)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    record.add("machine", {"device": machine(device), "torch": torch.__version__, "small": options.small})
    small, only = options.small, options.only
    races = [race for race in RACES if race.network in (only or (SMALL if small else _NETWORKS))]
    for race in races[:4]:
        _race(record, race, device, small=small)
    if not only or "run" in only:
        record.run("run, statistics only", partial(_compute, device, small=small, save="none"), needs=20)
        record.run("run, written", partial(_compute, device, small=small, save="full"), needs=15)
    if not only or "spectra" in only:
        record.run("spectra", partial(_spectra, device, small=small), needs=10)
    for race in races[4:]:
        _race(record, race, device, small=small)
    return 1 if record.failures else 0


def _race(record: Record, race: Race, device: torch.device, *, small: bool) -> None:
    batch = race.small if small else race.batch
    title = f"{race.network}, {batch}"
    workload = {**WORKLOADS, **LARGE_WORKLOADS}[race.network]
    record.run(title, lambda: contest(workload, batch, device), needs=0 if small else race.needs)


def contest(workload: Workload, batch: int, device: torch.device) -> dict[str, object]:
    """One network: the best peer, jacli in every precision, errors, memory, and how busy the device is."""
    model, x = workload.make(batch, device)
    sizes = sizes_of(model, x)
    found: dict[str, object] = {}
    best = float("inf")
    winner: tuple[Peer, int | None] | None = None
    for peer in TORCH_PEERS:
        if peer.why_not(sizes) or (peer.attention and not workload.attention):
            continue
        seconds, chunk, note = _trial(peer, model, x, sizes)
        found[peer.name] = f"~{seconds:.3g} s, chunk {chunk}{note}"
        if seconds < best:
            best, winner = seconds, (peer, chunk)
    checked = _rows_in_float64(model, x)
    if winner is not None:
        peer, chunk = winner
        run = peer.prepare(flat(model), x, chunk)
        result, best, held = _measured(run, device)
        found["best peer"] = {
            "name": peer.name,
            "seconds": best,
            "gib": held,
            "error": checked.error(as_matrices(result, peer.layout)),
        }
        del result
    for precision in precisions_of(device, torch.float32):
        found[f"jacli {precision}"] = _of_jacli(model, x, sizes, precision, checked, best)
    return found


def _of_jacli(
    model: nn.Module, x: Tensor, sizes: Sizes, precision: str, checked: CheckedRows, best: float
) -> dict[str, object]:
    network = copy.deepcopy(model)  # nothing that is kept of one precision serves another

    def run() -> Tensor:
        return jacli.jacobian(network, x, precision=precision).reshape(len(x), sizes.n_in, sizes.n_out).mT

    _, first, _ = _measured(run, x.device, repeat=False)
    result, seconds, held = _measured(run, x.device)
    error = checked.error(result)
    del result
    activity = activity_of(run, x.device)
    return {
        "seconds": seconds,
        "ratio": best / seconds,
        "first_call": first,
        "gib": held,
        "error": error,
        **activity.summary(top=4),
        "plan": _plan_of(network),
    }


def _plan_of(model: nn.Module) -> str:
    """Method and sizes that jacli keeps for the next call."""
    entries = kept._ENTRIES.get(model, {}).values()
    plans = [entry.plan.to_dict() for entry in entries if entry.plan is not None]
    return json.dumps(plans, default=str)[:1500]


@dataclass(frozen=True)
class CheckedRows:
    """Some rows of some samples in float64: ``rows[s, r]`` is row ``outputs[r]`` of sample ``samples[s]``."""

    samples: Tensor
    outputs: Tensor
    rows: Tensor

    def error(self, matrices: Tensor) -> dict[str, float]:
        """Relative error per sample: the median and the largest."""
        found = matrices[self.samples][:, self.outputs].double()
        errors = (found - self.rows).flatten(1).norm(dim=1) / self.rows.flatten(1).norm(dim=1)
        return {"median": float(errors.median()), "largest": float(errors.max())}


def _rows_in_float64(model: nn.Module, x: Tensor) -> CheckedRows:
    function = flat(copy.deepcopy(model).double())
    samples = torch.linspace(0, len(x) - 1, min(CHECKED_SAMPLES, len(x))).long().unique().to(x.device)
    point = x[samples].double().requires_grad_()
    y = function(point)
    outputs = torch.linspace(0, y.shape[1] - 1, min(CHECKED_ROWS, y.shape[1])).long().unique().to(x.device)
    rows = [torch.autograd.grad(y[:, o].sum(), point, retain_graph=True)[0].flatten(1) for o in outputs]
    return CheckedRows(samples, outputs, torch.stack(rows, 1))


def _trial(peer: Peer, model: nn.Module, x: Tensor, sizes: Sizes) -> tuple[float, int | None, str]:
    """Seconds foretold for the whole work, the chunk size that foretells them, and what failed."""
    best, best_chunk, note = float("inf"), None, ""
    for chunk in peer.variants(sizes):
        if peer.bytes_needed(sizes, chunk) > 0.6 * free_memory(x.device):
            continue
        whole = sizes.count(peer.unit)
        size = min(TRIAL.get(peer.unit, 1), whole)
        if peer.chunk_of == peer.unit and chunk:
            size = min(max(size, chunk), whole)
        part = (flat(model), x) if size == whole else part_of(flat(model), x, peer.unit, size)
        try:
            run = peer.prepare(*part, chunk)
            _, seconds, _ = _measured(run, x.device, repeat=False)
            if seconds < MAX_TRIAL_SECONDS:  # the first call loads kernels
                _, seconds, _ = _measured(run, x.device, repeat=False)
        except Exception as error:
            note = f"; {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
            if x.is_cuda:
                torch.cuda.empty_cache()
            continue
        if seconds * whole / size < best:
            best, best_chunk = seconds * whole / size, chunk
        if seconds > MAX_TRIAL_SECONDS:
            note += f"; {seconds:.1f} s of a trial: no other size tried"
            break
    return best, best_chunk, note


def _measured(
    run: Callable[[], Tensor], device: torch.device, *, repeat: bool = True
) -> tuple[Tensor, float, float]:
    """The result, the least seconds (of up to three runs within three seconds), and peak GiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = now(device)
    result = run()
    best = total = now(device) - began
    runs = 1
    while repeat and runs < 3 and total < 3:
        del result
        began = now(device)
        result = run()
        seconds = now(device) - began
        best, total, runs = min(best, seconds), total + seconds, runs + 1
    held = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return result, best, round(held, 2)


def _compute(device: torch.device, *, small: bool, save: str) -> dict[str, object]:
    """``jacli compute`` from a file to a file: seconds and how busy the device is."""
    samples = 2 if small else (64 if save == "none" else 8)
    found: dict[str, object] = {"samples": samples}
    with tempfile.TemporaryDirectory() as folder:
        model, x = WORKLOADS["resnet18"].make(samples, torch.device("cpu"))
        torch.save(model.state_dict(), Path(folder) / "model.pt")
        np.save(Path(folder) / "x.npy", x.numpy())
        precisions = precisions_of(device, torch.float32)
        for precision in precisions if save == "none" else (precisions[0], precisions[-1]):
            out = Path(folder) / f"{precision}.h5"

            def run(precision: str = precision, out: Path = out) -> object:
                return jacli.compute(
                    str(Path(folder) / "model.pt"),
                    str(Path(folder) / "x.npy"),
                    str(out),
                    arch="resnet18",
                    device=str(device),
                    precision=precision,
                    save=save,
                    classes="0,1,2" if small else "all",
                    overwrite=True,
                )

            activity = activity_of(run, device)
            size = out.stat().st_size
            found[precision] = {
                **activity.summary(top=6),
                "samples_per_second": samples / activity.wall,
                "gigabytes": size / 1e9,
                "hours_for_50000": 50000 / samples * activity.wall / 3600,
            }
            out.unlink()
    return found


def _spectra(device: torch.device, *, small: bool) -> dict[str, object]:
    """The largest singular value, with the matrix and without."""
    model, x = WORKLOADS["resnet20" if small else "resnet18"].make(2 if small else 16, device)
    found: dict[str, object] = {}
    values = {}
    for k in (1, None):
        run = _values_of(model, x, k)
        run()
        values[k], seconds, held = _measured(run, device)
        found["without the matrix" if k else "all"] = {"seconds": seconds, "gib": held}
    found["difference"] = float((values[1][:, 0] / values[None][:, 0] - 1).abs().max())
    return found


def _values_of(model: nn.Module, x: Tensor, k: int | None) -> Callable[[], Tensor]:
    return lambda: jacli.singular_values(model, x, k=k)


if __name__ == "__main__":
    sys.exit(main())
