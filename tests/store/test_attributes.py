"""Attributes of a result by their type: one answer to what is of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.errors import ResultsError
from jacli.store.attributes import Attributes
from jacli.store.sources import attributes_of, sources_of

WRONG = {
    "a number": 7,
    "NaN": float("nan"),
    "an array": np.zeros(3),
    "texts": np.array(["a", "b"], dtype=h5py.string_dtype()),
    "nothing": h5py.Empty("f4"),
    "a complex number": 1j,
    "an empty text": "",
    "half a JSON": "{",
    "nested deeply": "[" * 100_000,
    "bytes that are no text": np.bytes_(b"\xff\0"),
}


def _read(path: Path, value: object) -> Attributes:
    with h5py.File(path, "w") as file:
        file.attrs["it"] = value
    with h5py.File(path) as file:
        return Attributes(path, attributes_of(file))


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize(
    "read",
    [
        lambda said: said.json_object("it"),
        lambda said: said.json_list("it"),
        lambda said: said.json_texts("it"),
        lambda said: said.flag("it"),
        lambda said: sources_of(Path("index.h5"), {"sources": said["it"]}),
    ],
    ids=["object", "list", "texts", "flag", "sources"],
)
def test_a_value_of_another_type_is_damage(
    tmp_path: Path, value: object, read: Callable[[Attributes], object]
) -> None:
    with pytest.raises(ResultsError, match=r"Its attribute `(it|sources)` is damaged"):
        read(_read(tmp_path / "r.h5", value))


@pytest.mark.parametrize("value", [7, float("nan"), np.zeros(3), h5py.Empty("f4"), True])
def test_what_is_no_text(tmp_path: Path, value: object) -> None:
    with pytest.raises(ResultsError, match="not text"):
        _read(tmp_path / "r.h5", value).text("it")


def test_sound_values(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    assert _read(path, "größe").text("it") == "größe"
    assert _read(path, '{"a": 1}').json_object("it") == {"a": 1}
    assert _read(path, '["a"]').json_texts("it") == ["a"]
    assert _read(path, True).flag("it") is True
    said = _read(path, 3)
    assert (said["it"], len(said), list(said), dict(said)) == (3, 1, ["it"], {"it": 3})


def test_what_is_not_there() -> None:
    said = Attributes(Path("r.h5"), {})
    assert said.text("it") is None and said.json_list("it") == [] and sources_of(Path("r.h5"), said) == ()
    for read in (said.flag, said.json_object):
        with pytest.raises(ResultsError, match="it is not there"):
            read("it")


@pytest.mark.parametrize("part", [7, "a", [], {"name": "x"}, {"start": "0"}, {"start": 0.5}, {"stop": True}])
def test_sources_of_an_index_are_names_and_rows(part: object) -> None:
    whole = {"name": "a", "start": 0, "stop": 2, "size": 9, "modified": 1, "identity": "f00d"}
    assert sources_of(Path("i.h5"), {"sources": str([whole]).replace("'", '"')})[0].stop == 2
    changed = whole | part if isinstance(part, dict) and part != {"name": "x"} else part
    text = str([changed]).replace("'", '"').replace("True", "true")
    with pytest.raises(ResultsError, match="`sources` is damaged"):
        sources_of(Path("i.h5"), {"sources": text})


@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), "7", True, np.zeros(2, int)], ids=str)
def test_what_is_no_count(tmp_path: Path, value: object) -> None:
    with pytest.raises(ResultsError, match="is no count"):
        _read(tmp_path / "r.h5", value).count("it")
