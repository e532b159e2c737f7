"""`jacli bench`: its table, its JSON, its exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jacli.options.methods import AUTOGRAD_METHODS, METHOD_NAMES
from tests.toy_models import Mixing


class Fixed(nn.Module):
    """Baked for four samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x.view(4, 5))[:, :3]


ARCH = """
import torch
from torch import nn

class Talking(nn.Module):
    def forward(self, x):
        print("a model that prints")
        return torch.sin(x)[:, :3]
"""
COLUMNS = [
    "method",
    "precision",
    "samples",
    "vectors",
    "passes",
    "s/sample",
    "seconds",
    "relative",
    "memory",
    "error",
    "worst",
    "note",
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))), "model.pt")
    torch.jit.save(torch.jit.script(Fixed()), "fixed.pt")
    torch.jit.save(torch.jit.script(Mixing()), "mixing.pt")
    Path("arch.py").write_text(ARCH)
    np.save("x.npy", np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32))
    return tmp_path


def test_the_table(files: Path, jacli: Any) -> None:
    ran = jacli("bench", "model.pt", "x.npy")
    assert ran.code == 0
    header, rule, *rows = ran.out.splitlines()
    assert header.split() == COLUMNS
    assert set(rule) <= set(" ─")
    assert sorted(row.split()[0] for row in rows if row.split()[1] == "ieee") == sorted(METHOD_NAMES)
    assert {row.split()[0] for row in rows if row.split()[1] == "bf16"} == {*METHOD_NAMES} - {
        *AUTOGRAD_METHODS
    }
    (marked,) = [row for row in rows if row.endswith("auto") or " auto; " in row]
    assert f"note: auto takes {marked.split()[0]} (" in ran.err
    assert re.search(r"it chose in \d+\.\d s$", ran.err, flags=re.M)
    assert next(row.split()[7] for row in rows if row.split()[1] == "ieee") == "1.00x"
    for row in rows:
        assert re.search(r"\dx +\d+\.\d [KM]iB  +\d\.\de-\d\d +\d\.\de-\d\d|\dx +\d+ B +\d\.\de-\d\d", row)
    assert "~" not in ran.out + ran.err


def test_what_is_stopped_is_marked(files: Path, jacli: Any) -> None:
    ran = jacli("bench", "model.pt", "x.npy", "--limit", "1e-9", "--chunk-size", "1")
    assert ran.code == 0
    rows = ran.out.splitlines()[2:]
    assert len(rows) >= len(METHOD_NAMES) and all(row.count("~") == 2 for row in rows)
    assert "note: ~: its batch was not computed whole within 1e-09 s" in ran.err


def test_json_alone_on_stdout(files: Path, jacli: Any) -> None:
    ran = jacli("bench", "arch.py:Talking", "x.npy", "--json", "--dtype", "float64", "--samples", "1:6")
    assert ran.code == 0
    assert "a model that prints" in ran.err
    found = json.loads(ran.out)
    assert (found["samples"], found["input"], found["output"]) == (5, [5], [3])
    assert (found["dtype"], found["reference_dtype"], found["limit"]) == ("float64", "float64", 20.0)
    rows = [row["method"] for row in found["methods"] if row["precision"] == "ieee"]
    assert sorted(rows) == sorted(METHOD_NAMES)
    loop = next(row for row in found["methods"] if row["method"] == "loop")
    assert loop["passes"] == 3 and loop["error_worst"] < 1e-12 and loop["refused"] is None


def test_options_mean_what_they_mean_in_compute(files: Path, jacli: Any) -> None:
    line = "bench model.pt x.npy --json --classes 0,2 --batch-size 3 --chunk-size 1 --seed 3 --memory 1GiB"
    found = json.loads(jacli(*line.split()).out)
    assert found["outputs_differentiated"] == 2
    assert {(row["samples"], row["vectors"]) for row in found["methods"] if not row["refused"]} == {(3, 1)}
    assert next(row["passes"] for row in found["methods"] if row["method"] == "vmap") == 2 * 2


def test_a_model_of_a_fixed_batch(files: Path, jacli: Any) -> None:
    ran = jacli("bench", "fixed.pt", "x.npy")
    assert ran.code == 0
    rows = ran.out.splitlines()[2:]
    assert sorted(row.split()[0] for row in rows[3:]) == ["adjoint", "factored", "replicate", "tangent"]
    assert all("refused: " in row and "4 only" in row for row in rows[3:])
    assert not any("refused" in row for row in rows[:3])
    assert "the model runs in batches of 4" in ran.err
    assert jacli("bench", "fixed.pt", "x.npy", "--batch-size", "3").code == 2


def test_all_bad_options_at_once(files: Path, jacli: Any) -> None:
    line = "bench model.pt x.npy --limit 0 --dtype half --classes cat --seed -1"
    ran = jacli(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert "4 options are wrong" in ran.err
    for words in ("--limit 0", "--dtype half", "--classes cat", "--seed -1", "jacli bench --help"):
        assert words in ran.err
    assert "jacli compute" not in ran.err


WRONG = {
    "limit": ("model.pt x.npy --limit soon", 2, "seconds above 0"),
    "one": ("model.pt x.npy --dtype half", 2, "--dtype half"),
    "no inputs": ("model.pt", 2, "jacli bench model.pt inputs.npy"),
    "labels": ("model.pt x.npy --classes label", 2, "--labels FILE"),
    "no such option": ("model.pt x.npy --method loop", 2, "--method"),
    "no model": ("none.pt x.npy", 3, "none.pt"),
    "mixes samples": ("mixing.pt x.npy", 3, "mixes samples"),
    "no file": ("model.pt none.npy", 4, "none.npy"),
    "memory": ("model.pt x.npy --memory 10", 5, "not even one sample"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(files: Path, jacli: Any, name: str) -> None:
    line, code, words = WRONG[name]
    ran = jacli("bench", *line.split())
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert "Traceback" not in ran.err
