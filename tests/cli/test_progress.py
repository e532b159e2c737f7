"""What is told while a run is under way: its stage, its rate without the choosing, notes first."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jacli.cli import progress
from jacli.commands.compute import run_compute
from jacli.options.config import from_options
from jacli.store import read_progress


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval()).save("m.pt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((6, 4), np.float32))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "choosing"),
    [({}, "choosing a method"), ({"method": "vmap"}, "choosing batch sizes")],
)
def test_the_stages_of_a_run(folder: Path, options: dict[str, str], choosing: str) -> None:
    happened: list[str | int] = []
    config = from_options({"model": "m.pt", "inputs": "x.npy", "batch_size": 2, **options})
    run_compute(config, command="", progress=lambda done, total: happened.append(done), stage=happened.append)
    assert happened == ["loading the model", 0, choosing, "computing", 2, 4, 6, "rechecking"]


def test_the_rate_leaves_out_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    drawn: list[tuple[str, int, int, float]] = []
    report = progress.Reporter(lambda *state: drawn.append(state))
    report.stage("choosing a method")
    report(10, 110)  # of an earlier process
    now = 1000.0
    report.stage("computing")
    now = 1010.0
    report(60, 110)
    assert drawn[1:] == [
        ("choosing a method", 10, 110, 0.0),
        ("computing", 10, 110, 0.0),
        ("computing", 60, 110, 5.0),
    ]


def test_the_rate_that_others_read_leaves_it_out_too(folder: Path) -> None:
    config = from_options({"model": "m.pt", "inputs": "x.npy", "batch_size": 2})
    began: dict[str, float] = {}
    seen = []

    def stage(name: str) -> None:
        began[name] = time.time()
        if name.startswith("choosing"):
            time.sleep(0.3)

    def look(done: int, total: int) -> None:
        if done == 6:
            seen.append(read_progress(folder / "out.h5"))

    run_compute(config, command="", progress=look, stage=stage)
    (told,) = seen
    assert told is not None
    assert began["choosing a method"] + 0.3 <= told.started or told.started == pytest.approx(
        began["computing"], abs=0.05
    )


def test_a_stage_and_no_rate_while_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_reporter(quiet=False, every=30) as report:
        report.stage("choosing a method")
        report(0, 12)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "choosing a method" in shown and "0/12" in shown
    assert "samples/s" not in shown and "left" not in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--input-arg", "x"], "note: INPUTS are given to the argument x of forward"),
        (["--batch-size", "1"], "note: samples influence one another in larger batches"),
    ],
)
def test_notes_come_before_the_work(jacli, folder: Path, options: list[str], told: str) -> None:
    Path("net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        f"        return self.layer(x){' - x.mean()' if options[0] == '--batch-size' else ''}\n"
    )
    ran = jacli("compute", "net.py:Net", "x.npy", "--method", "loop", "--log-every", "0.00001", *options)
    assert ran.code == 0, ran.err
    lines = ran.err.splitlines()
    first, of_progress = (
        next(i for i, line in enumerate(lines) if word in line) for word in (told, "samples/s")
    )
    assert first < of_progress
    assert sum(told in line for line in lines) == 1
