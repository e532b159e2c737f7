"""The committed sample models are small, accurate, and belong to the committed inputs."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "sample_models"


def load_torchscript(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load`", category=DeprecationWarning)
        return torch.jit.load(path)


def test_all_together_are_under_4_mb():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 4_000_000


@pytest.mark.parametrize(
    ("inputs", "labels", "shape"),
    [
        ("digits.npy", "digits_labels.npy", (64, 1, 8, 8)),
        ("digits_rgb.npy", "digits_rgb_labels.npy", (16, 3, 32, 32)),
    ],
)
def test_inputs_have_their_labels(inputs, labels, shape):
    images, classes = np.load(FOLDER / inputs), np.load(FOLDER / labels)
    assert images.shape == shape
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert classes.shape == shape[:1]
    assert classes.dtype == np.int64
    assert set(classes) <= set(range(10))


def test_cnn_is_above_95_percent_on_the_held_out_inputs():
    cnn = load_torchscript(FOLDER / "digits_cnn.pt")
    predictions = cnn(torch.from_numpy(np.load(FOLDER / "digits.npy"))).argmax(dim=1).numpy()
    assert (predictions == np.load(FOLDER / "digits_labels.npy")).mean() > 0.95


def test_state_dict_is_the_archive_s():
    archive = load_torchscript(FOLDER / "digits_cnn.pt").state_dict()
    state = torch.load(FOLDER / "digits_cnn_state.pt")
    assert state.keys() == archive.keys()
    assert all(torch.equal(state[name], archive[name]) for name in state)


def test_the_archive_names_no_path_of_the_machine_that_wrote_it() -> None:
    with zipfile.ZipFile(FOLDER / "digits_cnn.pt") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".debug_pkl")]
