"""From a path to rows of samples: one file an input format.

`open_inputs` recognises the format by content, imports only the loader that it needs, and returns
an `InputSource` that reads a range of the chosen samples at a time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jacli.errors import InputsError
from jacli.inputs.check import check_dtype, check_rows, scale_notes
from jacli.inputs.samples import sample_positions
from jacli.inputs.source import InputSource, StoredArray, Wanted, reading
from jacli.inputs.text_table import text_table
from jacli.untrusted.content import MAX_EXPANSION, WHAT_TO_DO, Content, recognise_content, what_is_no_file

__all__ = [
    "LOADERS",
    "RANDOM_PREFIX",
    "InputSource",
    "check_dtype",
    "check_rows",
    "open_inputs",
    "sample_positions",
    "scale_notes",
]

LOADERS = {
    Content.NPY: "jacli.inputs.numpy_files:load_npy",
    Content.NPZ: "jacli.inputs.numpy_files:load_npz",
    Content.SAFETENSORS: "jacli.inputs.safetensors_file:load_safetensors",
    Content.TORCH_ZIP: "jacli.inputs.torch_file:load_torch_zip",
    Content.LEGACY_PICKLE: "jacli.inputs.torch_file:load_legacy_pickle",
    Content.HDF5: "jacli.inputs.hdf5_file:load_hdf5",
}
"""Content -> ``"module:function"``; the function takes (path, `Wanted`) and returns a `StoredArray`."""

RANDOM_PREFIX = "random:"

_MODELS = (Content.TORCHSCRIPT, Content.TORCHSCRIPT_1_1, Content.TORCH_EXPORT, Content.TORCH_TAR)


def open_inputs(
    source: str,
    *,
    key: str | None = None,
    samples: str | None = None,
    seed: int = 0,
    named_by: str = Wanted.named_by,
) -> InputSource:
    """Open ``source`` and choose samples of it; rows are read later, a range at a time.

    >>> with open_inputs("random:100x3x8x8", samples="10:20") as source:
    ...     len(source), source.read(0, 4).shape
    (10, (4, 3, 8, 8))

    Args:
        source: A file, or ``random:64x3x224x224`` (normal, float32, 64 samples).
        key: Which array, where the file holds several: a name, a path with dots (.pt), or an HDF5 path.
        samples: Which samples, as `sample_positions` reads them; None takes all, in order.
        seed: For ``random:`` only.
        named_by: What names the file, for messages: INPUTS, or an option such as ``--arg mask``.

    Raises:
        InputsError: No such file, not a file of inputs, damaged, or no array of numbers with samples.
        UsageError: ``samples`` or a ``random:`` shape that cannot be read.
    """
    wanted = Wanted(key, named_by)
    if source.startswith(RANDOM_PREFIX):
        from jacli.inputs.random_normal import make_random

        stored, path, format_name = make_random(source, wanted, seed=seed), None, "random"
        room = None
    else:
        absolute = Path(source).absolute()
        content = _recognise(source, wanted)
        with reading(source, content):
            stored = _find_loader(content)(absolute, wanted)
        path, format_name = str(absolute), content.value
        room = (stored.file_bytes or absolute.stat().st_size) + MAX_EXPANSION
    try:
        n_samples = _check_array(source, stored)
        if room is not None and n_samples * np.dtype(np.int64).itemsize > room:
            raise InputsError(
                f"{source} declares {n_samples:,} samples.",
                why="That is far more than a file of its size can hold.",
                hint="Check where the file comes from; if its data are real, save them as .npy.",
            )
        index = sample_positions(samples, n_samples)
    except BaseException:
        stored.close()
        raise
    return InputSource(path=path, format=format_name, stored=stored, index=index, room=room)


def _find_loader(content: Content) -> Callable[[Path, Wanted], StoredArray]:
    module, function = LOADERS[content].split(":")
    loader: Callable[[Path, Wanted], StoredArray] = getattr(importlib.import_module(module), function)
    return loader


def _recognise(source: str, wanted: Wanted) -> Content:
    """The content of ``source``; refuses everything that holds no inputs, each by its name."""
    path = Path(source)
    try:
        if not os.path.exists(path):
            why, hint = what_is_no_file(source)
            hint = hint or f"Check the path of {wanted.named_by}."
            raise InputsError(f"{source}: no such file.", why=why, hint=hint)
        if not path.is_file() and not path.is_dir():
            raise InputsError(
                f"{source} is not a regular file.",
                why="It is a device, a pipe or a socket, and inputs are read at random positions.",
                hint="Write the inputs to a file first.",
            )
        content = recognise_content(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise InputsError(
            f"{source} cannot be opened.", why=f"{error}.", hint="Check the path and its permissions."
        ) from error
    if content in LOADERS:
        return content
    what = f"{source} holds no inputs that jacli can read."
    if content in _MODELS:
        raise InputsError(
            what,
            why=f"It is a model ({content.value}), not an array of samples.",
            hint="Give MODEL first and INPUTS second: `jacli compute model.pt inputs.npy`."
            if wanted.of_inputs
            else f"Give an array with {wanted.named_by}.",
        )
    if content in (Content.FOLDER, Content.IMAGE):
        article = "an" if content is Content.IMAGE else "a"
        raise InputsError(
            what,
            why=f"It is {article} {content.value}, and jacli reads arrays.",
            hint="Preprocess them as for the model's training and save one .npy of shape (batch, c, h, w).",
        )
    unread = WHAT_TO_DO.get(content, (f"It is: {content.value}.", "Give an array, such as a .npy file."))
    why, hint = text_table(path) or unread
    raise InputsError(what, why=why, hint=hint)


def _check_array(source: str, stored: StoredArray) -> int:
    """Refuse what is no array of numbers along a sample axis; returns the number of samples."""
    name = f"{source}[{stored.key}]" if stored.key else source
    if stored.dtype.kind not in "biufc":
        kinds = {"O": "Python objects", "V": "records (a structured dtype)", "U": "strings", "S": "strings"}
        raise InputsError(
            f"{name} is not an array of numbers.",
            why=f"It holds {kinds.get(stored.dtype.kind, 'values')} of dtype {stored.dtype}.",
            hint="Save one array of floating numbers, shape (batch, ...).",
        )
    if not stored.shape:
        raise InputsError(
            f"{name} has no sample axis.",
            why="It holds a single number (shape ()).",
            hint="Save an array of shape (batch, ...), one sample per row.",
        )
    if min(stored.shape) <= 0:
        raise InputsError(
            f"{name} holds no samples." if stored.shape[0] <= 0 else f"{name} holds samples without values.",
            why=f"Its shape is {stored.shape}.",
            hint="Save at least one sample, shape (batch, ...).",
        )
    return stored.shape[0]
