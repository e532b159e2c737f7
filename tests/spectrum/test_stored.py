"""Jacobians read from an array in pieces: the same as from the whole."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.spectrum import stored
from jacli.spectrum.stored import StoredJacobian


@pytest.mark.parametrize("room", [1, 7, 60, 1000])
@pytest.mark.parametrize("chunks", [None, (1, 3, 2, 2, 7), (2, 1, 5, 4, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 7), (2, 2, 1, 3, 70)], ids=["n_in larger", "n_out larger"])
def test_pieces_cover_the_sample(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    room: int,
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    matrices = array.reshape(2, -1, shape[-1]).astype(np.float64)
    monkeypatch.setattr(stored, "PIECE_NUMBERS", room)
    small = tuple(map(min, chunks, shape)) if chunks else None
    with h5py.File(tmp_path / "j.h5", "w") as file:
        jacobian = StoredJacobian(file.create_dataset("jacobian", data=array, chunks=small), 1)
        norms = jacobian.class_norms(0, 2)
        found = jacobian.singular_values(0, 2)
    assert norms == pytest.approx(np.linalg.norm(matrices, axis=1), rel=1e-12)
    assert found.values.numpy() == pytest.approx(np.linalg.svd(matrices, compute_uv=False), rel=1e-9)


def test_several_output_axes_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(">f4")
    monkeypatch.setattr(stored, "PIECE_NUMBERS", 13)
    with h5py.File(tmp_path / "j.h5", "w") as file:
        dataset = file.create_dataset("jacobian", data=array)
        two = StoredJacobian(dataset, 2)
        assert (two.n_in, two.n_out) == (3, 20)
        assert two.class_norms(1, 2) == pytest.approx(
            np.linalg.norm(array[1:], axis=1).reshape(1, 20), rel=1e-6
        )
        assert StoredJacobian(dataset, 0).singular_values(0, 2).values.shape == (2, 1)
