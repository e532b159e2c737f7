"""TorchScript archives."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from jacli.models.damage import check_zip, reading
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, refuse_weight_options, sha256_of

_KIND = "TorchScript archive"


def load_torchscript(path: Path, request: ModelRequest) -> LoadedModel:
    """Load a scripted or traced module; archives saved in training mode are set to evaluation."""
    refuse_weight_options(path, _KIND, request)
    module = _read(path)
    notes: tuple[str, ...] = ()
    # Archives of tracers and of old versions may have no such attribute before eval() is called.
    if getattr(module, "training", False):
        notes = ("the archive was saved in training mode; it was set to evaluation mode",)
    return LoadedModel(freeze(module), "torchscript", str(path), sha256_of(path), notes=notes)


def describe_torchscript(path: Path) -> dict[str, Any]:
    """Parameters, types and forward's signature."""
    module = _read(path)
    tensors = [*module.parameters(), *module.buffers()]
    return {
        "format": "torchscript",
        "num_tensors": len(tensors),
        "num_parameters": sum(p.numel() for p in module.parameters()),
        "num_bytes": sum(t.numel() * t.element_size() for t in tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors}),
        "forward": str(module.forward.schema) if hasattr(module, "forward") else None,
    }


def _read(path: Path) -> Any:
    check_zip(path)
    with reading(path, _KIND), warnings.catch_warnings():
        # Loading TorchScript is what this module is for; its deprecation is no news to the user.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu")
