"""TorchScript archives that are healthy and cannot serve: no forward, an operator that is not there."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jacli.errors import ModelError
from jacli.models import describe_model, load_model
from jacli.models.torchscript import _naming_operators


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    @torch.jit.export
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)

    @torch.jit.export
    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Tensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3))


@pytest.mark.parametrize(("module", "said"), [(TwoWays, "decode, encode"), (Tensors, "no methods at all")])
def test_archives_without_forward_say_what_they_have(tmp_path: Path, module: Any, said: str) -> None:
    path = tmp_path / "net.pt"
    torch.jit.script(module()).save(str(path))
    with pytest.raises(ModelError, match="no method forward") as caught:
        load_model(str(path))
    assert said in caught.value.why
    assert describe_model(path)["forward"] is None


@pytest.mark.parametrize(
    "operator", ["quantized.conv2d_relu_of_old", "mylib.special", "torchvision.nms_of_old"]
)
def test_operators_that_are_not_there_are_named(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "net.pt"
    torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())).save(str(path))
    content = {}
    with zipfile.ZipFile(path) as archive:
        content = {n: archive.read(n) for n in archive.namelist() if not n.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(b"torch.sigmoid(", f"ops.{operator}(".encode()))
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    assert operator in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.parametrize("operator", ["torchvision::nms", "quantized::conv2d_prepack_of_old"])
def test_what_torch_says_of_an_operator_is_no_damage(tmp_path: Path, operator: str) -> None:
    lines = "  result = ops.there(x)\n           ~~~ <--- HERE\n"
    said = f"\nUnknown builtin op: {operator}.\nCould not find any similar ops to {operator}.\n{lines}"
    with pytest.raises(ModelError, match=operator) as caught, _naming_operators(tmp_path / "net.pt"):
        raise RuntimeError(said)
    assert "damaged" not in str(caught.value) and "--arch" in caught.value.hint
