"""A method that serves the first batch and not a later one: what is done can be finished."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import jacli
from jacli.errors import MethodError, OutputError
from jacli.store import part_path

ARCH = '''
import torch
from torch import nn


class Wrong(torch.autograd.Function):
    """Forward mode is wrong where a sample's first number is above 3."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent * torch.where(x[:, :1] > 3, 0.5, 1.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Linear(5, 12)

    def forward(self, x):
        return self.top(Wrong.apply(x))


def make():
    torch.manual_seed(0)
    return Net()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arch.py").write_text(ARCH)
    x = np.random.default_rng(0).standard_normal((40, 5), dtype=np.float32).clip(-2, 2)
    x[25:, 0] = 4.0
    np.save("x.npy", x)
    return tmp_path


def run(**options: object):
    return jacli.compute("arch.py:make", "x.npy", out="out.h5", batch_size=8, verify=40, **options)


def test_the_error_names_the_option_that_finishes_the_run(folder: Path) -> None:
    with pytest.raises(MethodError, match="works up to sample 23") as stopped:
        run(method="forward")
    assert "--method auto" in stopped.value.hint
    assert part_path(Path("out.h5")).exists()
    with pytest.raises(MethodError, match="works up to sample 23"):
        run(method="forward")  # the same again is the same again
    outcome = run(method="auto")
    assert outcome.continued == 24
    assert not outcome.rechecked.failed and outcome.rechecked.samples == 40
    assert any("by loop, not forward" in note for note in outcome.notes)
    assert not part_path(Path("out.h5")).exists()


@pytest.mark.parametrize("other", ["loop", "vmap"])
def test_no_other_method_takes_over(folder: Path, other: str) -> None:
    """The file's plan would be followed, not the method that is asked for."""
    with pytest.raises(MethodError):
        run(method="forward")
    with pytest.raises(OutputError, match="--method was forward, is " + other):
        run(method=other)


def test_without_a_method_the_run_goes_on_by_itself(folder: Path) -> None:
    outcome = run()
    assert not outcome.rechecked.failed


def test_from_python_the_error_speaks_of_no_file(folder: Path) -> None:
    namespace: dict[str, object] = {}
    exec(compile((folder / "arch.py").read_text(), "arch.py", "exec"), namespace)
    x = torch.from_numpy(np.load("x.npy"))
    with pytest.raises(MethodError, match="works up to sample 23") as stopped:
        jacli.jacobian(namespace["make"](), x, method="forward", batch_size=8)
    assert "--" not in stopped.value.hint
