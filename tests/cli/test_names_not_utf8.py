"""Files whose names are no UTF-8: every format of models and inputs, and what a run does with them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from jacli.inputs import open_inputs
from jacli.models import load_model
from jacli.store import open_results
from jacli.untrusted.content import path_as_text

NAME = os.fsdecode(b"a\xff\xc3 b")
X = torch.arange(12.0).reshape(3, 4)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


ARCH = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
"""


def _scripted(path: Path) -> None:
    torch.jit.script(_network()).save(path)


def _exported(path: Path) -> None:
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(_network(), (X,), dynamic_shapes=shapes), path)


MODELS = {
    "TorchScript": _scripted,
    "torch.export": _exported,
    "state dict": lambda path: torch.save(_network().state_dict(), path),
    "legacy": lambda path: torch.save(_network().state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: safetensors.torch.save_file(_network().state_dict(), path),
}


@pytest.mark.parametrize("save", MODELS.values(), ids=MODELS.keys())
def test_models(tmp_path: Path, save: Callable[[Path], object]) -> None:
    save(tmp_path / "plain.pt2")
    path = tmp_path / NAME
    shutil.move(tmp_path / "plain.pt2", path)
    arch = tmp_path / f"{NAME}.py"
    arch.write_text(ARCH)
    bare = save not in (_scripted, _exported)
    loaded = load_model(path, arch=f"{arch}:make" if bare else None)
    torch.testing.assert_close(loaded.module(X), _network()(X))
    assert loaded.path == str(path)


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = X.numpy()


INPUTS = {
    "npy": lambda path: np.save(path, X.numpy()),
    "npz": lambda path: np.savez(path, x=X.numpy()),
    "pt": lambda path: torch.save(X, path),
    "legacy pt": lambda path: torch.save(X, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: safetensors.torch.save_file({"x": X}, path),
    "bfloat16": lambda path: safetensors.torch.save_file({"x": X.bfloat16()}, path),
    "hdf5": _hdf5,
}


@pytest.mark.parametrize("save", INPUTS.values(), ids=INPUTS.keys())
def test_inputs(tmp_path: Path, save: Callable[[Path], object]) -> None:
    save(tmp_path / "plain")
    (plain,) = tmp_path.iterdir()
    plain.rename(tmp_path / NAME)
    with open_inputs(str(tmp_path / NAME)) as source:
        np.testing.assert_array_equal(source.read(0, 3), X.numpy())


def test_other_names_go_as_they_are(tmp_path: Path) -> None:
    with path_as_text(tmp_path / "größe") as text:
        assert text == str(tmp_path / "größe")
    with pytest.raises(FileNotFoundError), path_as_text(tmp_path / NAME):
        pass


def test_a_run_from_such_names_to_such_a_name(
    jacli: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(_network()).save("m.pt")
    np.save("x.npy", X.numpy())
    os.rename("m.pt", f"{NAME}.pt")
    os.rename("x.npy", f"{NAME}.npy")
    out = f"{NAME}.h5"

    def run(*arguments: str) -> None:
        ran = jacli(*arguments)
        assert ran.code == 0, ran.err  # type: ignore[attr-defined]

    run("compute", f"{NAME}.pt", f"{NAME}.npy", "-o", out, "--method", "loop")
    run("verify", out)
    run("compute", "--config", out, "-o", f"again {out}")
    run("summarize", out, f"again {out}", "-o", f"{NAME}.csv")
    with open_results(out) as results:
        assert os.fsencode(json.loads(str(results.attrs["config"]))["model"]).endswith(
            os.fsencode(f"{NAME}.pt")
        )
        for value in results.attrs.values():
            if isinstance(value, str):
                value.encode("utf-8")  # valid, for every reader
                assert value.isprintable()
    assert b"a\\xff\\xc3 b.h5" in Path(f"{NAME}.csv").read_bytes()


def test_shards_of_such_a_name(jacli: Callable[..., object], tmp_path: Path) -> None:
    from tests.run.shard_files import write_shards

    out = tmp_path / f"{NAME}.h5"
    write_shards(out, 2)
    ran = jacli("merge", out)
    assert ran.code == 2 and "--copy" in ran.err and not out.exists()  # type: ignore[attr-defined]
    assert jacli("merge", out, "--copy").code == 0  # type: ignore[attr-defined]
    with open_results(out) as results:
        assert len(results) == 10
