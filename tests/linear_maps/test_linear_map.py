"""Linear maps in memory and their chains: products, rows, parts, and what does not fit together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jacli.linear_maps import Chain, DenseMap, FactoredMap, SelectedOutputs

BATCH, N_OUT, R, N_IN, K = 2, 7, 3, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LEFT, RIGHT = random(BATCH, N_OUT, R, seed=1), random(BATCH, R, N_IN, seed=2)
PRODUCT = torch.stack([LEFT[b] @ RIGHT[b] for b in range(BATCH)])

MAPS = {
    "dense": lambda: DenseMap(PRODUCT),
    "factored": lambda: FactoredMap(LEFT, RIGHT),
    "chain": lambda: Chain((DenseMap(RIGHT), DenseMap(LEFT))),
    "chain of one": lambda: Chain((DenseMap(PRODUCT),)),
    "chain of a chain": lambda: Chain(
        (Chain((DenseMap(RIGHT),)), FactoredMap(LEFT, torch.eye(R).double().expand(2, R, R)))
    ),
}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MAPS)
def test_vectors_are_pushed_and_pulled(name: str) -> None:
    """One number at a time: ``u[i, b] @ J[b]`` and ``J[b] @ v[i, b]``."""
    found = MAPS[name]()
    assert (found.batch, found.n_out, found.n_in) == (BATCH, N_OUT, N_IN)
    u, v = random(K, BATCH, N_OUT, seed=3), random(K, BATCH, N_IN, seed=4)
    pulled, pushed = found.vjp(u), found.jvp(v)
    assert pulled.shape == (K, BATCH, N_IN) and pushed.shape == (K, BATCH, N_OUT)
    for i in range(K):
        for b in range(BATCH):
            close(pulled[i, b], u[i, b] @ PRODUCT[b])
            close(pushed[i, b], PRODUCT[b] @ v[i, b])


@pytest.mark.parametrize("name", MAPS)
def test_adjoint_identity(name: str) -> None:
    found = MAPS[name]()
    u, v = random(K, BATCH, N_OUT, seed=5), random(K, BATCH, N_IN, seed=6)
    close((u * found.jvp(v)).sum(2), (found.vjp(u) * v).sum(2))


@pytest.mark.parametrize("name", ["dense", "factored"])
def test_what_a_method_made_can_be_read(name: str) -> None:
    found = MAPS[name]()
    close(found.dense(), PRODUCT)
    close(found.rows(torch.tensor([6, 0, 0])), PRODUCT[:, [6, 0, 0]])
    assert found.rows(torch.tensor([], dtype=torch.long)).shape == (BATCH, 0, N_IN)
    one = found.take(slice(1))
    assert type(one) is type(found) and one.batch == 1
    close(one.dense(), PRODUCT[:1])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("samples", [slice(1, None), torch.tensor([1, 0, 1])], ids=["slice", "index"])
def test_some_samples_are_taken(name: str, samples: slice | Tensor) -> None:
    """In any order, and repeated."""
    matrices = PRODUCT[samples]
    found = MAPS[name]().take(samples)
    assert (found.batch, found.n_out, found.n_in) == (len(matrices), N_OUT, N_IN)
    u, v = random(K, len(matrices), N_OUT, seed=7), random(K, len(matrices), N_IN, seed=8)
    close(found.vjp(u), torch.einsum("kbo,boi->kbi", u, matrices))
    close(found.jvp(v), torch.einsum("boi,kbi->kbo", matrices, v))


def test_selected_outputs_are_rows() -> None:
    """Of each sample its own, in any order, and repeated."""
    index = torch.tensor([[6, 0, 0], [2, 5, 1]])
    found = SelectedOutputs(DenseMap(PRODUCT), index)
    rows = torch.stack([PRODUCT[b][index[b]] for b in range(BATCH)])
    u, v = random(K, BATCH, 3, seed=9), random(K, BATCH, N_IN, seed=10)
    assert (found.batch, found.n_out, found.n_in) == (BATCH, 3, N_IN)
    close(found.vjp(u), torch.einsum("kbo,boi->kbi", u, rows))
    close(found.jvp(v), torch.einsum("boi,kbi->kbo", rows, v))
    close(found.take(slice(1, 2)).vjp(u[:, 1:]), torch.einsum("kbo,boi->kbi", u[:, 1:], rows[1:]))


def test_bytes() -> None:
    assert DenseMap(PRODUCT).nbytes == BATCH * N_OUT * N_IN * 8
    assert FactoredMap(LEFT, RIGHT).nbytes == BATCH * R * (N_OUT + N_IN) * 8


def test_reading_a_dense_map_copies_nothing() -> None:
    assert (
        DenseMap(PRODUCT).dense().data_ptr()
        == DenseMap(PRODUCT).take(slice(1)).dense().data_ptr()
        == PRODUCT.data_ptr()
    )


def test_a_chain_is_the_product_of_three() -> None:
    """The first map is nearest the input."""
    a, b, c = random(BATCH, 4, 6), random(BATCH, 3, 4), random(BATCH, 5, 3)
    chain = Chain((DenseMap(a), DenseMap(b), DenseMap(c)))
    eye = torch.eye(6).double()[:, None].expand(6, BATCH, 6)
    close(chain.jvp(eye).permute(1, 2, 0), c @ b @ a)
    eye = torch.eye(5).double()[:, None].expand(5, BATCH, 5)
    close(chain.vjp(eye).transpose(0, 1), c @ b @ a)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain(()),
        lambda: Chain((DenseMap(LEFT), DenseMap(RIGHT))),  # the wrong way round
        lambda: Chain((DenseMap(RIGHT[:1]), DenseMap(LEFT))),
        lambda: Chain((DenseMap(RIGHT), DenseMap(LEFT), DenseMap(LEFT))),
        lambda: FactoredMap(RIGHT, LEFT),
        lambda: FactoredMap(LEFT, RIGHT[:, :2]),
        lambda: FactoredMap(LEFT[:1], RIGHT),
    ],
)
def test_what_does_not_fit_together(make) -> None:
    with pytest.raises(ValueError, match="must fit together"):
        make()
