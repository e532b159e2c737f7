"""What may be on a disk after a power cut, of a result that was being written.

Bytes that were written since the last fsync may be there or not, sector by sector, and so may a rename.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jacli.durable.write_ahead_log import journal_path
from jacli.store import ResultLayout, ResultWriter, part_path
from tests.store.layouts import random_batch

SECTOR = 512


@dataclass
class Recorded:
    """The system calls that wrote a result, from its laying out on.

    Attributes:
        laid_out: The file before them, and its journal.
        calls: In order: ("write", offset, bytes), ("truncate", size), ("sync",), ("rename", new journal),
            ("other sync",) and ("committed", samples).
    """

    laid_out: tuple[bytes, bytes]
    calls: list[tuple] = field(default_factory=list)


@contextmanager
def _recording(descriptor: int, calls: list[tuple]) -> Iterator[None]:
    original = {name: getattr(os, name) for name in ("pwrite", "ftruncate", "fsync", "fdatasync", "replace")}

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        count: int = original["pwrite"](file, data, offset)
        if file == descriptor:
            calls.append(("write", offset, bytes(memoryview(data)[:count])))
        return count

    def ftruncate(file: int, size: int) -> None:
        original["ftruncate"](file, size)
        if file == descriptor:
            calls.append(("truncate", size))

    def sync(file: int) -> None:
        original["fsync"](file)
        calls.append(("sync",) if file == descriptor else ("other sync",))

    def replace(old: Path, new: Path) -> None:
        data = Path(old).read_bytes()
        original["replace"](old, new)
        calls.append(("rename", data))

    replacing = {
        "pwrite": pwrite,
        "ftruncate": ftruncate,
        "fsync": sync,
        "fdatasync": sync,
        "replace": replace,
    }
    try:
        for name, function in replacing.items():
            setattr(os, name, function)
        yield
    finally:
        for name, function in original.items():
            setattr(os, name, function)


def record(out: Path, layout: ResultLayout) -> Recorded:
    """Write a result block by block, each committed, and note every call of the system."""
    writer = ResultWriter.create(out, layout, {}, overwrite=False)
    part = part_path(out)
    recorded = Recorded((part.read_bytes(), journal_path(part).read_bytes()))
    with _recording(writer._sink._descriptor, recorded.calls):
        for start in range(0, layout.n_samples, layout.batch_size):
            stop = min(start + layout.batch_size, layout.n_samples)
            writer.write_batch(start, random_batch(layout, start, stop))
            writer.commit()
            recorded.calls.append(("committed", stop))
    writer.close()
    return recorded


def after_a_power_cut(recorded: Recorded, moment: int, draw: random.Random) -> tuple[bytes, bytes, int]:
    """The file, its journal, and how many samples had been committed, after the first calls."""
    content, journal = bytearray(recorded.laid_out[0]), recorded.laid_out[1]
    waiting: list[tuple] = []
    renamed: bytes | None = None
    committed = 0
    for call in recorded.calls[:moment]:
        if call[0] in ("write", "truncate"):
            waiting.append(call)
        elif call[0] == "sync":
            for written in waiting:
                _apply(content, written)
            waiting = []
        elif call[0] == "rename":
            renamed = call[1]
        elif call[0] == "other sync" and renamed is not None:  # of the folder
            journal, renamed = renamed, None
        elif call[0] == "committed":
            committed = call[1]
    if renamed is not None and draw.random() < 0.5:
        journal = renamed
    share = draw.choice((0.1, 0.5, 0.9))
    for written in waiting:
        if written[0] == "truncate":
            if draw.random() < share:
                _apply(content, written)
            continue
        _, offset, data = written
        at = 0
        while at < len(data):
            end = min(len(data), at + SECTOR - (offset + at) % SECTOR)
            if draw.random() < share:
                _apply(content, ("write", offset + at, data[at:end]))
            at = end
    return bytes(content), journal, committed


def _apply(content: bytearray, call: tuple) -> None:
    size = call[1] if call[0] == "truncate" else max(len(content), call[1] + len(call[2]))
    if size < len(content):
        del content[size:]
    content.extend(bytes(size - len(content)))
    if call[0] == "write":
        content[call[1] : call[1] + len(call[2])] = call[2]
