"""Complex parameters and buffers, through every format: the numbers are those of the module itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import jacli
from jacli.commands.verify import verify
from jacli.errors import ModelError
from tests.reference import reference_jacobian

B, N = 3, 8

ARCH = """
import torch
from torch import nn


class Spectral(nn.Module):
    '''A parameter in the frequency domain, and a plain real one.'''

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.top = nn.Linear(8, 3)

    def forward(self, x):
        return self.top(torch.tanh(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8)))


class Rotary(nn.Module):
    '''Only a buffer is complex, and it is not persistent.'''

    def __init__(self):
        super().__init__()
        self.key = nn.Linear(8, 8)
        self.register_buffer("turns", torch.polar(torch.ones(4), torch.arange(4.0) + 0.7), persistent=False)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x):
        pairs = torch.view_as_complex(self.key(x).reshape(-1, 4, 2))
        return torch.tanh(torch.view_as_real(pairs * self.turns).flatten(1))[:, self.steps]


class StateSpace(nn.Module):
    '''A complex matrix product, which promotes nothing: both sides must be converted.'''

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(8, 6, dtype=torch.cfloat))
        self.c = nn.Parameter(torch.randn(6, 3, dtype=torch.cfloat))

    def forward(self, x):
        state = torch.complex(x, torch.zeros_like(x)) @ self.a
        return (torch.tanh(state) @ self.c).real


class Real(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5))
        self.top = nn.Linear(8, 3)

    def forward(self, x):
        return self.top(x)
"""

NAMES = ["Spectral", "Rotary", "StateSpace"]
FORMATS = [
    *("state_dict", "lightning", "safetensors", "half", "double", "untrained"),
    *("traced", "exported", "pickled"),
]


@pytest.fixture
def arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classes of the architecture file, which lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"complex_arch_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(ARCH)
    np.save("x.npy", np.random.default_rng(0).standard_normal((B, N), dtype=np.float32))
    return __import__(name)


def write(module: torch.nn.Module, kind: str, name: str, source: str) -> tuple[str, dict[str, Any]]:
    """The module in a file: MODEL and the options that it needs."""
    state, given = module.state_dict(), {"arch": f"{source}.py:{name}"}
    x = torch.randn(2, N)
    if kind == "state_dict":
        torch.save(state, "m.pt")
    elif kind == "lightning":
        prefixed = {f"model.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": prefixed, "hyper_parameters": {"lr": 0.1}}, "m.pt")
    elif kind == "safetensors":
        save_file(state, "m.pt")
    elif kind == "half":  # complex tensors have no half that torch computes with: they stay
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, "m.pt")
    elif kind == "double":
        wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        torch.save({k: v.to(wide.get(v.dtype, v.dtype)) for k, v in state.items()}, "m.pt")
    elif kind == "untrained":
        return f"{source}.py:{name}", {}
    elif kind == "traced":
        torch.jit.save(torch.jit.trace(module, x), "m.pt")
        return "m.pt", {}
    elif kind == "exported":
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), "m.pt2")
        return "m.pt2", {}
    else:
        torch.save(module, "m.pt")
        return "m.pt", {"allow_pickle": True}
    return "m.pt", given


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "name"),
    # every format with one of the networks, another one each time, and the commonest format with all
    [*zip(FORMATS, NAMES * 3, strict=True), ("state_dict", "Rotary"), ("state_dict", "StateSpace")],
)
def test_every_format(arch: Any, kind: str, name: str, dtype: str) -> None:
    torch.manual_seed(0)  # as an untrained network is built
    module = getattr(arch, name)().eval()
    model, options = write(module, kind, name, arch.__name__)
    jacli.compute(model, "x.npy", out="out.h5", dtype=dtype, **options)
    if kind == "half":
        module.load_state_dict(torch.load("m.pt"))
    x = torch.from_numpy(np.load("x.npy"))
    with h5py.File("out.h5") as results:
        found, outputs = torch.from_numpy(results["jacobian"][:]), torch.from_numpy(results["outputs"][:])
    expected = reference_jacobian(module, x)  # in float32, by a module that nothing converted
    assert torch.linalg.vector_norm(found - expected) < 1e-5 * torch.linalg.vector_norm(expected)
    assert torch.allclose(outputs.float(), module(x).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_recheck_runs_in_float64(arch: Any, name: str) -> None:
    model, options = write(getattr(arch, name)(), "state_dict", name, arch.__name__)
    jacli.compute(model, "x.npy", out="out.h5", **options)
    found = verify("out.h5", samples=None, arch=options["arch"])
    assert found.dtype == "float64" and not found.failed and found.worst_error < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_python(arch: Any, name: str, dtype: torch.dtype) -> None:
    from jacli.models.dtypes import convert

    module = convert(getattr(arch, name)(), dtype)
    x = torch.randn(B, N, dtype=dtype)
    found = jacli.jacobian(module, x)
    assert torch.allclose(found.flatten(2), reference_jacobian(module, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lost", ["complex in a real tensor", "fractions in an integer buffer"])
def test_weights_that_the_architecture_cannot_hold_are_refused(arch: Any, lost: str) -> None:
    name = "Real" if lost.startswith("complex") else "Rotary"
    state = getattr(arch, name)().state_dict()
    if name == "Real":
        state["filter"] = torch.randn(5, dtype=torch.cfloat)
    else:
        state["steps"] = torch.tensor([0.5, 1.0, 2.0])
    torch.save(state, "m.pt")
    with pytest.raises(ModelError, match="filter is complex" if name == "Real" else "steps has fractions"):
        jacli.compute("m.pt", "x.npy", out="out.h5", arch=f"{arch.__name__}.py:{name}")
    state["filter" if name == "Real" else "steps"] = torch.tensor([0.0, 1, 2] + [3, 4] * (name == "Real"))
    torch.save(state, "m.pt")  # whole numbers, or a real filter: nothing is lost
    jacli.compute("m.pt", "x.npy", out="out.h5", arch=f"{arch.__name__}.py:{name}")
