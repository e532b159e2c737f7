"""Architectures by name, and torchvision's registry."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jacli.errors import ModelError, UsageError
from jacli.models import describe_model, load_model
from jacli.models.registry import _architecture_shapes, matching_architectures
from jacli.models.torchvision_import import import_torchvision

from .networks import prefixed, saved, write_arch


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may open a socket; counted, since the search survives a builder that raises."""
    opened: list[object] = []

    def refuse(*args: Any, **_options: Any) -> Any:
        opened.append(args)
        raise OSError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    yield
    assert opened == []


def shufflenet(num_classes: int) -> dict[str, torch.Tensor]:
    return dict(
        import_torchvision().models.shufflenet_v2_x0_5(weights=None, num_classes=num_classes).state_dict()
    )


def test_untrained_networks_are_seeded_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (load_model("torchvision:shufflenet_v2_x0_5", seed=s).module for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.fc.weight, same.fc.weight) and not torch.equal(one.fc.weight, other.fc.weight)
    loaded = load_model("torchvision:shufflenet_v2_x0_5", arch_args={"num_classes": 3})
    assert loaded.module.fc.out_features == 3 and not loaded.module.training
    assert (loaded.format, loaded.path, loaded.sha256) == ("architecture", None, None)


def test_recognised_without_arch(tmp_path: Path) -> None:
    state = prefixed("module.", shufflenet(10))
    path = saved({"model": state, "epoch": 3}, tmp_path / "net.pt")
    loaded = load_model(str(path))
    assert loaded.arch == "torchvision:shufflenet_v2_x0_5"
    assert "recognised as torchvision:shufflenet_v2_x0_5 (num_classes=10)" in loaded.notes
    assert torch.equal(loaded.module.fc.weight, state["module.fc.weight"])
    assert describe_model(path)["architectures"] == ["torchvision:shufflenet_v2_x0_5"]


def test_recognised_without_batch_counters(tmp_path: Path) -> None:
    state = {k: v for k, v in shufflenet(1000).items() if not k.endswith("num_batches_tracked")}
    loaded = load_model(str(saved(state, tmp_path / "net.pt")))
    assert "recognised as torchvision:shufflenet_v2_x0_5" in loaded.notes


@pytest.mark.parametrize(
    "name", ["resnet18", "regnet_y_400mf", "googlenet", "swin_t", "ssdlite320_mobilenet_v3_large"]
)
def test_search_finds_each_kind_of_builder(name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in _architecture_shapes(name).items()}
    assert [match.name for match in matching_architectures(state)] == [name]


def test_several_matches_are_listed(tmp_path: Path) -> None:
    shapes = _architecture_shapes("fasterrcnn_mobilenet_v3_large_fpn")
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    with pytest.raises(ModelError, match=r"fasterrcnn_mobilenet_v3_large_320_fpn, .*_fpn"):
        load_model(str(saved(state, tmp_path / "net.pt")))


def test_weights_that_no_architecture_fits(tmp_path: Path) -> None:
    path = saved({"my.weight": torch.zeros(2, 3)}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match="only weights") as caught:
        load_model(str(path))
    assert "my.weight [2, 3]" in str(caught.value) and "--arch" in caught.value.hint
    with pytest.raises(UsageError, match="--arch-arg needs --arch"):
        load_model(str(path), arch_args={"width": 3})


def test_number_of_classes_for_a_named_architecture(tmp_path: Path) -> None:
    path = saved(shufflenet(7), tmp_path / "net.pt")
    for arch in ("shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5"):
        loaded = load_model(str(path), arch=arch)
        assert loaded.module.fc.out_features == 7 and "num_classes=7 taken from the file" in loaded.notes


def test_timm() -> None:
    import_torchvision()  # timm imports torchvision
    pytest.importorskip("timm")
    loaded = load_model("timm:mobilenetv3_small_050", arch_args={"num_classes": 4})
    assert loaded.arch == "timm:mobilenetv3_small_050"
    assert loaded.module(torch.randn(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ModelError, match="resnet18"):
        load_model("timm:resnet81")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"jacli\[timm\]"):
        load_model("timm:resnet18")


def test_unknown_names_get_close_ones() -> None:
    with pytest.raises(ModelError, match="resnet18"):
        load_model("torchvision:resnet81")
    with pytest.raises(ModelError, match="neither a module nor a file"):
        load_model("no_such_package.module:callable")


def test_weights_are_never_downloaded() -> None:
    with pytest.raises(UsageError, match="downloads no weights"):
        load_model("torchvision:resnet18", arch_args={"weights": "DEFAULT"})


@pytest.mark.parametrize("name", ["Net", "make_classifier"])
def test_architecture_files(tmp_path: Path, name: str) -> None:
    loaded = load_model(write_arch(tmp_path).replace("Net", name))
    assert loaded.arch == f"arch.py:{name}" and len(loaded.arch_sha256 or "") == 64


def test_architecture_files_relative_to_the_folder_with_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "neighbour_of_arch.py").write_text("import torch\nLayer = torch.nn.Linear\n")
    write_arch(tmp_path, "from neighbour_of_arch import Layer\ndef make(n=2): return Layer(3, n)\n")
    monkeypatch.chdir(tmp_path)
    assert load_model("arch.py:make", arch_args={"n": 4}).module.out_features == 4
    assert str(tmp_path) not in sys.path
    assert load_model("arch:make").arch == "arch:make"


FOREIGN = """
import functools
import os
import torch
from collections import OrderedDict
from os import system
from shutil import rmtree
from torch.nn import Linear
from torchvision.models import resnet18

class Factory:
    def __call__(self):
        return torch.nn.Linear(3, 2)

class Net(torch.nn.Linear):
    @classmethod
    def small(cls):
        return cls(3, 2)

factory = Factory()
bound = functools.partial(os.system, "touch MARK")
own = functools.partial(Linear, 3, 2)
short = lambda: torch.nn.Linear(3, 2)
listed = functools.cache(os.listdir)

@functools.cache
def cached():
    return torch.nn.Linear(3, 2)

@functools.lru_cache(maxsize=4)
def stored():
    return torch.nn.Linear(3, 2)
"""


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "system",
        "rmtree",
        "resnet18",
        "Factory",
        "factory",
        "bound",
        "OrderedDict",
        "Net.apply",
        "listed",
    ],
)
def test_what_is_neither_a_network_nor_the_files_own_function_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import_torchvision()
    monkeypatch.chdir(tmp_path)
    write_arch(tmp_path, FOREIGN)
    with pytest.raises(ModelError, match=r"(?s)cannot be used as an architecture.*--arch arch\.py:Net"):
        load_model(f"arch.py:{name}")
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize("name", ["Net.small", "own", "short", "cached", "stored"])
def test_networks_of_every_other_spelling(tmp_path: Path, name: str) -> None:
    import_torchvision()
    path = write_arch(tmp_path, FOREIGN).rpartition(":")[0]
    assert load_model(f"{path}:{name}").module.out_features == 2


def test_a_package_gives_what_its_own_modules_define() -> None:
    import_torchvision()
    loaded = load_model("torchvision.models:shufflenet_v2_x0_5", arch_args={"num_classes": 3})
    assert loaded.module.fc.out_features == 3
    with pytest.raises(ModelError, match="cannot be used as an architecture"):
        load_model("subprocess:Popen")
    with pytest.raises(ModelError, match="cannot be used as an architecture"):
        load_model("os:system")


BAD_ARCH = {
    "nowhere": (ModelError, "make_classifier, make_nothing"),
    "make_nothing": (ModelError, "returned str"),
    "make_trouble": (ModelError, "trouble inside"),
}


@pytest.mark.parametrize("name", BAD_ARCH)
def test_bad_callables(tmp_path: Path, name: str) -> None:
    error, words = BAD_ARCH[name]
    with pytest.raises(error, match=words):
        load_model(write_arch(tmp_path).replace("Net", name))


def test_bad_arguments_and_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="width"):
        load_model(write_arch(tmp_path), arch_args={"depth": 3})
    with pytest.raises(UsageError, match="depth"):
        load_model("torchvision:shufflenet_v2_x0_5", arch_args={"depth": 3})
    with pytest.raises(ModelError, match="SyntaxError"):
        load_model(write_arch(tmp_path, "def ("))
    with pytest.raises(ModelError, match="no architecture file"):
        load_model(str(tmp_path / "missing.py:make"))
    with pytest.raises(UsageError, match="--arch"):
        load_model("torchvision:resnet18", arch="resnet18")


def test_densenet_files_with_the_names_of_their_time(tmp_path: Path) -> None:
    """Torchvision's own downloads say ``norm.1`` where its module says ``norm1``."""
    state = import_torchvision().models.densenet121(weights=None, num_classes=10).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in state.items()}
    assert old.keys() != state.keys()
    path = saved(old, tmp_path / "densenet.pth")
    for arch in (None, "densenet121"):
        loaded = load_model(str(path), arch=arch)
        assert loaded.arch == "torchvision:densenet121"
        assert torch.equal(loaded.module.classifier.weight, state["classifier.weight"])
