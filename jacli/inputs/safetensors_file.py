"""safetensors: the header names the tensors, rows are read from the file's own memory map."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from safetensors import safe_open

from jacli.errors import InputsError
from jacli.inputs.source import StoredArray, Wanted, choose_key
from jacli.untrusted.content import path_as_text

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def load_safetensors(path: Path, wanted: Wanted) -> StoredArray:
    """One tensor of a safetensors file.

    >>> from safetensors.numpy import save_file
    >>> save_file({"x": np.zeros((5, 3), np.float32)}, "x.safetensors")
    >>> load_safetensors(Path("x.safetensors"), Wanted()).shape
    (5, 3)
    """
    with ExitStack() as stack:
        file = stack.enter_context(safe_open(stack.enter_context(path_as_text(path)), framework="np"))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        chosen = choose_key(path, shapes, wanted)
        stored_as = file.get_slice(chosen).get_dtype()
        if stored_as == "BF16":
            return _load_bfloat16(path, chosen, shapes[chosen])
        if stored_as not in _DTYPES:
            raise InputsError(
                f"{path}[{chosen}] has dtype {stored_as}.",
                why=f"jacli reads {', '.join(_DTYPES)} and BF16.",
                hint="Save it as float32.",
            )
        dtype, close = np.dtype(_DTYPES[stored_as]), stack.pop_all().close
    return StoredArray(
        chosen, shapes[chosen], dtype, lambda start, stop: file.get_slice(chosen)[start:stop], close
    )


def _load_bfloat16(path: Path, key: str, shape: tuple[int, ...]) -> StoredArray:
    """NumPy has no bfloat16: torch reads it, and float32 holds every one of its values exactly."""
    with ExitStack() as stack:
        file = stack.enter_context(safe_open(stack.enter_context(path_as_text(path)), framework="pt"))
        close = stack.pop_all().close

    def read_slice(start: int, stop: int) -> np.ndarray:
        rows: np.ndarray = file.get_slice(key)[start:stop].float().numpy()
        return rows

    return StoredArray(key, shape, np.dtype("float32"), read_slice, close)
