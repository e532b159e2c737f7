"""A precision that a device or dtype does not have is refused, not ignored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jacli
from jacli.device.precision import check_precision, precisions_of
from jacli.errors import MethodError, UsageError
from tests.reference import reference_jacobian

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(params=[(7, 5), (8, 0), (9, 0)], ids=["Turing", "Ampere", "Hopper"])
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of the GPU that torch says there is."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: request.param)
    return request.param


def test_tf32_is_arithmetic_of_gpus_since_ampere(capability: tuple[int, int]) -> None:
    if capability < (8, 0):
        with pytest.raises(UsageError, match="tf32 does not exist on cuda:0"):
            check_precision("tf32", GPU, torch.float32)
    else:
        check_precision("tf32", GPU, torch.float32)
        with pytest.raises(UsageError, match="does not go with float64"):
            check_precision("tf32", GPU, torch.float64)
    check_precision("bf16", GPU, torch.float32)


def test_the_cpu_has_no_tf32() -> None:
    with pytest.raises(UsageError, match="Ampere") as raised:
        check_precision("tf32", CPU, torch.float32)
    assert raised.value.exit_code == 2 and "bf16" in raised.value.hint


def test_what_a_device_has(capability: tuple[int, int]) -> None:
    there = ("ieee", "bf16") if capability < (8, 0) else ("ieee", "tf32", "bf16")
    assert precisions_of(GPU, torch.float32) == there
    assert precisions_of(GPU, torch.float64) == precisions_of(CPU, torch.float32) == ("ieee", "bf16")
    assert precisions_of(CPU, torch.float16) == ("ieee",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_of_a_half_is_refused(dtype: torch.dtype) -> None:
    check_precision("ieee", CPU, dtype)
    with pytest.raises(UsageError, match="bf16 does not go with"):
        check_precision("bf16", CPU, dtype)


@pytest.mark.parametrize("call", [jacli.jacobian, jacli.singular_values])
def test_the_python_calls_refuse_it_too(call: object) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(UsageError, match="tf32 does not exist on cpu"):
        call(model, x, precision="tf32")
    with pytest.raises(UsageError, match="one of ieee, tf32, bf16"):
        call(model, x, precision="half")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["auto", "adjoint", "tangent", "factored"])
def test_bf16_is_of_the_passes_alone(method: str, dtype: torch.dtype) -> None:
    """The point is exact: no ReLU falls to the other side, and the error is rounding alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 9)).to(
        dtype
    )
    x = torch.randn(200, 12, dtype=dtype)
    exact = reference_jacobian(model, x)
    found = jacli.jacobian(model, x, precision="bf16", method=method)
    assert found.dtype == dtype
    gap = torch.linalg.matrix_norm(found.reshape(exact.shape).double() - exact)
    errors = (gap / torch.linalg.matrix_norm(exact)).nan_to_num(0)  # all units may be off
    assert 1e-4 < errors.median() < 1.5e-2 and errors.max() < 5e-2


def test_a_network_of_which_there_is_no_program_has_no_reduced_precision() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin() if float(x.detach().sum()) > 0 else x.cos()

    x = torch.rand(4, 3)
    assert jacli.jacobian(Branching(), x).shape == (4, 3, 3)
    with pytest.raises(MethodError, match="has no linear program") as raised:
        jacli.jacobian(Branching(), x, precision="bf16")
    assert "Leave --precision out" in raised.value.hint


def test_a_method_of_autograd_has_no_precision() -> None:
    with pytest.raises(UsageError, match="do not go with --method loop, replicate, vmap, forward"):
        jacli.jacobian(nn.Linear(3, 2), torch.randn(4, 3), precision="bf16", method="vmap")


def test_without_a_gpu_auto_has_no_tf32(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="tf32 does not exist on cpu"):
        jacli.compute("model.pt", "random:4x3", out=str(tmp_path / "out.h5"), precision="tf32")
    assert list(tmp_path.iterdir()) == []
