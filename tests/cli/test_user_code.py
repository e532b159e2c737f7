"""Whatever a model's own code raises, wherever it is called: exit code 3 and its last line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Jacli = Callable[..., Any]

ARCH = """
import sys
import torch


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.f = torch.nn.Linear(6, 4)


class Bytes(Base):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(256, 4)

    def forward(self, x):
        return self.table(x.long()).sum(1) + self.f(x / 255)


class Picky(Base):
    def forward(self, x):
        if (x > 254.5).any():
            raise KeyError("a value above 254")
        return self.f(x)


class Missing(Base):
    def forward(self, x):
        if (x > 254.5).any():
            open("/nowhere/table.txt")
        return self.f(x)


class LaterShape(Base):
    calls = 0

    def forward(self, x):
        LaterShape.calls += 1
        if LaterShape.calls > 7:
            raise AttributeError("eight calls are too many")
        return self.f(x)


class Lazy(Base):
    def __init__(self):
        super().__init__()
        self.f = torch.nn.LazyLinear(4)

    def forward(self, x):
        return self.f(x)


class LazyNorm(Base):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LazyBatchNorm1d()

    def forward(self, x):
        return self.norm(self.f(x))


def exits():
    sys.exit(2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arch.py").write_text(ARCH)
    x = np.random.default_rng(0).integers(200, 254, (24, 6)).astype("float32")
    x[20] = 255
    np.save("x.npy", x)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Bytes", "index out of range in self"),
        ("Picky", "a value above 254"),
        ("Missing", "/nowhere/table.txt"),
        ("LaterShape", "eight calls are too many"),
    ],
)
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_forward_raises(folder: Path, jacli: Jacli, name: str, said: str, method: str) -> None:
    ran = jacli("compute", f"arch.py:{name}", "x.npy", "--batch-size", 8, "--method", method)
    assert ran.code == 3 and said in ran.err and f"The model fails in {name}.forward" in ran.err
    assert "Traceback" not in ran.err and "defect" not in ran.err


@pytest.mark.parametrize("name", ["Lazy", "LazyNorm"])
def test_lazy_layers_without_weights(folder: Path, jacli: Jacli, name: str) -> None:
    ran = jacli("compute", f"arch.py:{name}", "x.npy")
    assert ran.code == 3 and "lazy layers without weights" in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize("wrong", ["architecture", "unfit"])
def test_lazy_layers_take_a_files_weights(folder: Path, jacli: Jacli, wrong: str) -> None:
    import torch

    state = torch.nn.Linear(6, 4).state_dict() if wrong == "architecture" else {"bias": torch.ones(4)}
    torch.save({f"f.{name}": value for name, value in state.items()}, "w.pt")
    ran = jacli("compute", "w.pt", "x.npy", "--arch", "arch.py:Lazy", "-o", "out.h5")
    assert ran.code == (0 if wrong == "architecture" else 3), ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("when", ["import", "building"])
def test_exit_is_no_end_of_jacli(folder: Path, jacli: Jacli, when: str) -> None:
    if when == "import":
        (folder / "arch.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n")
    ran = jacli("compute", "arch.py:exits", "x.npy")
    assert ran.code == 3 and "It called exit(2)." in ran.err
