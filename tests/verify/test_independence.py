"""What the probe cannot see is seen in the batches of the run."""

import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.errors import ModelError
from jacli.network import Linearized, TensorNetwork, exact_arithmetic, frozen_twin
from jacli.verify import check_batch
from tests.cases import CASES, build
from tests.reference import reference_jacobian


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(self.function(x))


class EveryFew(nn.Module):
    """Changes its answer with every call, after some that do not."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(x) * (1 + max(0, self.calls - 20))


MIXING = {
    "in larger batches only": Function(lambda x: torch.tanh(x - x.mean(0) if len(x) > 4 else x)),
    "a branch on the whole batch": Function(lambda x: torch.tanh(x) if x.sum() > 3 else torch.sin(3 * x)),
    "state after a while": EveryFew(),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_found_in_a_block(name):
    torch.manual_seed(1)
    x = torch.randn(64, 6) + 0.5
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(MIXING[name], x, batch_size=8)


def test_a_fixed_batch_is_checked_in_another_order():
    def anchored(x):
        assert len(x) == 4
        return x - 0.5 * x[2:3].detach() * (x.abs().max() > 20)

    x = torch.randn(8, 6)
    x[4:] *= 100  # only the second batch reaches the branch, not the noise of the probe
    x[:4] = x[:4].clamp(-1, 1)
    with pytest.raises(ModelError, match="another order"):
        jacli.jacobian(Function(anchored), x)


@pytest.mark.parametrize("error", [AssertionError, KeyError, RuntimeError])
def test_a_model_that_fails_on_larger_blocks_is_named(error):
    def small_only(x):
        if len(x) > 4:
            raise error("too many")
        return torch.tanh(x)

    with pytest.raises(ModelError, match="fails on a batch of 8"):
        jacli.jacobian(Function(small_only), torch.randn(16, 6), batch_size=8)
    assert jacli.jacobian(Function(small_only), torch.randn(16, 6), batch_size=4).shape == (16, 6, 5)


def rows(x):
    return torch.arange(len(x), device=x.device)[:, None]


def paired(x):
    """Odd rows see their left neighbour, in batches of four and more."""
    z, n = x.clone(), len(x) // 2 * 2
    z[1:n:2] = x[1:n:2] + 0.5 * x[0:n:2] * (len(x) > 3)
    return z


def routed(x, capacity=5):
    """Of the samples that a gate takes, only the first few are served."""
    taken = x[:, :1] > 0
    return torch.where(taken & (taken.long().cumsum(0) > capacity), 0.1 * x, torch.tanh(x))


DEPENDENT = {
    "neighbours": paired,
    "the row's parity": lambda x: x * (1 + rows(x) % 2 * (len(x) > 2)),
    "every third row": lambda x: x * torch.where((rows(x) % 3 == 2) & (len(x) > 4), 1.01, 1.0),
    "the first row": lambda x: x * torch.where((rows(x) == 0) & (len(x) > 2), 2.0, 1.0),
    "the last row": lambda x: x * torch.where((rows(x) == len(x) - 1) & (len(x) > 2), 2.0, 1.0),
    "one row in the middle": lambda x: x * torch.where(rows(x) == 9, 1.001, 1.0),
    "capacity": routed,
    "the batch's size": lambda x: x * (1 + 1e-3 * (len(x) > 4)),
    "the batch's largest": lambda x: x / x.abs().max().clamp(min=3.0),
    "zero beside NaN": lambda x: torch.where((rows(x) == 3), (x - 99.0).sqrt(), x),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DEPENDENT)
def test_outputs_that_depend_on_the_batch_are_found(name, seed):
    """Whichever the seed, in float32 and without a Jacobian being looked at."""
    torch.manual_seed(seed)
    x = 2 * torch.randn(16, 6)
    linearization = Linearized(TensorNetwork.of_module(Function(DEPENDENT[name])), x, {})
    with pytest.raises(ModelError, match="mixes samples"):
        check_batch(linearization, nn.Identity(), seed=seed, alone=8, fixed_batch=False)


@pytest.mark.parametrize("method", ["auto", "loop", "forward"])
@pytest.mark.parametrize("name", ["neighbours", "the row's parity", "capacity", "the first row"])
def test_the_python_interface_refuses_them(name, method):
    x = torch.randn(64, 6, dtype=torch.float64)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(Function(DEPENDENT[name]).double(), x, method=method, batch_size=16)


@pytest.mark.parametrize("name", ["neighbours", "the row's parity", "the batch's size"])
def test_singular_values_without_the_matrix_are_refused_too(name):
    module = nn.Sequential(Function(DEPENDENT[name]), nn.Linear(5, 40)).double()
    module[0].linear = nn.Linear(40, 5)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.singular_values(module.double(), torch.randn(12, 40, dtype=torch.float64), k=1)


@pytest.mark.parametrize("name", ["neighbours", "the row's parity", "capacity", "the first row"])
@pytest.mark.parametrize("seed", range(5))
def test_a_fixed_batch_is_run_in_another_order(name, seed):
    torch.manual_seed(seed)
    linearization = Linearized(TensorNetwork.of_module(Function(DEPENDENT[name])), torch.randn(16, 6), {})
    with pytest.raises(ModelError, match="another order"):
        check_batch(linearization, nn.Identity(), seed=seed, alone=1, fixed_batch=True)


def test_a_fixed_batch_is_run_in_other_company():
    """What depends on the batch as a whole shows where half of it is replaced."""
    module = Function(lambda x: x * (1 + x.detach().abs().max()))
    found = 0
    for seed in range(20):
        torch.manual_seed(seed)
        linearization = Linearized(TensorNetwork.of_module(module), torch.randn(16, 6), {})
        try:
            check_batch(linearization, module, seed=seed, alone=1, fixed_batch=True)
        except ModelError:
            found += 1
    assert found >= 5  # the largest is in the half that goes, in every other batch


class Branch(nn.Module):
    def forward(self, x):
        if bool(x.sum() > 0):
            return x * 2
        return x * 3


class NumpyBranch(nn.Module):
    def forward(self, x):
        return x * 2 if np.asarray(x.detach()).sum() > 0 else x * 3


class CountedBranch(nn.Module):
    def forward(self, x):
        return x * 2 if (x[:, 0] > 0).sum().item() > len(x) / 2 else x * 3


BRANCHES = {
    "python": Branch(),
    "TorchScript": torch.jit.script(Branch()),
    "NumPy": NumpyBranch(),
    "a count": CountedBranch(),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_the_whole_batch_is_refused_or_right_for_every_seed(name):
    refused = 0
    for seed in range(40):
        x = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed))
        try:
            found = jacli.jacobian(BRANCHES[name], x)
        except ModelError as error:
            assert "mixes samples" in error.what
            refused += 1
        else:
            torch.testing.assert_close(found, reference_jacobian(BRANCHES[name], x))
    assert refused > 30


def test_where_every_sample_takes_the_same_branch_the_result_is_right():
    x = torch.rand(7, 4) + 0.1
    expected = 2 * torch.eye(4).expand(7, 4, 4)
    torch.testing.assert_close(jacli.jacobian(Branch(), x), expected)


class Cancelling(nn.Module):
    """Outputs that are differences of large numbers: rounding leaves few of their digits."""

    def forward(self, x):
        y = torch.tanh(x) * 1e4
        return torch.stack([(y.sum(1) + x[:, 0]) - y.flip(1).sum(1), torch.sin(50 * y).mean(1)], 1)


class FakeQuantised(nn.Module):
    """Activations on a grid, with straight-through gradients: rounding may move one by a step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(200, 200) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
            x = x + ((x * 127).round() / 127 - x).detach()
        return x


SERVED = {
    "quantised": (FakeQuantised, (200,)),
    "cancelling": (Cancelling, (300,)),
    "deep": (lambda: nn.Sequential(*[m for _ in range(60) for m in (nn.Linear(30, 30), nn.ReLU())]), (30,)),
    "recurrent": (lambda: Last(nn.LSTM(4, 8, 2, batch_first=True)), (50, 4)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 5)), (3, 12, 12)),
    "one output near zero": (lambda: nn.Sequential(nn.Linear(500, 1, bias=False), Small()), (500,)),
}


class Small(nn.Module):
    def forward(self, x):
        return x - x.detach().round(decimals=4)


class Last(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        return self.recurrent(x)[0][:, -1]


@pytest.mark.parametrize("size", [2, 5, 33])
@pytest.mark.parametrize("name", SERVED)
def test_rounding_is_no_mixing(name, size):
    make, shape = SERVED[name]
    for seed in range(5):
        torch.manual_seed(seed)
        network = TensorNetwork.of_module(frozen_twin(make()))
        linearization = Linearized(network, torch.randn(size, *shape), {})
        check_batch(linearization, network.module, seed=seed, alone=8, fixed_batch=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_every_case_passes(name, dtype):
    module, _, case = build(name, dtype)
    x = torch.randn(9, *case.shape, dtype=dtype)
    stateful = isinstance(getattr(module, "state", None), torch.Tensor)
    network = TensorNetwork.of_module(
        frozen_twin(module),
        select=case.select,
        copy_each_call=stateful,
        squeezes_batch_of_one=name == "squeezed",
    )
    with exact_arithmetic():
        check_batch(Linearized(network, x, {}), module, seed=0, alone=8, fixed_batch=False)


class Leaky(nn.Module):
    """In larger batches gradients cross between samples; outputs do not."""

    def __init__(self, share):
        super().__init__()
        self.linear, self.share = nn.Linear(6, 5).double(), share

    def forward(self, x):
        other = x.roll(1, 0) if len(x) > 4 else x
        return torch.tanh(self.linear(x + self.share * (other - other.detach())))


@pytest.mark.parametrize("share", [1.0, 1e-4])
@pytest.mark.parametrize("method", ["loop", "vmap", "replicate", "auto"])
def test_gradients_across_samples_of_the_runs_own_batch_are_refused(method, share):
    x = torch.randn(16, 6, dtype=torch.float64)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(Leaky(share), x, method=method, batch_size=8)


def test_without_a_gradient_that_crosses_the_same_model_is_served():
    x, module = torch.randn(16, 6, dtype=torch.float64), Leaky(0.0)
    torch.testing.assert_close(jacli.jacobian(module, x, batch_size=8), reference_jacobian(module, x))


class Scaled(torch.autograd.Function):
    """The identity, with a derivative that is not 1."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0], None


def without_gradient(which):
    return lambda x: torch.where(which(x), x.detach(), x)


GRADIENTS = {
    "a backward that knows the row": lambda x: Scaled.apply(x, 1.0 + rows(x)),
    "a backward that knows the batch": lambda x: Scaled.apply(x, x.detach().square().mean()),
    "odd rows detached": without_gradient(lambda x: rows(x) % 2 == 1),
    "the last row detached": without_gradient(lambda x: rows(x) == len(x) - 1),
    "later rows detached": without_gradient(lambda x: rows(x) >= 8),
    "larger batches detached": without_gradient(lambda x: (rows(x) % 2 == 1) & (len(x) > 8)),
}


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_depend_on_the_batch_are_found_where_outputs_do_not(name, method):
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(Function(GRADIENTS[name]), torch.randn(32, 6), method=method, batch_size=16)


@pytest.mark.parametrize("name", ["a backward that knows the row", "odd rows detached"])
def test_they_are_found_without_the_matrix_and_where_the_batch_size_is_fixed(name):
    def fixed(x):
        assert len(x) == 4
        return GRADIENTS[name](x)

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(Function(fixed), torch.randn(16, 6))
    wide = nn.Sequential(Function(GRADIENTS[name]), nn.Linear(5, 40))
    wide[0].linear = nn.Linear(40, 5)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.singular_values(wide, torch.randn(12, 40), k=1)


def test_what_depends_on_the_largest_of_a_batch_shows_in_its_halves():
    """One sample in the batch is another, in any order; the half without it has another such sample."""
    largest_zeroed = Function(lambda x: torch.where(x.sum(1, True) == x.sum(1).max(), 0.0, x))
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(largest_zeroed, torch.randn(128, 6), batch_size=32)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("scale", [20.0, 60.0, 200.0])
@pytest.mark.parametrize("mixed", [False, True])
def test_saturated_softmaxes_are_served(scale, mixed, method):
    """A pass of a Gaussian cotangent loses to rounding what passes of single rows keep."""
    torch.manual_seed(0)
    linear, last = nn.Linear(6, 5), torch.randn(5, 7)

    def confident(x):
        chances = torch.softmax(scale * linear(x), 1)
        return chances @ last if mixed else chances

    x = torch.randn(40, 6)
    found = jacli.jacobian(confident, x, method=method)
    alone = torch.cat([jacli.jacobian(confident, row, method="loop") for row in x.split(1)])
    assert (found - alone).abs().max() < 1e-4 * alone.abs().max()


def test_numbers_too_small_for_a_float_are_served():
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    assert jacli.jacobian(lambda x: 1e-42 * linear(torch.relu(x)), torch.randn(9, 6)).any()


class SingleInside(nn.Module):
    """Parts of it compute in float32, whatever they are given; their kernels round by batch size."""

    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.part, self.low, self.top = part, nn.Linear(64, 256), nn.Linear(256, 12)
        self.filters = nn.Parameter(torch.randn(16, 1, 3))

    def forward(self, x):
        if self.part == "a convolution":
            x = nn.functional.conv1d(x[:, None].float(), self.filters.float()).relu().mean(2).repeat(1, 4)
            x = x.to(self.low.weight.dtype)
        y = self.low(x)
        if self.part == "a product":
            y = (x.float() @ self.low.weight.float().mT).to(x.dtype)
        if self.part == "a norm":
            y = y.float()
            y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        if self.part == "a softmax":
            y = torch.softmax(y, -1, dtype=torch.float32).to(x.dtype)
        return self.top(torch.tanh(y))


@pytest.mark.parametrize("method", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("part", ["a convolution", "a product", "a norm", "a softmax"])
def test_float32_inside_a_float64_model_is_no_mixing(part, method):
    module, x = SingleInside(part).double(), torch.randn(17, 64, dtype=torch.float64)
    found = jacli.jacobian(module, x, method=method, batch_size=16)
    torch.testing.assert_close(found, reference_jacobian(module, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["a convolution", "a product"])
def test_mixing_is_found_beside_float32_inside(part):
    class Mixed(SingleInside):
        def forward(self, x):
            return super().forward(x) * (1 + 1e-3 * (len(x) > 4))

    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(Mixed(part).double(), torch.randn(17, 64, dtype=torch.float64), batch_size=16)


class OneMemory(nn.Module):
    """Writes every result into the same memory, as a recorded CUDA graph does."""

    def __init__(self, kept, doubled):
        super().__init__()
        self.linear, self.kept, self.doubled = nn.Linear(6, 5), kept, doubled
        self.register_buffer("buffer", torch.zeros(64, 5) if kept == "a buffer" else None, persistent=False)
        self.attribute = torch.zeros(64, 5)

    def forward(self, x):
        memory = self.buffer.detach() if self.kept == "a buffer" else self.attribute.detach()
        y = torch.tanh(self.linear(x))
        if self.doubled:
            y = torch.where(rows(x) % 2 == 1, 2 * y, y)
        return memory[: len(x)].copy_(y)


@pytest.mark.parametrize("method", ["auto", "loop", "replicate"])
@pytest.mark.parametrize("kept", ["a buffer", "an attribute"])
def test_results_in_the_same_memory_are_compared_as_they_were(kept, method):
    torch.manual_seed(0)
    module, x = OneMemory(kept, False), torch.randn(20, 6)
    found = jacli.jacobian(module, x, batch_size=8, method=method)
    torch.testing.assert_close(found, reference_jacobian(module, x))
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(OneMemory(kept, True), x, batch_size=8, method=method)
