"""What a call of `jacli.jacobian` keeps for the next one: the plan, never a result that is out of date."""

from __future__ import annotations

import copy
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from types import MethodType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.choice import measure as measuring
from jacli.choice import memory_limit as memory
from jacli.choice import problem as task
from jacli.engine import module_cache
from jacli.engine.batch_checks import CheckHistory
from jacli.errors import ModelError
from jacli.in_memory import in_memory_run
from tests.reference import reference_jacobian


class Settings:
    """An object that holds a number, as many a model's settings do."""

    gain = 1.0


class Network(nn.Module):
    """Narrow; with a buffer, and attributes of many kinds that its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 7))
        self.register_buffer("shift", torch.linspace(0.1, 0.7, 7))
        self.scale = 2.0
        self.flag = False
        self.how = "sin"
        self.factors = [1.0, 2.0]
        self.options = {"power": 1}
        self.plain = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
        self.act: Callable[[Tensor], Tensor] = torch.sin
        self.config = Settings()
        self.array = np.ones(1)
        self.others = [nn.Linear(7, 7).double()]  # no part of the module, as far as torch knows

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) * self.scale + self.shift
        y = -y if self.flag else y
        y = torch.sin(y) if self.how == "sin" else torch.cos(y)
        y = self.others[0](y) * (self.config.gain + self.array[0])
        return self.act(y * self.factors[0] * self.plain) ** self.options["power"] * self.shift


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 9, dtype=torch.float64)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something was probed, measured and traced."""
    counts: Counter[str] = Counter()

    def counting(place: object, name: str, kind: str) -> None:
        real = getattr(place, name)

        def run(*arguments: object, **options: object) -> object:
            counts[kind] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(place, name, run)

    counting(in_memory_run, "probed_network", "probed")
    counting(measuring._Stopwatch, "seconds", "measured")
    counting(task, "trace_network", "traced")
    return counts


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    """Nothing kept of other tests' modules, which may still be alive."""
    module_cache._ENTRIES.clear()
    yield
    module_cache._ENTRIES.clear()


def model() -> Network:
    return Network().double().eval()


def check(module: Callable[..., Tensor], x: Tensor, **options: object) -> None:
    found = jacli.jacobian(module, x, **options)
    expected = reference_jacobian(module, x)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


METHODS = ["auto", "loop", "vmap", "forward", "replicate", "adjoint", "tangent", "factored"]

GRAPHS = ("adjoint", "tangent", "factored")


@pytest.mark.parametrize("method", METHODS)
def test_a_second_call_finds_out_nothing_anew(x: Tensor, done: Counter[str], method: str) -> None:
    module = model()
    check(module, x, method=method)
    assert done["probed"] == 1
    assert done["measured"] > 0 or method in ("loop", "replicate", "adjoint")  # of which one size is possible
    assert method not in GRAPHS or done["traced"] == 1
    done.clear()
    for _ in range(3):
        check(module, x, method=method)
        check(module, torch.randn_like(x), method=method)  # other points of the same shape
    assert not done


def test_precisions_are_kept_apart(x: Tensor, done: Counter[str]) -> None:
    module = model()
    for precision in ("ieee", "bf16"):
        jacli.jacobian(module, x, precision=precision)
        assert done.pop("probed") == 1
    check(module, x)
    assert not done["probed"]


def in_place(module: Network) -> None:
    with torch.no_grad():
        module.body[0].weight.mul_(1.7)


def through_data(module: Network) -> None:
    module.body[2].weight.data[0, 0] += 1


def one_number(module: Network) -> None:
    with torch.no_grad():
        module.body[0].bias[2] = torch.nextafter(module.body[0].bias[2], torch.tensor(9.0).double())


def loaded(module: Network) -> None:
    module.load_state_dict(Network().double().state_dict())


def new_parameter(module: Network) -> None:
    module.body[0].weight = nn.Parameter(torch.randn(3, 9, dtype=torch.float64))


def new_layer(module: Network) -> None:
    module.body[2] = nn.Linear(3, 7).double()


def buffer(module: Network) -> None:
    module.shift.mul_(3)


def step(module: Network) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.randn(4, 9, dtype=torch.float64)).sum().backward()
    optimizer.step()


WEIGHTS = [in_place, through_data, one_number, loaded, new_parameter, new_layer, buffer, step]


@pytest.mark.parametrize("method", ["auto", "vmap", *GRAPHS])
@pytest.mark.parametrize("change", WEIGHTS)
def test_other_weights_give_other_jacobians(
    x: Tensor, done: Counter[str], change: Callable[[Network], None], method: str
) -> None:
    module = model()
    check(module, x, method=method)
    change(module)
    done.clear()
    check(module, x, method=method)
    assert not done["probed"] or change is new_layer  # its shapes do not depend on values
    if method == "vmap" and change is not new_layer:
        assert not done["measured"]  # which sizes are the fastest does not depend on values
    if method in GRAPHS:
        assert done["traced"] == 1  # the graph holds the parameters of then
    done.clear()
    check(module, x, method=method)
    assert not done


@pytest.mark.parametrize("method", GRAPHS)
def test_back_and_forth(x: Tensor, method: str) -> None:
    module = model()
    first, second = copy.deepcopy(module.state_dict()), Network().double().state_dict()
    for state in (first, second, first, second):
        module.load_state_dict(state)
        check(module, x, method=method)


def number(module: Network) -> None:
    module.scale = 3.0


def flag(module: Network) -> None:
    module.flag = True


def text(module: Network) -> None:
    module.how = "cos"


def no_longer_that_type(module: Network) -> None:
    module.scale = 3  # of a float that was 2.0


@pytest.mark.parametrize("method", ["auto", *GRAPHS])
@pytest.mark.parametrize("change", [number, flag, text, no_longer_that_type])
def test_other_attributes_give_other_jacobians(
    x: Tensor, change: Callable[[Network], None], method: str
) -> None:
    module = model()
    check(module, x, method=method)
    change(module)
    check(module, x, method=method)


def entry_of_list(module: Network) -> None:
    module.factors[0] = 1.5


def entry_of_dict(module: Network) -> None:
    module.options["power"] = 2


def tensor_that_is_no_buffer(module: Network) -> None:
    module.plain = 2 * module.plain


def tensor_through_data(module: Network) -> None:
    module.plain.data.mul_(2)


def number_in_an_object(module: Network) -> None:
    module.config.gain = 3.0


def array(module: Network) -> None:
    module.array[0] = 4


def weights_of_a_layer_in_a_list(module: Network) -> None:
    module.others[0].weight.data.mul_(2)


def function(module: Network) -> None:
    module.act = torch.cos


def layer_without_parameters(module: Network) -> None:
    module.body[1] = nn.Sigmoid()


def hook(module: Network) -> None:
    module.body[0].register_forward_hook(lambda m, given, output: output**2)


def other_forward(module: Network) -> None:
    module.forward = MethodType(lambda self, x: torch.exp(self.body(x)), module)


def other_class(module: Network) -> None:
    class Other(Network):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(self.body(x))

    module.__class__ = Other


@pytest.mark.parametrize(
    "change",
    [
        entry_of_list,
        entry_of_dict,
        tensor_that_is_no_buffer,
        tensor_through_data,
        number_in_an_object,
        array,
        weights_of_a_layer_in_a_list,
        function,
        layer_without_parameters,
        hook,
        other_forward,
        other_class,
    ],
)
@pytest.mark.parametrize("method", ["auto", *GRAPHS])
@pytest.mark.parametrize("calls", [1, 4])
def test_whatever_else_changes_gives_other_jacobians(
    x: Tensor, change: Callable[[Network], None], method: str, calls: int
) -> None:
    """After one call, and after several, when derivatives are no longer checked in every batch."""
    module = model()
    for _ in range(calls):
        check(module, x, method=method)
    change(module)
    check(module, x, method=method)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9, 7)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * self.scale


@pytest.mark.parametrize("method", ["auto", "vmap", "adjoint"])
def test_torchscript_is_kept_too(x: Tensor, done: Counter[str], method: str) -> None:
    module = torch.jit.script(Scripted().double().eval())
    check(module, x, method=method)
    done.clear()
    check(module, x, method=method)
    assert not done
    with torch.no_grad():
        module.linear.weight.mul_(2)
    check(module, x, method=method)


@pytest.mark.parametrize("method", ["auto", "adjoint", "tangent"])
def test_an_attribute_of_torchscript(x: Tensor, method: str) -> None:
    module = torch.jit.script(Scripted().double().eval())
    check(module, x, method=method)
    module.scale = 5.0
    check(module, x, method=method)


def test_other_shapes_and_options_are_measured_for_themselves(x: Tensor, done: Counter[str]) -> None:
    module = model()
    calls = [
        (x, {"method": "vmap"}),
        (torch.cat([x, x]), {"method": "vmap"}),
        (x, {"method": "forward"}),
        (x, {"method": "vmap", "batch_size": 2}),
    ]
    for points, options in calls:
        done.clear()
        check(module, points, **options)
        assert done["probed"] == 1 and done["measured"]
    done.clear()
    for points, options in calls:
        check(module, points, **options)
    assert not done


def test_of_and_select_are_part_of_what_is_kept(x: Tensor) -> None:
    module = model()
    logits, probs = jacli.jacobian(module, x), jacli.jacobian(module, x, of="probs")
    expected = reference_jacobian(lambda y: torch.softmax(module(y), -1), x)
    torch.testing.assert_close(probs, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(jacli.jacobian(module, x), logits)


@pytest.mark.parametrize("method", ["adjoint", "tangent", "factored"])
@pytest.mark.parametrize("calls", [1, 3])
def test_a_small_change_outside_of_the_module_is_seen_in_a_reduced_precision(
    monkeypatch: pytest.MonkeyPatch, method: str, calls: int
) -> None:
    """One that the error of the passes would hide."""

    class Scaled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x) * Settings.gain
            return y

    module, x = Scaled(nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 7)), torch.randn(5, 9)
    before = jacli.jacobian(module, x, method=method, precision="bf16")
    for _ in range(calls):
        assert torch.equal(jacli.jacobian(module, x, method=method, precision="bf16"), before)
    monkeypatch.setattr(Settings, "gain", 1.01)
    after = jacli.jacobian(module, x, method=method, precision="bf16")
    assert (after * before).sum() / before.square().sum() == pytest.approx(1.01, abs=5e-3)


@pytest.mark.parametrize("method", ["auto", "loop", "adjoint"])
def test_a_call_under_autocast_is_refused_as_the_first_one_is(method: str) -> None:
    module, x = nn.Linear(9, 7), torch.randn(5, 9)
    jacli.jacobian(module, x, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ModelError, match="bfloat16"):
        jacli.jacobian(module, x, method=method)


def test_functions_are_not_kept(x: Tensor, done: Counter[str]) -> None:
    """They may close over anything."""
    scale = [2.0]

    def function(y: Tensor) -> Tensor:
        return torch.sin(scale[0] * y)

    check(function, x)
    scale[0] = 3.0
    check(function, x)
    assert done["probed"] == 2
    assert not module_cache._ENTRIES


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9, 7).double()

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return torch.sin(self.linear(x) + offset)


def test_an_argument_that_is_the_same_for_all_is_not_kept(x: Tensor, done: Counter[str]) -> None:
    module = Shifted().eval()
    for offset in (torch.zeros(7).double(), torch.ones(7).double()):
        found = jacli.jacobian(module, x, offset=offset)
        expected = reference_jacobian(lambda y, shift=offset: module(y, shift), x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert done["probed"] == 2 and not module_cache._ENTRIES


@pytest.mark.parametrize("method", ["auto", "vmap", *GRAPHS])
def test_an_argument_of_each_sample_is_given_anew(x: Tensor, done: Counter[str], method: str) -> None:
    module = Shifted().eval()
    for _ in range(2):
        offset = torch.randn(4, 7, dtype=torch.float64)
        found = jacli.jacobian(module, x, offset=offset, per_sample=["offset"], method=method)
        for b in range(4):
            expected = reference_jacobian(lambda y, shift=offset[b]: module(y, shift), x[b : b + 1])
            torch.testing.assert_close(found[b], expected[0], rtol=1e-10, atol=1e-12)
    assert done["probed"] == 1


class Counting(nn.Module):
    """Another answer at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9, 7)
        self.register_buffer("state", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x)) + self.state
        self.state = 0.5 * y
        return torch.sin(y)


def test_a_module_that_keeps_state_is_copied_anew(x: Tensor) -> None:
    module = Counting().double().eval()
    for _ in range(2):
        found = jacli.jacobian(module, x)
        expected = reference_jacobian(lambda y: copy.deepcopy(module)(y), x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        module.state = torch.full((1,), 0.3).double()


def test_two_modules_alike_do_not_share(x: Tensor, done: Counter[str]) -> None:
    one = model()
    two = copy.deepcopy(one)
    check(one, x)
    check(two, x)
    assert done["probed"] == 2
    in_place(two)
    check(one, x)
    check(two, x)


@pytest.mark.parametrize("method", GRAPHS)
def test_what_is_kept_goes_with_the_module(x: Tensor, method: str) -> None:
    module = model()
    check(module, x, method=method)
    assert len(module_cache._ENTRIES) == 1
    del module
    gc.collect()
    assert len(module_cache._ENTRIES) == 0


def test_only_the_last_shapes_are_kept(done: Counter[str]) -> None:
    module = model()
    points = [torch.randn(size, 9, dtype=torch.float64) for size in range(1, 11)]
    for x in points:
        check(module, x, method="loop")
    (entries,) = module_cache._ENTRIES.values()
    assert len(entries) == module_cache._MAX_ENTRIES_PER_MODULE
    done.clear()
    for x in points[-module_cache._MAX_ENTRIES_PER_MODULE :]:
        check(module, x, method="loop")
    assert not done["probed"]
    assert min(size for size, _ in entries) == 7
    check(module, torch.randn(11, 9, dtype=torch.float64), method="loop")
    assert done["probed"] == 1 and len(entries) == module_cache._MAX_ENTRIES_PER_MODULE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [7, 3, 1])
def test_a_shorter_batch_takes_over_the_plan(done: Counter[str], method: str, size: int) -> None:
    """The last one of an epoch, in every epoch."""
    module, x = model(), torch.randn(8, 9, dtype=torch.float64)
    for epoch in range(3):
        check(module, x, method=method)
        if epoch == 0:
            done.clear()
        check(module, x[:size].clone(), method=method)
    assert not done
    assert len(module_cache._ENTRIES[module]) == 1


@pytest.mark.parametrize("change", [in_place, number, new_layer])
@pytest.mark.parametrize("method", ["auto", "vmap", "adjoint"])
def test_a_shorter_batch_of_a_changed_module(change: Callable[[Network], None], method: str) -> None:
    module, x = model(), torch.randn(8, 9, dtype=torch.float64)
    check(module, x, method=method)
    change(module)
    check(module, x[:3], method=method)


def test_many_much_shorter_batches_get_a_plan_of_their_own(done: Counter[str]) -> None:
    module, x = model(), torch.randn(8, 9, dtype=torch.float64)
    check(module, x)
    done.clear()
    for _ in range(module_cache._MAX_BORROWED_CALLS):
        check(module, x[:2])
    assert not done
    check(module, x[:2])
    assert done["measured"] and not done["probed"]
    done.clear()
    for _ in range(3):
        check(module, x[:2])
        check(module, x[:5])
    assert not done


def test_a_longer_batch_is_planned_anew(done: Counter[str]) -> None:
    module = model()
    check(module, torch.randn(3, 9, dtype=torch.float64), method="vmap")
    done.clear()
    check(module, torch.randn(8, 9, dtype=torch.float64), method="vmap")
    assert done["measured"]


@pytest.mark.parametrize("k", [None, 2])
def test_singular_values_of_a_shorter_batch(done: Counter[str], k: int | None) -> None:
    module, x = model(), torch.randn(8, 9, dtype=torch.float64)
    for epoch in range(2):
        for points in (x, x[:3]):
            exact = torch.linalg.svdvals(reference_jacobian(module, points).mT)[:, :k]
            found = jacli.singular_values(module, points, k=k)
            torch.testing.assert_close(found[:, :3], exact[:, :3], rtol=1e-7, atol=0)
            if epoch == 0 and len(points) == 8:
                done.clear()
    assert not done


def test_one_singular_value_is_planned_once(done: Counter[str]) -> None:
    module, x = (
        nn.Sequential(nn.Linear(700, 8), nn.Tanh(), nn.Linear(8, 600)).double(),
        torch.randn(3, 700).double(),
    )
    jacli.singular_values(module, x, k=1)
    done.clear()
    for points in (x, x, x[:1]):
        exact = torch.linalg.svdvals(reference_jacobian(module, points).mT)[:, :1]
        torch.testing.assert_close(jacli.singular_values(module, points, k=1), exact, rtol=1e-5, atol=0)
    assert not done
    check(module, x, method="vmap")


@pytest.mark.parametrize("change", [None, in_place, loaded, number])
@pytest.mark.parametrize("method", ["adjoint", "factored", "vmap"])
def test_no_graph_is_kept_with_another_copy(
    x: Tensor, method: str, change: Callable[[Network], None] | None
) -> None:
    """A call that forms no matrix comes between two that do, after the module has changed."""
    module = model()
    check(module, x, method=method)
    if change is not None:
        change(module)
    ((_, options),) = module_cache._ENTRIES[module]
    between = module_cache.CachedPlan(module, len(x), options)
    assert between.network is not None
    limit = memory.MemoryLimit.of_run(None, x.device)
    between.keep(*between.network, None, limit, held=0)
    (entry,) = module_cache._ENTRIES[module].values()
    assert (entry.graph is not None) == (method in GRAPHS and change is None)
    check(module, x, method=method)


def history(module: nn.Module) -> CheckHistory:
    """Of the latest entry."""
    *_, entry = module_cache._ENTRIES[module].values()
    return entry.history


@pytest.mark.parametrize("method", METHODS)
def test_later_calls_are_checked_as_later_batches_of_a_run(x: Tensor, method: str) -> None:
    module = model()
    for calls in range(1, 6):
        check(module, x, method=method)
        assert history(module).batches == calls
    check(module, x[:3], method=method)  # a size of its own, checked as a whole
    assert history(module).sizes == {3, 4}


@pytest.mark.parametrize("change", [in_place, loaded, number, new_layer])
@pytest.mark.parametrize("method", ["auto", "vmap", "adjoint"])
def test_a_changed_module_is_checked_as_a_new_one(
    x: Tensor, change: Callable[[Network], None], method: str
) -> None:
    module = model()
    for _ in range(3):
        check(module, x, method=method)
    change(module)
    check(module, x, method=method)
    assert history(module).batches == 1


def test_what_is_checked_of_torchscript_begins_anew_with_each_call(x: Tensor) -> None:
    """Its attributes are not seen: plain passes show what changed."""
    module = torch.jit.script(Scripted().double())
    for _ in range(3):
        check(module, x, method="adjoint")
        assert history(module).batches == 1


def test_memory_is_looked_at_again_only_where_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    of_run = memory.MemoryLimit.of_run
    monkeypatch.setattr(memory.MemoryLimit, "of_run", lambda *a: looked.append(1) or of_run(*a))
    module, x = model(), torch.randn(4, 9, dtype=torch.float64)
    for _ in range(3):
        check(module, x, method="vmap")
    assert len(looked) == 1
    module_cache._ENTRIES.clear()
    monkeypatch.setattr(memory, "peak_memory", lambda device: 2**60)
    for _ in range(3):
        check(module, x, method="vmap")
    assert len(looked) == 4


def test_no_copy_is_made_of_a_module_that_stays_the_same(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    copies = []
    twin = module_cache.frozen_twin
    monkeypatch.setattr(module_cache, "frozen_twin", lambda module: copies.append(1) or twin(module))
    module = model()
    for _ in range(3):
        check(module, x, method="vmap")
    assert not copies
    monkeypatch.setattr(module_cache, "_MAX_TWIN_BYTES", 0)
    module_cache._ENTRIES.clear()
    for _ in range(3):  # a large one: its copy is not kept beside it
        check(module, x, method="vmap")
    assert len(copies) == 2


def test_a_plan_that_shrank_is_kept_as_it_ended(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    """Else every call would run out of memory anew."""
    from jacli.engine import engine

    real, sizes = engine.fill, []

    def run(method: object, linearization: object, **options: object) -> Tensor:
        sizes.append(linearization.batch)
        if linearization.batch > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return real(method, linearization, **options)

    monkeypatch.setattr(engine, "fill", run)
    module = model()
    check(module, x, method="loop", batch_size=4)
    assert sizes == [4, 2, 1, 1, 1, 1]
    sizes.clear()
    check(module, x, method="loop", batch_size=4)
    assert sizes == [1, 1, 1, 1]
