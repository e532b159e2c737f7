"""Real functions that go through complex numbers: Fourier layers, rotations, spectra of a signal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.errors import MethodError
from tests.reference import reference_jacobian


class Filter(nn.Module):
    """A filter in the frequency domain, by complex parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(6, 5, dtype=torch.cdouble))
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(torch.relu(self.first(x)))
        return self.last(torch.fft.irfft(torch.einsum("bk,ik->bk", spectrum, self.filter), n=8))


class Operator(nn.Module):
    """A layer of a Fourier neural operator: low modes are mixed and written into zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.skip, self.project = nn.Linear(1, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 1)
        self.modes = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.cfloat))
        self.double()
        self.modes.data = self.modes.data.to(torch.cdouble)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x[..., None]).transpose(1, 2)
        spectrum = torch.fft.rfft(h)
        mixed = torch.zeros_like(spectrum)
        mixed[:, :, :3] = torch.einsum("bix,iox->box", spectrum[:, :, :3], self.modes)
        h = nn.functional.gelu(torch.fft.irfft(mixed, n=x.shape[1]) + self.skip(h))
        return self.project(h.transpose(1, 2))[..., 0]


class Rotary(nn.Module):
    """Pairs of numbers as complex ones, turned by a buffer of phases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
        self.register_buffer("phases", torch.polar(torch.ones(4).double(), torch.arange(4.0).double()))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.first(x).reshape(-1, 4, 2))
        return self.last(torch.tanh(torch.view_as_real(pairs * self.phases).flatten(1)))


class Magnitudes(nn.Module):
    """Moduli and phases of a spectrum in two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16).double(), nn.Linear(12, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(self.first(x).reshape(-1, 4, 4) + 1)
        return self.last((spectrum.abs() + spectrum.angle().cos()).flatten(1))


class Spectrogram(nn.Module):
    """A short-time Fourier transform, as of audio."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32).double(), nn.Linear(45, 4).double()
        self.register_buffer("window", torch.hann_window(8).double())

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(self.first(x), 8, 4, window=self.window, return_complex=True)
        return self.last(torch.log1p(spectrum.abs().square()).flatten(1))


NETWORKS = (Filter, Operator, Rotary, Magnitudes, Spectrogram)


def _made(network: type[nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = network().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    return model, x, reference_jacobian(model, x)


@pytest.mark.parametrize("network", NETWORKS)
def test_plain_methods_serve(network: type[nn.Module]) -> None:
    model, x, expected = _made(network)
    for method in ("loop", "replicate", "vmap", "forward", "auto"):
        found = jacli.jacobian(model, x, method=method)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_traced_graph_serves_or_refuses_by_name(network: type[nn.Module]) -> None:
    model, x, expected = _made(network)
    for method in ("adjoint", "tangent", "factored"):
        try:
            found = jacli.jacobian(model, x, method=method)
        except MethodError as refused:
            assert "complex" in str(refused) or "does not work" in str(refused), refused
            assert "--method" in refused.hint
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("network", [Filter, Operator, Magnitudes])
def test_singular_values(network: type[nn.Module]) -> None:
    model, x, expected = _made(network)
    values = torch.linalg.svdvals(expected)
    torch.testing.assert_close(jacli.singular_values(model, x), values, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(jacli.singular_values(model, x, k=1), values[:, :1], rtol=1e-5, atol=1e-9)
