"""Read a torch.save file by running its pickle, which --allow-pickle permits.

A module that was saved whole names the classes it is made of, and not where their source is.  Scripts and
notebooks are called ``__main__`` while they run, so what they save names ``__main__.Net``.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from jacli.errors import JacliError, ModelError
from jacli.models.architecture import import_file
from jacli.models.damage import last_line, what_it_raised
from jacli.models.kept_settings import settings_kept
from jacli.models.names import split_name
from jacli.models.own_builders import names_in_source


def read_running_its_code(path: Path, arch: str | None) -> tuple[Any, list[str]]:
    """Result of unpickling: the object, and which source files were run for its classes.

    Classes are looked up where Python finds them; those of ``__main__``, and of modules that are not
    installed, in the file that ``arch`` names and beside ``path``.

    Raises:
        ModelError: A class is found nowhere, or code that the pickle runs raised.
    """
    arch_file = _arch_file(arch)
    notes: list[str] = []
    folders = [path.parent, Path.cwd(), *([arch_file.parent] if arch_file else [])]
    with settings_kept(), _also_importable(folders), warnings.catch_warnings():
        # "source code of class ... has changed": torch.save no longer stores sources since 1.6.
        warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
        warnings.filterwarnings("ignore", message="Couldn't retrieve source code")
        try:
            finder = _pickle_module(lambda module, name: _elsewhere(path, arch_file, module, name, notes))
            unpickled = torch.load(path, map_location="cpu", weights_only=False, pickle_module=finder)
            return unpickled, list(dict.fromkeys(notes))
        except JacliError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{path} cannot be unpickled.",
                why=what_it_raised(error),
                hint="Load it where it was saved, and save only its state_dict() there.",
            ) from error


def _arch_file(arch: str | None) -> Path | None:
    place = Path(split_name(arch)[0]) if arch else None
    return place.resolve() if place is not None and place.suffix == ".py" and place.is_file() else None


def _pickle_module(elsewhere: Callable[[str, str], Any | None]) -> Any:
    """Python's ``pickle``, as `torch.load` takes it, with another place to look for what is not found."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError) as error:
                value = elsewhere(module, name)
                if value is None:
                    raise _not_found(module, name, error) from error
                return value

    pickle_module: Any = ModuleType("jacli_pickle")
    pickle_module.Unpickler = Unpickler
    pickle_module.load = lambda file, **options: Unpickler(file, **options).load()
    return pickle_module


def _elsewhere(path: Path, arch_file: Path | None, module: str, name: str, notes: list[str]) -> Any | None:
    """The class in the architecture's file, or in the only file beside the model's that defines it."""
    files = [arch_file] if arch_file else []
    if module == "__main__":
        beside = [file for file in sorted(path.parent.glob("*.py")) if file != arch_file]
        defining = [file for file in beside if name.partition(".")[0] in names_in_source(file)]
        if not arch_file and len(defining) > 1:
            raise ModelError(
                f"{path} needs the class {name} of the script that saved it.",
                why=f"Several files beside it define one: {', '.join(file.name for file in defining)}.",
                hint=f"Name the right one: --arch {defining[0].name}:{name}",
            )
        files += defining
    for file in files:
        value: Any = import_file(file)
        with suppress(AttributeError):
            for attribute in name.split("."):
                value = getattr(value, attribute)
            notes.append(f"took the class {module}.{name} from {file.name}, which ran")
            return value
    return None


def _not_found(module: str, name: str, error: Exception) -> ModelError:
    if module == "__main__":
        return ModelError(
            f"The class {name} of the pickled module is not found.",
            why="The script or notebook that saved it defined the class itself (__main__), and no file "
            "beside the model does.",
            hint=f"Name that script: --arch script.py:{name}; or save only the state_dict() there.",
        )
    return ModelError(
        f"The class {module}.{name} of the pickled module is not found.",
        why=last_line(error),
        hint=f"Install the package of {module}, put its source beside the model, name it with "
        f"--arch file.py:{name}, or save only the state_dict() where it is.",
    )


@contextmanager
def _also_importable(folders: list[Path]) -> Iterator[None]:
    """The folders at the end of Python's path, so that they hide no installed package."""
    before = list(sys.path)
    sys.path.extend(map(str, folders))
    try:
        yield
    finally:
        sys.path[:] = before
