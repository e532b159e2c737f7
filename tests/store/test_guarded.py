from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.commands.inspect import inspect
from jacli.commands.summarize import summarize
from jacli.errors import JacliError, ResultsError
from jacli.models import load_model
from jacli.run.run_files import look_at
from jacli.store import open_results
from jacli.store.untrusted_file import open_guarded, read_whole


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


READERS: dict[str, Callable[[Path], object]] = {
    "open_guarded": open_guarded,
    "open_results": open_results,
    "inspect": lambda path: inspect(str(path)),
    "summarize": lambda path: summarize([path]),
    "load_model": lambda path: load_model(str(path)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("through", ["itself", "a link"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object], through: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(JacliError, match="pipe or a socket") as raised:
        read(tmp_path / ("pipe" if through == "itself" else "link"))
    assert raised.value.exit_code in (3, 4)


def test_a_pipe_in_the_place_of_a_shard_has_failed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.h5")
    found = look_at(tmp_path / "out.h5")
    assert found.state == "failed"
    assert "pipe" in found.reason
