from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.commands.summarize import summarize
from jacli.errors import ResultsError
from jacli.store import ResultLayout, describe_results, open_results
from tests.store.layouts import IMAGES, random_batch, write_file

SCHEMA_1 = ResultLayout(5, (6,), (3,), n_singular_values=3, nuclear_norm=True, batch_size=2)


def test_small_datasets_are_arrays_and_large_ones_lazy(tmp_path: Path) -> None:
    written = write_file(tmp_path / "out.h5")
    with open_results(str(tmp_path / "out.h5")) as results:
        assert isinstance(results.singular_values, np.ndarray)
        assert isinstance(results.frobenius_norm, np.ndarray)
        assert isinstance(results.jacobian, h5py.Dataset)
        np.testing.assert_array_equal(results.jacobian[3], written["jacobian"][3])
        assert "jacobian" in results
        assert "batch" not in results.names
        assert "jacobian" in dir(results)
        with pytest.raises(AttributeError, match="jacobian"):
            _ = results.jacobain
        with pytest.raises(KeyError, match="it holds"):
            _ = results["batch"]


def test_datasets_in_groups(tmp_path: Path) -> None:
    write_file(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "a") as file:
        file["factors/left"] = np.ones((10, 7, 2))
    with open_results(tmp_path / "out.h5") as results:
        assert results["factors/left"].shape == (10, 7, 2)
        assert isinstance(results["factors/left"], h5py.Dataset)


def test_description_is_json(tmp_path: Path) -> None:
    write_file(tmp_path / "out.h5", command="jacli compute", config={"a": 1})
    told = json.loads(json.dumps(describe_results(tmp_path / "out.h5")))
    assert told["schema"] == "jacli/2"
    assert told["complete"] is True
    assert (told["samples"], told["samples_done"]) == (10, 10)
    assert told["attributes"] == {"command": "jacli compute", "config": '{"a": 1}'}
    assert told["datasets"]["jacobian"] == {
        "shape": [10, 3, 5, 4, 7],
        "dtype": "float32",
        "dims": ["batch", "c", "h", "w", "n_classes"],
        "bytes": IMAGES.datasets()["jacobian"].nbytes,
        "bytes_stored": IMAGES.datasets()["jacobian"].nbytes,
    }


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)


def _newer(path: Path) -> None:
    write_file(path)
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = "jacli/3"


def _lacking(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "jacli/1"


def _truncated(path: Path) -> None:
    write_file(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _beheaded(path: Path) -> None:
    write_file(path)
    content = path.read_bytes()
    path.write_bytes(content[:96] + bytes(len(content) - 96))


BAD = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "text": (lambda path: path.write_text("hello"), "not an HDF5 file"),
    "foreign": (_foreign, "without the attribute"),
    "newer": (_newer, "schema jacli/3"),
    "lacking": (_lacking, "lacks done, complete"),
    "truncated": (_truncated, "truncated"),
    "beheaded": (_beheaded, "table of contents is damaged"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "out.h5")
    with pytest.raises(ResultsError, match=message) as raised:
        open_results(tmp_path / "out.h5")
    assert raised.value.exit_code == 4
    assert raised.value.hint


def test_a_file_of_schema_1_stays_readable() -> None:
    """A file that version 0.1.0 wrote."""
    path = Path(__file__).parent / "data" / "schema_1.h5"
    with open_results(path) as results:
        assert results.attrs["schema"] == "jacli/1" and results.complete and len(results) == 5
        expected = [random_batch(SCHEMA_1, start, min(start + 2, 5)) for start in (0, 2, 4)]
        for name in expected[0]:
            np.testing.assert_array_equal(results[name][...], np.concatenate([b[name] for b in expected]))
        # Then 0 was written also where nothing was checked.
        assert results.near_kink.tolist() == [-1, 0, -1, 1, -1]
        assert results.near_kink.dtype == np.int8
        assert not {"batch_start", "checksums/jacobian"} & set(results.names)
    assert describe_results(path)["schema"] == "jacli/1"
    assert summarize([path], per_sample=True).rows
