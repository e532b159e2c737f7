"""Something else in the place of a file that a run makes: it is named, and left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacli.errors import OutputError
from jacli.store import ResultWriter, RunLock, part_path, tidy
from jacli.store.merge import write_merged
from jacli.store.paths import words_of
from jacli.store.shard_file import read_shard
from tests.run.shard_files import write_shards
from tests.store.layouts import IMAGES, random_batch

ENDINGS = (
    ".part",
    ".part.new",
    ".part.json",
    ".part.json.new",
    ".part.lock",
    ".part.journal",
    ".part.journal.new",
)


def _run(out: Path) -> None:
    """As a run begins, and writes two batches."""
    lock = RunLock(out)
    try:
        tidy(out)
        with ResultWriter.create(out, IMAGES, {}, overwrite=False) as writer:
            for start in (0, 4):
                writer.write_batch(start, random_batch(IMAGES, start, start + 4))
                writer.commit()
    finally:
        lock.release()


def _resume(out: Path) -> None:
    lock = RunLock(out)
    try:
        tidy(out)
        with ResultWriter.reopen(out, overwrite=False) as writer:
            writer.expect(IMAGES)
            writer.write_batch(8, random_batch(IMAGES, 8, 10))
            writer.commit()
    finally:
        lock.release()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("full", [False, True], ids=["empty", "with a file in it"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, ending: str, full: bool) -> None:
    folder = tmp_path / f"out.h5{ending}"
    folder.mkdir()
    if full:
        (folder / "precious").touch()
    with pytest.raises(OutputError) as raised:
        _run(tmp_path / "out.h5")
    assert raised.value.exit_code == 4
    assert folder.name in f"{raised.value.what} {raised.value.why}"
    assert folder.is_dir()
    assert list(folder.iterdir()) == [folder / "precious"] * full


@pytest.mark.parametrize("ending", [".part.lock", ".part.journal", ".part.journal.new", ".part.json.new"])
def test_a_folder_in_the_place_of_a_file_is_named_when_a_run_goes_on(tmp_path: Path, ending: str) -> None:
    out = tmp_path / "out.h5"
    _run(out)
    folder = tmp_path / f"out.h5{ending}"
    folder.unlink(missing_ok=True)
    folder.mkdir()
    before = part_path(out).read_bytes()
    with pytest.raises(OutputError, match=folder.name):
        _resume(out)
    assert folder.is_dir()
    assert part_path(out).read_bytes() == before


def test_a_folder_in_the_place_of_a_merged_file_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    shards = [read_shard(path) for path in write_shards(out, 2)]
    (tmp_path / "out.h5.part.new").mkdir()
    with pytest.raises(OutputError, match=r"out\.h5\.part\.new") as raised:
        write_merged(out, shards, {}, virtual=True, overwrite=False)
    assert "Move it away" in raised.value.hint
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a/out.h5"), "Permission denied"),
        (PermissionError(13, "No", b"a/out.h5.part.lock"), "out.h5.part.lock: No"),
        (IsADirectoryError(21, "No", "x.new", None, "out.h5.part.json"), "out.h5.part.json: No"),
        (OSError(5, "Input/output error", 7), "Input/output error"),
        (OSError("the last word"), "the last word"),
    ],
)
def test_the_file_beside_a_result_is_named(error: OSError, said: str) -> None:
    assert words_of(error, Path("a/out.h5")) == said
