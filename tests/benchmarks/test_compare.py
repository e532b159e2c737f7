"""`benchmarks/compare.py` from end to end, and how it decides and reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jacli
from benchmarks import report
from benchmarks.peers import TORCH_PEERS, flat
from benchmarks.timing import Contest, Contestant
from benchmarks.workloads import WORKLOADS, sizes_of
from jacli.errors import ModelError

ROOT = Path(__file__).parents[2]


def test_a_quick_comparison(tmp_path: Path) -> None:
    out, tables = tmp_path / "out.json", tmp_path / "results.md"
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--only", "autoencoder", "mlp"]
    command += ["--no-jax", "--json", str(out), "--markdown", str(tables)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    outcome = json.loads(out.read_text())
    precisions = ["ieee", "bf16"]
    assert list(outcome["flops_per_second"]) == list(outcome["geometric_mean_ratio"]) == precisions
    assert all(rate > 0 for rate in outcome["flops_per_second"].values())
    assert all(mean > 0 for mean in outcome["geometric_mean_ratio"].values())
    assert outcome["torch"] == torch.__version__
    assert outcome["machine"] and outcome["bfloat16"] and outcome["quick"]
    assert [row["workload"] for row in outcome["workloads"]] == ["autoencoder", "mlp"]
    for row in outcome["workloads"]:
        assert list(row["jacli"]) == precisions
        for entry in row["jacli"].values():
            assert entry["ratio"] > 0 and entry["first_call"] > 0 and entry["floor_fraction"] > 0
            assert not entry["estimated"]
        reduced = row["jacli"]["bf16"]
        assert 1e-4 < reduced["error"] < 1.5e-2 and 1e-4 < reduced["beside_exact"] < 1.5e-2
        assert reduced["kinks"] is None
        peers = {peer["name"]: peer for peer in row["peers"]}
        assert row["best_peer"] in peers
        for entry in (row["jacli"]["ieee"], *peers.values()):
            assert entry["note"] or entry["min"]
            if entry["min"] and not entry["estimated"]:
                assert entry["min"] <= entry["median"]
                assert entry["error"] < 1e-5 and entry["kinks"] == 0

    assert "Geometric mean of the ratios: ieee x" in done.stdout and ", bf16 x" in done.stdout
    written = tables.read_text()
    assert written.count("| autoencoder 2 x 784 -> 784 |") == 2  # among the peers, and reduced
    assert written.count("| autoencoder 2 x 784 -> 784 | bf16 |") == 1


def test_a_wrong_result_counts_as_kinks() -> None:
    model, x = WORKLOADS["autoencoder"].make(2, torch.device("cpu"))
    contest = Contest(model, x, sizes_of(model, x), rounds=1, budget=10)
    wrong = Contestant("wrong", lambda result: result)
    contest._check(wrong, contest.reference * torch.tensor([1.0, 1.01]).view(2, 1, 1))
    assert wrong.kinks == 1
    contest._check(wrong, contest.reference * float("nan"))
    assert wrong.kinks == 2


def test_hopeless_peers_are_only_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing._HOPELESS_TRIAL", 0.0)
    monkeypatch.setattr("benchmarks.timing._TRIAL", {"samples": 1, "outputs": 2, "inputs": 2})
    model, x = WORKLOADS["autoencoder"].make(1, torch.device("cpu"))
    contest = Contest(model, x, sizes_of(model, x), rounds=1, budget=100)
    contest.first_calls()
    loop, vmapped = (
        next(peer for peer in TORCH_PEERS if peer.name == name) for name in ("loop", "vmap(jacrev)")
    )
    contest.try_peer(loop, flat(model), x)
    contest.try_peer(vmapped, flat(model), x)
    entry, none = contest.peers
    entry.seconds = [5.0]  # a slow trial
    contest.play(lambda line: None)
    assert entry.seconds == [5.0] and not entry.measured and entry.as_dict()["estimated"]
    assert "foretold from a part" in entry.note
    assert not none.seconds and none.note.startswith("one sample")
    assert contest.jacli["ieee"].measured


def test_a_precision_that_is_refused_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = jacli.jacobian

    def jacobian(model: nn.Module, x: Tensor, *, precision: str) -> Tensor:
        if precision != "ieee":
            raise ModelError("No rule.", why="A test.")
        return exact(model, x)

    monkeypatch.setattr("jacli.jacobian", jacobian)
    model, x = WORKLOADS["autoencoder"].make(2, torch.device("cpu"))
    contest = Contest(model, x, sizes_of(model, x), rounds=1, budget=10, precisions=("ieee", "bf16"))
    contest.first_calls()
    contest.play(lambda line: None)
    floors = {"ieee": 1.0, "bf16": 1.0}
    peer = Contestant("peer", lambda result: result, seconds=[1.0])
    row = report.Row("autoencoder", 2, 784, 784, floors, contest.jacli, [peer])
    assert row.ratio("ieee") and row.ratio("bf16") is None
    assert row.reduced_cells() == [["autoencoder 2 x 784 -> 784", "bf16", *["-"] * 6]]
    assert any("No rule." in note for note in row.notes())
    assert report.geometric_means([row]).keys() == {"ieee"}


def test_a_section_is_replaced_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Mine\n")
    report.refresh(path, "compare cpu", "first\n")
    report.refresh(path, "compare cuda", "other\n")
    report.refresh(path, "compare cpu", "second\n")
    text = path.read_text()
    assert text.startswith("# Mine\n") and "first" not in text
    assert text.index("second") < text.index("other")
