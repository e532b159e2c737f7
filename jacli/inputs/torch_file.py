"""torch.save files: a tensor, or dicts and lists with tensors in them; never any code of the file's."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from jacli.errors import InputsError
from jacli.inputs.source import StoredArray, Wanted, choose_key, refuse_key
from jacli.untrusted.content import path_as_text
from jacli.untrusted.torch_archive import NoTorchSaveError, scan_torch_save

_MOST_PARTS = 100_000
_DEEPEST = 50


def load_torch_zip(path: Path, wanted: Wanted) -> StoredArray:
    """A zip archive of `torch.save`, memory-mapped.

    >>> torch.save({"x": torch.zeros(5, 3)}, "x.pt")
    >>> load_torch_zip(Path("x.pt"), Wanted()).shape
    (5, 3)
    """
    return _load(path, wanted, mmap=True)


def load_legacy_pickle(path: Path, wanted: Wanted) -> StoredArray:
    """A pickle of `torch.save` before PyTorch 1.6, read whole.

    >>> torch.save(torch.zeros(5, 3), "x.pt", _use_new_zipfile_serialization=False)
    >>> load_legacy_pickle(Path("x.pt"), Wanted()).shape
    (5, 3)
    """
    return _load(path, wanted, mmap=False)


def _load(path: Path, wanted: Wanted, *, mmap: bool) -> StoredArray:
    with path.open("rb") as file:
        try:
            scan_torch_save(file, is_zip=mmap, mapped=mmap)
        except NoTorchSaveError as error:
            raise InputsError(
                f"{path} is a pickle, but not one written by torch.save.",
                why="Unpickling it would run code that the file brings.",
                hint="Load it where it was made and save the tensor of inputs with torch.save.",
            ) from error
    try:
        with path_as_text(path) as name:
            loaded = torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputsError(
            f"{path} holds Python objects, not tensors alone.",
            why=f"Loading it would run code: it asks for {asked[1] if asked else 'classes of its own'}.",
            hint="Save the tensor of inputs alone; a model comes first: `jacli compute MODEL INPUTS`.",
        ) from error
    if isinstance(loaded, torch.Tensor):
        refuse_key(path, wanted, why="It holds one tensor without a name.")
        return _as_stored(path, None, loaded)
    tensors = dict(_walk_tensors(path, loaded))
    chosen = choose_key(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted)
    return _as_stored(path, chosen, tensors[chosen])


def _walk_tensors(path: Path, loaded: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts and lists, named by its path with dots, in order.

    Raises:
        InputsError: It has too many parts, or too deep ones: shared parts count as often as they are there.
    """
    rest: list[tuple[str, int, object]] = [("", 0, loaded)]
    parts = 0
    while rest:
        prefix, depth, node = rest.pop()
        if isinstance(node, torch.Tensor):
            yield prefix, node
        elif isinstance(node, Mapping | list | tuple):
            parts += len(node)
            if parts > _MOST_PARTS or depth > _DEEPEST:
                raise InputsError(
                    f"{path} holds too many parts to look through.",
                    why=f"There are more than {_MOST_PARTS:,}, or they are nested more than {_DEEPEST} "
                    "levels deep.",
                    hint="Save the tensor of inputs alone.",
                )
            items = list(node.items() if isinstance(node, Mapping) else enumerate(node))
            rest.extend(
                (f"{prefix}.{name}" if prefix else str(name), depth + 1, child)
                for name, child in reversed(items)
            )


def _as_stored(path: Path, key: str | None, tensor: torch.Tensor) -> StoredArray:
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else f"sparse ({tensor.layout})"
        raise InputsError(
            f"{path} holds a {kind} tensor.",
            why="Inputs must be dense.",
            hint="Save tensor.dequantize() or tensor.to_dense().",
        )
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        # bfloat16 and the 8-bit floats: NumPy has none of them, and float32 holds all their values exactly.
        dtype = np.dtype("float32")
        return StoredArray(
            key, tuple(tensor.shape), dtype, lambda start, stop: tensor[start:stop].float().numpy()
        )
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return StoredArray(
        key,
        tuple(tensor.shape),
        dtype,
        lambda start, stop: tensor[start:stop].resolve_conj().resolve_neg().numpy(),
    )
