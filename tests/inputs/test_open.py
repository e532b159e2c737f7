from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from jacli.errors import InputsError, JacliError, UsageError
from jacli.inputs import open_inputs

ROWS = np.random.default_rng(0).standard_normal((11, 3, 5, 4), np.float32)
OTHER = np.ones((2, 6))


def _save_numpy(save: Callable[..., None], path: Path, *arrays: np.ndarray, **named: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add a suffix
        save(file, *arrays, **named)


def _save_legacy(path: Path, value: object) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def _save_hdf5(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


ONE_ARRAY: dict[str, Callable[[Path], object]] = {
    "npy": lambda path: _save_numpy(np.save, path, ROWS),
    "npy in Fortran order": lambda path: _save_numpy(np.save, path, np.asfortranarray(ROWS)),
    "npy big-endian": lambda path: _save_numpy(np.save, path, ROWS.astype(">f4")),
    "npz": lambda path: _save_numpy(np.savez, path, x=ROWS),
    "npz compressed": lambda path: _save_numpy(np.savez_compressed, path, x=ROWS),
    "safetensors": lambda path: safetensors.numpy.save_file({"x": ROWS}, path),
    "pt": lambda path: torch.save(torch.from_numpy(ROWS), path),
    "pt in a dict": lambda path: torch.save({"x": torch.from_numpy(ROWS), "epoch": 3}, path),
    "pt transposed": lambda path: torch.save(torch.from_numpy(ROWS.T.copy()).permute(3, 2, 1, 0), path),
    "pt with gradient": lambda path: torch.save(torch.from_numpy(ROWS).requires_grad_(), path),
    "pt legacy": lambda path: _save_legacy(path, torch.from_numpy(ROWS)),
    "hdf5": lambda path: _save_hdf5(path, x=ROWS),
    "hdf5 big-endian": lambda path: _save_hdf5(path, x=ROWS.astype(">f4")),
}


@pytest.mark.parametrize("samples", [None, "2:9", "9,0,1,-1", "::3", "::-1"])
@pytest.mark.parametrize("save", ONE_ARRAY.values(), ids=ONE_ARRAY.keys())
def test_rows_are_the_chosen_ones(
    tmp_path: Path, save: Callable[[Path], object], samples: str | None
) -> None:
    path = tmp_path / "inputs.wrong_suffix"
    save(path)
    expected = ROWS if samples is None else ROWS[np.r_[_indices(samples)]]
    with open_inputs(str(path), samples=samples) as source:
        assert len(source) == len(expected)
        assert source.shape == (3, 5, 4)
        assert source.dtype == np.float32
        assert source.path == str(path)
        np.testing.assert_array_equal(ROWS[source.index], expected)
        rows = source.read(0, len(source))
        np.testing.assert_array_equal(rows, expected, strict=True)
        assert rows.flags.c_contiguous
        assert rows.flags.writeable
        np.testing.assert_array_equal(source.read(1, 3), expected[1:3])
        assert source.read(2, 2).shape == (0, 3, 5, 4)


def _indices(samples: str) -> list[int]:
    return {
        "2:9": list(range(2, 9)),
        "9,0,1,-1": [9, 0, 1, 10],
        "::3": [0, 3, 6, 9],
        "::-1": list(range(10, -1, -1)),
    }[samples]


SEVERAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "npz": (lambda path: _save_numpy(np.savez, path, x=ROWS, y=OTHER), "x"),
    "safetensors": (lambda path: safetensors.numpy.save_file({"x": ROWS, "y": OTHER}, path), "x"),
    "pt": (
        lambda path: torch.save({"a": {"x": torch.from_numpy(ROWS)}, "b": [torch.ones(2, 6)]}, path),
        "a.x",
    ),
    "hdf5": (lambda path: _save_hdf5(path, **{"g/x": ROWS, "y": OTHER}), "g/x"),
}


@pytest.mark.parametrize(("save", "key"), SEVERAL.values(), ids=SEVERAL.keys())
def test_one_of_several_arrays(tmp_path: Path, save: Callable[[Path], object], key: str) -> None:
    path = tmp_path / "inputs"
    save(path)
    with open_inputs(str(path), key=key) as source:
        assert source.key == key
        np.testing.assert_array_equal(source.read(0, 11), ROWS)
    with pytest.raises(InputsError, match=rf"several arrays(?s:.*){key} \(11, 3, 5, 4\)(?s:.*)\(2, 6\)"):
        open_inputs(str(path))
    with pytest.raises(InputsError, match=rf"no array 'z'(?s:.*){key} \(11, 3, 5, 4\)"):
        open_inputs(str(path), key="z")
    with pytest.raises(InputsError, match=r"several arrays(?s:.*)Save the one that --arg mask means"):
        open_inputs(str(path), named_by="--arg mask")


def test_a_result_file_gives_its_inputs(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    _save_hdf5(path, inputs=ROWS, outputs=OTHER)
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = "jacli/1"
    with open_inputs(str(path)) as source:
        assert source.key == "inputs"
    with open_inputs(str(path), key="/outputs") as source:
        assert source.shape == (6,)


@pytest.mark.parametrize("legacy", [False, True])
def test_bfloat16_is_read_as_float32_exactly(tmp_path: Path, legacy: bool) -> None:
    values = torch.from_numpy(ROWS).bfloat16()
    torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    safetensors.torch.save_file({"x": values}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        with open_inputs(str(tmp_path / name)) as source:
            assert source.dtype == np.float32
            np.testing.assert_array_equal(source.read(0, 11), values.float().numpy(), strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16", "float64", "complex64"])
def test_the_dtype_is_the_stored_one(tmp_path: Path, dtype: str) -> None:
    values = np.ones((2, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    torch.save(torch.from_numpy(values), tmp_path / "x.pt")
    safetensors.numpy.save_file({"x": values}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.pt", "x.safetensors"):
        with open_inputs(str(tmp_path / name)) as source:
            assert source.dtype == dtype
            assert source.read(0, 2).dtype == dtype


def test_random_samples_do_not_depend_on_the_range_read() -> None:
    with (
        open_inputs("random:64x3x5x4", seed=3) as source,
        open_inputs("random:9x3x5x4", seed=3, samples="7,2") as part,
    ):
        assert source.path is None
        rows = source.read(0, 64)
        assert rows.shape == (64, 3, 5, 4)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(source.read(5, 9), rows[5:9])
        np.testing.assert_array_equal(part.read(0, 2), rows[[7, 2]])
    assert abs(rows.mean()) < 0.1
    assert abs(rows.std() - 1) < 0.1
    assert len(np.unique(rows)) > 3000
    with open_inputs("random:64x3x5x4", seed=4) as other:
        assert (other.read(0, 64) != rows).all(axis=(1, 2, 3)).any()
    with open_inputs("random:4") as single:
        assert single.read(0, 4).shape == (4,)


@pytest.mark.parametrize("spec", ["random:", "random:3xax4", "random:0x3", "random:-1x2", "random:3x"])
def test_random_nonsense(spec: str) -> None:
    with pytest.raises(UsageError, match="random:64x3x224x224"):
        open_inputs(spec)
    with pytest.raises(UsageError, match="seed"):
        open_inputs("random:2x3", seed=-1)


def _cut(save: Callable[[Path], object], keep: float) -> Callable[[Path], object]:
    def save_cut(path: Path) -> None:
        save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return save_cut


def _save_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # writing TorchScript is deprecated, having it is not
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "It is a folder"),
    "image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "It is an image"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes"),
    "text": (lambda path: path.write_text("1,2,3\n"), "text file"),
    "html": (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
    "git lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08"), "gzip"),
    "fifo": (lambda path: os.mkfifo(path), "not a regular file"),
    "TorchScript": (_save_script, "It is a model"),
    "weights": (lambda path: torch.save(torch.nn.Linear(2, 3).state_dict(), path), "looks like the weights"),
    "pickled module": (
        lambda path: torch.save(torch.nn.Linear(2, 3), path),
        "torch.nn.modules.linear.Linear",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps(subprocess.Popen)), "."),
    "no tensor": (lambda path: torch.save({"epoch": 3}, path), "holds no array"),
    "sparse": (lambda path: torch.save(torch.eye(3).to_sparse(), path), "sparse"),
    "npy cut": (_cut(ONE_ARRAY["npy"], 0.5), "cannot be read"),
    "npy header cut": (lambda path: path.write_bytes(b"\x93NUMPY\x01"), "cannot be read"),
    "npz cut": (_cut(ONE_ARRAY["npz"], 0.5), "damaged zip"),
    "pt cut": (_cut(ONE_ARRAY["pt"], 0.5), "damaged zip"),
    "legacy cut": (_cut(ONE_ARRAY["pt legacy"], 0.5), "cannot be read"),
    "legacy cut early": (_cut(ONE_ARRAY["pt legacy"], 0.02), "."),
    "safetensors cut": (_cut(ONE_ARRAY["safetensors"], 0.5), "cannot be read"),
    "hdf5 cut": (_cut(ONE_ARRAY["hdf5"], 0.5), "cannot be read"),
    "objects": (lambda path: _save_numpy(np.save, path, np.array([None, "a"])), "Python objects"),
    "strings": (lambda path: _save_numpy(np.save, path, np.array(["a", "bc"])), "strings"),
    "records": (lambda path: _save_numpy(np.save, path, np.zeros(3, [("a", "f4")])), "structured"),
    "single number": (lambda path: _save_numpy(np.save, path, np.array(3.0)), "no sample axis"),
    "no samples": (lambda path: _save_numpy(np.save, path, np.zeros((0, 3))), "no samples"),
    "no values": (lambda path: _save_numpy(np.save, path, np.zeros((2, 0, 3))), "without values"),
    "npz of objects": (lambda path: _save_numpy(np.savez, path, x=np.array([None])), "Python objects"),
    "hdf5 strings": (lambda path: _save_hdf5(path, x=np.array([b"a", b"b"])), "strings"),
    "hdf5 without arrays": (lambda path: _save_hdf5(path), "holds no array"),
}


@pytest.mark.parametrize(("save", "message"), BAD.values(), ids=BAD.keys())
def test_what_holds_no_inputs_is_refused_by_name(
    tmp_path: Path, save: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "inputs"
    save(path)
    with pytest.raises(InputsError, match=message) as raised:
        open_inputs(str(path))
    assert raised.value.exit_code == 4
    assert raised.value.hint


def test_a_key_where_there_are_no_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    torch.save(torch.from_numpy(ROWS), tmp_path / "x.pt")
    for source in (str(tmp_path / "x.npy"), str(tmp_path / "x.pt"), "random:2x3"):
        with pytest.raises(InputsError, match="Leave out --inputs-key"):
            open_inputs(source, key="x")


def test_damage_that_shows_only_when_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.ones((100, 1000)))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x.npy").header_offset
    content[start + 400_000] ^= 0xFF
    path.write_bytes(content)
    with open_inputs(str(path)) as source, pytest.raises(InputsError, match="cannot be read") as raised:
        source.read(0, 1)
    assert "CRC" in raised.value.why


@pytest.mark.parametrize("kind", ["npy", "pt legacy", "safetensors", "hdf5", "npz"])
def test_every_cut_is_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    ONE_ARRAY[kind](path)
    content = path.read_bytes()
    for size in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:size])
        with pytest.raises(JacliError), open_inputs(str(path)) as source:
            source.read(0, len(source))


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(InputsError, match=r"cannot be opened|no such file"):
            open_inputs(str(tmp_path / name))


def test_numpy_inputs_import_no_torch(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    code = (
        "import sys; from jacli.inputs import open_inputs; import jacli.store; "
        "open_inputs(sys.argv[1]).read(0, 2); open_inputs('random:2x3').read(0, 2); "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.npy"],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_only_the_chosen_rows_are_read(tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(1000, 100, 1000))
    rows[998] = 3.0  # the rest is a hole: 400 MB in name only
    del rows
    with open_inputs(str(tmp_path / "x.npy"), samples="-2") as source:
        tracemalloc.start()
        try:
            assert (source.read(0, 1) == 3.0).all()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2 * 2**20


def _with_pickle(path: Path, pickled: bytes) -> None:
    """A torch.save archive with this pickle in the place of its own."""
    torch.save({"x": torch.ones(2, 3)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)


def _shared(levels: int) -> object:
    value: object = [torch.ones(2, 3)]
    for level in range(levels):
        value = {"a": value, "b": value} if level % 2 else (value, value)
    return value


DEEP_OR_SHARED = {
    "shared lists": lambda path: torch.save(_shared(34), path),
    "shared lists, legacy": lambda path: _save_legacy(path, _shared(34)),
    "a list in itself": lambda path: _with_pickle(path, b"\x80\x02]q\x00h\x00a."),
    "nested lists": lambda path: _with_pickle(path, b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    "nested dicts": lambda path: _with_pickle(
        path, b"\x80\x02" + b"}K\x01" * 10**5 + b"}" + b"s" * 10**5 + b"."
    ),
    "nested tuples": lambda path: _with_pickle(path, b"\x80\x02)" + b"\x85" * 10**5 + b"."),
    "a shared key": lambda path: _with_pickle(path, b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 34 + b"K\x01s."),
}


@pytest.mark.parametrize("how", DEEP_OR_SHARED)
def test_structures_that_are_deep_or_shared_are_refused(tmp_path: Path, how: str) -> None:
    """They would be followed for ever, or beyond Python's stack."""
    path = tmp_path / "x.pt"
    DEEP_OR_SHARED[how](path)
    with pytest.raises(InputsError):
        open_inputs(str(path))


def test_a_safetensors_header_in_depth_is_refused(tmp_path: Path) -> None:
    for deep in (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"):
        (tmp_path / "x").write_bytes(len(deep).to_bytes(8, "little") + deep)
        with pytest.raises(InputsError):
            open_inputs(str(tmp_path / "x"))


def test_moderately_nested_tensors_are_listed_in_order(tmp_path: Path) -> None:
    one = torch.ones(2, 3)
    torch.save({"b": [one, {"c": (one,)}], "a": {"d": one, "e": {"f": one}}, "same": one}, tmp_path / "x.pt")
    with pytest.raises(InputsError, match=r"(?s)b\.0.*b\.1\.c\.0.*a\.d.*a\.e\.f.*same"):
        open_inputs(str(tmp_path / "x.pt"))
