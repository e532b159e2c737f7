"""Names of architectures: where the code that a name stands for comes from.  Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

REGISTRIES = ("torchvision", "timm")
"""Packages whose architectures are looked up in a registry; every other place is Python code of its own."""


def split_name(name: str) -> tuple[str, str]:
    """Place and callable: ``arch.py:make`` -> ``("arch.py", "make")``; a bare name is torchvision's.

    A Python file may stand alone: ``arch.py`` -> ``("arch.py", "")``.

    >>> split_name("arch.py:make"), split_name("resnet18")
    (('arch.py', 'make'), ('torchvision', 'resnet18'))
    """
    if name.endswith(".py"):
        return name, ""
    place, colon, callable_name = name.rpartition(":")
    return (place, callable_name) if colon else (REGISTRIES[0], name)


def runs_own_code(name: str) -> bool:
    """Whether building this architecture imports a file or module that no registry vouches for.

    >>> runs_own_code("timm:vit_tiny_patch16_224"), runs_own_code("net.py:Net")
    (False, True)
    """
    return split_name(name)[0] not in REGISTRIES


def model_runs_code(model: str) -> bool:
    """Whether MODEL is the name of such an architecture; a file of that name is read as a file.

    >>> model_runs_code("sample_models/digits_cnn.pt"), model_runs_code("net.py:Net")
    (False, True)
    """
    return not os.path.exists(model) and runs_own_code(model)


def absolute_name(name: str) -> str:
    """The name with the path of its file, if it has one, as an absolute path.

    >>> absolute_name("resnet18"), Path(absolute_name("sample_models/digits_cnn.py")).is_absolute()
    ('resnet18', True)
    """
    place, callable_name = split_name(name)
    if not (runs_own_code(name) and Path(place).is_file()):
        return name
    return f"{Path(place).resolve()}:{callable_name}" if callable_name else str(Path(place).resolve())
