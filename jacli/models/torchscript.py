"""TorchScript archives."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from jacli.content import path_as_text
from jacli.errors import ModelError
from jacli.models.damage import COPY_AGAIN, reading
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, refuse_weight_options, sha256_of
from jacli.torch_archive import check_torchscript
from jacli.zip_archive import ArchiveError, read_member

_KIND = "TorchScript archive"
_TOUCHES_FILES = re.compile(r"\b(torch|ops\.\w+)\s*\.\s*(save|from_file|load_tensor)\s*\(")
_BRACKETS = re.compile(r"[()\[\]{}]")
_UNARY = re.compile(r"(?:(?:[-~+]|\bnot\b)\s*){200}")
_NESTING = 200


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
    try:
        with path.open("rb") as file:
            members = check_torchscript(file)
            with zipfile.ZipFile(file) as archive:
                for name in members:
                    if "/code/" in name and name.endswith(".py"):
                        _check_code(path, read_member(archive, name).decode("utf-8", "replace"))
    except ArchiveError as error:
        raise ModelError(f"{path} is damaged.", why=str(error), todo=COPY_AGAIN) from error
    with reading(path, _KIND), warnings.catch_warnings():
        # Loading TorchScript is what this module is for; its deprecation is no news to the user.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        with path_as_text(path) as name:
            return torch.jit.load(name, map_location="cpu")


def _check_code(path: Path, code: str) -> None:
    """Refuse operators that touch files, and nesting that would overflow the stack of torch's parser."""
    found = _TOUCHES_FILES.search(code)
    if found:
        raise ModelError(
            f"{path} reads or writes files.",
            why=f"Its code calls {found[0].strip()}, which no network needs.",
            todo="Look at what it does before you run it; jacli does not.",
        )
    depth = deepest = 0
    for bracket in _BRACKETS.findall(code):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    indent = max((len(line) - len(line.lstrip(" ")) for line in code.splitlines()), default=0)
    if max(deepest, indent // 2) > _NESTING or _UNARY.search(code):
        raise ModelError(
            f"{path} is damaged.",
            why=f"Its code is nested more than {_NESTING} levels deep.",
            todo=COPY_AGAIN,
        )
