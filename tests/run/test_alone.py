"""Samples that influence one another in larger batches: with ``--batch-size 1`` each is computed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.commands.verify import verify
from jacli.errors import JacliError, MethodError, ModelError
from tests.reference import reference_jacobian


class Adaptive(nn.Module):
    """A step size for the whole batch, chosen by values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = int(x.detach().pow(2).mean() * 8) + 1
        for _ in range(steps):
            x = x + torch.tanh(self.layer(x)) / steps
        return x


class Centred(nn.Module):
    """Statistics of the batch, and of the sample where it is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x)) / (1 + x.pow(2).mean())


class Squeezing(nn.Module):
    """Drops the batch axis of a lone sample, for which others are run as two copies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(x) / (1 + x.pow(2).mean())).squeeze(0)


MODELS = {"adaptive": Adaptive, "centred": Centred}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return {**MODELS, "squeezing": Squeezing}[name]().eval()


@pytest.fixture
def x(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((6, 4), np.float32)
    np.save("x.npy", x)
    for name in (*MODELS, "squeezing"):
        torch.jit.script(model_of(name)).save(f"{name}.pt")
    return torch.from_numpy(x)


def exact(name: str, x: torch.Tensor) -> torch.Tensor:
    """Each sample's Jacobian on its own, in float64."""
    model = model_of(name).double()
    return torch.cat([reference_jacobian(model, row[None].double()) for row in x])


@pytest.mark.parametrize("method", ["auto", "loop", "vmap", "forward"])
@pytest.mark.parametrize("name", MODELS)
def test_each_sample_alone(x: torch.Tensor, name: str, method: str) -> None:
    outcome = jacli.compute(f"{name}.pt", "x.npy", batch_size=1, verify=6, method=method)
    assert any("each is computed alone" in note for note in outcome.notes)
    assert outcome.rechecked.samples == 6 and not outcome.rechecked.failed
    with jacli.open(outcome.out) as results:
        found = torch.from_numpy(results["jacobian"][:]).double()
    torch.testing.assert_close(found, exact(name, x).reshape(found.shape), rtol=1e-4, atol=1e-6)
    assert verify(outcome.out, samples=None).failed == ()


@pytest.mark.parametrize("name", MODELS)
def test_from_python(x: torch.Tensor, name: str) -> None:
    model = model_of(name)
    found = jacli.jacobian(model, x, batch_size=1)
    torch.testing.assert_close(found.double(), exact(name, x).reshape(found.shape), rtol=1e-4, atol=1e-6)
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(model, x, batch_size=2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 6}])
def test_in_company_they_are_refused_with_the_remedy(
    x: torch.Tensor, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="mixes samples") as raised:
        jacli.compute(f"{name}.pt", "x.npy", **options)
    assert "--batch-size 1" in raised.value.hint


@pytest.mark.parametrize("name", MODELS)
def test_a_method_that_enlarges_the_batch_is_refused_by_name(x: torch.Tensor, name: str) -> None:
    with pytest.raises(JacliError, match="replicate") as raised:
        jacli.compute(f"{name}.pt", "x.npy", batch_size=1, method="replicate")
    assert raised.value.exit_code in (MethodError.exit_code, 2) and "repeats the batch" in raised.value.why


def test_copies_of_a_lone_sample_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ModelError) as raised:
        jacli.compute("squeezing.pt", "x.npy", batch_size=1)
    assert "batch axis" in str(raised.value)
