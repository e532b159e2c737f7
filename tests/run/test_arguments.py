"""Arguments of ``forward``: constants, nested rows, inputs that are not the first; held against autograd."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jacli
from jacli.commands.merge import merge
from jacli.commands.verify import verify
from jacli.errors import InputsError, JacliError, OutputError, UsageError
from tests.reference import reference_jacobian

SOURCE = '''
import torch
from torch import nn
from typing import Optional

class Cell(nn.Module):
    """A recurrent cell: the state is a tuple of rows."""
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
    def forward(self, state: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor):
        return self.cell(x, state)[0]

class Optionally(nn.Module):
    """A mask that may be missing, and options in a dict."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
    def forward(self, mask, x, options):
        if mask is not None:
            x = x * mask
        return self.layer(x).tanh() * options["scale"] + options["shifts"][1]

class Graph(nn.Module):
    """Signals on the nodes of one graph, its weights a float constant."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, x, edges, weights):
        sent = weights[:, None] * self.layer(x)[:, edges[0]]
        return torch.zeros_like(x).index_add(1, edges[1], sent).tanh()

class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
    def forward(self, t: torch.Tensor, y: torch.Tensor):
        return torch.tanh(self.layer(y) * t)
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Models, inputs and arguments in the current folder; the models' classes."""
    monkeypatch.chdir(tmp_path)
    Path("arch.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("arch_of_arguments", "arch.py")
    assert spec is not None and spec.loader is not None
    arch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arch)
    names: dict[str, Any] = {}
    draw = np.random.default_rng(0)
    for name in ("Cell", "Optionally", "Graph", "Timed"):
        torch.manual_seed(0)
        names[name] = getattr(arch, name)()
        torch.save(names[name].state_dict(), f"{name}.pt")
    for name, shape in {"x": (7, 3), "h": (7, 4), "c": (7, 4), "mask": (7, 3), "nodes": (7, 5, 2)}.items():
        np.save(f"{name}.npy", draw.standard_normal(shape, np.float32))
    np.save("edges.npy", np.array([[0, 1, 2, 3, 1], [1, 2, 3, 4, 0]]))
    np.save("weights.npy", np.linspace(0.5, 1.5, 5))
    return names


def run(name: str, inputs: str = "x.npy", **options: Any) -> Any:
    return jacli.compute(f"{name}.pt", inputs, arch=f"arch.py:{name}", verify=7, **options)


def check(out: Path, exact: Callable[[torch.Tensor, int], torch.Tensor], **moved: str) -> None:
    """Hold each sample's Jacobian against a double loop over autograd in float64."""
    with jacli.open(out) as results:
        for row in range(len(results)):
            x = torch.from_numpy(results["inputs"][row : row + 1]).double()
            wanted = reference_jacobian(lambda points, row=row: exact(points, row), x)
            found = torch.from_numpy(results["jacobian"][row : row + 1]).double()
            torch.testing.assert_close(found, wanted.reshape(found.shape), rtol=1e-4, atol=1e-6)
    assert verify(out, samples=None, **moved).failed == ()


def rows(name: str, row: int) -> torch.Tensor:
    return torch.from_numpy(np.load(f"{name}.npy")[row : row + 1]).double()


@pytest.mark.parametrize("method", ["auto", "loop", "vmap"])
def test_a_tuple_of_rows(place: dict[str, Any], method: str) -> None:
    outcome = run("Cell", arg=["state.0=@h.npy", "state.1=@c.npy"], method=method)
    assert not outcome.rechecked.failed
    assert "INPUTS are given to the argument x of forward" in outcome.notes
    model = place["Cell"].double()
    check(outcome.out, lambda x, row: model((rows("h", row), rows("c", row)), x), arch="arch.py:Cell")


def test_shards_with_rows_of_arguments_are_merged(place: dict[str, Any]) -> None:
    for index in (1, 2, 3):
        run("Cell", arg=["state.0=@h.npy", "state.1=@c.npy"], method="loop", shard=f"{index}/3")
    assert merge(["out.h5"]).samples == 7
    model = place["Cell"].double()
    check(Path("out.h5"), lambda x, row: model((rows("h", row), rows("c", row)), x), arch="arch.py:Cell")


@pytest.mark.parametrize("mask", ["None", "@mask.npy"])
def test_none_and_a_dict(place: dict[str, Any], mask: str) -> None:
    outcome = run(
        "Optionally", arg=[f"mask={mask}", "options.scale=2.5", "options.shifts.0=1", "options.shifts.1=2"]
    )
    model, options = place["Optionally"].double(), {"scale": 2.5, "shifts": (1, 2)}
    check(
        outcome.out,
        lambda x, row: model(None if mask == "None" else rows("mask", row), x, options),
        arch="arch.py:Optionally",
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inputs", [{}, {"input_arg": "x"}])
def test_constants(place: dict[str, Any], dtype: str, inputs: dict[str, str]) -> None:
    constants = ["edges=edges.npy", "weights=weights.npy"]
    outcome = run("Graph", "nodes.npy", constant=constants, dtype=dtype, **inputs)
    model = place["Graph"].double()
    edges, weights = (torch.from_numpy(np.load(f"{name}.npy")) for name in ("edges", "weights"))
    check(outcome.out, lambda x, row: model(x, edges, weights), arch="arch.py:Graph")


@pytest.mark.parametrize("t", ["0.5", "2"])
def test_torchscript_with_a_time_first(place: dict[str, Any], t: str) -> None:
    torch.jit.script(place["Timed"].eval()).save("timed.pt")
    outcome = jacli.compute("timed.pt", "x.npy", arg=[f"t={t}"])
    model = place["Timed"].double()
    check(outcome.out, lambda x, row: model(torch.tensor(float(t)).double(), x))


def test_torchscript_with_a_constant_and_a_state(place: dict[str, Any]) -> None:
    torch.jit.script(place["Cell"].eval()).save("cell.pt")
    for name in ("h", "c"):
        np.save(f"one_{name}.npy", np.load(f"{name}.npy")[:1].repeat(2, 0))
    outcome = jacli.compute("cell.pt", "x.npy", arg=["state.0=@h.npy", "state.1=@c.npy"], out="state.h5")
    model = place["Cell"].double()
    check(outcome.out, lambda x, row: model((rows("h", row), rows("c", row)), x))


def test_constants_are_part_of_what_a_run_is(place: dict[str, Any]) -> None:
    options: dict[str, Any] = {"inputs": "nodes.npy", "constant": ["edges=edges.npy", "weights=weights.npy"]}
    out = run("Graph", **options).out
    assert run("Graph", **options).already_complete
    np.save("again.npy", np.load("weights.npy"))
    assert run("Graph", **options | {"constant": ["edges=edges.npy", "weights=again.npy"]}).already_complete
    np.save("weights.npy", np.linspace(0.5, 1.0, 5))
    with pytest.raises(OutputError, match="the content of a --constant"):
        run("Graph", **options)
    with pytest.raises(InputsError, match="--constant"):
        verify(out, samples=None, arch="arch.py:Graph")


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"arg": ["state.0=@h.npy", "state.2=@c.npy"]}, UsageError, "without a gap"),
        ({"arg": ["state=mask.npy"]}, UsageError, "--arg state=@mask.npy"),
        ({"arg": ["state.0=h.npy", "state.1=@c.npy"]}, UsageError, "--arg state.0=@h.npy"),
        ({"arg": ["state=None", "x=1"]}, UsageError, "left for INPUTS"),
        ({"arg": ["state=1"], "constant": ["state=h.npy"]}, UsageError, "the same argument"),
        ({"constant": ["state=nothing.npy"]}, InputsError, "--constant state"),
        ({"constant": ["2state=h.npy"]}, UsageError, "NAME=FILE"),
        ({"input_arg": "y", "arg": ["state=None"]}, UsageError, "are state, x"),
    ],
)
def test_mistakes(place: dict[str, Any], options: dict[str, Any], kind: type[JacliError], said: str) -> None:
    with pytest.raises(kind) as raised:
        run("Cell", **options)
    assert said in str(raised.value) and raised.value.hint
    assert not Path("out.h5").exists()


def test_an_error_that_names_an_argument_is_about_that_argument(place: dict[str, Any]) -> None:
    checked = "        if len(state) != 2: raise ValueError('state has no cell')\n"
    before = "        return self.cell"
    Path("strict.py").write_text(SOURCE.replace(before, checked + before))
    with pytest.raises(InputsError, match="does not accept the argument state"):
        jacli.compute("Cell.pt", "x.npy", arch="strict.py:Cell", constant=["state=h.npy"])
    torch.jit.script(place["Timed"].eval()).save("timed.pt")
    with pytest.raises(JacliError, match="does not accept the argument t "):
        jacli.compute("timed.pt", "x.npy", arg=["t=text"])


def test_from_python(place: dict[str, Any]) -> None:
    x = torch.from_numpy(np.load("x.npy"))
    model, t = place["Timed"], torch.tensor(0.5)
    wanted = jacli.jacobian(lambda y: model(t, y), x)
    torch.testing.assert_close(jacli.jacobian(model, x, t=t), wanted)
    torch.testing.assert_close(jacli.jacobian(lambda t, y: model(t, y), x, t=t), wanted)


def test_an_exported_program_with_the_inputs_second(place: dict[str, Any]) -> None:
    """By the names that the program records, and the constant as the tensor that it was exported with."""
    model, t = place["Timed"].eval(), torch.full((1,), 0.5)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (t, torch.zeros(4, 3)), dynamic_shapes=({}, {0: batch}))
    torch.export.save(program, "timed.pt2")
    np.save("t.npy", t.numpy())
    outcome = jacli.compute("timed.pt2", "x.npy", constant=["t=t.npy"])
    check(outcome.out, lambda x, row: model.double()(t.double(), x))
