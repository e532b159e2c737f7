"""Importing torchvision, also a wheel from PyPI beside a CPU build of torch.

Such a pair fails at import with ``operator torchvision::nms does not exist``: the wheel's compiled
operators do not load.  The architectures need none of them, only their schemas.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_defined: list[torch.library.Library] = []  # a Library takes its operators with it when collected


def import_torchvision() -> ModuleType:
    """``import torchvision``, with the missing operators' schemas defined if that is what it lacks.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: It fails for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + _SCHEMA)
    _defined.append(library)
    return importlib.import_module("torchvision")
