"""Dtypes inside a model: mixed ones stay, and what is converted must stay the function that it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.commands.bench import bench
from jacli.commands.timed_batch import RowsInFloat64
from jacli.commands.verify import verify
from jacli.errors import InputsError, ModelError
from jacli.models.dtypes import real_dtypes
from jacli.models.loaded import LoadedModel
from jacli.network import exact_arithmetic
from jacli.options.config import from_options
from jacli.run.batches import Run
from jacli.run.placing import place
from jacli.run.prepare import prepare
from tests.reference import reference_jacobian

B, N = 9, 6

ARCH = """
import torch
from torch import nn


class HalfInside(nn.Module):
    '''The dtype of its first layer is fixed in forward.'''

    dtype = torch.float16

    def __init__(self):
        super().__init__()
        self.low, self.top = nn.Linear(6, 4).to(self.dtype), nn.Linear(4, 3)

    def forward(self, x):
        return self.top(torch.tanh(self.low(x.to(self.dtype)).float()))


class BrainInside(HalfInside):
    dtype = torch.bfloat16


class ByParameter(HalfInside):
    '''It goes by the dtype of its parameters, and so runs whatever they are converted to.'''

    def forward(self, x):
        return self.top(torch.tanh(self.low(x.to(self.low.weight.dtype)).to(self.top.weight.dtype)))


class DoubleInside(HalfInside):
    dtype = torch.float64


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.top = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.low(x)
        return self.top(torch.tanh(y.to(x.dtype)))


class SingleInside(HalfInside):
    '''Float32 in one place, whatever it is given.'''

    dtype = torch.float32

    def forward(self, x):
        low = nn.functional.linear(x.float(), self.low.weight.float(), self.low.bias.float())
        return self.top(torch.tanh(low.to(x.dtype)))


class SingleNorm(SingleInside):
    def forward(self, x):
        low = self.low(x).float()
        return self.top((low * torch.rsqrt(low.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype))


class AllHalf(nn.Module):
    '''Half throughout; it converts its input and its output itself.'''

    def __init__(self):
        super().__init__()
        self.low = nn.Linear(6, 3).half()

    def forward(self, x):
        return self.low(x.half()).float()


class Plain(nn.Module):
    '''Float32 as it is built; a table that is not persistent.'''

    def __init__(self):
        super().__init__()
        self.low, self.norm, self.top = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("table", torch.linspace(0, 1, 4), persistent=False)

    def forward(self, x):
        return self.top(torch.tanh(self.norm(self.low(x.to(self.low.weight.dtype))) + self.table))
"""

MIXED = ["HalfInside", "BrainInside", "ByParameter", "DoubleInside"]


@pytest.fixture
def arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classes of the architecture file, which lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mixed_arch_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(ARCH)
    np.save("x.npy", np.random.default_rng(0).standard_normal((B, N), dtype=np.float32))
    return __import__(name)


def computed(model: str, **options: Any) -> tuple[Tensor, list[str]]:
    """Jacobians ``(B, N, 3)`` as the file has them, and the notes."""
    outcome = jacli.compute(model, "x.npy", out="out.h5", overwrite=True, **options)
    assert not outcome.rechecked.failed and not outcome.rechecked.at_kinks
    with h5py.File("out.h5") as results:
        return torch.from_numpy(results["jacobian"][:]), list(outcome.notes)


def off(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def as_it_is(module: nn.Module) -> Tensor:
    return reference_jacobian(module, torch.from_numpy(np.load("x.npy")))


@pytest.mark.parametrize("name", [*MIXED, "AllHalf"])
def test_mixed_dtypes_stay_as_they_are(arch: Any, name: str) -> None:
    module = getattr(arch, name)()
    torch.save(module.state_dict(), "m.pt")
    found, notes = computed("m.pt", arch=f"{arch.__name__}.py:{name}")
    assert off(found, as_it_is(module)) < 1e-3
    assert any("and stay so" in note for note in notes)
    assert any("would be another function" in note for note in notes) == (name != "DoubleInside")
    everything = verify("out.h5", samples=None, arch=f"{arch.__name__}.py:{name}")
    assert [sample.verdict for sample in everything.samples] == ["ok"] * B
    assert everything.dtype == "float32"  # in float64 none of them runs, or it is another function


@pytest.mark.parametrize("kind", ["traced", "exported", "pickled", "python"])
@pytest.mark.parametrize("name", ["HalfInside", "BrainInside"])
def test_mixed_dtypes_in_other_formats(arch: Any, name: str, kind: str) -> None:
    module, x = getattr(arch, name)().eval(), torch.randn(2, N)
    if kind == "python":
        points = torch.from_numpy(np.load("x.npy"))
        assert off(jacli.jacobian(module, points), as_it_is(module)) < 1e-3
        return
    if kind == "traced":
        torch.jit.save(torch.jit.trace(module, x), "m.pt")
    elif kind == "exported":
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=shapes), "m.pt2")
    else:
        torch.save(module, "m.pt")
    options = {"allow_pickle": True} if kind == "pickled" else {}
    found, notes = computed("m.pt2" if kind == "exported" else "m.pt", **options)
    assert off(found, as_it_is(module)) < 1e-3
    inside = str(module.dtype).removeprefix("torch.")
    assert any(f"computes in {inside} inside" in note for note in notes)


def test_autocast_inside_is_told_and_is_no_kink(arch: Any) -> None:
    module = arch.Autocast()
    torch.save(module.state_dict(), "m.pt")
    found, notes = computed("m.pt", arch=f"{arch.__name__}.py:Autocast")
    assert off(found, as_it_is(module)) < 1e-2
    assert any("computes in bfloat16 inside" in note for note in notes)
    everything = verify("out.h5", samples=None, arch=f"{arch.__name__}.py:Autocast")
    assert [sample.verdict for sample in everything.samples] == ["ok"] * B
    assert everything.dtype == "float32" and everything.tolerance > 1e-2
    with h5py.File("out.h5", "r+") as file:  # a wrong number is still found
        file["jacobian"][4] *= 1.5
        file["class_norms"][4] *= 1.5
    found_wrong = verify("out.h5", samples=None, arch=f"{arch.__name__}.py:Autocast")
    assert found_wrong.failed == (4,)


def test_bench_tells_what_its_errors_are_against(arch: Any) -> None:
    config = from_options({"model": f"{arch.__name__}.py:BrainInside", "inputs": "x.npy"})
    with exact_arithmetic(), (prepared := prepare(config)).source:
        run = Run(config, prepared)
        rows = RowsInFloat64(run.request, run.problem, prepared)
        rows._expected([0, 2])
    assert rows.dtype == torch.float32 and "computes in bfloat16 inside" in rows.notes[0]


@pytest.mark.parametrize("name", ["BrainInside", "HalfInside", "Autocast"])
def test_bench_calls_the_rounding_of_halves_no_kink(arch: Any, name: str) -> None:
    torch.save(getattr(arch, name)().state_dict(), "m.pt")
    options = {"model": "m.pt", "arch": f"{arch.__name__}.py:{name}", "inputs": "x.npy"}
    found = bench(from_options(options), limit=1.0)
    notes = [note for row in found.rows for note in row.notes]
    assert not any("kink" in note or "wrong" in note for note in notes)
    assert any("float16 inside" in note for note in found.notes) and found.reference_dtype == "float32"


@pytest.mark.parametrize("name", ["SingleInside", "SingleNorm"])
def test_float32_inside_a_run_in_float64_is_told(arch: Any, name: str) -> None:
    torch.save(getattr(arch, name)().state_dict(), "m.pt")
    found, notes = computed("m.pt", arch=f"{arch.__name__}.py:{name}", dtype="float64", verify=9)
    assert "computes in float32 inside: rechecked in its own dtypes" in "".join(notes)
    module = getattr(arch, name)()
    module.load_state_dict(torch.load("m.pt"))
    points = torch.from_numpy(np.load("x.npy")).double()
    torch.testing.assert_close(found, reference_jacobian(module.double(), points), rtol=1e-4, atol=1e-6)
    _, notes = computed("m.pt", arch=f"{arch.__name__}.py:{name}")
    assert not any("inside" in note for note in notes)  # in float32 it is nothing special


@pytest.mark.parametrize("name", ["Autocast", "ByParameter"])
def test_another_function_in_float64_is_refused_there(arch: Any, name: str) -> None:
    """Autocast leaves float64 alone; a layer in half stays in half, where its input is rounded otherwise."""
    torch.save(getattr(arch, name)().state_dict(), "m.pt")
    options = {"arch": f"{arch.__name__}.py:{name}", "dtype": "float64"}
    if name == "ByParameter":
        _, notes = computed("m.pt", **options)
        assert any("computes in float16 inside" in note for note in notes)
        return
    with pytest.raises(ModelError, match="another function in float64"):
        computed("m.pt", **options)


@pytest.mark.parametrize("part", ["all", "weights but not the normalisation"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_half_weights_of_a_network_that_computes_in_float32(arch: Any, part: str, dtype: str) -> None:
    """Half is how they are stored: nothing is computed in it, and the table in no file keeps its digits."""
    module = arch.Plain().eval()
    state = module.state_dict()
    halved = {
        name: value.half() if value.is_floating_point() and (part == "all" or "norm" not in name) else value
        for name, value in state.items()
    }
    torch.save(halved, "m.pt")
    module.load_state_dict(halved)
    found, notes = computed("m.pt", arch=f"{arch.__name__}.py:Plain", dtype=dtype)
    assert off(found.float(), as_it_is(module)) < 1e-6
    assert not [note for note in notes if "stay so" in note or "inside" in note]


class ByDtype(nn.Module):
    """Another function in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1.3 if x.dtype == torch.float64 else 1.0)


class LosesItsParts(nn.Module):
    """Its own conversion drops what is complex, as that of a whole module does."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(N, dtype=torch.cfloat))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        real = nn.Parameter(fn(self.filter.real.detach()))
        self.filter = nn.Parameter(torch.complex(real, torch.zeros_like(real)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.filter).abs()


class Rounds(nn.Module):
    """Its weights lose digits whenever it is converted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, 3))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.weight = nn.Parameter(fn((self.weight.detach() * 8).round() / 8))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def placed(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    loaded = LoadedModel(module.eval().requires_grad_(False), "architecture", None, None)
    options: Any = {"arguments": {}, "select": None, "of": "logits", "batch_hints": [4]}
    with exact_arithmetic():
        return place(loaded, x, {}, dtype=dtype, device=torch.device("cpu"), **options)


@pytest.mark.parametrize("make", [ByDtype, LosesItsParts, Rounds])
def test_what_conversion_changes_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ModelError, match="another function in float64") as raised:
        placed(make(), torch.randn(4, N), torch.float64)
    assert "--dtype float32" in str(raised.value.hint)


def test_a_module_that_needs_no_change_is_taken_as_it_is() -> None:
    module = nn.Linear(N, 3)
    found = placed(module, torch.randn(4, N), torch.float32)
    assert found.network.module is module and found.notes == () and found.converted == frozenset()


@pytest.mark.parametrize("rows", [1, 4])
def test_the_loaded_module_is_left_alone_by_a_conversion(rows: int) -> None:
    module = nn.Linear(N, 3)
    found = placed(module, torch.randn(rows, N), torch.float64)
    assert real_dtypes(found.network.module) == {torch.float64} == {found.network.module.weight.dtype}
    assert real_dtypes(module) == {torch.float32} == set(found.converted)


class Chaotic(nn.Module):
    """Rounding grows until nothing of it is left: no reason to refuse it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((N,), 3.9))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        for _ in range(40):
            y = self.weight * y * (1 - y)
        return y


class Overflows(nn.Module):
    """Infinite in float32, finite in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(100.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.exp(self.weight * x.abs() + 50)], dim=1)


class Four(nn.Module):
    """Takes batches of four only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(4, N))


@pytest.mark.parametrize("make", [Chaotic, Overflows, Four])
def test_what_is_the_same_function_is_served(make: Callable[[], nn.Module]) -> None:
    assert placed(make(), torch.randn(4, N), torch.float64).notes == ()


def test_a_model_that_does_not_run_as_it_was_loaded_is_told() -> None:
    class DoublesOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(N, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ torch.eye(3, dtype=torch.float64)

    (note,) = placed(DoublesOnly(), torch.randn(4, N), torch.float64).notes
    assert "was not compared" in note and "dtype" in note


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wrong_shape_is_said_whatever_the_dtypes(arch: Any, dtype: str) -> None:
    np.save("x.npy", np.zeros((3, N + 1), np.float32))
    with pytest.raises(InputsError, match=r"shape \(7,\)"):
        prepare(from_options({"model": f"{arch.__name__}.py:HalfInside", "inputs": "x.npy", "dtype": dtype}))
