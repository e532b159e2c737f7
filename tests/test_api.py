"""The Python interface: `jacli.jacobian`, `jacli.singular_values`, `jacli.compute`, `jacli.open`."""

from __future__ import annotations

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


@pytest.mark.parametrize("k", [2, 40])
def test_few_singular_values_of_a_large_matrix(k: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(810, 80), nn.Tanh(), nn.Linear(80, 800)).double()
    points = torch.randn(2, 3, 18, 15, dtype=torch.float64)
    exact = torch.linalg.svdvals(reference_jacobian(model, points).mT)
    torch.testing.assert_close(jacli.singular_values(model, points, k=k), exact[:, :k], rtol=1e-5, atol=0)


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


def test_few_singular_values_in_a_reduced_precision_are_those_of_the_matrix() -> None:
    """Its products with J and with J' round differently: they are not the products of one matrix."""
    model, points = nn.Linear(800, 800).double(), torch.randn(2, 800, dtype=torch.float64)
    sigma = jacli.singular_values(model, points, k=2, precision="bf16")
    exact = torch.linalg.svdvals(model.weight.detach())[:2]
    torch.testing.assert_close(sigma, exact.expand(2, -1), rtol=5e-2, atol=0)


def test_few_singular_values_of_what_does_not_fit_in_memory() -> None:
    """The Jacobian of a sample takes 6.4 MB, and 4 MiB may be held."""
    weight = torch.linalg.qr(torch.randn(900, 900, dtype=torch.float64))[0] * torch.linspace(3, 0.1, 900)
    model = nn.Linear(900, 900, bias=False).double()
    model.weight.data = weight
    sigma = jacli.singular_values(model, torch.randn(3, 900, dtype=torch.float64), k=1, memory="4MiB")
    torch.testing.assert_close(sigma, torch.full((3, 1), 3.0, dtype=torch.float64), rtol=1e-4, atol=0)


class Bent(nn.Module):
    """Tanh between two matrices; J = B diag(1 - tanh^2) A."""

    def __init__(self, n_in: int, width: int, n_out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_in, width), nn.Linear(width, n_out)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize(("n_in", "n_out", "k"), [(30, 20, 3), (20, 30, 20), (700, 900, 2)])
def test_svd(n_in: int, n_out: int, k: int) -> None:
    torch.manual_seed(0)
    model, points = Bent(n_in, 650, n_out).double(), torch.randn(3, n_in, dtype=torch.float64)
    jacobians = reference_jacobian(model, points).mT
    found = jacli.svd(model, points, k=k, rtol=1e-6)
    left, values, right = found
    exact = torch.linalg.svdvals(jacobians)[:, :k]
    assert (left.shape, values.shape, right.shape) == ((3, n_out, k), (3, k), (3, n_in, k))
    assert ((values - exact).abs() <= found.errors).all() and (found.errors <= 1e-5 * exact[:, :1]).all()
    torch.testing.assert_close(
        jacobians @ right, left * values[:, None], rtol=0, atol=1e-5 * float(exact.max())
    )
    top = right.gather(1, right.abs().argmax(1, keepdim=True))
    assert (top > 0).all()


def test_svd_of_selected_outputs_of_an_image_network() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 7)).double()
    points = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = jacli.svd(model, points, k=2, classes=[4, 0, 5])
    assert found.U.shape == (2, 3, 2) and found.V.shape == (2, 2, 6, 6, 2)
    jacobians = reference_jacobian(model, points).reshape(2, 72, 7).mT[:, [4, 0, 5]]
    torch.testing.assert_close(
        jacobians @ found.V.reshape(2, 72, 2), found.U * found.S[:, None], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["module", "TorchScript", "function"])
def test_linear_map(kind: str) -> None:
    module, points = Bent(9, 8, 6).double(), torch.randn(3, 9, dtype=torch.float64)
    model = {"module": module, "TorchScript": torch.jit.script(module), "function": lambda x: module(x)}[kind]
    jacobians = reference_jacobian(module, points).mT
    u, v = torch.randn(4, 3, 6, dtype=torch.float64), torch.randn(4, 3, 9, dtype=torch.float64)
    with jacli.linear_map(model, points) as found:
        assert (found.batch, found.n_out, found.n_in) == (3, 6, 9)
        torch.testing.assert_close(found.vjp(u), torch.einsum("kbo,boi->kbi", u, jacobians))
        torch.testing.assert_close(found.jvp(v), torch.einsum("kbi,boi->kbo", v, jacobians))
        torch.testing.assert_close(found.outputs, module(points))
        torch.testing.assert_close(found.take(slice(1, 2)).vjp(u[:, 1:2]), found.vjp(u)[:, 1:2])
        with pytest.raises(UsageError, match="cotangents of the shape"):
            found.vjp(v)
    with pytest.raises(ValueError, match="closed"):
        found.vjp(u)


def test_linear_map_for_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    model, points = Bent(40, 30, 25).double(), torch.randn(3, 40, dtype=torch.float64)
    jacobian = reference_jacobian(model, points)[1].T
    with jacli.linear_map(model, points) as found:
        operator = found.to_scipy(1)
        assert operator.shape == (25, 40) and operator.dtype == np.float64
        largest = linalg.svds(operator, k=3, return_singular_vectors=False)
        block = operator @ np.eye(40)
        with pytest.raises(UsageError, match="no sample 3"):
            found.to_scipy(3)
    assert np.sort(largest)[::-1] == pytest.approx(torch.linalg.svdvals(jacobian)[:3].numpy(), rel=1e-8)
    np.testing.assert_allclose(block, jacobian, atol=1e-12)


@pytest.mark.parametrize("options", [{"rtol": 0}, {"rtol": "x"}, {"certify": 2}, {"k": None}])
def test_wrong_options_of_svd(options: dict[str, object]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(UsageError, match=f"{name}" if value is None else f"{name}={value!r} is wrong"):
        jacli.svd(nn.Linear(3, 2), torch.randn(1, 3), **{"k": 1, **options})  # type: ignore[arg-type]


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
        "linear_map",
        "open",
        "singular_values",
        "svd",
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
