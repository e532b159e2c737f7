"""Models that overwrite, in their forward pass, what the reverse pass needs: state in place, checkpoints."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import jacli
from jacli.errors import MethodError
from tests.reference import reference_jacobian

PLAIN = ("loop", "replicate", "vmap", "forward")
ALL = (*PLAIN, "adjoint", "tangent", "factored", "auto")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6).double(), nn.Linear(6, 4).double()


class Gate(Layers):
    """Recurrent state in a buffer for one sample: used, then overwritten in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.full((1, 6), 0.5).double())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x) + self.h)
        for _ in range(2):
            y = y * self.h
            self.h.copy_(torch.sigmoid(y + self.h))
        return self.b(y + self.h)


class GateWritten(Gate):
    """`Gate` without a write."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.h
        y = torch.tanh(self.a(x) + h)
        for _ in range(2):
            y = y * h
            h = torch.sigmoid(y + h)
        return self.b(y + h)


class Accumulator(Layers):
    """State of any batch size, made in the forward pass and added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.h = torch.zeros(0).double()

    def forward(self, x: Tensor) -> Tensor:
        if self.h.shape != x.shape:
            self.h = torch.ones_like(x)
        for _ in range(2):
            x = x * self.h
            self.h.add_(torch.exp(0.1 * self.a(x)))
        return self.b(x)


class AccumulatorWritten(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.ones_like(x)
        for _ in range(2):
            x = x * h
            h = h + torch.exp(0.1 * self.a(x))
        return self.b(x)


class Reused(Layers):
    """No state: a saved result is scaled in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(self.a(x))
        z = y * 2
        y.mul_(0.5)
        return self.b(torch.tanh(z) * y)


class ReusedWritten(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(self.a(x))
        return self.b(torch.tanh(2 * y) * (0.5 * y))


class Unseen(Layers):
    """A saved buffer is overwritten where torch does not notice: its gradient is wrong without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 6).double())

    def forward(self, x: Tensor) -> Tensor:
        self.h.data.fill_(2.0)
        y = x * self.h
        self.h.data.mul_(3.0)
        return self.b(torch.tanh(self.a(y + x * self.h)))


class UnseenWritten(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(8 * x)))


class Counter(Layers):
    """Counts its calls, and keeps a mean, in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1).double())
        self.register_buffer("mean", torch.zeros(6).double())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.copy_(x.detach().mean(0))
        return self.b(torch.tanh(self.a(x)))


class CounterWritten(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


PAIRS = [
    pytest.param(Gate, GateWritten, ("replicate",), id="state of one sample"),
    pytest.param(Accumulator, AccumulatorWritten, (), id="state of a batch"),
    pytest.param(Reused, ReusedWritten, (), id="no state"),
    pytest.param(Unseen, UnseenWritten, (), id="by .data"),
    pytest.param(Counter, CounterWritten, (), id="counter"),
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _assert_right(made: nn.Module, written: nn.Module, x: Tensor, method: str) -> None:
    expected = reference_jacobian(written, x)
    torch.testing.assert_close(jacli.jacobian(made, x, method=method), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("made", "written", "refused"), PAIRS)
def test_plain_methods_serve_models_that_overwrite(
    made: type[nn.Module], written: type[nn.Module], refused: tuple[str, ...], x: Tensor
) -> None:
    for method in (*PLAIN, "auto"):
        if method in refused:
            with pytest.raises(MethodError, match=f"method {method} does not work"):
                jacli.jacobian(made(), x, method=method)
        else:
            _assert_right(made(), written(), x, method)


@pytest.mark.parametrize("method", ["adjoint", "tangent", "factored"])
def test_methods_that_trace_refuse_state_by_name(method: str, x: Tensor) -> None:
    for model in (Gate(), Accumulator()):
        with pytest.raises(MethodError) as refused:
            jacli.jacobian(model, x, method=method)
        assert method in str(refused.value)
    _assert_right(Reused(), ReusedWritten(), x, method)  # no state: a graph has no writes


@pytest.mark.parametrize(("made", "written"), [(Gate, GateWritten), (Reused, ReusedWritten)])
@pytest.mark.parametrize("method", ["auto", "loop", "vmap", "forward"])
def test_torchscript_that_overwrites(
    made: type[nn.Module],
    written: type[nn.Module],
    method: str,
    x: Tensor,
    tmp_path: Path,
) -> None:
    torch.jit.script(made()).save(tmp_path / "model.pt")
    np.save(tmp_path / "x.npy", x.numpy())
    out, model, inputs = (str(tmp_path / name) for name in ("out.h5", "model.pt", "x.npy"))
    outcome = jacli.compute(model, inputs, out, dtype="float64", method=method, verify=3)
    assert outcome.rechecked is not None and outcome.rechecked.failed == ()
    with h5py.File(out) as file:
        np.testing.assert_allclose(
            file["jacobian"][:], reference_jacobian(written(), x).numpy(), rtol=1e-6, atol=1e-9
        )


class Checkpointed(Layers):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        part = nn.Sequential(self.a, nn.Tanh())
        if self.how == "sequential":
            return self.b(checkpoint_sequential(part, 2, x, use_reentrant=True))
        if self.how == "saved on the CPU":
            with torch.autograd.graph.save_on_cpu():
                return self.b(part(x))
        return self.b(checkpoint(part, x, use_reentrant=self.how == "reentrant"))


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "sequential", "saved on the CPU"])
def test_checkpoints_serve_by_every_method(how: str, x: Tensor) -> None:
    for method in ALL:
        _assert_right(Checkpointed(how), CounterWritten(), x, method)


class CheckpointedState(Layers):
    """A part that is run again would see another state; its gradient would be another one, silently."""

    def __init__(self, *, reentrant: bool, once: bool) -> None:
        super().__init__()
        self.reentrant, self.once = reentrant, once
        self.register_buffer("h", torch.zeros(1, 6).double())

    def _step(self, x: Tensor) -> Tensor:
        if self.once and len(x) > 1:
            raise ValueError("one sample at a time")
        y = torch.tanh(self.a(x) + self.h * x)
        self.h.copy_(y.detach().mean(0, keepdim=True) + 1)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(self._step, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["loop", "vmap", "forward", "auto"])
def test_a_checkpoint_never_runs_again_on_changed_state(reentrant: bool, method: str, x: Tensor) -> None:
    _assert_right(CheckpointedState(reentrant=reentrant, once=True), CounterWritten(), x, method)


class CheckpointedThenOverwritten(Layers):
    """The buffer that a checkpoint reads is overwritten after it, without state from call to call."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.register_buffer("h", torch.zeros(1, 6).double())

    def forward(self, x: Tensor) -> Tensor:
        self.h.fill_(2.0)
        y = checkpoint(lambda points: points * self.h, x, use_reentrant=self.reentrant)
        self.h.mul_(3.0)
        return self.b(torch.tanh(self.a(y + x * self.h)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["loop", "replicate", "vmap", "forward"])
def test_a_checkpoint_that_reads_what_is_overwritten_later(reentrant: bool, method: str, x: Tensor) -> None:
    _assert_right(CheckpointedThenOverwritten(reentrant=reentrant), UnseenWritten(), x, method)


def test_checkpoints_work_as_before_afterwards(x: Tensor) -> None:
    jacli.jacobian(Checkpointed("reentrant"), x, method="vmap")
    model = Checkpointed("not reentrant")
    runs: list[int] = []
    model.a.register_forward_hook(lambda *_: runs.append(1))
    point = x.clone().requires_grad_(True)
    model(point).sum().backward()
    assert len(runs) == 2  # the checkpoint ran again
