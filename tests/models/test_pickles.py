"""Files whose pickles name classes: stand-ins, and never the file's code."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import io
import os
import pathlib
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jacli.errors import ModelError
from jacli.models import load_anew, load_model
from jacli.untrusted.pickle_scan import Made, scan_pickle

from .networks import Net, saved, write_arch


class Colour(enum.Enum):
    RED = 1


class Callback:
    pass


@pytest.fixture
def arch(tmp_path: Path) -> str:
    return write_arch(tmp_path)


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package that is there when the file is written and gone when it is read."""
    module = types.ModuleType("pytorch_lightning_like")

    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    class Config:
        def __init__(self) -> None:
            self._content = {"lr": 0.1}

    for cls in (AttributeDict, Config):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("legacy", [False, True])
def test_lightning_checkpoints_load_without_their_packages(
    tmp_path: Path, arch: str, lightning: Any, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    net = Net()
    attributes = lightning.AttributeDict(lr=0.1)
    attributes.extra = 3
    checkpoint = {
        "state_dict": net.state_dict(),
        "hyper_parameters": attributes,
        "args": argparse.Namespace(lr=0.1),
        "config": lightning.Config(),
        "callbacks": {Callback: {"best": torch.tensor(1.0)}},
        "path": pathlib.PurePosixPath("a/b"),
        "metrics": collections.defaultdict(list, a=[1]),
        "recent": collections.deque([1, 2]),
        "activation": functools.partial(torch.relu),
        "colour": Colour.RED,
        "best": np.float64(0.5),
        "history": np.arange(3),
    }
    path = saved(checkpoint, tmp_path / "last.ckpt", legacy=legacy)
    monkeypatch.delitem(sys.modules, lightning.__name__)
    assert torch.equal(load_model(str(path), arch=arch).module.fc.weight, net.fc.weight)


class Evil:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def attacks(marker: Path) -> dict[str, Any]:
    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    return {
        "eval": Evil(eval, touch),
        "exec": Evil(exec, touch),
        "system": Evil(os.system, f"touch {marker}"),
        "nested": Evil(functools.partial, Evil(eval, touch), Evil(exec, touch)),
        "getattr": Evil(getattr, Evil(eval, touch), "touch"),
        "as key": {Evil(eval, f"{touch} or 1"): 1},
        "tensor subclass": Evil(torch._tensor._rebuild_from_type_v2, eval, torch.Tensor, (touch,), {}),
        "touch": Evil(Path.touch, marker),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_no_code_of_a_file_runs(tmp_path: Path, arch: str, attack: str, legacy: bool) -> None:
    marker = tmp_path / "marker"
    checkpoint = {"hyper_parameters": attacks(marker)[attack], "state_dict": Net().state_dict()}
    path = saved(checkpoint, tmp_path / "evil.pt", legacy=legacy)
    try:
        load_model(str(path), arch=arch)
    except ModelError as error:
        assert "--allow-pickle" in error.hint  # refused; or loaded, with a stand-in in its place
    assert not marker.exists()


@pytest.mark.parametrize("attack", ["eval", "exec", "touch", "as key", "nested"])
def test_weights_beside_an_attack_still_load(tmp_path: Path, arch: str, attack: str) -> None:
    net, marker = Net(), tmp_path / "marker"
    path = saved({"extra": attacks(marker)[attack], "state_dict": net.state_dict()}, tmp_path / "evil.pt")
    assert torch.equal(load_model(str(path), arch=arch).module.fc.weight, net.fc.weight)
    assert not marker.exists()


def test_classes_that_others_allowed_are_not_used(tmp_path: Path, arch: str) -> None:
    marker = tmp_path / "marker"
    path = saved({"extra": attacks(marker)["eval"], "state_dict": Net().state_dict()}, tmp_path / "evil.pt")
    with torch.serialization.safe_globals([eval]):
        load_model(str(path), arch=arch)
        assert eval in torch.serialization.get_safe_globals()
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_modules_need_permission(tmp_path: Path, legacy: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    path = saved(net, tmp_path / "net.pt", legacy=legacy)
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.container\.Sequential") as caught:
        load_model(str(path))
    assert "--allow-pickle" in caught.value.hint and "runs the file's code" in caught.value.hint
    loaded = load_model(str(path), allow_pickle=True)
    assert loaded.format == "pickled_module" and not loaded.module.training
    assert torch.equal(loaded.module[0].weight, net[0].weight)
    assert not loaded.module[0].weight.requires_grad


SCRIPT = """
import torch


class Inner(torch.nn.Linear):
    pass


class Net(torch.nn.Module):
    class Options:
        scale = 2.0

    def __init__(self):
        super().__init__()
        self.fc = Inner(3, 2)
        self.options = Net.Options()

    def forward(self, x):
        return self.fc(x) * self.options.scale
"""


@pytest.fixture
def pickled_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Save a module whose classes are then gone, as in another process."""
    monkeypatch.chdir(tmp_path)

    def save(module_name: str, path: Path, *, legacy: bool = False, checkpoint: bool = False) -> Any:
        made = ModuleType(module_name)
        exec(SCRIPT, made.__dict__)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = module_name.rpartition(".")[0]
            patch.setitem(sys.modules, package or module_name, ModuleType(package))
            patch.setitem(sys.modules, module_name, made)
            net = made.Net()
            saved({"model": net, "epoch": 1} if checkpoint else net, path, legacy=legacy)
        return net

    return save


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("module", ["__main__", "nowhere_installed", "package_gone.nets"])
@pytest.mark.parametrize("given", ["arch", "beside"])
def test_classes_are_found_in_the_scripts_that_defined_them(
    tmp_path: Path, pickled_elsewhere: Any, given: str, module: str, checkpoint: bool, legacy: bool
) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "whole.pt"
    net = pickled_elsewhere(module, path, legacy=legacy, checkpoint=checkpoint)
    if given == "arch":
        script = tmp_path / "train.py"
    elif module == "__main__":
        script = path.parent / "train.py"
    else:
        script = path.parent / f"{module.replace('.', '/')}.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    (path.parent / "other.py").write_text("this is no Python")
    options = {"arch": f"{script}:Net"} if given == "arch" else {}
    with pytest.raises(ModelError, match="--allow-pickle"):
        load_model(str(path), **options)
    loaded = load_model(str(path), allow_pickle=True, **options)
    for again in (loaded, load_anew(loaded)):
        assert torch.equal(again.module(torch.ones(1, 3)), net(torch.ones(1, 3)))
    if given == "arch" or module == "__main__":
        assert f"took the class {module}.Net from train.py, which ran" in loaded.notes
    for name in [name for name in sys.modules if name.startswith(("nowhere_installed", "package_gone"))]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["__main__", "nowhere_installed"])
def test_classes_that_are_nowhere_are_named(tmp_path: Path, pickled_elsewhere: Any, module: str) -> None:
    path = tmp_path / "whole.pt"
    pickled_elsewhere(module, path)
    (tmp_path / "unrelated.py").write_text("raise RuntimeError('this must not run')\nclass Other: ...\n")
    with pytest.raises(ModelError, match="not found") as caught:
        load_model(str(path), allow_pickle=True)
    assert "Net" in caught.value.what and "damaged" not in str(caught.value) and "--arch" in caught.value.hint


def test_several_scripts_that_define_a_class_are_listed(tmp_path: Path, pickled_elsewhere: Any) -> None:
    path = tmp_path / "whole.pt"
    pickled_elsewhere("__main__", path)
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(SCRIPT)
    with pytest.raises(ModelError, match=r"one\.py, two\.py"):
        load_model(str(path), allow_pickle=True)
    assert load_model(str(path), allow_pickle=True, arch="two.py:Net").module.fc.in_features == 3


def test_code_of_a_pickle_that_raises_is_not_damage(tmp_path: Path, pickled_elsewhere: Any) -> None:
    path = tmp_path / "whole.pt"
    pickled_elsewhere("__main__", path)
    setstate = "\n    def __setstate__(self, state):\n        raise KeyError('old version')\n"
    (tmp_path / "train.py").write_text(SCRIPT + setstate)
    with pytest.raises(ModelError, match="old version") as caught:
        load_model(str(path), allow_pickle=True)
    assert "damaged" not in str(caught.value)


def test_module_inside_a_checkpoint(tmp_path: Path, arch: str) -> None:
    net = Net()
    path = saved({"model": net, "epoch": 3}, tmp_path / "yolo.pt")
    with pytest.raises(ModelError, match="under 'model'"):
        load_model(str(path), arch=arch)
    assert load_model(str(path), allow_pickle=True).format == "pickled_module"
    assert torch.equal(load_model(str(path), arch=arch, allow_pickle=True).module.fc.weight, net.fc.weight)


@pytest.mark.parametrize("legacy", [False, True])
def test_permission_does_not_extend_to_damaged_files(tmp_path: Path, arch: str, legacy: bool) -> None:
    path = saved({"w": torch.full((4096,), 3.25)}, tmp_path / "net.pt", legacy=legacy)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((8,), 3.25).numpy().tobytes()) + 1000] ^= 4
    path.write_bytes(content[:-100] if legacy else content)
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(path), arch=arch, allow_pickle=True)


def test_newer_pickle_protocols(tmp_path: Path, arch: str) -> None:
    net = Net()
    torch.save(net.state_dict(), tmp_path / "net.pt", pickle_protocol=4)
    with pytest.raises(ModelError, match="--allow-pickle"):
        load_model(str(tmp_path / "net.pt"), arch=arch)
    loaded = load_model(str(tmp_path / "net.pt"), arch=arch, allow_pickle=True)
    assert torch.equal(loaded.module.fc.weight, net.fc.weight)
    assert "ran the code" in loaded.notes[0]


def test_scan_follows_a_pickle_without_running_it() -> None:
    content = pickle.dumps([collections.Counter(a=1), collections.deque([1])], protocol=2)
    scan = scan_pickle(io.BytesIO(content))
    assert scan.list_like == {"collections.deque"}
    assert scan.globals == {"collections.Counter", "collections.deque"}
    assert scan_pickle(io.BytesIO(pickle.dumps(Callback(), protocol=4))).root == Made(f"{__name__}.Callback")
    with pytest.raises(ValueError):
        scan_pickle(io.BytesIO(content[:-1]))
