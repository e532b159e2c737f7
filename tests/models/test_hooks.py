"""Which of the hooks of a user's module run on jacli's copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm

import jacli
from jacli.models.hooks import drop_backward_hooks, forward_hooks
from tests.reference import reference_jacobian

METHODS = ("loop", "replicate", "vmap", "forward", "adjoint", "tangent", "factored", "auto")


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _halving(module: nn.Module, given: Any, gradient: tuple[Tensor | None, ...]) -> Any:
    return tuple(None if g is None else g / 2 for g in given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["full backward", "backward pre"])
def test_backward_hooks_neither_run_nor_change_the_jacobian(method: str, kind: str, x: Tensor) -> None:
    expected = reference_jacobian(_network(), x)
    model = _network()
    calls: list[str] = []

    def halve(module: nn.Module, *gradients: Any) -> Any:
        calls.append("called")
        return tuple(None if g is None else g / 2 for g in gradients[0])

    register = (
        model[1].register_full_backward_hook
        if kind == "full backward"
        else model[1].register_full_backward_pre_hook
    )
    register(halve)
    torch.testing.assert_close(jacli.jacobian(model, x, method=method), expected, rtol=1e-9, atol=1e-12)
    assert calls == []
    point = x.clone().requires_grad_(True)
    model(point).sum().backward()
    assert calls == ["called"]  # the user's own module has it still
    torch.testing.assert_close(point.grad, expected.sum(2) / 2)


def test_a_second_call_is_as_quick_with_a_backward_hook(x: Tensor) -> None:
    model = _network()
    model[0].register_full_backward_hook(_halving)
    model.register_forward_hook(lambda *_: None)
    first = jacli.jacobian(model, x)
    from jacli.engine.module_cache import _ENTRIES

    assert len(_ENTRIES[model]) == 1
    torch.testing.assert_close(jacli.jacobian(model, x), first)


def _doubling(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def _shifting(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] + 1,)


@pytest.mark.parametrize("kind", ["forward", "forward pre", "spectral norm", "pruning"])
def test_forward_hooks_are_part_of_the_function(kind: str, x: Tensor) -> None:
    model = _network()
    if kind == "forward":
        model[0].register_forward_hook(_doubling)
    elif kind == "forward pre":
        model[2].register_forward_pre_hook(_shifting)
    elif kind == "spectral norm":
        spectral_norm(model[0])
    else:
        prune.l1_unstructured(model[0], "weight", amount=0.5)
    model.eval()
    expected = reference_jacobian(model, x)
    assert (expected - reference_jacobian(_network(), x)).abs().max() > 1e-3 or kind == "forward pre"
    for method in METHODS:
        torch.testing.assert_close(jacli.jacobian(model, x, method=method), expected, rtol=1e-9, atol=1e-12)


def test_torch_s_own_forward_hooks_are_not_listed() -> None:
    model = _network()
    spectral_norm(model[0])
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    assert forward_hooks(model) == []
    model[1].register_forward_hook(_doubling)
    model[1].register_forward_pre_hook(_shifting)
    model[1].register_full_backward_hook(_halving)
    assert sorted(forward_hooks(model)) == ["_doubling", "_shifting"]


def test_torchscript_has_no_hooks_to_drop() -> None:
    scripted = torch.jit.script(_network())
    drop_backward_hooks(scripted)
    assert forward_hooks(scripted) == []


ARCH = """
import torch

def seen(module, inputs, output):
    return output * 3

def halve(module, given, gradient):
    return tuple(g / 2 for g in given)

def make():
    net = torch.nn.Linear(4, 2)
    net.register_forward_hook(seen)
    net.register_full_backward_hook(halve)
    return net
"""


def test_the_run_says_which_run(tmp_path: Path) -> None:
    (tmp_path / "arch.py").write_text(ARCH)
    np.save(tmp_path / "x.npy", np.ones((2, 4), dtype=np.float32))
    outcome = jacli.compute(
        f"{tmp_path}/arch.py:make", str(tmp_path / "x.npy"), str(tmp_path / "o.h5"), verify=2
    )
    assert outcome.rechecked is not None and outcome.rechecked.failed == ()
    assert [note for note in outcome.notes if "forward hooks (seen)" in note]
    with jacli.open(tmp_path / "o.h5") as results:
        torch.manual_seed(0)
        weight = torch.nn.Linear(4, 2).weight.detach().numpy()
        np.testing.assert_allclose(results.jacobian[:][0], 3 * weight.T, rtol=1e-5)
