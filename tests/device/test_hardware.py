"""Only the device room names CUDA; a device that is asked for is picked or refused."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import jacli
from jacli.device.hardware import device_name, gpus, is_gpu, pick_device, why_no_gpu
from jacli.errors import UsageError

PACKAGE = Path(jacli.__file__).parent
SPOKEN_OF = ("device", "cli", "options/values.py")
"""Where CUDA may be named: the room itself, help texts, and the reading of ``--device``."""


def names_of_cuda(source: str) -> list[int]:
    """Lines of Python code that name CUDA, outside of comments and docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    lines = []
    for node in ast.walk(tree):
        texts = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
        if id(node) not in docstrings and any("cuda" in text.lower() for text in texts):
            lines.append(getattr(node, "lineno", 0))
    return sorted(set(lines))


def test_only_the_device_room_names_cuda() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if not any(name.is_relative_to(room) for room in SPOKEN_OF):
            found[str(name)] = names_of_cuda(path.read_text())
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.cuda.synchronize()",
        "x.is_cuda",
        "from torch import cuda",
        "import torch.cuda as gpu",
        "x.to('cuda:0')",
        "x.to(device=f'CUDA:{n}')",
        "getattr(x, 'is_' + 'cuda')",
        "def on(cuda): pass",
        "f(use_cuda=True)",
    ],
)
def test_however_it_is_named(source: str) -> None:
    assert names_of_cuda(source) == [1]


def test_comments_and_docstrings_may_name_it() -> None:
    source = '"""CUDA."""\nA = 1  # cuda\n"""As on cuda."""\ndef f():\n    """Not on CUDA."""\n'
    assert names_of_cuda(source) == []


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--device cuda:99 is not there"):
        pick_device("cuda:99")
    if not gpus():
        with pytest.raises(UsageError, match=r"sees 0 CUDA devices"):
            pick_device("cuda")


def test_auto_is_a_gpu_where_there_is_one() -> None:
    picked = pick_device("auto", rank=3)
    assert is_gpu(picked) == bool(gpus())
    assert picked == (torch.device("cuda", 3 % len(gpus())) if gpus() else torch.device("cpu"))
    assert pick_device("cpu", rank=3) == torch.device("cpu")


def test_devices_have_names(device: torch.device) -> None:
    assert device_name(device) and device_name(torch.device("cpu"))
    assert all(0 <= gpu.free <= gpu.total and gpu.name for gpu in gpus())
    assert why_no_gpu()
