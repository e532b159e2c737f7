from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from jacli.store.sources import as_python, attributes_of


def test_attributes_come_without_numpy() -> None:
    assert as_python(np.float64(0.5)) == 0.5
    assert as_python(np.arange(3)) == [0, 1, 2]
    assert as_python(b"words") == "words"


def test_text_that_is_no_text_can_be_written_again(tmp_path: Path) -> None:
    """A damaged attribute of a shard goes into the merged file as question marks."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["damaged"] = b"half a character: \xc3"
        # Declared as UTF-8, as h5py writes text itself.
        file.attrs.create("claimed", np.array(b"\xff\xfe", dtype=h5py.string_dtype("utf-8")))
        found = attributes_of(file)
        assert found == {"damaged": "half a character: \ufffd", "claimed": "\ufffd\ufffd"}
        for name, value in found.items():
            file.attrs[name] = value
