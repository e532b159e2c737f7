"""Labels are stored with the results, whatever outputs are differentiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.commands.merge import merge
from jacli.errors import InputsError, OutputError


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.jit.script(nn.Sequential(nn.Linear(5, 3), nn.Tanh()).eval()).save("m.pt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((9, 5), np.float32))
    labels = np.arange(9) % 3
    np.save("y.npy", labels)
    np.savetxt("y.txt", labels, fmt="%d")
    return labels


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, slice(None)),
        ({"classes": "label"}, slice(None)),
        ({"classes": "top:1", "save": "none", "batch_size": 4}, slice(None)),
        ({"samples": "2:8:3", "labels": "y.txt"}, slice(2, 8, 3)),
        ({"shard": "2/2"}, slice(4, 9)),
    ],
)
def test_labels_are_those_of_the_samples(labels: np.ndarray, options: dict[str, Any], rows: slice) -> None:
    outcome = jacli.compute("m.pt", "x.npy", method="loop", **{"labels": "y.npy", **options})
    with jacli.open(outcome.out) as results:
        assert results["labels"].dtype == np.int64
        np.testing.assert_array_equal(results["labels"], labels[rows])


def test_a_merged_file_has_them_and_other_labels_are_another_run(labels: np.ndarray) -> None:
    for index in (1, 2):
        jacli.compute("m.pt", "x.npy", method="loop", labels="y.npy", shard=f"{index}/2")
    merge(["out.h5"])
    with jacli.open("out.h5") as results:
        np.testing.assert_array_equal(results["labels"], labels)
    assert jacli.compute("m.pt", "x.npy", method="loop", labels="y.npy").already_complete
    np.save("y.npy", labels[::-1].copy())
    with pytest.raises(OutputError, match="the labels"):
        jacli.compute("m.pt", "x.npy", method="loop", labels="y.npy")


def test_without_labels_there_are_none(labels: np.ndarray) -> None:
    with jacli.open(jacli.compute("m.pt", "x.npy", method="loop").out) as results:
        assert "labels" not in results
    np.save("few.npy", labels[:4])
    with pytest.raises(InputsError, match="4 rows"):
        jacli.compute("m.pt", "x.npy", labels="few.npy", out="other.h5")


@pytest.mark.parametrize("samples", [None, "0:4"])
def test_accuracy_is_told(labels: np.ndarray, samples: str | None) -> None:
    options: dict[str, Any] = {"method": "loop", "labels": "y.npy", "samples": samples}
    outcome = jacli.compute("m.pt", "x.npy", **options)
    with jacli.open(outcome.out) as results:
        right = int((results["outputs"].argmax(1) == results["labels"]).sum())
        told = f"for {right} of {len(results)} samples (accuracy {100 * right / len(results):.1f} %)"
    for found in (outcome, jacli.compute("m.pt", "x.npy", **options)):
        assert [note for note in found.notes if told in note]
