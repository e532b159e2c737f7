"""Every peer against the reference, on a model whose axes all differ."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import TORCH_PEERS, Peer, as_matrices, flat, part_of, reference
from benchmarks.workloads import WORKLOADS, sizes_of
from tests.reference import reference_jacobian


@pytest.fixture
def model(device: torch.device) -> nn.Module:
    """(3, 6, 4) -> (5, 3, 2), smooth but for one pool; 72 inputs, 30 outputs."""
    layers = [nn.Conv2d(3, 7, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(7, 5, 1), nn.GELU()]
    return nn.Sequential(*layers).double().eval().requires_grad_(False).to(device)


@pytest.fixture
def x(device: torch.device) -> Tensor:
    return torch.randn(4, 3, 6, 4, dtype=torch.float64).to(device)


def _of(peer: Peer) -> list[object]:
    return [
        pytest.param(peer, chunk, id=f"{peer.name}-{chunk}")
        for chunk in dict.fromkeys((*peer.chunks, 3, None))
    ]


@pytest.mark.parametrize(("peer", "chunk"), [case for peer in TORCH_PEERS for case in _of(peer)])
def test_equals_the_reference(peer: Peer, chunk: int | None, model: nn.Module, x: Tensor) -> None:
    result = as_matrices(peer.prepare(flat(model), x, chunk)(), peer.layout)
    torch.testing.assert_close(result, reference_jacobian(model, x).mT)


@pytest.mark.parametrize("peer", TORCH_PEERS, ids=lambda peer: peer.name)
def test_a_part_is_that_part_of_the_whole(peer: Peer, model: nn.Module, x: Tensor) -> None:
    function, part = part_of(flat(model), x, peer.unit, 2)
    result = as_matrices(peer.prepare(function, part, None)(), peer.layout)
    whole = reference_jacobian(model, x).mT
    assert result.shape[["samples", "outputs", "inputs"].index(peer.unit)] == 2
    torch.testing.assert_close(result, whole[tuple(slice(n) for n in result.shape)])


@pytest.mark.parametrize("widths", [(6, 4), (2, 20)], ids=["reverse", "forward"])
def test_the_reference_in_float64(widths: tuple[int, int], device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(*widths), nn.Tanh()).to(device)
    x = torch.randn(3, widths[0], device=device)
    expected = reference_jacobian(model.double(), x.double()).mT
    torch.testing.assert_close(reference(model.float(), x), expected)


def test_jacobians_of_attention(device: torch.device) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0][:, 0]

    model = Attention().double().eval().requires_grad_(False).to(device)
    x = torch.randn(3, 5, 6, dtype=torch.float64).to(device)
    expected = reference_jacobian(model, x).mT
    for peer in TORCH_PEERS:
        if peer.name in ("loop", "jacrev, math"):
            result = as_matrices(peer.prepare(flat(model), x, 4)(), peer.layout)
            torch.testing.assert_close(result, expected)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("chunk", [2, None])
def test_jax_equals_the_reference(chunk: int | None, model: nn.Module, x: Tensor) -> None:
    from benchmarks.jax_peers import JAX_PEERS

    for peer in JAX_PEERS:
        raw = peer.prepare(flat(model.cpu()), x.cpu(), chunk)()
        result = as_matrices(raw, peer.layout)
        torch.testing.assert_close(result, reference_jacobian(model, x.cpu()).mT, msg=peer.name)


@pytest.mark.parametrize("name", ["lenet", "autoencoder", "decoder", "resnet20"])
def test_workloads_are_frozen_and_the_same_each_time(name: str) -> None:
    workload = WORKLOADS[name]
    model, x = workload.make(2, torch.device("cpu"))
    again, same = workload.make(2, torch.device("cpu"))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model(x), again(same))


def test_sizes_count_one_forward_pass() -> None:
    model, x = WORKLOADS["mlp"].make(2, torch.device("cpu"))
    sizes = sizes_of(model, x)
    assert (sizes.batch, sizes.n_in, sizes.n_out, sizes.passes) == (2, 3072, 100, 100)
    assert sizes.flops == 2 * 2 * (3072 * 512 + 512 * 512 + 512 * 100)
    assert sizes.largest == 512
    assert sizes.total == 4 * 512 + 100  # two layers, two ReLUs, the outputs
