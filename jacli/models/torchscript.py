"""TorchScript archives."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch

from jacli.errors import ModelError
from jacli.errors.printable import escape
from jacli.models.damage import COPY_AGAIN, reading
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, refuse_weight_options, sha256_of
from jacli.models.tensors import describe_tensors, module_tensors
from jacli.models.torchvision_import import import_torchvision
from jacli.untrusted.content import path_as_text
from jacli.untrusted.torch_archive import check_torchscript
from jacli.untrusted.torchscript_graph import problem_of_graphs
from jacli.untrusted.torchscript_source import problem_of_classes, problem_of_sources
from jacli.untrusted.zip_archive import ArchiveError, read_member

_KIND = "TorchScript archive"
_UNKNOWN_OPERATOR = re.compile(r"[Uu]nknown builtin op: ?(\w+::\w+)")
_TORCHS_OWN = ("aten", "prim", "quantized", "mkldnn", "sparse")

MAX_PRINTED_BYTES = 100_000
"""Most that is shown of the text that an archive prints while it is read."""


def load_torchscript(path: Path, request: ModelRequest) -> LoadedModel:
    """Load a scripted or traced module; archives saved in training mode are set to evaluation.

    >>> load_torchscript(Path("sample_models/digits_cnn.pt"), ModelRequest()).format
    'torchscript'
    """
    refuse_weight_options(path, _KIND, request)
    module = _read(path)
    if not module._c._has_method("forward"):
        raise _no_forward(path, module)
    notes: tuple[str, ...] = ()
    # Archives of tracers and of old versions may have no such attribute before eval() is called.
    if getattr(module, "training", False):
        notes = ("the archive was saved in training mode; it was set to evaluation mode",)
    return LoadedModel(freeze(module), "torchscript", str(path), sha256_of(path), notes=notes)


def _no_forward(path: Path, module: Any) -> ModelError:
    methods = [name for name in sorted(module._c._method_names()) if not name.startswith("__")]
    return ModelError(
        f"{path} has no method forward.",
        why=f"Its methods are: {', '.join(methods)}." if methods else "It has no methods at all.",
        hint="Save a module whose forward calls the method that you want."
        if methods
        else "It holds tensors or settings only: give the file of the network.",
    )


def describe_torchscript(path: Path) -> dict[str, Any]:
    """Parameters, types and forward's signature.

    >>> describe_torchscript(Path("sample_models/digits_cnn.pt"))["forward"]
    'forward(__torch__.digits_cnn.DigitsCNN self, Tensor x) -> Tensor'
    """
    module = _read(path)
    return {
        "format": "torchscript",
        **describe_tensors(module_tensors(module), parameters=module.parameters()),
        "forward": str(module.forward.schema) if hasattr(module, "forward") else None,
    }


def _read(path: Path) -> Any:
    """The module, once its sources, and then what torch compiled from them, are found to compute only."""
    try:
        with path.open("rb") as file:
            named = check_torchscript(file)
            with zipfile.ZipFile(file) as archive:
                _require_one_layout(archive.namelist())
                sources = {
                    _qualifier(name): read_member(archive, name).decode("utf-8", "replace")
                    for name in archive.namelist()
                    if name.lower().endswith(".py")
                }
    except ArchiveError as error:
        raise ModelError(f"{path} is damaged.", why=str(error), hint=COPY_AGAIN) from error
    try:
        _refuse(path, problem_of_classes(named) or problem_of_sources(sources))
    except ValueError as error:
        raise ModelError(f"{path} is damaged.", why=f"For a program, {error}.", hint=COPY_AGAIN) from error
    if any("ops.torchvision." in source for source in sources.values()):
        with suppress(ImportError, RuntimeError):  # torch then says which operator it lacks
            import_torchvision()
    with reading(path, _KIND), _naming_operators(path), path_as_text(path) as name:
        # As torch.jit.load does; the unit holds every function, also those that a graph only calls.
        unit: Any = torch._C.CompilationUnit()  # torch's stubs know neither function's true signature
        read: Any = torch._C.import_ir_module
        with _printed_as_text(path):
            module = read(unit, name, torch.device("cpu"), {}, False)
        _refuse(path, problem_of_graphs(unit.get_functions()))
        return torch.jit._recursive.wrap_cpp_module(module)


@contextmanager
def _printed_as_text(path: Path) -> Iterator[None]:
    """Send to stderr, escaped, what the archive prints while it is read.

    ``__setstate__`` runs then.  Its ``print`` goes through Python, to stdout; its warnings are written by C++
    to descriptor 2, past `sys.stderr`.
    """
    with tempfile.TemporaryFile() as said:
        try:
            own = os.dup(2)
        except OSError:  # closed: nobody listens
            with redirect_stdout(sys.stderr):
                yield
            return
        try:
            sys.stderr.flush()
            os.dup2(said.fileno(), 2)
            with redirect_stdout(sys.stderr):
                yield
                sys.stderr.flush()
        finally:
            os.dup2(own, 2)
            os.close(own)
            said.seek(0)
            for line in said.read(MAX_PRINTED_BYTES).decode("utf-8", "replace").splitlines():
                print(f"{escape(path.name)} says: {escape(line)}", file=sys.stderr)


@contextmanager
def _naming_operators(path: Path) -> Iterator[None]:
    """An operator that this torch lacks is no damage.

    Raises:
        ModelError: The operator, and where it comes from.
    """
    try:
        yield
    except RuntimeError as error:
        unknown = _UNKNOWN_OPERATOR.search(str(error))
        if unknown is None:
            raise
        operator = unknown[1]
        namespace = operator.partition("::")[0]
        raise ModelError(
            f"{path} calls the operator {operator}, which torch {torch.__version__} does not have.",
            why=f"The package {namespace} brings it, and is not there or was built for another torch."
            if namespace not in _TORCHS_OWN
            else "It was saved with another version of torch, or for another device.",
            hint=f"Install the {namespace} that belongs to this torch, or give the weights with --arch."
            if namespace not in _TORCHS_OWN
            else "Save it with this version of torch, or give the weights with --arch.",
        ) from error


def _require_one_layout(members: Iterable[str]) -> None:
    """Refuse what PyTorch 1.1 wrote, beside the present layout: torch would read that, and other sources.

    Raises:
        ArchiveError: It is there; torch's reader ignores case.
    """
    if any(name.partition("/")[2].lower() == "model.json" for name in members):
        raise ArchiveError("It holds two programs; one is a model.json as PyTorch 1.1 wrote it.")


def _qualifier(member: str) -> str:
    """``net/code/__torch__/torch/nn.py`` -> ``__torch__.torch.nn``."""
    return member.partition("/")[2].removeprefix("code/").removesuffix(".py").replace("/", ".")


def _refuse(path: Path, problem: str | None) -> None:
    if problem is not None:
        raise ModelError(
            f"{path} does more than compute.",
            why=problem,
            hint="Look at what it does before you run it elsewhere; if it is an operator that only computes, "
            "please report it.",
        )
