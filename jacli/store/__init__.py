"""Result files: their schema, the writer that fills one batch by batch, the lazy reader."""

from __future__ import annotations

from jacli.store.lock import Holder, RunLock, read_holder
from jacli.store.paths import (
    check_folder,
    check_place,
    check_room,
    free_bytes,
    part_path,
    progress_path,
    remove_part,
    tidy,
)
from jacli.store.progress import Progress, read_progress, remove_progress, write_progress
from jacli.store.reader import Results, UnreadableError, describe_results, open_results
from jacli.store.schema import SCHEMA, ResultLayout, bytes_on_disk, dimension_names
from jacli.store.uninterrupted import uninterrupted
from jacli.store.writer import ResultWriter, WriteCancelled

__all__ = [
    "SCHEMA",
    "Holder",
    "Progress",
    "ResultLayout",
    "ResultWriter",
    "Results",
    "RunLock",
    "UnreadableError",
    "WriteCancelled",
    "bytes_on_disk",
    "check_folder",
    "check_place",
    "check_room",
    "describe_results",
    "dimension_names",
    "free_bytes",
    "open_results",
    "part_path",
    "progress_path",
    "read_holder",
    "read_progress",
    "remove_part",
    "remove_progress",
    "tidy",
    "uninterrupted",
    "write_progress",
]
