"""Every place where jacli does something else on a GPU than on a CPU, once each.

A path is a function of the device that raises where something is wrong, and returns what is worth knowing.
Expected values come from the CPU in float64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import jacli
from benchmarks.peers import reference
from benchmarks.workloads import WORKLOADS
from jacli.device.hardware import pick_device
from jacli.device.memory import free_memory
from jacli.device.precision import precisions_of
from jacli.device.torch_switches import reduced_precision
from jacli.device.transfer import HostCopies, background_work
from jacli.engine.batch_graph import _GRAPHS
from jacli.errors import JacliError, ModelError, OutOfMemoryError
from jacli.linear_maps import FactoredMap
from jacli.network import exact_arithmetic
from jacli.run.factored_array import FactoredArray
from jacli.spectrum import singular_values

Path_ = Callable[[torch.device], Mapping[str, object] | None]

SAMPLES = Path(__file__).parents[2] / "sample_models"

TOLERANCE = {"ieee": 1e-5, "tf32": 1e-2, "bf16": 5e-2}
"""Relative, Frobenius over a sample."""

METHODS = ("loop", "replicate", "vmap", "forward", "adjoint", "tangent")


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of a sample."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    found, expected = found.detach().cpu().double().flatten(1), expected.cpu().double().flatten(1)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-30)).max())


def right(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> float:
    """The error, if it is below the tolerance."""
    error = relative(found, expected)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"
    return error


def _reference(model: nn.Module, x: Tensor) -> Tensor:
    """``(batch, n_in, n_out)`` in float64 on the CPU."""
    return reference(model.cpu(), x.cpu()).mT


def _jacobian(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return jacli.jacobian(model, x, **options).reshape(len(x), x[0].numel(), -1)


def _by_every_method(
    model: nn.Module, x: Tensor, device: torch.device, expected: Tensor, tolerance: float = 1e-5
) -> dict[str, object]:
    """Errors of all methods on the device; what a method refuses is named."""
    model, x = model.to(device), x.to(device)
    found: dict[str, object] = {}
    wrong = []
    for method in METHODS:
        try:
            error = relative(_jacobian(model, x, method=method), expected)
            found[method] = error
            if not error <= tolerance:
                wrong.append(method)
        except JacliError as refused:
            found[method] = f"{refused.what} {refused.why}"[:200]
    assert not wrong, f"{wrong}: {found}"
    return found


def switches(device: torch.device) -> Mapping[str, object]:
    """TF32 is off inside `exact_arithmetic`, on inside `reduced_precision`, and as before afterwards."""
    a = torch.randn(1024, 1024, device=device)
    w = torch.randn(256, 256, 3, 3, device=device)
    images = torch.randn(8, 256, 32, 32, device=device)
    product = a.double() @ a.double()
    convolved = nn.functional.conv2d(images.double(), w.double())

    def errors() -> tuple[float, float]:
        conv = nn.functional.conv2d(images, w)
        return relative(a @ a, product), relative(conv.flatten(1), convolved.flatten(1))

    torch.set_float32_matmul_precision("high")
    try:
        before = errors()
        with exact_arithmetic():
            exact = errors()
            with reduced_precision("tf32"):
                reduced = errors()
            again = errors()
        after = errors()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert max(*exact, *again) < 1e-5, (exact, again)
    if device.type == "cuda":
        assert min(reduced) > 1e-5, reduced
        assert after[0] > 1e-5 and before[0] > 1e-5, (before, after)
    return {"before": before, "exact": exact, "tf32": reduced, "after": after}


def devices(device: torch.device) -> Mapping[str, object]:
    """``auto``, ``cuda`` and ``cuda:0`` are the GPU; one that is not there is refused."""
    count = torch.cuda.device_count()
    picked = {asked: str(pick_device(asked)) for asked in ("auto", device.type)}
    for asked in ("cuda:99", f"cuda:{count}"):
        try:
            pick_device(asked)
        except JacliError:
            continue
        raise AssertionError(f"{asked} was accepted")
    if count:
        assert set(picked.values()) == {"cuda:0"} and str(pick_device("cuda", 3)) == f"cuda:{3 % count}"
    return picked


def host_copies(device: torch.device) -> Mapping[str, object]:
    """Copies on a stream of their own are those of the values at the time, whatever is computed meanwhile."""
    copies = HostCopies(device)
    expected, arriving = [], []
    value = torch.randn(2048, 2048, device=device)
    for step in range(6):
        value = value @ value / 50 + step
        turned = value.T  # laid out anew on the device
        expected.append(turned.double().sum(0).cpu())
        arriving.append(copies.copy("values", turned))
        if step:
            np.testing.assert_allclose(
                np.asarray(arriving[-2][:]).sum(0, dtype=np.float64), expected[-2].numpy(), rtol=1e-5
            )
    return {"copies": len(arriving)}


def products_of_factors(device: torch.device) -> Mapping[str, object]:
    """Pieces of ``left @ right`` taken on another stream, while the factors are still being computed."""
    left = torch.randn(3, 40, 64, device=device)
    right_ = torch.randn(3, 64, 3 * 50 * 50, device=device)
    for _ in range(20):
        left = left * 1.0000001
    array = FactoredArray.of(FactoredMap(left, right_), (3, 50, 50), (40,))
    expected = (left.double() @ right_.double()).mT.reshape(3, 3, 50, 50, 40).cpu().numpy()
    with background_work(device):
        for start in range(0, 50, 10):
            box = (slice(0, 2), slice(0, 3), slice(start, start + 10), slice(0, 50), slice(0, 40))
            np.testing.assert_allclose(array[box], expected[box], rtol=2e-4, atol=2e-3)
    return {}


def memory_asked(device: torch.device) -> Mapping[str, object]:
    """A small ``memory`` is kept: what is held beside the result stays below it."""
    model, x = WORKLOADS["resnet20"].make(64, device)
    expected = _jacobian(model, x, method="loop")
    found = {}
    for limit in (64 * 2**20, 400 * 2**20):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        jacobian = _jacobian(model, x, memory=limit)
        if device.type == "cuda":
            held = torch.cuda.max_memory_allocated(device) - before - jacobian.nbytes
            found[f"{limit} bytes"] = f"{held / 2**20:.0f} MiB held"
            assert held <= 1.5 * limit, found
        right(jacobian, expected, 2e-5)
        del jacobian
    return found


def memory_exhausted(device: torch.device) -> Mapping[str, object]:
    """A device that others have filled: a batch is halved, or the error is jacli's; then all is well."""
    if device.type != "cuda":
        return {"skipped": "needs a GPU"}
    model, x = WORKLOADS["resnet20"].make(64, device)
    expected = _jacobian(model, x, method="loop")
    found: dict[str, object] = {}
    for left_over in (1200, 300, 40):
        torch.cuda.empty_cache()
        filled = torch.empty(
            max(0, free_memory(device) - left_over * 2**20), dtype=torch.uint8, device=device
        )
        try:
            for method in ("adjoint", "replicate"):
                # A limit that promises more than there is: memory runs out for real.
                options: dict[str, Any] = {"memory": 8 * 2**30, "method": method}
                options |= {"batch_size": 64, "chunk_size": 10}
                try:
                    jacobian = _jacobian(model, x, **options)
                    found[f"{left_over} MiB, {method}"] = right(jacobian, expected, 1e-4)
                    del jacobian
                except OutOfMemoryError as error:
                    found[f"{left_over} MiB, {method}"] = str(error.what)
        finally:
            del filled
            torch.cuda.empty_cache()
    right(_jacobian(model, x), expected, 2e-5)
    return found


def random_states(device: torch.device) -> Mapping[str, object]:
    """The generators of CPU and GPU are left as they were; a model that draws on the GPU is refused."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * (1 + torch.rand_like(x.flatten(1)[:, :4]))

    model, x = WORKLOADS["lenet"].make(8, device)
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    jacli.jacobian(model, x)
    try:
        jacli.jacobian(Noisy(), x)
    except ModelError:
        pass
    else:
        raise AssertionError("a random model was accepted")
    assert torch.equal(torch.get_rng_state(), before[0])
    if before[1] is not None:
        assert torch.equal(torch.cuda.get_rng_state(device), before[1])
    return {}


class _Recurrent(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer(6, 8, num_layers=2, batch_first=True)
        self.top = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.top(self.layer(x)[0][:, -1])
        return result


def recurrent(device: torch.device) -> Mapping[str, object]:
    """CuDNN's recurrent layers have no backward pass in eval mode: the plain kernels serve."""
    found: dict[str, object] = {}
    for layer in (nn.LSTM, nn.GRU, nn.RNN):
        torch.manual_seed(1)
        model, x = _Recurrent(layer).eval(), torch.randn(4, 7, 6)
        found[layer.__name__] = _by_every_method(model, x, device, _reference(model, x))
        assert torch.backends.cudnn.enabled
    return found


def graphs_of_batches(device: torch.device) -> Mapping[str, object]:
    """Batches replayed as a CUDA graph, at new points each time, with new weights, shorter ones between."""
    found: dict[str, object] = {}
    for name, precision in (
        ("lenet", "ieee"),
        ("resnet20", "ieee"),
        ("resnet20", "bf16"),
        ("decoder", "ieee"),
    ):
        method = "tangent" if name == "decoder" else "adjoint"
        model, x = WORKLOADS[name].make(5 * 16 + 7, device)
        options: dict[str, Any] = {"method": method, "batch_size": 16, "precision": precision}
        options["chunk_size"] = 4 if name == "resnet20" else 16
        plain = "forward" if name == "decoder" else "loop"
        errors = []
        for call in range(4):
            x = x.roll(1, 0) + 0.1 * torch.randn_like(x)
            if call == 3:
                with torch.no_grad():
                    next(model.parameters()).mul_(1.1)
            expected = _jacobian(model, x, method=plain, batch_size=16)
            errors.append(right(_jacobian(model, x, **options), expected, 5 * TOLERANCE[precision]))
        recorded = [
            seen.recorded is not None for graphs in _GRAPHS.values() for seen in graphs._seen.values()
        ]
        found[f"{name}, {precision}"] = {"errors": errors, "recorded": recorded}
    return found


def channels_last(device: torch.device) -> Mapping[str, object]:
    """A model and inputs whose channels come last in memory."""
    model, x = WORKLOADS["resnet20"].make(4, device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    expected = _jacobian(model, x, method="loop")  # other kernels than those of the CPU: kinks fall otherwise
    return {
        f"{method}, {precision}": right(
            _jacobian(model, x, method=method, precision=precision), expected, TOLERANCE[precision]
        )
        for method in ("adjoint", "tangent")
        for precision in precisions_of(device, torch.float32)
    }


class _Attention(nn.Module):
    def __init__(self, *, causal: bool, masked: bool) -> None:
        super().__init__()
        self.project, self.top = nn.Linear(16, 96), nn.Linear(32, 5)
        self.causal, self.masked = causal, masked

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        mask = None
        if self.masked:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(3)
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)
        result: Tensor = self.top(y.transpose(1, 2).flatten(2).mean(1))
        return result


def attention(device: torch.device) -> Mapping[str, object]:
    """Every kernel of attention that the device has, by every method, in both directions."""
    found: dict[str, object] = {}
    wrong: list[str] = []
    backends = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    if device.type == "cuda":
        backends += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for backend in backends:
        half = device.type == "cuda" and backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        dtype = torch.bfloat16 if half else torch.float32
        for kind in ("plain", "causal", "masked"):
            title = f"{backend.name} {kind}"
            torch.manual_seed(2)
            model = _Attention(causal=kind == "causal", masked=kind == "masked").eval().to(dtype)
            x = torch.randn(3, 16, 16).to(dtype)
            expected = _reference(model, x)
            with sdpa_kernel(backend):
                try:
                    with torch.no_grad():
                        model.to(device)(x.to(device))
                except RuntimeError as error:
                    found[title] = f"not on this device: {str(error).splitlines()[0][:80]}"
                    continue
                try:
                    found[title] = _by_every_method(model, x, device, expected, 0.05 if half else 2e-5)
                except Exception as failure:
                    wrong.append(f"{title}: {type(failure).__name__}: {failure}"[:400])
    assert not wrong, wrong
    return found


def mixed_precision(device: torch.device) -> Mapping[str, object]:
    """Half layers inside a float32 model, and autocast inside of forward."""

    class Half(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 5).to(dtype)
            self.dtype = dtype

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(torch.tanh(self.first(x)).to(self.dtype)).float()
            return result

    class Autocast(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                for layer in self:
                    x = layer(x)
                return x.float()

    found: dict[str, object] = {}
    for name, model in (
        ("bfloat16 layer", Half(torch.bfloat16)),
        ("autocast", Autocast(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))),
    ):
        x = torch.randn(6, 12)
        expected = _reference(copy_in_double(model), x.double()) if name == "autocast" else None
        model, x = model.eval().to(device), x.to(device)
        try:
            jacobian = _jacobian(model, x)
        except JacliError as error:
            found[name] = f"refused: {error.what} {error.why}"[:300]
            continue
        found[name] = relative(jacobian, expected) if expected is not None else float(jacobian.norm())
    return found


def copy_in_double(model: nn.Module) -> nn.Module:
    """The layers of a sequential model without its autocast."""
    return nn.Sequential(*model.children())


def _result(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        return {
            name: file[name][()]
            for name in ("jacobian", "outputs", "singular_values", "frobenius_norm", "class_norms")
            if name in file
        }


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _agree(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> str:
    worst = 0.0
    for name in sorted(set(found) & set(expected)):
        error = relative(torch.from_numpy(found[name])[None], torch.from_numpy(expected[name])[None])
        assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"
        worst = max(worst, error)
    return f"{worst:.1e}"


def command(device: torch.device) -> Mapping[str, object]:
    """``jacli compute`` of the sample models in every precision and with everything that can be saved."""
    found: dict[str, object] = {}
    cases: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("digits_cnn.pt", "digits.npy", {}),
        ("digits_shufflenet.safetensors", "digits_rgb.npy", {"samples": "0:24"}),
    )
    with _folder() as folder:
        for model, inputs, more in cases:
            files: dict[str, Any] = {
                "model": str(SAMPLES / model),
                "inputs": str(SAMPLES / inputs),
                "overwrite": True,
            }
            expected = folder / "cpu.h5"
            jacli.compute(**files, out=str(expected), device="cpu", **more)
            ways: list[dict[str, Any]] = [{"precision": p} for p in precisions_of(device, torch.float32)]
            ways += [{"save": "none"}, {"dtype": "float64"}]
            if not more:
                ways += [{"method": name} for name in ("loop", "vmap", "replicate", "adjoint")]
                ways += [{"save_dtype": "float16"}, {"memory": "300MiB"}, {"compress": "gzip"}]
                ways += [{"classes": "top:3"}, {"singular_values": "2"}]
            for options in ways:
                out = folder / "gpu.h5"
                title = f"{model} {options}"
                outcome = jacli.compute(
                    **files, out=str(out), device=device.type, verify=2, **more, **options
                )
                if "classes" in options:
                    found[title] = outcome.plan["method"]
                    continue
                tolerance = max(TOLERANCE.get(str(options.get("precision")), 1e-4), 1e-4)
                kinks = len(outcome.rechecked.at_kinks)
                wanted, got = _result(expected), _result(out)
                if "singular_values" in options:
                    wanted.pop("singular_values")
                error = _agree(got, wanted, 2e-2 if "save_dtype" in options else tolerance)
                worst = outcome.rechecked.worst_error
                found[title] = f"{outcome.plan['method']} {error}, recheck {worst}, {kinks} kinks"
    return found


def formats(device: torch.device) -> Mapping[str, object]:
    """TorchScript and ``.pt2`` on the device, by every method."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 7),
    ).eval()
    x = torch.randn(5, 3, 8, 8)
    found: dict[str, object] = {}
    with _folder() as folder:
        torch.jit.script(model).save(str(folder / "script.pt"))
        batch = torch.export.Dim("batch", max=512)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.export.save(exported, folder / "model.pt2")
        np.save(folder / "x.npy", x.numpy())
        expected = _reference(model, x).reshape(5, 3, 8, 8, 7)
        for name in ("script.pt", "model.pt2"):
            for method in ("auto", *METHODS):
                out = folder / "out.h5"
                options: dict[str, Any] = {"device": device.type, "method": method, "overwrite": True}
                try:
                    jacli.compute(str(folder / name), str(folder / "x.npy"), str(out), **options)
                except JacliError as error:
                    found[f"{name} {method}"] = f"refused: {error.what} {error.why}"[:200]
                    continue
                jacobian = torch.from_numpy(_result(out)["jacobian"])
                found[f"{name} {method}"] = right(jacobian, expected, 2e-5)
    return found


def spectra(device: torch.device) -> Mapping[str, object]:
    """Singular values of many small and of large matrices against float64 on the CPU; without the matrix."""
    found: dict[str, object] = {}
    for shape in ((256, 10, 784), (4, 512, 4096), (16, 10, 8)):
        matrices = torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5
        matrices[:, 1:] *= torch.logspace(0, -3, shape[1] - 1, dtype=torch.float64)[:, None]
        expected = torch.linalg.svdvals(matrices)
        spectrum = singular_values(matrices.float().to(device))
        gap = (spectrum.values.cpu() - torch.linalg.svdvals(matrices.float().double())).abs()
        assert bool((gap <= spectrum.errors.cpu() + 1e-12).all()), "a bound does not hold"
        found[str(shape)] = float((gap / expected[:, :1]).max())
    model, x = WORKLOADS["mlp"].make(8, device)
    every = jacli.singular_values(model, x)
    found["k=3"] = float((jacli.singular_values(model, x, k=3) / every[:, :3] - 1).abs().max())
    assert found["k=3"] < 1e-4  # type: ignore[operator]
    return found


def commands(device: torch.device) -> Mapping[str, object]:
    """``doctor``, ``inspect``, ``bench``, ``verify`` and a run that goes on, as typed."""
    import subprocess
    import sys

    found: dict[str, object] = {}
    with _folder() as folder:
        model, inputs = str(SAMPLES / "digits_cnn.pt"), str(SAMPLES / "digits.npy")
        out = str(folder / "out.h5")
        lines = (
            ["doctor"],
            ["compute", model, inputs, "-o", out, "--device", device.type, "--log-every", "1"],
            ["verify", out, "--device", device.type, "--samples", "8"],
            ["verify", out, "--device", "cpu", "--samples", "8"],
            ["bench", model, inputs, "--device", device.type, "--samples", "0:16"],
            ["compute", model, inputs, "-o", out, "--overwrite", "--device", device.type, "--dry-run"],
        )
        for words in lines:
            done = subprocess.run(
                [sys.executable, "-m", "jacli", *words], capture_output=True, text=True, timeout=100
            )
            found[" ".join(words[:1] + words[3:])[:60]] = (
                f"exit {done.returncode}: {(done.stdout + done.stderr)[-600:]}"
            )
            if done.returncode:
                found["failed"] = words[0]
    assert "failed" not in found, found
    return found


PATHS: dict[str, Path_] = {
    "switches": switches,
    "devices": devices,
    "host copies": host_copies,
    "products of factors": products_of_factors,
    "random states": random_states,
    "graphs of batches": graphs_of_batches,
    "recurrent": recurrent,
    "attention": attention,
    "channels last": channels_last,
    "command": command,
    "formats": formats,
    "memory asked": memory_asked,
    "spectra": spectra,
    "mixed precision": mixed_precision,
    "commands": commands,
}
"""In the order of importance."""

ALONE: dict[str, Path_] = {"memory exhausted": memory_exhausted}
"""What nobody else must be using the device for."""
