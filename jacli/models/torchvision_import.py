"""torchvision beside a torch that it was not built for: its import is repaired wherever it happens.

A wheel from PyPI beside a CPU build of torch fails at import with ``operator torchvision::nms does not
exist``: its compiled operators do not load.  The architectures need none of them, only the schemas of two.
``import jacli`` puts a finder (`importlib.abc.MetaPathFinder`) in front of Python's own: whoever imports
torchvision afterwards, be it the code of an architecture, timm or a user's script, gets it repaired.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_defined: list[object] = []  # a Library takes its operators with it when it is collected


def import_torchvision() -> ModuleType:
    """``import torchvision``, repaired if need be, as every import of it is.

    >>> import_torchvision().__name__
    'torchvision'

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: It fails for another reason.
    """
    return importlib.import_module("torchvision")


def repair_imports() -> None:
    """Repair torchvision when it is imported, if it has to be; once a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torchvision as the finders after it do, and gives it another loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        for finder in others:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Runs torchvision as its own loader does, and once more after the repair if that is what it lacks."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)  # get_source, get_resource_reader and the like

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
        else:
            return
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
        _define_operators()
        self._loader.exec_module(module)


def _define_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + _SCHEMA)
    _defined.append(library)
