"""Writes a result again and again, and dies at another moment each time: ``python -m tests.store.killed``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jacli.store import ResultLayout, ResultWriter, part_path, tidy
from tests.store.layouts import IMAGES, random_batch

LAYOUTS = {
    "images": IMAGES,
    "gzip": replace(IMAGES, n_samples=7, compress="gzip"),
    "chunks across blocks": ResultLayout(9, (3, 20, 60), (11,), batch_size=2),
}

_SYSTEM_CALLS = ("pwrite", "ftruncate", "fsync", "fdatasync", "replace", "link", "unlink")
SYNCS = ("fsync", "fdatasync")


def unsynced(descriptor: int) -> None:
    """Leave what was written to the system, whatever the disk has of it."""


def write_on(out: Path, layout: ResultLayout) -> None:
    """Write what is missing of a result file."""
    tidy(out)
    if out.exists():
        return
    if part_path(out).exists():
        writer = ResultWriter.reopen(out, overwrite=False)
        writer.expect(layout)
    else:
        writer = ResultWriter.create(out, layout, {"command": "test"}, overwrite=False)
    for start in range(writer.committed, layout.n_samples, layout.batch_size):
        stop = min(start + layout.batch_size, layout.n_samples)
        writer.write_batch(start, random_batch(layout, start, stop), inputs_sha256=f"{stop:064}")
        writer.commit()
    writer.finish()


def _dying_after(moment: int) -> Callable[[], int]:
    """Let this process die, as by ``kill -9``, at its next system call after so many; tells their number."""
    calls = 0

    def dying(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > moment:
                os._exit(9)
            return original(*args, **options)

        return call

    # What a process wrote outlives it without fsync, which would take most of the time here.
    for name in _SYSTEM_CALLS:
        setattr(os, name, dying(unsynced if name in SYNCS else getattr(os, name)))
    return lambda: calls


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(name: str, folder: Path) -> None:
    """A whole file, and a folder for each moment at which writing it was cut short."""

    def whole() -> None:
        counted = _dying_after(sys.maxsize)
        write_on(folder / "whole.h5", LAYOUTS[name])
        (folder / "calls").write_text(str(counted()))

    assert _forked(whole) == 0
    calls = int((folder / "calls").read_text())
    for moment in range(0, calls, max(1, calls // 140)):
        place = folder / f"{moment}.killed"
        place.mkdir()

        def cut_short(place: Path = place, moment: int = moment) -> None:
            _dying_after(moment)
            write_on(place / "out.h5", LAYOUTS[name])

        assert _forked(cut_short) == 9


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
