"""A torchvision that does not fit its torch is repaired wherever it is imported, once jacli was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jacli

BROKEN = """
import sys
from torchvision import operators
if not operators.there():
    raise RuntimeError("operator torchvision::nms does not exist")
"""
OPERATORS = """
import torch
def there():
    return hasattr(torch.ops.torchvision, "nms") and hasattr(torch.ops.torchvision, "qnms")
"""


def _run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a torchvision that lacks its compiled operators, whatever is installed."""
    (tmp_path / "torchvision" / "models").mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text(BROKEN)
    (tmp_path / "torchvision" / "operators.py").write_text(OPERATORS)
    (tmp_path / "torchvision" / "models" / "__init__.py").write_text("import torch\nnet = torch.nn.Linear\n")
    return tmp_path


@pytest.mark.parametrize(
    "code",
    [
        "import jacli, torchvision; print(torchvision.operators.there())",
        "import jacli; from torchvision.models import net; print(net(2, 3).weight.shape == (3, 2))",
        "import jacli, importlib, torchvision; print(bool(importlib.reload(torchvision)))",
        "import jacli, inspect, torchvision; print('RuntimeError' in inspect.getsource(torchvision))",
        "import jacli, importlib.util as u; print(u.find_spec('torchvision').loader.get_filename() != '')",
        # Too early, and again afterwards: what the failed import left behind does not matter.
        "try:\n  import torchvision\nexcept RuntimeError: import jacli, torchvision\nprint(True)",
    ],
)
def test_a_script_that_imports_it_after_jacli(broken: Path, code: str) -> None:
    ran = _run(broken, code)
    assert (ran.stdout.strip(), ran.returncode) == ("True", 0), ran.stderr


def test_importing_jacli_imports_neither(broken: Path) -> None:
    ran = _run(broken, "import jacli, sys; print({'torch', 'torchvision'} & {*sys.modules})")
    assert ran.stdout.strip() == "set()", ran.stderr


@pytest.mark.parametrize(
    "source", ["raise RuntimeError('no such device')", "raise ImportError('libc10.so is missing')"]
)
def test_other_failures_stay_what_they_are(tmp_path: Path, source: str) -> None:
    (tmp_path / "torchvision.py").write_text(source)
    ran = _run(tmp_path, "import jacli, torchvision")
    assert ran.returncode == 1
    assert source.removeprefix("raise ").split("(")[0] in ran.stderr.splitlines()[-1]
    assert "nms" not in ran.stderr


def test_it_need_not_be_installed() -> None:
    code = (
        "import jacli, sys\nsys.path = []\ntry:\n  import torchvision\nexcept ImportError as e: print(e.name)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "torchvision", ran.stderr


ARCH = """
import {imported}
import torch
def make(): return torch.nn.Linear(5, 3)
"""


@pytest.mark.parametrize("imported", ["torchvision.transforms.v2", "timm"])
def test_an_architecture_s_file_that_imports_it(tmp_path: Path, imported: str) -> None:
    (tmp_path / "arch.py").write_text(ARCH.format(imported=imported))
    code = (
        "from jacli.models import load_model\nprint(load_model('arch.py:make').module.weight.shape == (3, 5))"
    )
    ran = _run(tmp_path, code)
    assert ran.stdout.strip() == "True", ran.stderr


def test_torchvision_s_builders_as_a_module_of_the_user_s(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom jacli.models import load_model\nassert 'torchvision' not in sys.modules\n"
        "loaded = load_model('torchvision.models:squeezenet1_1', arch_args={'num_classes': 3})\n"
        "print(loaded.module(torch.zeros(1, 3, 64, 64)).shape == (1, 3))"
    )
    ran = _run(tmp_path, code)
    assert ran.stdout.strip() == "True", ran.stderr


def test_jacobians_of_what_was_imported_so() -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=2)
    assert jacli.jacobian(model, torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32, 2)
