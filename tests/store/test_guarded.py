from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.errors import ResultsError
from jacli.store.guarded import open_guarded, read_whole


def test_a_sound_file_is_opened_for_reading(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(3)
    with open_guarded(tmp_path / "a.h5") as file:
        assert file.mode == "r"
        assert read_whole(tmp_path / "a.h5", file["x"]).tolist() == [0, 1, 2]


def test_what_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_guarded(tmp_path / "nothing.h5")


def test_links_into_other_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ResultsError, match="link to another file"):
        open_guarded(tmp_path / "a.h5")


def test_a_dataset_that_declares_more_than_the_file_has_is_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10**12,), "f8", chunks=(1000,))
    with open_guarded(tmp_path / "a.h5") as file, pytest.raises(ResultsError, match="declares"):
        read_whole(tmp_path / "a.h5", file["x"])
