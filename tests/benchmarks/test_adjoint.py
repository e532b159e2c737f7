"""`benchmarks/adjoint.py`: it measures the linear program as it runs, all of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import adjoint, profile_maps
from benchmarks.workloads import WORKLOADS
from jacli.device.precision import precisions_of
from jacli.linear_program import LinearProgram
from jacli.network import TensorNetwork, exact_arithmetic, trace_network


class _Halves(nn.Module):
    """Slices that meet again: maps that put vectors into place and collect them."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return self.narrow(y[:, :3]) + torch.cat([y[:, 2:4], y[:, 1:4]], 1)


def test_a_watched_program_gives_the_same(device: torch.device) -> None:
    model = _Halves().eval().requires_grad_(False).to(device)
    x = torch.randn(2, 4, device=device)
    with exact_arithmetic():
        traced = trace_network(TensorNetwork.of_module(model), x, {})
        linear = LinearProgram(traced.graph).linearize(x)
        cotangents, tangents = torch.randn(3, 2, 5, device=device), torch.randn(3, 2, 4, device=device)
        expected = linear.vjp(cotangents), linear.jvp(tangents)
        steps = profile_maps.steps_of(linear, traced)
        with profile_maps.watching(linear, steps, profile_maps.clock(device)):
            watched = linear.vjp(cotangents), linear.jvp(tangents)
        assert all(torch.equal(a, b) for a, b in zip(watched, expected, strict=True))
        assert all(len(step.seconds) == 2 for step in steps.values())  # one a direction
        linear.vjp(cotangents)
        assert all(len(step.seconds) == 2 for step in steps.values())  # watched no more
    assert [step.layer for step in steps.values() if step.kind == "Product"] == ["narrow"]


@pytest.mark.parametrize(("name", "vectors"), [("autoencoder", 32), ("decoder", 16)])
def test_a_profile_counts_the_products(name: str, vectors: int, device: torch.device) -> None:
    found = adjoint.profile(WORKLOADS[name], "ieee", device, rounds=1, quick=True)
    assert found.title.startswith(f"{name}, 2 x {vectors}")
    assert min(found.linearise, found.forward, found.chunk, *(step.seconds[0] for step in found.steps)) > 0
    products = sum(step.flops for step in found.steps if step.kind == "Product")
    weights = {"autoencoder": 2 * (784 * 512 + 512 * 256 + 256 * 32), "decoder": 16 * 128 * 8 * 8}
    assert products == 2 * 2 * vectors * weights[name]


def test_a_quick_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: torch.device) -> None:
    tables = tmp_path / "results.md"
    arguments = ["--quick", "--rounds", "1", "--only", "lenet", "--top", "8", "--markdown", str(tables)]
    assert adjoint.main(arguments) == 0
    text = tables.read_text()
    assert text.count("| lenet, 4 x 10 cotangents |") == len(precisions_of(device, torch.float32))
    assert text.count("| Convolution | 3 |") == 1
    assert text.split("-->")[1].strip().startswith("## Where the linear program spends its time")
    assert "lenet, 4 x 10 cotangents:" in capsys.readouterr().out
