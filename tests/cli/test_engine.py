"""`jacli compute` with the engine: cuts, factors, memory, recheck, plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacli.methods.filling as filling
from tests.reference import reference_jacobian

B, N_IN, WIDTH, N_OUT = 5, 40, 3, 30


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(N_IN, 20),
        nn.Tanh(),
        nn.Linear(20, WIDTH),
        nn.Linear(WIDTH, 20),
        nn.Tanh(),
        nn.Linear(20, N_OUT),
    ).eval()


@pytest.fixture(scope="module")
def exact(network: nn.Module, points: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(points).double()
    found = reference_jacobian(network.double(), x).numpy()
    network.float()
    return found


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((B, N_IN)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: nn.Module, points: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    torch.jit.script(network).save(folder / "narrow.pt")
    torch.jit.script(nn.Sequential(nn.Linear(N_IN, 20), nn.Tanh(), nn.Linear(20, 7)).eval()).save(
        folder / "wide.pt"
    )
    np.save(folder / "x.npy", points)
    return folder


@pytest.fixture
def compute(jacli: Any, folder: Path, tmp_path: Path) -> Any:
    """Run `jacli compute` on narrow.pt; the exit code, what it said, and the datasets and attributes."""

    def run(*options: object, model: str = "narrow.pt") -> Any:
        out = tmp_path / "out.h5"
        ran = jacli("compute", folder / model, folder / "x.npy", "-o", out, *options)
        data: dict[str, np.ndarray] = {}
        attrs: dict[str, Any] = {}
        if out.exists():
            with h5py.File(out) as file:
                attrs = dict(file.attrs)
                file.visititems(
                    lambda name, item: (
                        data.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None
                    )
                )
        return ran, data, attrs

    return run


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and float(np.abs(a - b).max()) <= 1e-5 * float(np.abs(b).max())


def test_factored_is_the_jacobian(compute: Any, exact: np.ndarray) -> None:
    ran, data, attrs = compute("--method", "factored")
    assert ran.code == 0 and attrs["method"] == "factored"
    assert close(data["jacobian"], exact)
    plan = json.loads(attrs["plan"])
    assert plan["factored"]["widths"][plan["factored"]["split"]] == WIDTH
    assert any(tried["method"].startswith("link 0") for tried in plan["measured"])
    assert plan["row_check_error"] < 1e-5


def test_factors_multiply_to_the_jacobian(compute: Any, exact: np.ndarray) -> None:
    ran, data, _ = compute("--save", "factors")
    assert ran.code == 0 and "jacobian" not in data
    assert data["factors/left"].shape == (B, N_OUT, WIDTH) and data["factors/right"].shape == (B, WIDTH, N_IN)
    assert close((data["factors/left"] @ data["factors/right"]).swapaxes(1, 2), exact)
    sigma = np.linalg.svd(exact, compute_uv=False)
    assert np.abs(data["singular_values"] - sigma).max() < 1e-5 * sigma.max()
    assert (data["singular_values"][:, WIDTH:] == 0).all()
    assert close(data["class_norms"], np.linalg.norm(exact, axis=1))
    assert close(data["frobenius_norm"], np.linalg.norm(exact, axis=(1, 2)))


def test_factors_with_classes_and_a_narrower_dtype(compute: Any, exact: np.ndarray) -> None:
    ran, data, _ = compute("--save", "factors", "--classes", "2,9,4,17,23", "--save-dtype", "float16")
    assert ran.code == 0, ran.err
    assert data["factors/left"].shape == (B, 5, WIDTH) and data["factors/left"].dtype == np.float16
    product = data["factors/left"].astype(float) @ data["factors/right"].astype(float)
    wanted = exact[:, :, [2, 9, 4, 17, 23]].swapaxes(1, 2)
    assert np.abs(product - wanted).max() < 3e-3 * np.abs(wanted).max()


def test_norms_alone_come_from_the_factors(compute: Any, exact: np.ndarray) -> None:
    ran, data, attrs = compute("--save", "none", "--method", "factored")
    assert ran.code == 0 and attrs["method"] == "factored"
    assert "jacobian" not in data and "factors/left" not in data
    assert close(data["class_norms"], np.linalg.norm(exact, axis=1))
    assert np.isfinite(data["verified_error"]).sum() == 1


def test_factors_of_a_network_without_a_narrow_cut_are_refused(compute: Any) -> None:
    ran, data, _ = compute("--save", "factors", model="wide.pt")
    assert ran.code == 2 and not data
    assert "20 wide" in ran.err and "--save full" in ran.err


def test_a_wide_network_can_be_cut_when_asked(compute: Any) -> None:
    ran, data, attrs = compute("--method", "factored", model="wide.pt")
    assert ran.code == 0 and attrs["method"] == "factored"
    plain, expected, _ = compute("--method", "loop", "--overwrite", model="wide.pt")
    assert plain.code == 0 and close(data["jacobian"], expected["jacobian"])


@pytest.mark.parametrize("n", [0, 1, 3, 99])
def test_so_many_samples_are_rechecked(compute: Any, n: int) -> None:
    ran, data, attrs = compute("--verify", n)
    assert ran.code == 0
    checked = np.isfinite(data["verified_error"])
    assert checked.sum() == min(n, B) and (data["verified_error"][checked] < 1e-5).all()
    assert data["near_kink"].tolist() == [0 if found else -1 for found in checked]
    assert attrs.get("verified_dtype") == (None if n == 0 else "float64")


def test_a_wrong_result_is_found_by_the_recheck(compute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below what the checks of every batch allow, only the recheck can find it."""
    right = filling.slabs

    def wrong(*arguments: Any, **options: Any) -> Any:
        for slab in right(*arguments, **options):
            yield replace(slab, values=1.0005 * slab.values)

    monkeypatch.setattr(filling, "slabs", wrong)
    ran, data, _ = compute("--method", "loop", "--verify", 2)
    assert ran.code == 6 and "recheck failed" in ran.err
    found = data["verified_error"][np.isfinite(data["verified_error"])]
    assert len(found) == 2 and np.allclose(found, 5e-4, rtol=1e-2)
    ran, _, _ = compute("--method", "loop", "--verify", 2, "--tolerance", "0.01", "--overwrite")
    assert ran.code == 0


def test_too_little_memory_is_told_with_the_figures(compute: Any) -> None:
    ran, data, _ = compute("--memory", "1KiB")
    assert ran.code == 5 and not data
    assert "1,024 may be held" in ran.err and "--memory" in ran.err


def test_the_plan_of_a_result_is_repeated_without_measuring(
    compute: Any, jacli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, attrs = compute("--method", "factored")
    first = json.loads(attrs["plan"])

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("jacli.choice.measure._Stopwatch.seconds", fail)
    again = tmp_path / "again.h5"
    ran = jacli("compute", "--config", tmp_path / "out.h5", "-o", again)
    assert ran.code == 0, ran.err
    with h5py.File(again) as file:
        second = json.loads(file.attrs["plan"])
        assert np.array_equal(file["jacobian"][...], data["jacobian"])
    assert second["factored"] == first["factored"] and second["batch_size"] == first["batch_size"]
    ran = jacli("compute", "--config", tmp_path / "out.h5", "-o", tmp_path / "other.h5", "--method", "auto")
    assert ran.code == 1 and "it was measured" in ran.err


def test_the_plan_is_printed_with_its_cut_and_seconds(jacli: Any, folder: Path, tmp_path: Path) -> None:
    arguments = (
        folder / "narrow.pt",
        folder / "x.npy",
        "--method",
        "factored",
        "-o",
        tmp_path / "o.h5",
        "--dry-run",
    )
    ran = jacli("compute", *arguments)
    lines = dict(line.split(None, 1) for line in ran.out.splitlines() if line[0] != " ")
    assert ran.code == 0 and "3 wide" in ran.out and "about" in lines["time"]
    found = json.loads(jacli("compute", *arguments, "--json").out)
    assert found["plan"]["seconds"] > 0 and found["bytes_of_memory"] > 0
    assert {"method", "batch_size", "chunk_size", "vector_seconds"} <= set(found["plan"]["measured"][0])
    assert not list(tmp_path.iterdir())


def test_inspect_shows_where_a_network_can_be_cut(jacli: Any, folder: Path) -> None:
    found = json.loads(jacli("inspect", folder / "narrow.pt", "--inputs", folder / "x.npy", "--json").out)
    (cut,) = found["cuts"]
    assert cut["width"] == "3 wide" and cut["saves"] == "3 passes in place of 30" and "2" in cut["where"]
    found = json.loads(jacli("inspect", folder / "wide.pt", "--inputs", folder / "x.npy", "--json").out)
    assert found["cuts"] == [] and "20 wide" in found["not_cut"]
