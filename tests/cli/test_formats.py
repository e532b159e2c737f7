"""Each case in each kind of model file, loaded back by `jacli compute`, against the reference."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.cases import CASES, Case, build
from tests.reference import reference_jacobian

ARCH = """
from tests.cases import CASES


def builder(case):
    def make():
        return case.make()

    return make


globals().update({name: builder(case) for name, case in CASES.items()})
"""

NO_EXPORT = "torch.export fixes its Python attribute or what `squeeze()` drops"
NOT_POSSIBLE: dict[tuple[str, str], str] = {
    ("scripted", "stateful"): "its attribute is no TorchScript state",
    ("traced", "stateful"): "its attribute is no TorchScript state",
    ("traced", "squeezed"): "tracing fixes what `squeeze()` drops",
    **{
        (kind, name): NO_EXPORT
        for kind in ("pt2", "pt2_dynamic")
        for name in CASES
        if not CASES[name].exportable
    },
}


@cache
def _reference(name: str) -> Tensor:
    module, x, case = build(name, torch.float64)

    def run(point: Tensor) -> Tensor:
        output = copy.deepcopy(module)(point)  # a stateful module starts anew
        return output if case.select is None else output[int(case.select)]

    return reference_jacobian(run, x)


def _write_scripted(module: nn.Module, x: Tensor, path: Path) -> None:
    torch.jit.script(module).save(path)


def _write_traced(module: nn.Module, x: Tensor, path: Path) -> None:
    torch.jit.trace(module, x, check_trace=False).save(path)


def _write_exported(module: nn.Module, x: Tensor, path: Path) -> None:
    torch.export.save(torch.export.export(module, (x,)), path)


def _write_exported_dynamic(module: nn.Module, x: Tensor, path: Path) -> None:
    axes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=axes), path)


def _write_state_dict(module: nn.Module, x: Tensor, path: Path) -> None:
    torch.save(module.state_dict(), path)


def _write_safetensors(module: nn.Module, x: Tensor, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


KINDS = {
    "scripted": (_write_scripted, "model.pt"),
    "traced": (_write_traced, "model.pt"),
    "pt2": (_write_exported, "model.pt2"),
    "pt2_dynamic": (_write_exported_dynamic, "model.pt2"),
    "state_dict": (_write_state_dict, "state.pt"),
    "safetensors": (_write_safetensors, "model.safetensors"),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # nn.LSTM checks its input's size
@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm._flat_weights")  # of torch.export
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_loaded_back(name: str, kind: str, jacli, tmp_path: Path) -> None:
    if (kind, name) in NOT_POSSIBLE:
        pytest.skip(f"{name}, {kind}: {NOT_POSSIBLE[kind, name]}")
    module, x, case = build(name, torch.float32)
    write, file_name = KINDS[kind]
    write(module, x, tmp_path / file_name)
    np.save(tmp_path / "x.npy", x.numpy())
    found = _jacobian(
        jacli, tmp_path, file_name, case, weights_only=kind in ("state_dict", "safetensors"), name=name
    )
    expected = _reference(name).numpy()
    assert found.shape[: 1 + len(case.shape)] == x.shape
    error = np.linalg.norm(found.reshape(expected.shape) - expected) / np.linalg.norm(expected)
    assert error < 1e-4


def _jacobian(
    jacli, folder: Path, file_name: str, case: Case, *, weights_only: bool, name: str
) -> np.ndarray:
    options = ["--singular-values", "none", "--no-save-inputs", "--quiet"]
    if case.select is not None:
        options += ["--select", case.select]
    if weights_only:
        (folder / "arch.py").write_text(ARCH)
        options += ["--arch", f"{folder / 'arch.py'}:{name}"]
    ran = jacli("compute", folder / file_name, folder / "x.npy", "-o", folder / "out.h5", *options)
    assert ran.code == 0, ran.err
    assert (ran.out, ran.err) == ("", "")
    with h5py.File(folder / "out.h5") as file:
        return file["jacobian"][()].astype(np.float64)
