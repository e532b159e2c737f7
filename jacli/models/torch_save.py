"""Files of torch.save: state dicts, checkpoints, and (only with --allow-pickle) pickled modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jacli.errors import ModelError
from jacli.models.damage import COPY_AGAIN, last_line
from jacli.models.describe import describe_weights
from jacli.models.fingerprint import require_values
from jacli.models.fit import load_weights
from jacli.models.foreign import foreign_class, foreign_pickle
from jacli.models.kept_settings import without_inference_tensors
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, sha256_of
from jacli.models.stand_ins import Inert, load_with_stand_ins, stand_in
from jacli.models.unpickle import read_running_its_code
from jacli.models.weights import Selection, select_weights
from jacli.untrusted.content import Content, recognise_content
from jacli.untrusted.pickle_scan import Made, PickleScan
from jacli.untrusted.torch_archive import NoTorchSaveError, scan_torch_save

_RAN = "ran the code of the file's pickle (--allow-pickle)"
_HINT = "Save only its state_dict(), or, if you trust the file, add --allow-pickle: it runs the file's code."
_DATA = ("torch._utils._rebuild", "torch._tensor.", "collections.", "torch.storage.")


def load_torch_save(path: Path, request: ModelRequest) -> LoadedModel:
    """Load the weights into the architecture asked for or recognised; a pickled module if allowed.

    >>> request = ModelRequest(arch="sample_models/digits_cnn.py:make_model")
    >>> load_torch_save(Path("sample_models/digits_cnn_state.pt"), request).format
    'state_dict'
    """
    selection, notes = _select(path, request)
    module = selection.weights
    if isinstance(module, torch.nn.Module) and request.arch is None:
        plain = freeze(require_values(without_inference_tensors(module), str(path)))
        notes += selection.notes
        return LoadedModel(plain, "pickled_module", str(path), sha256_of(path), notes=notes)
    if isinstance(module, torch.nn.Module):
        selection = Selection(selection.key, module.state_dict(), selection.notes)
    selection = Selection(selection.key, selection.weights, notes + selection.notes)
    return load_weights(path, selection, request, file_format="checkpoint" if selection.key else "state_dict")


def describe_torch_save(path: Path) -> dict[str, Any]:
    """Description of the weights: entry, tensors, dtypes, prefix, matching architectures.

    >>> describe_torch_save(Path("sample_models/digits_cnn_state.pt"))["num_tensors"]
    18
    """
    selection, _ = _select(path, ModelRequest())
    return {"format": "checkpoint" if selection.key else "state_dict", **describe_weights(selection)}


def _select(path: Path, request: ModelRequest) -> tuple[Selection, tuple[str, ...]]:
    """The weights, and notes if the file's code was run for them; a module only where that is allowed."""
    try:
        selection = select_weights(
            _read_safely(path), path=path, weights_key=request.weights_key, ema=request.ema
        )
        if not isinstance(selection.weights, Inert):
            return selection, ()
        raise foreign_class(path, selection.weights.class_name) or _refuse(path, selection)
    except _NeedsItsCode:
        if not request.allow_pickle:
            raise
    container, notes = read_running_its_code(path, request.arch)
    selection = select_weights(container, path=path, weights_key=request.weights_key, ema=request.ema)
    return selection, (_RAN, *notes)


class _NeedsItsCode(ModelError):
    """Loading needs --allow-pickle; raised neither for damage nor for a choice between several weights."""


def _refuse(path: Path, selection: Selection) -> _NeedsItsCode:
    where = f" under {selection.key!r}" if selection.key else ""
    return _NeedsItsCode(
        f"{path} holds a pickled object{where}, not weights.",
        why=f"It is of class {selection.weights.class_name}; loading it would run code that the file brings.",
        hint=_HINT,
    )


def _read_safely(path: Path) -> Any:
    scan = _scan(path)
    if (
        isinstance(scan.root, Made)
        and scan.root.name not in scan.dict_like
        and not scan.root.name.startswith(_DATA)
    ):
        return stand_in(scan.root.name, scan)()
    try:
        return load_with_stand_ins(path, scan)
    except Exception as error:
        if _is_truncation(error):
            why = f"It is truncated or incomplete: {last_line(error)}"
            raise ModelError(f"{path} is damaged.", why=why, hint=COPY_AGAIN) from error
        raise _NeedsItsCode(
            f"{path} cannot be loaded without running its code.",
            why=last_line(error),
            hint=_HINT,
        ) from error


def _is_truncation(error: Exception) -> bool:
    words = (
        "eof",
        "corrupt",
        "file size",
        "storage has wrong",
        "central directory",
        "truncated",
        "not found in",
    )
    return isinstance(error, EOFError) or any(word in str(error).lower() for word in words)


def _scan(path: Path) -> PickleScan:
    """Follow the pickle that holds the object; check the file on the way."""
    try:
        with path.open("rb") as file:
            return scan_torch_save(file, is_zip=recognise_content(path) is Content.TORCH_ZIP)
    except NoTorchSaveError as error:
        raise foreign_pickle(path) or ModelError(
            f"{path} is a pickle, but not one written by torch.save.",
            why="Unpickling it would run code that the file brings.",
            hint="Load it where it was made and save it with torch.save(model.state_dict(), ...).",
        ) from error
    except ValueError as error:
        raise foreign_pickle(path) or ModelError(
            f"{path} is damaged.", why=str(error), hint=COPY_AGAIN
        ) from error
