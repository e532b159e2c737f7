from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.errors import ResultsError
from jacli.store import open_results
from tests.store.layouts import IMAGES, write_file

LAYOUTS = {
    "all": IMAGES,
    "factors": replace(IMAGES, save_jacobian=False, factor_width=3),
    "top": replace(IMAGES, selected=2, per_sample_classes=True, n_singular_values=2),
    "the same classes": replace(IMAGES, selected=2, n_singular_values=2),
    "norms": replace(IMAGES, save_jacobian=False, n_singular_values=0, nuclear_norm=False, save_inputs=False),
    "one output": replace(IMAGES, output_shape=(), n_singular_values=1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_what_is_written_fits(tmp_path: Path, layout: object) -> None:
    write_file(tmp_path / "out.h5", layout)  # type: ignore[arg-type]
    open_results(tmp_path / "out.h5").close()


CHANGES: dict[str, Callable[[np.ndarray], object]] = {
    "one number": lambda old: 3.0,
    "no value": lambda old: h5py.Empty("f4"),
    "text": lambda old: np.full(old.shape, b"x"),
    "records": lambda old: np.zeros(old.shape, [("a", "f4"), ("b", "i4")]),
    "too few": lambda old: old[:-1],
    "another axis": lambda old: old[..., None],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("layout", ["all", "factors", "top", "the same classes"])
def test_what_does_not_fit_is_named(
    tmp_path: Path, layout: str, change: Callable[[np.ndarray], object]
) -> None:
    write_file(tmp_path / "out.h5", LAYOUTS[layout])
    names = set(LAYOUTS[layout].datasets())
    if "class_index" in names and change is CHANGES["another axis"]:
        names.remove("outputs")  # of any shape, where others have those selected alone
    for name in sorted(names):
        (tmp_path / "changed.h5").write_bytes((tmp_path / "out.h5").read_bytes())
        with h5py.File(tmp_path / "changed.h5", "r+") as file:
            old = file[name][...]
            del file[name]
            file[name] = change(old)
        with pytest.raises(ResultsError) as error:
            open_results(tmp_path / "changed.h5")
        told = f"{error.value.what} {error.value.why}"
        assert "damaged" in told
        # Where one has too few rows or columns, the others have too many.
        assert name in told or name in ("done", "class_index"), told


def test_whole_numbers_are_asked_for_where_they_count(tmp_path: Path) -> None:
    write_file(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        del file["sample_index"]
        file["sample_index"] = np.zeros(IMAGES.n_samples)
    with pytest.raises(ResultsError, match="not an array of whole numbers"):
        open_results(tmp_path / "out.h5")


@pytest.mark.parametrize("content", [3, np.zeros(3, "u4"), h5py.Empty("u4")], ids=["number", "array", "null"])
def test_checksums_are_a_group(tmp_path: Path, content: object) -> None:
    write_file(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        del file["checksums"]
        file["checksums"] = content
    with pytest.raises(ResultsError, match="checksums is not a group"):
        open_results(tmp_path / "out.h5")
