"""Options from files: what a result file may not decide, and what --out may not replace."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.errors import OutputError, UsageError
from jacli.run.config_file import resolve_options

ARCH = "from torch import nn\n\ndef make():\n    return nn.Linear(4, 3)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arch.py").write_text(ARCH)
    torch.save(nn.Linear(4, 3).state_dict(), "weights.pt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32))
    return tmp_path


def test_a_result_repeats_its_run(folder: Path) -> None:
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", method="vmap", out="a.h5")
    config = resolve_options({"config": "a.h5"})
    assert (config.arch, config.method) == (f"{folder / 'arch.py'}:make", "vmap")
    assert config.out == "out.h5"  # where to write is not repeated
    assert resolve_options({"config": "a.h5", "method": "loop"}).method == "loop"  # flags win


def test_a_changed_architecture_is_not_run_because_a_result_names_it(folder: Path) -> None:
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="a.h5")
    (folder / "arch.py").write_text(ARCH + "# another file\n")
    with pytest.raises(UsageError, match="give it anew"):
        resolve_options({"config": "a.h5"})
    assert resolve_options({"config": "a.h5", "arch": "arch.py:make"}).arch == "arch.py:make"


@pytest.mark.parametrize(("option", "value"), [("arch", "os:system"), ("model", "subprocess:run")])
def test_a_result_cannot_name_code_to_run(folder: Path, option: str, value: str) -> None:
    import json

    import h5py

    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="a.h5")
    with h5py.File("a.h5", "r+") as file:
        options = {**json.loads(file.attrs["config"]), option: value, "allow_pickle": True}
        file.attrs["config"] = json.dumps(options)
    with pytest.raises(UsageError, match="not taken from a result file"):
        resolve_options({"config": "a.h5"})
    trusted = resolve_options({"config": "a.h5", "arch": "arch.py:make", "model": "weights.pt"})
    assert not trusted.allow_pickle


@pytest.mark.parametrize("read", ["weights.pt", "x.npy", "arch.py", "labels.npy", "mask.npy", "run.toml"])
def test_a_file_that_is_read_is_never_replaced(folder: Path, read: str) -> None:
    for name in ("labels.npy", "mask.npy"):
        np.save(name, np.zeros(5, np.int64))
    (folder / "run.toml").write_text('labels = "labels.npy"\nclasses = "label"\narg = {mask = "@mask.npy"}\n')
    before = (folder / read).read_bytes()
    options = {"model": "weights.pt", "inputs": "x.npy", "arch": "arch.py:make", "config": "run.toml"}
    with pytest.raises(UsageError, match="both read and written"):
        resolve_options({**options, "out": read, "overwrite": True})
    assert (folder / read).read_bytes() == before


def test_a_pipe_is_not_replaced(folder: Path) -> None:
    os.mkfifo("pipe")
    with pytest.raises(OutputError, match="no regular file"):
        jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="pipe", overwrite=True)
    assert (folder / "pipe").is_fifo()
