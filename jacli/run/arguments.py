"""Further arguments of ``forward``: values, constant tensors, and what has one row per sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jacli.errors import InputsError
from jacli.errors.printable import count_of
from jacli.inputs import InputSource, open_inputs
from jacli.models.dtypes import as_dtype


@dataclass(frozen=True)
class Arguments:
    """The further arguments of a run, on the CPU; nested ones by dotted names.

    Attributes:
        constant: The same for every sample: values and tensors.
        rowwise: Those with one row per chosen sample.
        constants_sha256: Of the tensors among ``constant``, as they were read; None without any.
    """

    constant: Mapping[str, object]
    rowwise: Mapping[str, Tensor]
    constants_sha256: str | None


def read_arguments(
    asked: Mapping[str, object], constants: Mapping[str, str], source: InputSource, dtype: torch.dtype
) -> Arguments:
    """Read the files that ``--arg NAME=@FILE`` and ``--constant NAME=FILE`` name.

    >>> from jacli.inputs import open_inputs
    >>> np.save("mask.npy", np.eye(3, dtype="float32"))
    >>> source = open_inputs("random:3x8", samples="1:3")
    >>> arguments = read_arguments({"mask": "@mask.npy", "scale": 2}, {}, source, torch.float32)
    >>> arguments.constant, arguments.rowwise["mask"].tolist()
    ({'scale': 2}, [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    Raises:
        InputsError: One cannot be read, or has too few rows.
    """
    constant: dict[str, object] = {}
    rowwise: dict[str, Tensor] = {}
    for name, value in asked.items():
        if isinstance(value, str) and value.startswith("@"):
            tensor = torch.from_numpy(read_along(value[1:], source, f"--arg {name}"))
            rowwise[name] = as_dtype(tensor, dtype)
        else:
            constant[name] = value
    read = {name: _read_whole(path, f"--constant {name}") for name, path in sorted(constants.items())}
    hashed = hashlib.sha256()
    for name, array in read.items():
        hashed.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        constant[name] = as_dtype(torch.from_numpy(array), dtype)
    return Arguments(constant, rowwise, hashed.hexdigest() if read else None)


def _read_whole(path: str, what: str) -> np.ndarray:
    with open_inputs(path, named_by=what) as opened:
        return opened.read(0, len(opened))


def read_along(path: str, source: InputSource, what: str) -> np.ndarray:
    """Rows of another file at the chosen samples' positions.

    >>> from jacli.inputs import open_inputs
    >>> np.save("mask.npy", np.eye(3, dtype="float32"))
    >>> read_along("mask.npy", open_inputs("random:3x8", samples="1:3"), "--arg mask").tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Raises:
        InputsError: It cannot be read, or has too few rows; it says ``what`` named the file.
    """
    with open_inputs(path, named_by=what) as other:
        if len(other) <= int(source.index.max()):
            raise InputsError(
                f"{what}: {path} has {count_of(len(other), 'row')}.",
                why=f"One row per sample is needed, up to position {int(source.index.max())}.",
                hint="Give the file that belongs to these inputs.",
            )
        return other.at(source.index).read(0, len(source))
