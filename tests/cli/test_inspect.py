"""`jacli inspect` on what it knows, and progress on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.cli import progress
from jacli.options.methods import METHOD_NAMES


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    torch.jit.save(torch.jit.script(model), "model.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "weights.ckpt")
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.save("x.npy", x)
    np.savez("several.npz", a=x, b=x[:, :2])
    jacli.compute("model.pt", "x.npy", out="out.h5")
    return tmp_path


def inspected(jacli: Any, *argv: str) -> dict[str, Any]:
    ran = jacli("inspect", *argv, "--json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_a_program(files: Path, jacli: Any) -> None:
    found = inspected(jacli, "model.pt")
    assert (found["kind"], found["format"], found["num_parameters"]) == ("model", "torchscript", 15)


def test_weights(files: Path, jacli: Any) -> None:
    found = inspected(jacli, "weights.ckpt")
    assert (found["kind"], found["format"], found["num_tensors"]) == ("model", "checkpoint", 2)
    assert "module." in json.dumps(found)


def test_inputs(files: Path, jacli: Any) -> None:
    found = inspected(jacli, "x.npy")
    assert (found["kind"], found["samples"], found["shape"], found["dtype"]) == ("inputs", 5, [4], "float32")
    assert (found["min"], found["max"], found["mean"], found["not_finite"]) == (0, 19, 9.5, 0)
    assert inspected(jacli, "several.npz", "--inputs-key", "b")["shape"] == [2]


def test_a_result(files: Path, jacli: Any) -> None:
    found = inspected(jacli, "out.h5")
    assert (found["kind"], found["complete"], found["samples_done"]) == ("result", True, 5)
    assert found["datasets"]["jacobian"]["shape"] == [5, 4, 3]
    assert found["attributes"]["method"] == "vmap"


def test_a_model_on_inputs(files: Path, jacli: Any) -> None:
    found = inspected(jacli, "model.pt", "--inputs", "x.npy")
    assert (found["input"], found["output"], found["samples"]) == ([4], [3], 5)
    assert found["methods"] == dict.fromkeys(METHOD_NAMES, "serves")


def test_as_text(files: Path, jacli: Any) -> None:
    ran = jacli("inspect", "out.h5")
    assert "jacobian" in ran.out
    assert "5 x 4 x 3" in ran.out


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_reporter(quiet=False, every=30) as report:
        report(3, 12)
        report(12, 12)
    shown = capsys.readouterr().err
    assert "computing" in shown
    assert "12/12" in shown
    assert "samples/s" in shown
