"""Places that are read or written: links, reserved names, full disks, paths that cannot be looked at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jacli.commands.table_file import check_table_place, write_table
from jacli.errors import OutputError, UsageError
from jacli.untrusted.content import why_unseen
from tests.run.shard_files import write_shards

TOO_LONG = "x" * 300
LOOP = "loop/in/a/circle"
MODEL = ("m.pt", "x.npy", "-o", "o.h5", "--method", "loop")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, inputs, two shards, and a link to itself."""
    monkeypatch.chdir(tmp_path)
    torch.jit.script(nn.Flatten()).save("m.pt")
    torch.save(nn.Linear(3, 2).state_dict(), "w.pt")
    np.save("x.npy", np.ones((2, 3), np.float32))
    write_shards(tmp_path / "whole.h5", 2)
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


PATHS = {
    ("compute", "PATH", "x.npy"): 3,
    ("compute", "m.pt", "PATH"): 4,
    ("compute", "m.pt", "x.npy", "-o", "PATH"): 4,
    ("compute", "m.pt", "x.npy", "--labels", "PATH", "--classes", "label"): 4,
    ("compute", "m.pt", "x.npy", "--arg", "mask=@PATH"): 4,
    ("compute", "w.pt", "x.npy", "--arch", "PATH.py:make"): 3,
    ("compute", "--config", "PATH"): 2,
    ("compute", "--dry-run", "m.pt", "x.npy", "-o", "PATH"): 4,
    ("summarize", "PATH"): 4,
    ("summarize", "whole.00001-of-00002.h5", "-o", "PATH"): 4,
    ("inspect", "PATH"): 4,
    ("status", "PATH"): 4,
    ("verify", "PATH"): 4,
    ("merge", "PATH"): 4,
    ("merge", "whole.h5", "-o", "PATH"): 4,
    ("doctor", "PATH"): 4,
    ("submit", "PATH", "x.npy", "--shards", "2", "--print"): 3,
    ("submit", "m.pt", "PATH", "--shards", "2", "--print"): 4,
    ("bench", "PATH", "x.npy"): 3,
}


@pytest.mark.parametrize("path", [TOO_LONG, LOOP, f"{TOO_LONG}/x"], ids=["too long", "loop", "long folder"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    PATHS.items(),
    ids=lambda words: " ".join(map(str, words))[:60] if isinstance(words, tuple) else "",
)
def test_a_path_that_cannot_be_looked_at(
    jacli: Callable[..., object], place: Path, arguments: tuple[str, ...], code: int, path: str
) -> None:
    ran = jacli(*(word.replace("PATH", path) for word in arguments))
    assert ran.code == code, ran.err  # type: ignore[attr-defined]
    assert "Traceback" not in ran.err and "defect" not in ran.err  # type: ignore[attr-defined]


def test_the_reason_is_named(place: Path) -> None:
    assert why_unseen("none") is None and why_unseen("m.pt") is None and why_unseen("m.pt/x") is None
    assert "too long" in str(why_unseen(TOO_LONG))
    assert "symbolic links" in str(why_unseen(LOOP))
    assert "null" in str(why_unseen("a\0b"))


@pytest.mark.parametrize("suffix", [".part", ".part.json", ".part.lock", ".part.new", ".part.journal"])
def test_names_of_unfinished_files_are_no_results(
    jacli: Callable[..., object], place: Path, suffix: str
) -> None:
    before = sorted(os.listdir())
    for command in (("compute", *MODEL[:2]), ("merge", "whole.h5")):
        ran = jacli(*command, "-o", f"o.h5{suffix}")
        assert ran.code == 4 and "unfinished" in ran.err  # type: ignore[attr-defined]
    ran = jacli("summarize", "whole.00001-of-00002.h5", "-o", f"t{suffix}")
    assert ran.code == 4  # type: ignore[attr-defined]
    assert sorted(os.listdir()) == before


def test_a_name_that_looks_like_an_option(jacli: Callable[..., object], place: Path) -> None:
    ran = jacli("compute", "m.pt", "x.npy", "-o", "-x.h5", "--method", "loop")
    assert ran.code == 0, ran.err  # type: ignore[attr-defined]
    line = ran.err.splitlines()[-1]  # type: ignore[attr-defined]
    assert line == "look at it: jacli summarize ./-x.h5"
    assert jacli(*line.split()[4:]).code == 0  # type: ignore[attr-defined]


WRITERS = {
    "compute": ("compute", "m.pt", "x.npy", "--method", "loop"),
    "merge": ("merge", "whole.h5"),
    "merge --copy": ("merge", "whole.h5", "--copy"),
    "summarize": ("summarize", "whole.00001-of-00002.h5"),
    "submit": ("submit", "m.pt", "x.npy", "--shards", "2", "--print"),
}


@pytest.mark.parametrize("arguments", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("target", ["there", "not there", "folder/there"])
def test_a_link_is_never_replaced(
    jacli: Callable[..., object], place: Path, arguments: tuple[str, ...], target: str
) -> None:
    (place / "folder").mkdir()
    if target != "not there":
        (place / target).write_text("precious")
    (place / "link.h5").symlink_to(target)
    for overwrite in ((), ("--overwrite",)):
        ran = jacli(*arguments, "-o", "link.h5", *overwrite)
        assert ran.code == 4, ran.err  # type: ignore[attr-defined]
        assert f"is a link to {target}" in ran.err  # type: ignore[attr-defined]
    assert os.readlink("link.h5") == target
    assert not os.path.exists("there") or Path("there").read_text() == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_full_disk_keeps_no_part_of_a_table(small_disk: Path, overwrite: bool) -> None:
    if overwrite:
        (small_disk / "t.csv").write_text("an earlier table")
    before = {path.name: path.read_text() for path in small_disk.iterdir()}
    with pytest.raises(OutputError, match="No space left"):
        write_table(small_disk / "t.csv", "1,2,3\n" * 100_000, overwrite=overwrite)
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == before


def test_a_table_is_written_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    out = tmp_path / ("t" * 251 + ".csv")  # as long as a name may be
    before = os.umask(0o027)
    try:
        write_table(out, "größe\n", overwrite=False)
    finally:
        os.umask(before)
    assert out.read_text("utf-8") == "größe\n" and out.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OutputError, match="exists"):
        write_table(out, "another\n", overwrite=False)  # it appeared after the check
    assert out.read_text("utf-8") == "größe\n"
    write_table(out, "another\n", overwrite=True)
    assert out.read_text() == "another\n" and os.listdir(tmp_path) == [out.name]


def test_a_table_never_replaces_what_it_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "r.h5").touch()
    os.link(tmp_path / "r.h5", tmp_path / "other name.h5")
    for name in ("r.h5", "other name.h5"):
        with pytest.raises(UsageError, match="both read and written"):
            check_table_place(tmp_path / name, [tmp_path / "r.h5"], overwrite=True)
