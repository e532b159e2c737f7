"""From a model file, or an architecture's name, to a frozen network on the CPU.

One module a file format, found by what the file contains and never by its suffix.  Importing this
package imports no torch: the entries of ``LOADERS`` are resolved when used.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacli.errors import ModelError, UsageError
from jacli.models.loaded import LoadedModel, ModelRequest, sha256_of
from jacli.untrusted.content import WHAT_TO_DO, Content, recognise_model, what_is_no_file

if TYPE_CHECKING:
    import torch

LOADERS: dict[Content, tuple[str, str, str]] = {
    Content.TORCHSCRIPT: ("torchscript", "load_torchscript", "describe_torchscript"),
    Content.TORCH_EXPORT: ("exported", "load_exported", "describe_exported"),
    Content.TORCH_ZIP: ("torch_save", "load_torch_save", "describe_torch_save"),
    Content.LEGACY_PICKLE: ("torch_save", "load_torch_save", "describe_torch_save"),
    Content.SAFETENSORS: ("safetensors_file", "load_safetensors", "describe_safetensors"),
}
"""Kind of file -> module of this room, its function (path, request) -> LoadedModel, and (path) -> dict."""

__all__ = ["LOADERS", "LoadedModel", "describe_model", "load_anew", "load_model"]

_TOO_OLD = {
    Content.TORCHSCRIPT_1_1: "It is a TorchScript archive of PyTorch 1.0 or 1.1, no longer readable.",
    Content.TORCH_TAR: "It is a tar archive of PyTorch 0.1, which cannot be read without running its code.",
}


def load_model(
    source: str,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
    ema: bool | None = None,
    allow_pickle: bool = False,
    seed: int = 0,
    ignore_extra_weights: bool = False,
) -> LoadedModel:
    """Load a trained network, or build an untrained one from an architecture's name.

    >>> loaded = load_model("sample_models/digits_cnn.pt")
    >>> loaded.format, loaded.module.training
    ('torchscript', False)

    Args:
        source: Path of a model file; or, where no such file exists, ``torchvision:NAME``, ``timm:NAME``,
            ``package.module:callable`` or ``file.py:callable``, built with the random weights of ``seed``.
        arch: For files that hold only weights, the architecture in the same notation (``resnet18`` alone
            means torchvision's).  Left out, torchvision's registry is searched.
        arch_args: Keyword arguments of the architecture.
        weights_key: Dotted path of the weights inside a checkpoint.
        strip_prefix: Take exactly the tensors below this prefix of names; its final dot may be left out.
        ema: True takes the exponential moving average of the weights, False never does, None only
            where nothing else is there.
        allow_pickle: Load pickled modules, which runs the file's code.
        seed: Seed of an untrained network; the global random state is left as it was.
        ignore_extra_weights: Leave aside tensors of the file that the architecture does not have.

    Raises:
        ModelError: The file is unreadable, damaged, unsafe, or does not fit the architecture.
        UsageError: The options contradict one another or the file.
    """
    request = ModelRequest(
        arch=arch,
        arch_args=dict(arch_args or {}),
        weights_key=weights_key,
        strip_prefix=strip_prefix,
        ema=ema,
        allow_pickle=allow_pickle,
        seed=seed,
        ignore_extra_weights=ignore_extra_weights,
    )
    if weights_key is not None and ema is not None:
        raise UsageError(
            "--weights-key and --ema/--no-ema exclude each other.",
            why="Both choose the weights of the checkpoint.",
            hint="Leave one of them out.",
        )
    path = Path(source)
    if not os.path.exists(path):
        return replace(_load_untrained(source, request), source=source, request=request)
    loaded: LoadedModel = _functions(path)[0](path.resolve(), request)
    return replace(loaded, source=source, request=loaded.request or request)


def load_anew(loaded: LoadedModel, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """Load the same model once more from where it came, so that nothing is shared with what was made of it.

    >>> loaded = load_model("sample_models/digits_cnn.pt")
    >>> again = load_anew(loaded)
    >>> again.module is loaded.module, again.sha256 == loaded.sha256
    (False, True)

    Args:
        loaded: What the first loading gave.
        dtype: Convert every real floating tensor to it, and complex ones to its counterpart.  Weights go
            straight from the file into a module of this dtype.  The dtypes of the file if None.

    Raises:
        ModelError: The file is gone or has changed, or its architecture's source or weights have.
    """
    assert loaded.request is not None  # `load_model` has set it
    request = replace(loaded.request, dtype=dtype)
    if loaded.path is None:
        again = _load_untrained(loaded.source, request)
    else:
        path = Path(loaded.path)
        same = path.is_file() and sha256_of(path) == loaded.sha256
        if not same:
            raise _other_since(loaded, "The file is gone, or its sha256 is not what it was.")
        again = _functions(path)[0](path, request)
    if again.arch_sha256 != loaded.arch_sha256:
        raise _other_since(loaded, "The source file of its architecture has changed.")
    if again.weights_sha256 != loaded.weights_sha256:
        raise _other_since(loaded, f"Called again, {loaded.arch} gives other weights.")
    if dtype is not None:
        dtypes = importlib.import_module("jacli.models.dtypes")
        dtypes.convert(again.module, dtype)
    return again


def _other_since(loaded: LoadedModel, why: str) -> ModelError:
    return ModelError(
        f"{loaded.source} has changed since it was first loaded.",
        why=why,
        hint="Do not change the model while a run is under way.",
    )


def describe_model(path: str | Path) -> dict[str, Any]:
    """Say what a model file holds without building a network; the answer is ready for JSON.

    >>> describe_model("sample_models/digits_cnn.pt")["num_parameters"]
    38378

    Raises:
        ModelError: The file is not a model file, or is damaged or unsafe.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise _no_such_file(str(path))
    description: dict[str, Any] = _functions(path)[1](path.resolve())
    return description


def _load_untrained(source: str, request: ModelRequest) -> LoadedModel:
    if ":" not in source or "://" in source:
        raise _no_such_file(source)
    given = request.options_about_weights()
    if given:
        raise UsageError(
            f"{', '.join(given)}: not for the architecture {source}.",
            why="MODEL is the name of an architecture: there is no file to read weights from.",
            hint="Give the file as MODEL and the architecture with --arch, or leave these options out.",
        )
    architecture = importlib.import_module("jacli.models.architecture")
    loaded: LoadedModel = architecture.load_untrained(source, request)
    return loaded


def _functions(path: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What loads and describes this file, by its content; ModelError where nothing does."""
    try:
        content = recognise_model(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read.", why=str(error), hint="Check the path and its permissions."
        ) from error
    if content in LOADERS:
        name, load, describe = LOADERS[content]
        module = importlib.import_module(f"{__name__}.{name}")
        return getattr(module, load), getattr(module, describe)
    if content is Content.TEXT and (names := _callables_in(path)):
        why = (
            f"It is Python code, which is not run without a name. At its top it defines: {', '.join(names)}."
        )
        hint = f"For an untrained network give {path}:{names[0]}; with weights, WEIGHTS --arch {path}."
    elif content in WHAT_TO_DO:
        why, hint = WHAT_TO_DO[content]
    elif content in _TOO_OLD:
        why, hint = (
            _TOO_OLD[content],
            "Load it with the PyTorch of its time and save it again with a current one.",
        )
    else:
        why, hint = f"It is: {content}.", "Give a file of one of the formats in `jacli compute --help`."
    raise ModelError(f"{path} is not a model that can be loaded.", why=why, hint=hint)


def _callables_in(path: Path) -> list[str]:
    if path.suffix != ".py":
        return []
    names: list[str] = importlib.import_module("jacli.models.own_builders").names_in_source(path)
    return [name for name in names if not name.startswith("_")]


def _no_such_file(source: str) -> ModelError:
    why, hint = what_is_no_file(source)
    return ModelError(
        f"There is no file {source}.",
        why=why or "Nor is it an architecture's name, which has a colon (torchvision:resnet18).",
        hint=hint or "Check the path.",
    )
