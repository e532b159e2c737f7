"""Result files: their schema, the writer that fills one block by block, the lazy reader."""

from __future__ import annotations

from jacli.store.place import check_place, check_room, free_bytes, part_path
from jacli.store.reader import Results, describe_results, open_results
from jacli.store.schema import SCHEMA, ResultLayout, bytes_on_disk, dimension_names
from jacli.store.writer import ResultWriter

__all__ = [
    "SCHEMA",
    "ResultLayout",
    "ResultWriter",
    "Results",
    "bytes_on_disk",
    "check_place",
    "check_room",
    "describe_results",
    "dimension_names",
    "free_bytes",
    "open_results",
    "part_path",
]
