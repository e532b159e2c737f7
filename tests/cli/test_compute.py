"""`jacli compute`: every option does what it says, seen in the file it wrote."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray
from torch import Tensor, nn

import jacli as package
from jacli.store import open_results, read_progress
from tests.reference import reference_jacobian
from tests.toy_models import FixedBatch, Stateful

B, INPUT, N = 6, (3, 5, 4), 7


class TwoArguments(nn.Module):
    """A scale for all, an offset for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(60, N)

    def forward(self, x: Tensor, scale: float, offset: Tensor) -> Tensor:
        return torch.sin(self.linear(x.flatten(1)) + offset) * scale


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = x.flatten(1)
        return {"sin": y[:, :7].sin(), "cos": y[:, :6].cos()}


class Root(nn.Module):
    """Infinite slope at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x.flatten(1).abs()[:, :7])


class Slow(nn.Module):
    """A second of work a block or so: time to be interrupted."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1)
        for _ in range(300):
            y = torch.sin(y) + 0.1 * torch.cos(y)
        return y[:, :50]


@pytest.fixture(scope="session")
def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, N)).eval()


@pytest.fixture(scope="session")
def points() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((B, *INPUT)).astype(np.float32)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, network: nn.Module, points: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("compute")
    torch.manual_seed(2)
    torch.jit.script(network).save(folder / "model.pt")
    torch.save(network.state_dict(), folder / "state.pt")
    (folder / "arch.py").write_text(
        "from torch import nn\n"
        "def make(width):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 7))\n"
    )
    for name, module in {
        "fixed": FixedBatch(60, N), "stateful": Stateful(60, N), "arguments": TwoArguments(),
        "dictionary": Dictionary(), "root": Root(), "slow": Slow(), "map": nn.Conv2d(3, 2, 3),
    }.items():  # fmt: skip
        torch.jit.script(module.eval()).save(folder / f"{name}.pt")
    np.save(folder / "x.npy", points)
    np.save(folder / "labels.npy", np.array([3, 0, 6, 1, 1, 5]))
    np.save(folder / "offset.npy", np.linspace(-1, 1, B * N, dtype=np.float32).reshape(B, N))
    return folder


@pytest.fixture(scope="session")
def exact(network: nn.Module, points: np.ndarray) -> np.ndarray:
    """The Jacobian in float64, (batch, *input, n_classes)."""
    return reference(copy.deepcopy(network).double(), points)


def reference(model: Callable[[Tensor], Tensor], points: np.ndarray) -> np.ndarray:
    return reference_jacobian(model, torch.from_numpy(points).double()).reshape(*points.shape, -1).numpy()


def load_double(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path).double()


@pytest.fixture
def compute(jacli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in the folder of materials; the datasets and attributes of what it wrote."""
    monkeypatch.chdir(folder)

    def run(*options: object, model: str = "model.pt", inputs: str = "x.npy", code: int = 0) -> Results:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}.h5"
        ran = jacli("compute", model, inputs, "-o", out, *options)
        assert ran.code == code, ran.err
        return Results(out, ran)

    return run


class Results:
    """What is in the file, read at once."""

    def __init__(self, path: Path, ran: Any = None) -> None:
        self.path, self.ran = path, ran
        with h5py.File(path, "r") as file:
            self.attrs = dict(file.attrs)
            self.data = {
                name: d[()] for name, d in file.items() if isinstance(d, h5py.Dataset) and not name_only(d)
            }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.data[name]

    def __contains__(self, name: str) -> bool:
        return name in self.data


def name_only(dataset: h5py.Dataset) -> bool:
    return bytes(dataset.attrs.get("NAME", b"")).startswith(b"This is a netCDF dimension but not")


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> bool:
    assert a.shape == b.shape
    return bool(np.abs(a.astype(np.float64) - b).max() <= tolerance * np.abs(b).max())


def test_default(compute, network: nn.Module, points: np.ndarray, exact: np.ndarray) -> None:
    found = compute()
    assert set(found.data) == {
        "jacobian", "inputs", "outputs", "sample_index", "class_norms", "frobenius_norm", "spectral_norm",
        "nuclear_norm", "singular_values", "singular_value_error", "verified_error", "near_kink", "done",
        "batch_start",
    }  # fmt: skip
    assert found["jacobian"].shape == (B, *INPUT, N) and found["jacobian"].dtype == np.float32
    assert close(found["jacobian"], exact)
    np.testing.assert_array_equal(found["inputs"], points)
    with torch.no_grad():
        assert close(found["outputs"], network(torch.from_numpy(points)).numpy())
    np.testing.assert_array_equal(found["sample_index"], np.arange(B))
    np.testing.assert_array_equal(found["done"], np.ones(B))
    matrices = exact.reshape(B, -1, N)
    sigma = np.linalg.svd(matrices, compute_uv=False)
    assert close(found["singular_values"], sigma)
    assert close(found["class_norms"], np.linalg.norm(matrices, axis=1))
    assert close(found["frobenius_norm"], np.linalg.norm(matrices, axis=(1, 2)))
    assert close(found["spectral_norm"], sigma[:, 0])
    assert close(found["nuclear_norm"], sigma.sum(1))
    assert (
        np.abs(found["singular_values"] - sigma) <= found["singular_value_error"] + 1e-5 * sigma[:, :1]
    ).all()
    assert found.ran.out == ""
    assert f"wrote {found.path}: 6 samples" in found.ran.err
    assert f"jacli summarize {found.path}" in found.ran.err


def test_default_name_of_the_file(
    jacli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert jacli("compute", folder / "model.pt", folder / "x.npy").code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]


def test_state_dict_with_arch_and_its_arguments(compute, exact: np.ndarray, folder: Path) -> None:
    found = compute("--arch", "arch.py:make", "--arch-arg", "width=6", model="state.pt")
    assert close(found["jacobian"], exact)
    assert found.attrs["arch_sha256"] == hashlib.sha256((folder / "arch.py").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["loop", "replicate", "vmap", "forward", "factored"])
def test_method(compute, exact: np.ndarray, method: str) -> None:
    found = compute("--method", method, "--batch-size", 4)
    assert found.attrs["method"] == method
    assert close(found["jacobian"], exact)


def test_batch_and_chunk_size(compute, exact: np.ndarray) -> None:
    found = compute("--method", "vmap", "--batch-size", 4, "--chunk-size", 3)
    plan = json.loads(found.attrs["plan"])
    assert (plan["batch_size"], plan["chunk_size"], plan["n_blocks"], plan["passes"]) == (4, 3, 2, 6)
    assert close(found["jacobian"], exact)


def test_classes_by_index(compute, exact: np.ndarray) -> None:
    found = compute("--classes", "5,0")
    assert close(found["jacobian"], exact[..., [5, 0]])
    np.testing.assert_array_equal(found["class_index"], [5, 0])
    assert found["class_norms"].shape == (B, 2) and found["outputs"].shape == (B, N)
    assert close(
        found["singular_values"], np.linalg.svd(exact[..., [5, 0]].reshape(B, -1, 2), compute_uv=False)
    )


def test_classes_top(compute, exact: np.ndarray) -> None:
    found = compute("--classes", "top:3", "--batch-size", 4)
    order = np.argsort(-found["outputs"], axis=1)[:, :3]
    np.testing.assert_array_equal(found["class_index"], order)
    assert close(found["jacobian"], np.take_along_axis(exact, order[:, None, None, None], axis=-1))


@pytest.mark.parametrize("text", [False, True], ids=["npy", "text"])
def test_classes_label(compute, exact: np.ndarray, folder: Path, tmp_path: Path, text: bool) -> None:
    labels = np.load(folder / "labels.npy")
    np.savetxt(tmp_path / "labels.txt", labels, fmt="%d")
    given = tmp_path / "labels.txt" if text else "labels.npy"
    found = compute("--classes", "label", "--labels", given, "--samples", "1:", "--batch-size", 2)
    np.testing.assert_array_equal(found["class_index"], labels[1:, None])
    chosen = np.take_along_axis(exact[1:], labels[1:, None, None, None, None], axis=-1)
    assert close(found["jacobian"], chosen)


def test_classes_of_several_output_axes_are_flat(compute, folder: Path, points: np.ndarray) -> None:
    whole = compute(model="map.pt")
    assert whole["jacobian"].shape == (B, *INPUT, 2, 3, 2) and whole["class_norms"].shape == (B, 2, 3, 2)
    part = compute("--classes", "11,1", model="map.pt")
    assert close(part["jacobian"], whole["jacobian"].reshape(B, *INPUT, 12)[..., [11, 1]])


@pytest.mark.parametrize("of", ["probs", "log-probs"])
def test_of(compute, network: nn.Module, points: np.ndarray, exact: np.ndarray, of: str) -> None:
    found = compute("--of", of)
    with torch.no_grad():
        logits = network(torch.from_numpy(points)).double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # d log p_k = d z_k - sum_j p_j d z_j, and d p_k = p_k d log p_k
    by_hand = exact - np.einsum("bchwn,bn->bchw", exact, p)[..., None]
    if of == "probs":
        by_hand *= p[:, None, None, None]
    assert close(found["jacobian"], by_hand)
    assert close(found["outputs"], p if of == "probs" else np.log(p))


@pytest.mark.parametrize("spec", ["4,1", "::2", "-1", "2:4"])
def test_samples(compute, exact: np.ndarray, points: np.ndarray, spec: str) -> None:
    at = {"4,1": [4, 1], "::2": [0, 2, 4], "-1": [5], "2:4": [2, 3]}[spec]
    found = compute("--samples", spec)
    np.testing.assert_array_equal(found["sample_index"], at)
    assert close(found["jacobian"], exact[at])
    assert found.attrs["inputs_sha256"] == hashlib.sha256(points[at].tobytes()).hexdigest()


def test_dtype(compute, exact: np.ndarray) -> None:
    found = compute("--dtype", "float64")
    assert found["jacobian"].dtype == found["outputs"].dtype == np.float64
    assert found["inputs"].dtype == np.float32  # as read
    assert found.attrs["dtype"] == "float64"
    assert close(found["jacobian"], exact, 1e-12)


@pytest.mark.parametrize("method", ["auto", "adjoint", "tangent", "factored"])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_precision(compute, exact: np.ndarray, precision: str, method: str) -> None:
    found = compute("--precision", precision, "--method", method, "--verify", B)
    assert close(found["jacobian"], exact, 1e-5 if precision == "ieee" else 5e-2)
    assert close(found["jacobian"], exact, 1e-4) == (precision == "ieee")  # it is not ignored
    assert (found["verified_error"] > 1e-4).all() == (precision == "bf16")
    assert (found["near_kink"] == 0).all()
    assert found["jacobian"].dtype == found["outputs"].dtype == np.float32
    assert found.attrs["precision"] == json.loads(found.attrs["config"])["precision"] == precision
    assert ("linear passes in bf16" in found.ran.err) == (precision == "bf16")
    assert f"{1e-4 if precision == 'ieee' else 5.01e-2:.1e} allowed" in found.ran.err


def test_the_outputs_are_those_of_the_model_whatever_the_precision(compute) -> None:
    np.testing.assert_array_equal(compute("--precision", "bf16")["outputs"], compute()["outputs"])


def test_save_none(compute) -> None:
    same = "--method", "loop"  # `auto` may choose another one, which rounds otherwise
    full, found = compute(*same), compute(*same, "--save", "none")
    assert "jacobian" not in found
    for name in set(full.data) - {"jacobian"}:
        np.testing.assert_array_equal(found[name], full[name])


def test_save_dtype(compute, exact: np.ndarray) -> None:
    found = compute("--save-dtype", "float16")
    assert found["jacobian"].dtype == np.float16 and found["outputs"].dtype == np.float32
    assert close(found["jacobian"], exact, 1e-3)


def test_save_dtype_overflow_is_told(compute, tmp_path: Path) -> None:
    x = np.ones((2, *INPUT), np.float32) * 1e-12
    np.save(tmp_path / "tiny.npy", x)
    found = compute("--save-dtype", "float16", model="root.pt", inputs=str(tmp_path / "tiny.npy"), code=6)
    assert np.isinf(found["jacobian"]).sum() == 2 * 7
    assert "14 values" in found.ran.err and "float16" not in found.ran.out


@pytest.mark.parametrize("filter", ["gzip", "lzf", "zstd"])
def test_compress(compute, exact: np.ndarray, filter: str) -> None:
    if filter == "zstd":
        pytest.importorskip("hdf5plugin", reason="zstd is in hdf5plugin")
    found = compute("--compress", filter)
    with h5py.File(found.path) as file:
        plist = file["jacobian"].id.get_create_plist()
        numbers = {plist.get_filter(at)[0] for at in range(plist.get_nfilters())}
    assert {"gzip": 1, "lzf": 32000, "zstd": 32015}[filter] in numbers
    assert close(found["jacobian"], exact)


def test_no_save_inputs(compute) -> None:
    assert "inputs" not in compute("--no-save-inputs")
    assert "inputs" in compute("--save-inputs")


def test_singular_values(compute, exact: np.ndarray) -> None:
    sigma = np.linalg.svd(exact.reshape(B, -1, N), compute_uv=False)
    none = compute("--singular-values", "none")
    assert not {"singular_values", "singular_value_error", "spectral_norm", "nuclear_norm"} & set(none.data)
    assert "frobenius_norm" in none
    three = compute("--singular-values", "3")
    assert close(three["singular_values"], sigma[:, :3]) and close(three["spectral_norm"], sigma[:, 0])
    assert "nuclear_norm" not in three
    assert close(compute("--singular-values", "all")["singular_values"], sigma)


def test_random_inputs_are_the_seed_s(compute) -> None:
    first, again, other = (
        compute("--seed", seed, "--method", "loop", inputs="random:3x3x5x4") for seed in (4, 4, 5)
    )
    assert first["inputs"].shape == (3, *INPUT)
    np.testing.assert_array_equal(first["inputs"], again["inputs"])
    np.testing.assert_array_equal(first["jacobian"], again["jacobian"])
    assert not np.array_equal(first["inputs"], other["inputs"])


def test_arguments(compute, folder: Path, points: np.ndarray) -> None:
    found = compute(
        "--arg", "scale=2.5", "--arg", "offset=@offset.npy", "--samples", "5,1,2", "--batch-size", 2,
        model="arguments.pt",
    )  # fmt: skip
    module = load_double(folder / "arguments.pt")
    offsets = torch.from_numpy(np.load(folder / "offset.npy")).double()
    for row, at in enumerate((5, 1, 2)):
        exact = reference_jacobian(
            lambda x, at=at: module(x, 2.5, offsets[at : at + 1]),
            torch.from_numpy(points[at : at + 1]).double(),
        )
        assert close(found["jacobian"][row], exact.reshape(*INPUT, N).numpy())


def test_select(compute, points: np.ndarray) -> None:
    found = compute("--select", "cos", model="dictionary.pt")
    flat = points.reshape(B, -1)
    by_hand = np.zeros((B, 60, 6))
    by_hand[:, range(6), range(6)] = -np.sin(flat[:, :6])
    assert close(found["jacobian"].reshape(B, 60, 6), by_hand)


def test_inputs_key(compute, tmp_path: Path, points: np.ndarray, exact: np.ndarray) -> None:
    np.savez(tmp_path / "two.npz", a=points[:2], b=points)
    assert close(compute("--inputs-key", "b", inputs=str(tmp_path / "two.npz"))["jacobian"], exact)


def test_fixed_batch(compute, folder: Path, points: np.ndarray) -> None:
    """Six samples in blocks of four, the last one padded."""
    found = compute(model="fixed.pt")
    module = load_double(folder / "fixed.pt")
    exact = reference(lambda x: module(x.expand(4, -1, -1, -1))[:1], points)
    assert close(found["jacobian"], exact)
    assert json.loads(found.attrs["plan"])["batch_size"] == 4
    assert "batches of 4" in found.ran.err


def test_stateful(compute, folder: Path, points: np.ndarray) -> None:
    found = compute("--batch-size", 2, model="stateful.pt")
    linear = load_double(folder / "stateful.pt").linear
    exact = reference(lambda x: torch.tanh(linear(x.flatten(1))), points)
    assert close(found["jacobian"], exact)
    assert "keeps state" in found.ran.err


def test_a_finished_run_called_again(jacli, folder: Path, tmp_path: Path, monkeypatch) -> None:
    """A requeued job and a Makefile see the code that the run ended with, and are told why."""
    monkeypatch.chdir(folder)
    command = ("compute", "model.pt", "x.npy", "-o", tmp_path / "out.h5", "--method", "loop")
    first, again = jacli(*command), jacli(*command)
    assert (first.code, again.code, again.out) == (0, 0, "")
    assert "is already complete: same model, inputs and options" in again.err
    assert "wrote" not in again.err and "rechecked 1 sample" in again.err
    told = jacli(*command, "--json", "--quiet")
    assert json.loads(told.out)["already_complete"] is True and told.err == ""
    other = jacli(*command, "--classes", "0")
    assert other.code == 4 and "--classes was all, is 0" in other.err
    both = jacli("compute", "nothing.pt", *command[2:], "--classes", "0")
    assert both.code == 3 and "nothing.pt" in both.err and "exists already" in both.err


def test_a_finished_run_with_unsound_samples_called_again(jacli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Root()).save("root.pt")
    np.save("x.npy", np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0]], np.float32))
    first, again = (jacli("compute", "root.pt", "x.npy") for _ in range(2))
    assert (first.code, again.code) == (6, 6)
    assert "already complete" in again.err and "1 of 3 samples are not finite: 1" in again.err


def test_not_finite_results(compute, tmp_path: Path, points: np.ndarray) -> None:
    x = points.copy()
    x[[1, 4], 0, 0, 0] = 0
    np.save(tmp_path / "zeros.npy", x)
    found = compute("--batch-size", 2, model="root.pt", inputs=str(tmp_path / "zeros.npy"), code=6)
    assert "2 of 6 samples are not finite: 1, 4" in found.ran.err and "Traceback" not in found.ran.err
    assert found.attrs["complete"] and found["done"].all()
    good = [0, 2, 3, 5]
    assert np.isfinite(found["jacobian"][good]).all() and np.isfinite(found["singular_values"][good]).all()
    assert not np.isfinite(found["frobenius_norm"][[1, 4]]).any()


def test_json(compute) -> None:
    found = compute("--json")
    said = json.loads(found.ran.out)
    assert said["out"] == str(found.path) and said["samples"] == B
    assert said["jacobian_shape"] == [*INPUT, N] and said["not_finite"] == []
    assert said["plan"]["method"] == found.attrs["method"]


def test_quiet(compute) -> None:
    ran = compute("--quiet", "--log-every", 0.001, "--batch-size", 1).ran
    assert (ran.out, ran.err) == ("", "")


def test_progress_lines(compute) -> None:
    lines = compute("--log-every", 0.0001, "--batch-size", 2).ran.err.splitlines()
    assert [line.split()[0] for line in lines if "samples/s" in line] == ["2/6", "4/6", "6/6"]
    assert not [line for line in compute("--batch-size", 2).ran.err.splitlines() if "samples/s" in line]


@pytest.mark.parametrize(
    "options", [(), ("--classes", "top:2", "--save-dtype", "float16", "--singular-values", "1")]
)
def test_dry_run(compute, jacli, tmp_path: Path, options: tuple[str, ...]) -> None:
    ran = jacli("compute", "model.pt", "x.npy", "-o", tmp_path / "out.h5", "--dry-run", "--json", *options)
    assert ran.code == 0, ran.err
    assert list(tmp_path.iterdir()) == []
    planned = json.loads(ran.out)
    found = compute(*options)
    with h5py.File(found.path) as file:
        sizes = {name: file[name].nbytes for name in found.data if name != "batch_start"}
    assert planned["bytes_on_disk"] == sizes
    assert planned["bytes_on_disk_total"] == sum(sizes.values())
    assert planned["plan"]["method"] == found.attrs["method"]
    assert planned["plan"]["passes"] == json.loads(found.attrs["plan"])["passes"]
    assert planned["shapes"]["jacobian_of_a_sample"] == list(found["jacobian"].shape[1:])
    assert planned["bytes_free"] > 0


def test_dry_run_for_the_eye(jacli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ran = jacli("compute", "model.pt", "x.npy", "-o", tmp_path / "out.h5", "--dry-run")
    assert ran.code == 0
    names = [line[:16].strip() for line in ran.out.splitlines()]
    assert {"samples", "input", "output", "Jacobian", "method", "passes", "on disk", "free there"} <= set(
        names
    )
    assert "3 x 5 x 4 x 7 per sample" in ran.out


@pytest.mark.parametrize(
    ("options", "arithmetic"),
    [
        ((), "float32"),
        (("--dtype", "float64"), "float64"),
        (("--precision", "bf16"), "float32, linear passes in bf16"),
    ],
)
def test_dry_run_says_the_arithmetic(
    jacli,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    arithmetic: str,
) -> None:
    monkeypatch.chdir(folder)
    line = ("compute", "model.pt", "x.npy", "-o", tmp_path / "out.h5", "--dry-run", *options)
    (found,) = [text for text in jacli(*line).out.splitlines() if text.startswith("arithmetic")]
    assert found.split(maxsplit=1)[1] == arithmetic
    planned = json.loads(jacli(*line, "--json").out)
    dtype, _, precision = arithmetic.partition(", linear passes in ")
    assert (planned["dtype"], planned["precision"]) == (dtype, precision or "ieee")


def test_config_file_and_flags(
    jacli, folder: Path, tmp_path: Path, exact: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'model = "model.pt"\ninputs = "x.npy"\nclasses = [2, 4]\nmethod = "loop"\n'
        "batch-size = 3\nsave_inputs = false\n"
    )
    out = tmp_path / "from_config.h5"
    monkeypatch.chdir(folder)
    assert jacli("compute", "--config", config, "-o", out, "--method", "vmap", "--classes", "1").code == 0
    found = Results(out)
    assert close(found["jacobian"], exact[..., [1]])
    assert found.attrs["method"] == "vmap" and "inputs" not in found
    assert json.loads(found.attrs["plan"])["batch_size"] == 3


def test_result_as_config_repeats_the_run(
    compute, jacli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compute(
        "--arch", "arch.py:make", "--arch-arg", "width=6", "--classes", "top:2", "--of", "probs",
        "--samples", "1:5", "--batch-size", 3, "--compress", "gzip", "--seed", 3,
        model="state.pt",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)  # the paths in the file are absolute
    again = tmp_path / "again.h5"
    ran = jacli("compute", "--config", first.path, "-o", again)
    assert ran.code == 2 and "give it again by hand: --arch" in ran.err
    ran = jacli(
        "compute", "--config", first.path, "-o", again, "--arch", json.loads(first.attrs["config"])["arch"]
    )
    assert ran.code == 0, ran.err
    second = Results(again)
    assert second["jacobian"].tobytes() == first["jacobian"].tobytes()
    assert set(second.data) == set(first.data)
    same = ("model_sha256", "inputs_sha256", "arch_sha256", "config", "method", "plan")
    changed = [name for name in same if second.attrs[name] != first.attrs[name]]
    ours = {k: v for k, v in json.loads(second.attrs["config"]).items() if k != "out"}
    theirs = {k: v for k, v in json.loads(first.attrs["config"]).items() if k != "out"}
    assert ours == theirs and set(changed) <= {"config", "plan"}


def test_overwrite(compute, jacli, exact: np.ndarray) -> None:
    found = compute("--classes", "0")
    ran = jacli("compute", "model.pt", "x.npy", "-o", found.path, "--overwrite")
    assert ran.code == 0
    assert close(Results(found.path)["jacobian"], exact)


def test_provenance(compute, folder: Path, points: np.ndarray) -> None:
    found = compute("--seed", 9)
    attrs = found.attrs
    assert attrs["schema"] == "jacli/2" and attrs["complete"]
    assert attrs["jacli_version"] == package.__version__ and attrs["torch_version"] == torch.__version__
    assert attrs["command"].startswith("jacli compute model.pt x.npy -o ")
    assert attrs["command"].endswith("--seed 9")
    assert attrs["model_path"] == str(folder / "model.pt") and attrs["inputs_path"] == str(folder / "x.npy")
    assert attrs["model_sha256"] == hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    assert attrs["inputs_sha256"] == hashlib.sha256(points.tobytes()).hexdigest()
    assert "torchscript" in attrs["model_format"].lower()
    assert attrs["dtype"] == "float32" and attrs["precision"] == "ieee"
    assert attrs["device"] in ("cpu", "cuda:0") and attrs["device_name"]
    assert attrs["created"][:2] == "20" and attrs["created"].endswith("+00:00")
    assert json.loads(attrs["config"])["seed"] == 9
    plan = json.loads(attrs["plan"])
    assert plan["method"] == attrs["method"] and 0 <= plan["row_check_error"] < 1e-3


def test_xarray_sees_the_names(compute) -> None:
    for options, model, dims in (
        ((), "model.pt", ("batch", "c", "h", "w", "n_classes")),
        (("--classes", "1,2"), "model.pt", ("batch", "c", "h", "w", "selected")),
        ((), "map.pt", ("batch", "c", "h", "w", "output_0", "output_1", "output_2")),
    ):
        with xarray.open_dataset(compute(*options, model=model).path, engine="h5netcdf") as dataset:
            assert dataset["jacobian"].dims == dims
            assert dataset["singular_values"].dims == ("batch", "singular_value")
            assert dataset["outputs"].dims[0] == dataset["frobenius_norm"].dims[0] == "batch"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR2, 75)],
    ids=["Ctrl-C", "SIGTERM", "SIGUSR2"],
)
def test_stopped_by_a_signal_it_keeps_what_is_finished(
    folder: Path, tmp_path: Path, number: int, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "jacli", "compute", str(folder / "slow.pt"), "random:2000x200",
         "-o", "out.h5", "--batch-size", "4", "--method", "loop", "--log-every", "0.001"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "samples/s" not in (line := process.stderr.readline()):
            assert line, "ended before it began"
        assert (tmp_path / "out.h5.part").exists()
        time.sleep(0.05)
        process.send_signal(number)
        stopped = time.monotonic()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - stopped < 10
    assert process.returncode == code, err
    assert "Traceback" not in err and "to resume" in err
    kept = re.search(r"(\d+) of 2000 samples are finished and kept in out.h5.part", err)
    assert kept is not None
    progress = read_progress(tmp_path / "out.h5")
    assert progress is not None
    assert (progress.state, progress.done, progress.samples) == ("stopped", int(kept[1]), 2000)
    assert progress.command[:2] == ("jacli", "compute")
    with open_results(tmp_path / "out.h5.part") as results:
        assert int(results.done.sum()) == int(kept[1]) > 0
    assert not (tmp_path / "out.h5.part.lock").exists()
