"""Whatever a model's own code raises, wherever it is called: exit code 3 and its last line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Jacli = Callable[..., Any]

ARCH = """
import os
import sys
import torch


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.f = torch.nn.Linear(6, 4)


class Bytes(Base):
    size = 255

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(self.size, 4)

    def forward(self, x):
        return self.table(x.long()).sum(1) * self.f(x / 255)


class AllBytes(Bytes):
    size = 256


class OneHot(Base):
    size = 255

    def forward(self, x):
        seen = torch.nn.functional.one_hot(x.long(), self.size).float().mean(1)[:, 200:204]
        return (1 + seen) * self.f(x / 255)


class AllOneHot(OneHot):
    size = 256


class Gathered(Bytes):
    def forward(self, x):
        values = self.table.weight[:, 0].expand(len(x), -1).gather(1, x.long())
        return values.sum(1, keepdim=True) * self.f(x / 255)


class AllGathered(Gathered):
    size = 256


class Checked(Bytes):
    calls = 0

    def forward(self, x):
        if x.min() < 0 or x.max() >= self.size:
            raise ValueError(f"no byte: {x.max():.0f}")
        Checked.calls += 1
        if os.path.exists("raise") and Checked.calls > int(open("raise").read()):
            raise ValueError("told to raise")
        return self.table.weight[x.round().long()].sum(1) * self.f(x / 255)


class AllChecked(Checked):
    size = 256


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


SAID = {
    "Bytes": "index out of range in self",
    "OneHot": "Class values must be smaller than num_classes",
    "Gathered": "index 255 is out of bounds for dimension 1 with size 255",
    "Checked": "no byte: 255",
}
"""Model that takes 0 to 254 -> what it says of 255; with ``All`` before its name it takes 255 too."""


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("samples", [None, "20:21", "19:21"])
def test_whole_numbers_in_place_of_floats(folder: Path, name: str, samples: str | None) -> None:
    import torch

    import jacli
    from jacli.models import load_model
    from tests.reference import reference_jacobian

    options = {} if samples is None else {"samples": samples}
    outcome = jacli.compute(f"arch.py:All{name}", "x.npy", "out.h5", verify=3, **options)
    assert outcome.rechecked is not None and outcome.rechecked.failed == ()
    model = load_model(f"arch.py:All{name}").module.double()
    x = torch.from_numpy(np.load("x.npy")).double()
    rows = slice(*map(int, samples.split(":"))) if samples else slice(None)
    with jacli.open("out.h5") as results:
        expected = reference_jacobian(model, x[rows]).numpy()
        np.testing.assert_allclose(results.jacobian[:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "said"), SAID.items())
@pytest.mark.parametrize("row", [0, 1, 6, 23], ids=["first", "probed", "first batch", "later batch"])
def test_a_value_out_of_range(folder: Path, jacli: Jacli, name: str, said: str, row: int) -> None:
    x = np.load("x.npy")
    x[20], x[row] = 200, 255
    np.save("x.npy", x)
    ran = jacli("compute", f"arch.py:{name}", "x.npy", "--batch-size", 8)
    assert ran.code == 3 and said in ran.err, ran.err
    assert "Traceback" not in ran.err and "defect" not in ran.err


@pytest.mark.parametrize("calls", [1, 3, 6, 9, 12])
def test_a_model_that_fails_while_it_is_verified(folder: Path, jacli: Jacli, calls: int) -> None:
    assert jacli("compute", "arch.py:AllChecked", "x.npy", "-o", "out.h5").code == 0
    (folder / "raise").write_text(str(calls))
    ran = jacli("verify", "out.h5", "--model", "arch.py:AllChecked")
    assert ran.code == 3 and "told to raise" in ran.err and "Traceback" not in ran.err, ran.err


@pytest.mark.parametrize("kind", ["sum", "neighbour"])
def test_mixing_is_seen_where_noise_is_not_accepted(folder: Path, jacli: Jacli, kind: str) -> None:
    how = "self.table(x.long()).sum((0, 1))" if kind == "sum" else "self.table(x.long().roll(1, 0)).sum(1)"
    source = (
        ARCH + f"\n\nclass Mixing(AllBytes):\n    def forward(self, x):\n        return {how} + self.f(x)\n"
    )
    (folder / "arch.py").write_text(source)
    ran = jacli("compute", "arch.py:Mixing", "x.npy")
    assert ran.code == 3 and "mixes samples" in ran.err
