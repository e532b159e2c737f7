"""The probe: what it learns, and what it refuses by name."""

import copy

import pytest
import torch
from torch import nn

import jacli
from jacli.errors import InputsError, ModelError, OutOfMemoryError
from jacli.network import TensorNetwork, exact_arithmetic, frozen_twin
from jacli.verify import BATCH_SIZES, probe
from tests.cases import CASES, build
from tests.reference import reference_jacobian


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def probed(module, x, **options):
    network = TensorNetwork.of_module(frozen_twin(module), **options)
    return probe(network, x, {})


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", CASES)
def test_serves_every_case(name, device):
    module, x, case = build(name, torch.float32, device)
    found = probed(module, x[:2], select=case.select)
    assert found.fixed_batch is None
    assert found.stateful == name.startswith("stateful")
    assert found.squeezes_batch_of_one == (name == "squeezed")


def test_learns_the_output_shape():
    module, x, _ = build("image_to_image", torch.float32)
    assert probed(module, x).output_shape == tuple(module(x).shape[1:])


def test_one_sample_is_enough():
    module, x, _ = build("batch_norm", torch.float32)
    assert probed(module, x[:1]).output_shape == (7,)


@pytest.mark.parametrize("size", [1, 3, 4, 37])
def test_finds_the_only_batch_size(size):
    fixed = Function(lambda x: torch.tanh(x.view(size, 5)))
    hints = (*BATCH_SIZES, 37)
    assert probe(TensorNetwork.of_module(fixed), torch.randn(2, 5), {}, batch_hints=hints).fixed_batch == size


def test_running_out_of_memory_is_no_fault_of_the_inputs():
    def allocate(x):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(OutOfMemoryError):
        jacli.jacobian(Function(allocate), torch.randn(4, 5))


REFUSED = {
    "batch statistics": (nn.BatchNorm1d(5, track_running_stats=False), "BatchNorm1d"),
    "mean over the batch": (Function(lambda x: x - x.mean(0)), "mixes samples"),
    "mixes without a gradient": (Function(lambda x: x - x.mean(0).detach()), "mixes samples"),
    "mixes a little": (Function(lambda x: x.sin() + 1e-5 * x.flip(0).sum() * x), "mixes samples"),
    "the first sample is an anchor": (Function(lambda x: x - x[:1]), "mixes samples"),
    "a running sum": (Function(lambda x: x.cumsum(0)), "mixes samples"),
    "mixing beside a huge output": (
        Function(lambda x: torch.cat([x - x.mean(0), 1e7 * x], 1)),
        "mixes samples",
    ),
    "complex": (Function(torch.fft.fft), "complex"),
    "no outputs": (Function(lambda x: x[:, :0]), "empty"),
    "no rule": (Function(lambda x: torch.heaviside(x, x)), "without a derivative"),
    "one number for the batch": (Function(lambda x: x.sum()), "no batch axis"),
    "no batch axis": (Function(lambda x: x.prod(0)), "no batch axis"),
    "random": (Function(lambda x: nn.functional.dropout(x, 0.5, True)), "random"),
    "integer cast": (Function(lambda x: x.long().float()), "differentiably"),
    "argmax": (Function(lambda x: x.argmax(1)), "int64"),
    "detached": (Function(lambda x: x.detach() * 2), "differentiably"),
    "constant": (Function(lambda x: torch.ones(len(x), 3)), "differentiably"),
    "another dtype": (Function(lambda x: x.double()), "float64"),
    "nothing": (Function(lambda x: "text"), "no tensor"),
    "a pair": (Function(lambda x: (x, x * 2)), "--select 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(name):
    module, words = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        probed(module, torch.randn(4, 5))
    assert words in str(caught.value)
    assert caught.value.why
    assert caught.value.hint


CONV = nn.Conv2d(3, 4, 3)
SERVED = {
    "a single feature a sample": (Function(torch.tanh), (4,), {}),
    "in place on the input": (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)), (4, 5), {}),
    "normalises the input in place": (Function(lambda x: x.sub_(0.5).mul_(2)), (4, 5), {}),
    "overwrites what backward needs": (Function(lambda x: x.exp().mul_(2)), (4, 5), {"overwrites": True}),
    "overwrites nothing": (Function(lambda x: x.exp().mul(2)), (4, 5), {"overwrites": False}),
    "squeeze, then an axis": (
        Function(lambda x: x[..., None].squeeze().log_softmax(1)),
        (4, 5),
        {"squeezes_batch_of_one": True},
    ),
    "pairs only": (Function(lambda x: torch.tanh(x.view(-1, 2, 5)).view(-1, 5)), (4, 5), {"fixed_batch": 2}),
}


@pytest.mark.parametrize("name", SERVED)
def test_serves_unusual_models(name):
    module, shape, expected = SERVED[name]
    found = probed(module, torch.randn(shape))
    for field, value in expected.items():
        assert getattr(found, field) == value


LAYOUTS = {
    "channels-last": (CONV, (2, 16, 12, 3), "NHWC"),
    "channel axis": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 3)),
        (2, 28, 28),
        "channel axis",
    ),
    "batch axis": (nn.Sequential(CONV, nn.Flatten(), nn.Linear(4 * 14 * 10, 3)), (3, 16, 12), "batch axis"),
    "one channel": (CONV, (2, 1, 16, 12), "wants 3"),
    "three channels": (nn.Conv2d(1, 4, 3), (2, 3, 16, 12), "wants 1"),
    "not flat": (nn.Linear(784, 3), (2, 1, 28, 28), "flat"),
    "features": (nn.Linear(10, 3), (2, 9), "shape (9,)"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_says_what_is_wrong_with_the_inputs(name):
    module, shape, words = LAYOUTS[name]
    with pytest.raises(InputsError) as caught:
        probed(module, torch.randn(shape))
    assert words in str(caught.value)


def test_says_that_a_program_is_float32():
    constant = torch.jit.trace(Function(lambda x: x @ torch.ones(5, 3)), torch.randn(2, 5))
    with pytest.raises(ModelError, match="float64"):
        probe(TensorNetwork.of_module(constant), torch.randn(2, 5, dtype=torch.float64), {})


def test_the_random_state_stays_as_it_was():
    model, x = nn.Linear(5, 3), torch.randn(2, 5)
    before = torch.random.get_rng_state()
    probed(model, x)
    assert torch.equal(before, torch.random.get_rng_state())


class SetUpByFirstBatch(nn.Module):
    """ActNorm that has not been set up: it takes its mean from the first batch that it sees."""

    def __init__(self, kept):
        super().__init__()
        self.linear, self.kept, self.mean = nn.Linear(5, 4), kept, None
        self.register_buffer("buffer", torch.full((4,), torch.nan), persistent=False)

    def forward(self, x):
        y = self.linear(x)
        if self.kept == "an attribute":
            self.mean = y.detach().mean(0) if self.mean is None else self.mean
            return torch.tanh(y - self.mean)
        if self.kept == "a buffer" and self.buffer.isnan().any():
            self.buffer.copy_(y.detach().mean(0))
        if self.kept == "the largest so far":
            self.buffer.copy_(torch.fmax(self.buffer, y.detach().amax(0)))
        return torch.tanh(y - self.buffer)


@pytest.mark.parametrize("kept", ["an attribute", "a buffer", "the largest so far"])
def test_what_the_first_batch_leaves_behind_is_noticed(kept):
    """Whatever comes first, samples have the Jacobian of the module as it was given, or there is none."""
    module, x = SetUpByFirstBatch(kept), torch.randn(4, 5)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(module, x)
    assert module.mean is None
    if kept != "the largest so far":
        found = jacli.jacobian(module, x, batch_size=1)
        torch.testing.assert_close(found, reference_jacobian(lambda point: copy.deepcopy(module)(point), x))


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_model_that_demands_a_range_is_served(low, high):
    def ranged(x):
        if x.min() < low or x.max() > high:
            raise ValueError("out of range")
        return torch.tanh(x)

    x = low + (high - low) * torch.rand(4, 5)
    assert probed(Function(ranged), x).output_shape == (5,)
    with pytest.raises(ModelError, match="mixes samples"):
        probed(Function(lambda x: ranged(x) - ranged(x).mean(0)), x)
