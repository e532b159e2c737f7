"""The Python interface: `jacli.jacobian`, `jacli.singular_values`, `jacli.compute`, `jacli.open`."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli import api
from jacli.choice.memory_limit import MemoryLimit
from jacli.errors import InputsError, JacliError, MethodError, ModelError, UsageError
from jacli.run import option_signature
from tests.reference import reference_jacobian


def _network(n: int = 7) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, n)
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 5, 4, dtype=torch.float64)


def test_jacobian_shape_and_order(x: Tensor) -> None:
    model = _network().double().eval()
    J = jacli.jacobian(model, x)
    assert J.shape == (2, 3, 5, 4, 7) and J.dtype == torch.float64 and not J.requires_grad
    torch.testing.assert_close(J, reference_jacobian(model, x).reshape(J.shape), rtol=1e-10, atol=1e-12)
    first = torch.func.jacrev(lambda point: model(point[None])[0])(x[0])  # the class axis first
    torch.testing.assert_close(J[0], first.detach().movedim(0, -1), rtol=1e-10, atol=1e-12)


def test_any_shapes() -> None:
    linear = nn.Linear(4, 5).double()
    J = jacli.jacobian(linear, torch.randn(2, 3, 4, dtype=torch.float64))
    assert J.shape == (2, 3, 4, 3, 5)
    expected = torch.einsum("st,oi->sito", torch.eye(3, dtype=torch.float64), linear.weight.detach())
    torch.testing.assert_close(J, expected.expand_as(J))
    assert jacli.jacobian(lambda y: y.sin(), torch.randn(3)).shape == (3,)


def test_float32_stays_float32(x: Tensor) -> None:
    assert jacli.jacobian(_network().eval(), x.float()).dtype == torch.float32


@pytest.mark.parametrize("method", ["loop", "replicate", "vmap", "forward"])
def test_methods_and_block_sizes(x: Tensor, method: str) -> None:
    model = _network().double().eval()
    options = {} if method in ("loop", "replicate") else {"chunk_size": 3}
    J = jacli.jacobian(model, x, method=method, batch_size=1, **options)
    torch.testing.assert_close(J, jacli.jacobian(model, x), rtol=1e-10, atol=1e-12)


def test_the_model_stays_as_it_is(x: Tensor) -> None:
    """A model in training: computed in eval mode, and left in training."""
    model = _network().double().train()
    model[0].weight.requires_grad_(False)
    model[0].eval()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    points = x.clone().requires_grad_(True)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    J = jacli.jacobian(model, points)
    sigma = jacli.singular_values(model, points, k=1)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert points.requires_grad and points.grad is None
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    model.eval()
    torch.testing.assert_close(J, reference_jacobian(model, x).reshape(J.shape), rtol=1e-10, atol=1e-12)
    assert sigma.shape == (2, 1)


def _process() -> tuple[object, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch._C._get_graph_executor_optimize(),
    )


@pytest.mark.parametrize("fast", [True, False])
def test_the_process_stays_as_it_is(fast: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    lstm = nn.LSTM(4, 3, batch_first=True).eval()
    points = torch.randn(2, 5, 4)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        process = _process()
        assert jacli.jacobian(layer, points).shape == (2, 5, 4, 5, 4)
        jacli.jacobian(lstm, points, select="0", method="forward")
        jacli.singular_values(layer, points, k=2)
        with pytest.raises(JacliError):
            jacli.jacobian(lambda y: y - y.mean(0), points)
        assert _process() == process
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_within_no_grad(x: Tensor) -> None:
    model = _network().double().eval()
    expected = jacli.jacobian(model, x)
    with torch.no_grad():
        assert torch.equal(jacli.jacobian(model, x), expected)
        assert not torch.is_grad_enabled()


def test_a_function_with_arguments() -> None:
    points = torch.randn(3, 4, dtype=torch.float64)
    offset = torch.randn(3, 4, dtype=torch.float64)

    def function(y: Tensor, *, offset: Tensor, power: int) -> Tensor:
        return (y + offset) ** power

    J = jacli.jacobian(function, points, per_sample=["offset"], offset=offset, power=3, batch_size=2)
    torch.testing.assert_close(J, torch.diag_embed(3 * (points + offset) ** 2))


def test_select_and_of() -> None:
    points = torch.randn(2, 4, dtype=torch.float64)
    J = jacli.jacobian(lambda y: {"a": y, "b": y.cos()}, points, select="b")
    torch.testing.assert_close(J, torch.diag_embed(-points.sin()))
    p = points.softmax(1)
    J = jacli.jacobian(lambda y: y * 1.0, points, of="probs")
    torch.testing.assert_close(J, torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


def test_singular_values(x: Tensor) -> None:
    model = _network().double().eval()
    matrices = reference_jacobian(model, x).mT
    exact = torch.linalg.svdvals(matrices)
    sigma = jacli.singular_values(model, x)
    assert sigma.shape == (2, 7) and sigma.dtype == torch.float64
    torch.testing.assert_close(sigma, exact, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jacli.singular_values(model, x, k=3), exact[:, :3], rtol=1e-10, atol=1e-12)
    assert jacli.singular_values(model, x, k=50).shape == (2, 7)
    assert jacli.singular_values(model.float(), x.float()).dtype == torch.float64


def test_few_singular_values_without_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(810, 80), nn.Tanh(), nn.Linear(80, 800)).double()
    points = torch.randn(2, 3, 18, 15, dtype=torch.float64)
    exact = torch.linalg.svdvals(reference_jacobian(model, points).mT)

    def fail(*arguments: object, **options: object) -> Tensor:
        raise AssertionError("J was formed")

    monkeypatch.setattr(api.InMemoryRun, "dense", fail)
    torch.testing.assert_close(jacli.singular_values(model, points, k=2), exact[:, :2], rtol=1e-5, atol=0)
    with pytest.raises(AssertionError, match="J was formed"):
        jacli.singular_values(model, points, k=40)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.arange(4)[None]), InputsError, "int64"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), [[1.0] * 4]), InputsError, "list"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.zeros(0, 4)), InputsError, r"\(0, 4\)"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.tensor(1.0)), InputsError, r"\(\)"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.zeros(2, 3)), InputsError, r"\(3,\)"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.zeros(2, 4), method="vmop"), UsageError, "vmap"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.zeros(2, 4), batch_size=0), UsageError, "batch-size"),
        (lambda: jacli.jacobian(nn.Linear(4, 5), torch.zeros(2, 4), select="1"), ModelError, "1"),
        (lambda: jacli.jacobian(lambda y: y.sum(), torch.zeros(2, 4)), ModelError, "batch axis"),
        (lambda: jacli.jacobian(lambda y: y.argmax(1), torch.zeros(2, 4)), ModelError, "int64"),
        (lambda: jacli.jacobian(lambda y: y.detach(), torch.zeros(2, 4)), ModelError, "differentiably"),
        (
            lambda: jacli.jacobian(lambda y: y.view(3, 4).sin(), torch.randn(3, 4), method="replicate"),
            MethodError,
            "replicate",
        ),
        (lambda: jacli.singular_values(nn.Linear(4, 5), torch.zeros(2, 4), k=0), UsageError, "k=0"),
        (lambda: jacli.singular_values(nn.Linear(4, 5), torch.zeros(2, 4), k=1.5), UsageError, "k=1.5"),
    ],
)
def test_what_is_refused(call: Callable[[], object], error: type[JacliError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert caught.value.what and (caught.value.why or caught.value.hint)


def test_compute_and_open(tmp_path: Path) -> None:
    model = _network().eval()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    (tmp_path / "arch.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5),\n"
        "                         nn.Flatten(), nn.Linear(36, 7))\n"
    )
    points = np.random.default_rng(0).standard_normal((5, 3, 5, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", points)
    outcome = jacli.compute(
        tmp_path / "state.pt", tmp_path / "x.npy", out=tmp_path / "out.h5",
        arch=f"{tmp_path / 'arch.py'}:make", classes="top:2", batch_size=2,
    )  # fmt: skip
    assert outcome.out == tmp_path / "out.h5" and outcome.samples == 5
    assert outcome.shape == (3, 5, 4, 2) and outcome.not_finite == ()
    J = jacli.jacobian(model, torch.from_numpy(points)).numpy()
    with jacli.open(tmp_path / "out.h5") as results:
        assert results.jacobian.shape == (5, 3, 5, 4, 2)
        top = np.argsort(-model(torch.from_numpy(points)).detach().numpy(), axis=1)[:, :2]
        np.testing.assert_allclose(results.jacobian[3], J[3][..., top[3]], rtol=1e-4, atol=1e-6)
        assert results.singular_values.shape == (5, 2)
        assert results.attrs["method"] in ("loop", "replicate", "vmap", "forward")
        assert results.attrs["command"] == "jacli.compute(...)"
    again = {"arch": f"{tmp_path / 'arch.py'}:make", "out": tmp_path / "out.h5"}
    same = jacli.compute(tmp_path / "state.pt", tmp_path / "x.npy", classes="top:2", **again)
    assert same.samples == 5 and same.continued == 5
    with pytest.raises(JacliError, match="exists"):
        jacli.compute(tmp_path / "state.pt", tmp_path / "x.npy", classes="top:3", **again)


def test_compute_names_every_wrong_option() -> None:
    with pytest.raises(UsageError, match=r"(?s)methood.*dtype"):
        jacli.compute("model.pt", "x.npy", methood="vmap", dtype="half")


@pytest.mark.parametrize(("precision", "formed"), [("ieee", False), ("bf16", True)])
def test_few_singular_values_in_a_reduced_precision_are_those_of_the_matrix(
    monkeypatch: pytest.MonkeyPatch, precision: str, formed: bool
) -> None:
    """Its products with J and with J' round differently: they are not the products of one matrix."""
    asked: list[int] = []
    largest = api.InMemoryRun.largest

    def noting(work: api.InMemoryRun, k: int) -> torch.Tensor | None:
        asked.append(k)
        return largest(work, k)

    monkeypatch.setattr(api.InMemoryRun, "largest", noting)
    model, points = nn.Linear(800, 800).double(), torch.randn(2, 800, dtype=torch.float64)
    sigma = jacli.singular_values(model, points, k=2, precision=precision)
    exact = torch.linalg.svdvals(model.weight.detach())[:2]
    torch.testing.assert_close(sigma, exact.expand(2, -1), rtol=5e-2 if formed else 1e-4, atol=0)
    assert asked == ([] if formed else [2])


@pytest.mark.parametrize(("outputs", "k"), [(10, 1), (50, 4), (300, 1), (900, 3)])
def test_few_singular_values_are_never_slower_than_all(
    monkeypatch: pytest.MonkeyPatch, outputs: int, k: int
) -> None:
    """Where products take longer than the matrix does, it is formed."""

    def fail(*arguments: object) -> Tensor:
        raise AssertionError("products with vectors")

    monkeypatch.setattr(api.InMemoryRun, "largest", fail)
    model, points = nn.Linear(outputs + 5, outputs).double(), torch.randn(2, outputs + 5).double()
    exact = torch.linalg.svdvals(model.weight.detach())[:k]
    torch.testing.assert_close(jacli.singular_values(model, points, k=k), exact.expand(2, -1))


def test_few_singular_values_of_what_does_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = nn.Linear(60, 50).double(), torch.randn(3, 60, dtype=torch.float64)
    real = MemoryLimit.of_run
    monkeypatch.setattr(
        MemoryLimit, "of_run", lambda config, device: dataclasses.replace(real(config, device), limit=50_000)
    )
    monkeypatch.setattr(api.InMemoryRun, "dense", lambda work: pytest.fail("the matrix was formed"))
    sigma = jacli.singular_values(model, points, k=2)
    exact = torch.linalg.svdvals(model.weight.detach())[:2]
    torch.testing.assert_close(sigma, exact.expand(3, -1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("module", [api, option_signature])
def test_examples_in_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


def test_public_names() -> None:
    assert set(jacli.__all__) == {
        "JacliError",
        "__version__",
        "compute",
        "jacobian",
        "open",
        "singular_values",
    }
    with pytest.raises(AttributeError, match="jacobean"):
        _ = jacli.jacobean


def test_compute_within_no_grad(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(4, 5)).save(tmp_path / "model.pt")
    with torch.no_grad():
        outcome = jacli.compute(tmp_path / "model.pt", "random:3x4", out=tmp_path / "out.h5")
    assert outcome.shape == (4, 5)


def test_only_arguments_named_per_sample_are_split() -> None:
    """A constant whose length happens to be the batch's stays whole."""
    points = torch.randn(3, 3, dtype=torch.float64)
    mean = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    J = jacli.jacobian(lambda y, mean: y * mean, points, mean=mean)
    torch.testing.assert_close(J, torch.diag(mean).expand(3, 3, 3))
    with pytest.raises(UsageError, match="no row per sample"):
        jacli.jacobian(lambda y, mean: y * mean, points, per_sample=["mean"], mean=mean[:2])


def test_points_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputsError, match="not finite"):
        jacli.jacobian(torch.sin, torch.tensor([[1.0, torch.nan]]))


def test_wrong_options_are_refused() -> None:
    points = torch.randn(2, 3)
    with pytest.raises(UsageError, match="--of prob"):
        jacli.jacobian(torch.sin, points, of="prob")
    with pytest.raises(UsageError, match="no dry_run"):
        jacli.compute("model.pt", "x.npy", dry_run=True)


@pytest.mark.parametrize("method", ["loop", "replicate", "vmap", "forward", "factored"])
def test_a_function_that_closes_over_a_trainable_module(method: str) -> None:
    """Its parameters are not frozen, and yet the result has no history, and nothing is warned of."""
    model = nn.Sequential(nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 7)).double()
    points = torch.randn(4, 9, dtype=torch.float64)
    J = jacli.jacobian(lambda y: model(y), points, method=method)
    assert not J.requires_grad
    torch.testing.assert_close(J, reference_jacobian(model, points), rtol=1e-10, atol=1e-12)
