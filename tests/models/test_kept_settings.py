"""torch's global settings after code of the user's has changed them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from jacli.errors import ModelError
from jacli.models import load_anew, load_model
from jacli.models.kept_settings import settings_kept

from .networks import saved

CHANGES = {
    "grad": "torch.set_grad_enabled(False)",
    "inference": "GUARD = torch.inference_mode(); GUARD.__enter__()",
    "dtype": "torch.set_default_dtype(torch.float64)",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "warn only": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "device": "torch.set_default_device('meta')",
    "same device": "torch.set_default_device('cpu')",
    "seed": "torch.manual_seed(12345)",
    "anomaly": "torch.autograd.set_detect_anomaly(True, check_nan=False)",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "folder": "import os; os.chdir('/')",
    "NumPy's errors": "import numpy; numpy.seterr(all='raise')",
    "warnings": "import warnings; warnings.filterwarnings('error', 'of a kind', UserWarning)",
    "all warnings": "import warnings; warnings.simplefilter('error', ResourceWarning)",
}
NETWORK = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.bn = torch.nn.BatchNorm1d(2)
        {inside}

    def forward(self, x):
        return self.bn(self.fc(x))
"""


def source(*, at_import: str = "", inside: str = "") -> str:
    return f"import torch\n{at_import}\n{NETWORK.format(inside=inside)}"


def settings() -> dict[str, Any]:
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "threads": torch.get_num_threads(),
        "device": torch.get_default_device(),
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "random": torch.get_rng_state().sum().item(),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "folder": os.getcwd(),
        "NumPy's errors": np.geterr(),
        "warnings": [one for one in warnings.filters if one[0] == "error"],
    }


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with settings_kept():  # a failing test must not change the others
        yield


def differentiates(module: torch.nn.Module) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None and module.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["import", "building"])
def test_files_with_an_architecture(tmp_path: Path, change: str, when: str) -> None:
    text = source(at_import=CHANGES[change]) if when == "import" else source(inside=CHANGES[change])
    (tmp_path / "arch.py").write_text(text)
    state = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2), "bn": torch.nn.BatchNorm1d(2)}).state_dict()
    before = settings()
    loaded = load_model(str(saved(state, tmp_path / "net.pt")), arch=f"{tmp_path / 'arch.py'}:Net")
    assert settings() == before
    again = load_anew(loaded)
    assert settings() == before
    differentiates(loaded.module)
    differentiates(again.module)


@pytest.mark.parametrize("change", CHANGES)
def test_modules_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    name = "changes_" + "".join(filter(str.isalpha, change))
    (tmp_path / f"{name}.py").write_text(source(at_import=CHANGES[change]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    scope: dict[str, Any] = {"torch": torch, "__name__": name}
    exec(source(), scope)
    made: Any = ModuleType(name)
    made.Net = scope["Net"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, made)
        saved(made.Net(), tmp_path / "whole.pt")
    saved(made.Net().state_dict(), tmp_path / "weights.pt")
    for load in (
        lambda: load_model("whole.pt", allow_pickle=True),
        lambda: load_model("weights.pt", arch=f"{name}:Net"),
    ):
        before = settings()
        loaded = load()
        assert settings() == before
        differentiates(loaded.module)
        del sys.modules[name]


def test_a_network_made_in_inference_mode_is_differentiated(tmp_path: Path) -> None:
    (tmp_path / "arch.py").write_text(
        source() + "\n@torch.inference_mode()\ndef make():\n"
        "    net = Net()\n    net.tied = torch.nn.Linear(3, 2)\n"
        "    net.tied.weight = net.fc.weight\n    return net\n"
    )
    module = load_model(f"{tmp_path / 'arch.py'}:make").module
    differentiates(module)
    assert module.tied.weight is module.fc.weight


def test_settings_come_back_when_user_code_raises(tmp_path: Path) -> None:
    (tmp_path / "arch.py").write_text("import torch\ntorch.set_grad_enabled(False)\nraise ValueError('no')\n")
    with pytest.raises(ModelError, match="ValueError: no"):
        load_model(f"{tmp_path / 'arch.py'}:Net")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_network_is_built_in_the_default_dtype_that_its_file_sets(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "arch.py").write_text(source(at_import=f"torch.set_default_dtype(torch.{dtype})"))
    loaded = load_model(f"{tmp_path / 'arch.py'}:Net")
    assert loaded.module.fc.weight.dtype == getattr(torch, dtype)
    assert load_anew(loaded).weights_sha256 == loaded.weights_sha256
    assert torch.get_default_dtype() == torch.float32


def test_filters_that_silence_warnings_stay() -> None:
    with warnings.catch_warnings():
        with settings_kept():
            warnings.filterwarnings("ignore", "of the user's", UserWarning)
            warnings.filterwarnings("error", "of another kind", UserWarning)
        warnings.filterwarnings("error", "of the user's", UserWarning, append=True)
        warnings.warn("of the user's model", UserWarning, stacklevel=1)
        texts = [getattr(one[1], "pattern", one[1]) for one in warnings.filters]
    assert "of the user's" in texts and "of another kind" not in texts


def test_a_working_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with settings_kept():
        pass
