"""Architectures by name: torchvision's, timm's, and the user's own callables."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from jacli.errors import JacliError, ModelError, UsageError
from jacli.models.damage import last_line, what_it_raised
from jacli.models.fingerprint import require_values, weights_sha256
from jacli.models.kept_settings import settings_kept, without_inference_tensors
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, sha256_of
from jacli.models.names import split_name
from jacli.models.own_builders import (
    builder_named,
    builder_names,
    surely_builds_a_network,
    which_one,
)
from jacli.models.torchvision_import import import_torchvision
from jacli.untrusted.content import why_unseen

_REGISTRIES = ("torchvision", "timm")
_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path")


_default_dtypes: dict[str, torch.dtype] = {}
"""Module of the user's -> torch's default dtype as its import left it; an import runs once a process."""


@dataclass(frozen=True)
class Architecture:
    """Something that builds a network.

    Attributes:
        label: As it is recorded: ``torchvision:resnet18``, ``arch.py:make_model``.
        builder: Called with keyword arguments only.
        name: As it can be asked for again, with its path: ``folder/arch.py:make_model``.
        takes_num_classes: Whether it has an argument ``num_classes``.
        folder: Importable while the builder runs; None where it needs none.
        sha256: Of the source file, where it is the user's own.
        notes: What the user must be told about it.
        default_dtype: torch's default dtype as importing the source left it, in which the network is built.
    """

    label: str
    builder: Callable[..., Any]
    takes_num_classes: bool
    folder: Path | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    default_dtype: torch.dtype | None = None
    name: str = ""


def load_untrained(name: str, request: ModelRequest) -> LoadedModel:
    """The architecture with the weights that its builder gives it when called with ``request.seed``.

    >>> load_untrained("sample_models/digits_cnn.py:make_model", ModelRequest(seed=1)).notes[0]
    'weights come from the callable digits_cnn.py:make_model, called with seed 1'
    """
    architecture = resolve_architecture(name)
    module = build(architecture, request.arch_args, seed=request.seed)
    module = freeze(require_values(module, architecture.label))
    return LoadedModel(
        module,
        "architecture",
        None,
        None,
        arch=architecture.label,
        arch_sha256=architecture.sha256,
        notes=(_where_weights_come_from(architecture, request.seed), *architecture.notes),
        weights_sha256=weights_sha256(module),
    )


def _where_weights_come_from(architecture: Architecture, seed: int) -> str:
    """Registered builders load nothing; what a callable of the user's does, only the user knows."""
    if architecture.label.partition(":")[0] in _REGISTRIES:
        return f"untrained: random weights of seed {seed}"
    return f"weights come from the callable {architecture.label}, called with seed {seed}"


def resolve_architecture(name: str) -> Architecture:
    """Find the builder that a name stands for; nothing is built yet.

    >>> resolve_architecture("resnet18").label
    'torchvision:resnet18'

    Raises:
        ModelError: Unknown name, or importing the user's module failed.
    """
    place, callable_name = split_name(name)
    if place == "torchvision":
        return _torchvision(callable_name)
    if place == "timm":
        return _timm(callable_name)
    own, *others = _users_own(name, place, callable_name)
    if others:
        raise which_one(place, [one.name.rpartition(":")[2] for one in (own, *others)])
    return own


def candidate_architectures(name: str) -> list[Architecture]:
    """What a name may stand for: one builder, or those of a file that is named without one.

    Of several, those that build a network for sure: others (``main``, ``train``) are not tried.

    >>> [one.label for one in candidate_architectures("sample_models/digits_cnn.py")]
    ['digits_cnn.py:DigitsCNN', 'digits_cnn.py:make_model']

    Raises:
        ModelError: As `resolve_architecture`; or there are several, and none that builds a network for sure.
    """
    place, callable_name = split_name(name)
    if callable_name:
        return [resolve_architecture(name)]
    every = _users_own(name, place, callable_name)
    sure = [one for one in every if surely_builds_a_network(one.builder)]
    if len(every) > 1 and not sure:
        raise which_one(place, [one.name.rpartition(":")[2] for one in every])
    return sure or every


def build(architecture: Architecture, arch_args: Mapping[str, object], *, seed: int = 0) -> torch.nn.Module:
    """Call the builder; torch's global settings and random states are left as they were.

    >>> network = build(resolve_architecture("sample_models/digits_cnn.py:make_model"), {"n_classes": 3})
    >>> network.classifier[-1].out_features
    3

    Raises:
        UsageError: It does not take these arguments.
        ModelError: It raised, or gave something that is no nn.Module.
    """
    _check_arguments(architecture, arch_args)
    try:
        with settings_kept(), _importable(architecture.folder), warnings.catch_warnings():
            torch.set_default_dtype(architecture.default_dtype or torch.get_default_dtype())
            # GoogLeNet and Inception announce another initialisation in a future release.
            warnings.filterwarnings(
                "ignore", message="The default weight initialization of", category=FutureWarning
            )
            torch.manual_seed(seed)
            module = architecture.builder(**arch_args)
    except JacliError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error) and arch_args:
            raise UsageError(
                f"{architecture.label} does not take these arguments.",
                why=last_line(error),
                hint="Correct --arch-arg.",
            ) from error
        raise ModelError(
            f"The architecture {architecture.label} could not be built.",
            why=what_it_raised(error),
            hint="Correct it, or its arguments (--arch-arg).",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"The architecture {architecture.label} gave no network.",
            why=f"It returned {type(module).__name__}, expected a torch.nn.Module.",
            hint="Name a class or function that returns the network itself.",
        )
    return without_inference_tensors(module)


def _check_arguments(architecture: Architecture, arch_args: Mapping[str, object]) -> None:
    try:
        signature = inspect.signature(architecture.builder)
    except (TypeError, ValueError):  # builtins without a signature: the call itself will tell
        return
    try:
        signature.bind(**arch_args)
    except TypeError as error:
        raise UsageError(
            f"{architecture.label} cannot be called with {', '.join(arch_args) or 'no arguments'}.",
            why=f"Its signature is {signature}: {last_line(error)}.",
            hint="Correct --arch-arg NAME=VALUE.",
        ) from error


def _torchvision(name: str) -> Architecture:
    label = f"torchvision:{name}"
    try:
        models = import_torchvision().models
    except (ImportError, RuntimeError) as error:
        hint = "Install the torchvision that belongs to this torch."
        raise ModelError(
            f"{label}: torchvision cannot be imported.", why=last_line(error), hint=hint
        ) from error
    if name not in models.list_models():
        raise _unknown(label, name, models.list_models())
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    no_download = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    notes: tuple[str, ...] = ()
    if name in ("googlenet", "inception_v3"):
        notes = ("transform_input=False, but torchvision's own weights need --arch-arg transform_input=true",)

    def untrained(**arch_args: Any) -> Any:
        _refuse_downloads(label, arch_args)
        return builder(**no_download, **arch_args)

    return Architecture(label, untrained, takes_num_classes=True, notes=notes)


def _timm(name: str) -> Architecture:
    label = f"timm:{name}"
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        hint = "Install it: pip install 'jacli[timm]'."
        raise ModelError(f"{label}: timm cannot be imported.", why=last_line(error), hint=hint) from error
    if not timm.is_model(name):
        raise _unknown(label, name, timm.list_models())

    def untrained(**arch_args: Any) -> Any:
        _refuse_downloads(label, arch_args)
        return timm.create_model(name, pretrained=False, **arch_args)

    return Architecture(label, untrained, takes_num_classes=True)


def _refuse_downloads(label: str, arch_args: Iterable[str]) -> None:
    asked = [name for name in arch_args if name in _DOWNLOADS]
    if asked:
        raise UsageError(
            f"{label}: {', '.join(asked)} cannot be given.",
            why="jacli downloads no weights.",
            hint="Give the weights' file as MODEL.",
        )


def _users_own(name: str, place: str, callable_name: str) -> list[Architecture]:
    """The builder of a file or module that is named, or all of its own where none is."""
    path = Path(place)
    source: Path | None
    if path.suffix == ".py" or os.path.isfile(path):
        module, folder, source = import_file(path), path.resolve().parent, path.resolve()
        shown = path.name
    else:
        module, folder = _import_module(name, place), Path.cwd()
        source = Path(module.__file__) if module.__file__ else None
        shown = place
    names = [callable_name] if callable_name else builder_names(module)
    if not names:
        raise which_one(place, names)
    builders = []
    for own in names:
        builder = builder_named(module, place, own)
        parameters: Iterable[str] = ()
        with suppress(TypeError, ValueError):  # builtins without a signature
            parameters = inspect.signature(builder).parameters
        architecture = Architecture(
            f"{shown}:{own}",
            builder,
            "num_classes" in parameters,
            folder,
            sha256_of(source) if source else None,
            default_dtype=_default_dtypes.get(module.__name__),
            name=f"{place}:{own}",
        )
        builders.append(architecture)
    return builders


def import_file(path: Path) -> ModuleType:
    """Run a source file anew, with its folder importable.

    >>> hasattr(import_file(Path("sample_models/digits_cnn.py")), "make_model")
    True

    Raises:
        ModelError: It is not there, or raised.
    """
    if not os.path.isfile(path):
        raise ModelError(
            f"There is no architecture file {path}.",
            why=why_unseen(path) or f"Looked in {Path.cwd()}.",
            hint="Correct --arch.",
        )
    # A name of its own, so that two files arch.py do not meet in sys.modules.
    module_name = f"jacli_arch_{path.stem}_{sha256(os.fsencode(path.resolve())).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(
            f"{path} is not a Python file.", why="Its name does not end with .py.", hint="Correct --arch."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look there
    try:
        with settings_kept(), _importable(path.resolve().parent):
            spec.loader.exec_module(module)
            _default_dtypes[module_name] = torch.get_default_dtype()
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _import_failed(str(path), error) from error
    return module


def _import_module(name: str, place: str) -> ModuleType:
    try:
        with settings_kept(), _importable(Path.cwd()):
            module = importlib.import_module(place)
            _default_dtypes.setdefault(place, torch.get_default_dtype())
            return module
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise ModelError(
                f"Unknown architecture {name}.",
                why=f"There is neither a module nor a file {place}.",
                hint="Write torchvision:NAME, timm:NAME, package.module:callable or path/file.py:callable.",
            ) from error
        raise _import_failed(place, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(place, error) from error


def _import_failed(place: str, error: BaseException) -> ModelError:
    hint = "Correct it, or install what it needs."
    if isinstance(error, SystemExit):
        hint = "Put what the file does as a program under `if __name__ == '__main__':`."
    return ModelError(f"{place} could not be imported.", why=what_it_raised(error), hint=hint)


def _unknown(label: str, name: str, known: Iterable[str]) -> ModelError:
    if os.path.isfile(f"{name}.py"):
        return ModelError(
            f"Unknown architecture {label}.",
            why=f"A name without a colon is one of torchvision's; there is a file {name}.py.",
            hint=f"Give --arch {name}.py, or --arch {name}.py:callable.",
        )
    close = difflib.get_close_matches(name, list(known), n=5)
    why = f"Close to it: {', '.join(close)}." if close else "No known name is close to it."
    hint = "Correct --arch; your own network is --arch path/file.py:callable."
    return ModelError(f"Unknown architecture {label}.", why=why, hint=hint)


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    before = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
