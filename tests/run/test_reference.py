"""The reference of the recheck comes from the model's file, not from what was prepared of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jacli
from jacli.commands.verify import verify
from jacli.errors import JacliError, ModelError
from jacli.models import load_anew, load_model
from jacli.models.fingerprint import weights_sha256
from jacli.network import exact_arithmetic
from jacli.options.config import from_options
from jacli.run.prepare import prepare
from jacli.run.recheck import recheck_samples
from jacli.run.reference import References
from jacli.store import open_results

B, N = 5, 8

ARCH = """
import os

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.low, self.top = nn.Linear(8, 8), nn.Linear(8, num_classes)
        self.register_buffer("table", torch.randn(8), persistent=False)

    def forward(self, x):
        y = torch.fft.irfft(torch.fft.rfft(self.low(x) + self.table) * self.filter, n=8)
        return self.top(torch.relu(y))


def own_weights():
    net = Net()
    net.load_state_dict(torch.load("own.pt"))
    return net


def unseeded():
    net = Net()
    with torch.no_grad():
        net.top.bias += int.from_bytes(os.urandom(4), "little") / 2**32 + 0.1
    return net
"""


@pytest.fixture
def arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classes of the architecture file, which lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"reference_arch_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(ARCH)
    np.save("x.npy", np.random.default_rng(0).standard_normal((B, N), dtype=np.float32))
    return __import__(name)


def scaled(net: nn.Module) -> None:
    net.low.weight.data *= 1.02


def without_imaginary_part(net: nn.Module) -> None:
    net.filter.data = torch.complex(net.filter.data.real, torch.zeros(5))


def another_table(net: nn.Module) -> None:
    net.table.data = net.table.data.flip(0)


@pytest.mark.parametrize("method", ["loop", "replicate", "vmap"])
@pytest.mark.parametrize("tamper", [scaled, without_imaginary_part, another_table])
def test_a_fault_of_what_was_prepared_is_found(
    arch: Any, tamper: Callable[[nn.Module], None], method: str
) -> None:
    """The result is right for the network that was prepared, which is not that of the file."""
    net = arch.Net()
    torch.save(net.state_dict(), "m.pt")
    options = {"model": "m.pt", "inputs": "x.npy", "arch": f"{arch.__name__}.py:Net", "method": method}
    wrong = load_model("m.pt", arch=options["arch"]).module
    tamper(wrong)
    torch.save(wrong, "wrong.pt")
    jacli.compute("wrong.pt", "x.npy", out="out.h5", method=method, allow_pickle=True)
    config = from_options(options)
    with exact_arithmetic(), (prepared := prepare(config)).source, open_results("out.h5") as results:
        tamper(prepared.network.module)
        plan = results.json("plan")
        found = [f for _, f in recheck_samples(prepared, results.datasets, plan, config, range(B))]
    assert len(found) == B
    assert all(sample.failed and not sample.near_kink and sample.dtype == "float64" for sample in found)


def test_the_references_share_nothing_with_the_run(arch: Any) -> None:
    torch.save(arch.Net().state_dict(), "m.pt")
    config = from_options({"model": "m.pt", "inputs": "x.npy", "arch": f"{arch.__name__}.py:Net"})
    with exact_arithmetic(), (prepared := prepare(config)).source:
        references = References(prepared)
        exact, _ = references.at(0, None)
        assert exact.dtype == torch.float64 and references.notes == [] and references.reduced is None
        before = exact.outputs.clone()
        own = references.own(*prepared.rows(0, 2)[1:])
        for tensor in (*prepared.network.module.parameters(), *prepared.network.module.buffers()):
            tensor.data.zero_()
        again, _ = references.at(0, None)
        assert torch.equal(again.outputs, before)
        assert torch.equal(references.own(*prepared.rows(0, 2)[1:]), own) and bool(own.any())


@pytest.mark.parametrize("what", ["gone", "another", "architecture"])
def test_a_file_that_changes_meanwhile_is_told(arch: Any, what: str) -> None:
    torch.save(arch.Net().state_dict(), "m.pt")
    config = from_options({"model": "m.pt", "inputs": "x.npy", "arch": f"{arch.__name__}.py:Net"})
    jacli.compute("m.pt", "x.npy", out="out.h5", arch=config.arch)
    with exact_arithmetic(), (prepared := prepare(config)).source, open_results("out.h5") as results:
        references = References(prepared)
        if what == "gone":
            Path("m.pt").unlink()
        elif what == "another":
            torch.save(arch.Net().state_dict(), "m.pt")
        else:
            Path(f"{arch.__name__}.py").write_text(ARCH.replace("relu", "sin"))
        plan = results.json("plan")
        found = dict(recheck_samples(prepared, results.datasets, plan, config, [1], references=references))
    assert not found[1].failed and found[1].dtype == "float64"
    (note,) = references.notes
    assert "m.pt has changed since" in note and "as it was loaded for the run" in note


def test_a_callable_that_gives_other_weights_each_time_is_told(arch: Any) -> None:
    name = f"{arch.__name__}.py:unseeded"
    outcome = jacli.compute(name, "x.npy", out="out.h5")
    assert not outcome.rechecked.failed
    assert any("gives other weights" in note for note in outcome.notes)
    with pytest.raises(ModelError, match="does not give the weights of"):
        verify("out.h5", model=name)


@pytest.mark.parametrize("callable_name", ["own_weights", "Net"])
def test_weights_of_a_callable_are_told_and_hashed(arch: Any, callable_name: str) -> None:
    torch.save(arch.Net().state_dict(), "own.pt")
    name = f"{arch.__name__}.py:{callable_name}"
    outcome = jacli.compute(name, "x.npy", out="out.h5")
    assert f"weights come from the callable {name}, called with seed 0" in outcome.notes
    assert not [note for note in outcome.notes if "untrained" in note or "random" in note]
    with h5py.File("out.h5") as results:
        digest = results.attrs["weights_sha256"]
        assert "model_sha256" not in results.attrs
    assert digest == weights_sha256(load_model(name).module) and len(digest) == 64
    assert not verify("out.h5", model=name).failed
    torch.save(arch.Net().state_dict(), "own.pt")
    if callable_name == "own_weights":
        with pytest.raises(ModelError, match="does not give the weights of"):
            verify("out.h5", model=name)


def test_registered_architectures_are_still_untrained(arch: Any) -> None:
    loaded = load_model("torchvision:squeezenet1_1", seed=3)
    assert loaded.notes[0] == "untrained: random weights of seed 3"
    assert loaded.weights_sha256 != load_model("torchvision:squeezenet1_1", seed=4).weights_sha256


def sources(arch: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """One file a way of finding weights in it."""
    torch.manual_seed(7)
    net, name = arch.Net(num_classes=6).eval(), f"{arch.__name__}.py:Net"
    state = net.state_dict()
    other = {key: value + 1 for key, value in state.items()}
    torch.save({f"module.{key}": value for key, value in state.items()}, "prefixed.pt")
    torch.save({"run": {"weights": state}, "state_dict_ema": other, "epoch": 1}, "nested.pt")
    save_file(state, "safe.pt")
    torch.save(net, "pickled.pt")
    torch.jit.save(torch.jit.trace(net, torch.randn(2, N)), "traced.pt")
    torch.export.save(torch.export.export(net, (torch.randn(2, N),)), "exported.pt2")
    torchvision = load_model("torchvision:squeezenet1_1", arch_args={"num_classes": 5}).module
    torch.save({f"model.{key}": value.half() for key, value in torchvision.state_dict().items()}, "tv.pt")
    return {
        "prefixed": ("prefixed.pt", {"arch": name}),
        "nested": ("nested.pt", {"arch": name}),
        "average": ("nested.pt", {"arch": name, "ema": True}),
        "safetensors": ("safe.pt", {"arch": name, "arch_args": {"num_classes": 6}}),
        "pickled": ("pickled.pt", {"allow_pickle": True}),
        "pickled and an architecture": ("pickled.pt", {"allow_pickle": True, "arch": name}),
        "traced": ("traced.pt", {}),
        "exported": ("exported.pt2", {}),
        "recognised": ("tv.pt", {}),
        "untrained": (name, {"arch_args": {"num_classes": 2}, "seed": 5}),
    }


def test_loading_anew_gives_the_same(arch: Any) -> None:
    for kind, (source, options) in sources(arch).items():
        first = load_model(source, **options)
        again = load_anew(first)
        assert weights_sha256(again.module) == weights_sha256(first.module), kind
        assert again.module is not first.module
        wide = load_anew(first, dtype=torch.float64).module
        both = zip(wide.parameters(), first.module.parameters(), strict=True)
        for tensor, loaded in both:
            assert tensor.dtype in (torch.float64, torch.complex128), kind
            assert torch.equal(tensor, loaded.to(tensor.dtype)), kind
        if kind == "average":
            raw = load_model(source, arch=options["arch"], ema=False).module
            assert torch.equal(first.module.low.bias, raw.low.bias + 1)


@pytest.mark.parametrize("kind", ["state dict", "untrained"])
def test_loading_anew_refuses_what_has_changed(arch: Any, kind: str) -> None:
    torch.save(arch.Net().state_dict(), "own.pt")
    name = f"{arch.__name__}.py"
    first = (
        load_model("own.pt", arch=f"{name}:Net")
        if kind == "state dict"
        else load_model(f"{name}:own_weights")
    )
    load_anew(first)
    torch.save(arch.Net().state_dict(), "own.pt")
    with pytest.raises(JacliError, match="has changed since it was first loaded"):
        load_anew(first)


def test_every_digit_of_the_file_reaches_the_reference(arch: Any) -> None:
    state = {
        key: value.to(torch.promote_types(value.dtype, torch.float64))
        for key, value in arch.Net().state_dict().items()
    }
    state["low.weight"] = torch.randn(8, 8, dtype=torch.float64)
    torch.save(state, "m.pt")
    jacli.compute("m.pt", "x.npy", out="out.h5", arch=f"{arch.__name__}.py:Net", dtype="float64")
    found = verify("out.h5", samples=None, arch=f"{arch.__name__}.py:Net")
    assert not found.failed and found.worst_error < 1e-12


def test_fingerprints_tell_kinds_and_values_apart() -> None:
    class Odd(nn.Module):
        def __init__(self, value: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
            super().__init__()
            self.register_buffer("scalar", torch.tensor(value, dtype=dtype))
            self.register_buffer("turns", torch.tensor([1j * value]))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("brain", torch.ones(2, 3, dtype=torch.bfloat16).T)
            self.lazy = nn.LazyLinear(2)

    def digest(**options: Any) -> str:
        return weights_sha256(Odd(**options))

    assert digest() == digest()
    assert len({digest(), digest(value=2.0), digest(dtype=torch.float64)}) == 3
