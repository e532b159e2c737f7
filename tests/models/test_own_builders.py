"""``--arch file.py`` with and without a callable: what is taken, what is named, and with which remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from jacli.errors import ModelError
from jacli.models import load_anew, load_model
from jacli.models.names import absolute_name, runs_own_code, split_name

NETS = """
import torch
from torch import nn
from torch.nn import Linear


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x)


class Network(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def make_wide() -> nn.Module:
    return Network(9)


def make_narrow():
    return Network(2)


def main():
    open("trained", "w").close()


net = Network()
sequential = nn.Sequential(nn.Linear(6, 4))
size = 6
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def _save(width: int | None) -> str:
    a = nn.Linear(6, 3 if width is None else width)
    tensors = {"a.weight": a.weight, "a.bias": a.bias}
    if width is not None:
        b = nn.Linear(width, 4)
        tensors |= {"b.weight": b.weight, "b.bias": b.bias}
    torch.save({name: tensor.detach() for name, tensor in tensors.items()}, "weights.pt")
    return "weights.pt"


@pytest.mark.parametrize("asked", ["nets.py", "nets.py:"])
@pytest.mark.parametrize(("width", "taken"), [(None, "Encoder"), (5, "Network"), (9, "make_wide")])
def test_the_only_one_that_fits_is_taken_and_named(asked: str, width: int | None, taken: str) -> None:
    loaded = load_model(_save(width), arch=asked)
    assert loaded.arch == f"nets.py:{taken}"
    assert f"took nets.py:{taken}, which the weights fit" in loaded.notes
    assert loaded.request is not None and loaded.request.arch == f"nets.py:{taken}"
    assert load_anew(loaded).arch == loaded.arch
    assert not Path("trained").exists()  # main() is not tried


def test_arguments_go_to_each() -> None:
    torch.save(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 6)] * 2)}).state_dict(), "weights.pt")
    loaded = load_model("weights.pt", arch="nets.py", arch_args={"depth": 2})
    assert loaded.arch == "nets.py:Deep"


def test_none_fits() -> None:
    with pytest.raises(ModelError, match=r"None of the networks in nets\.py takes the weights") as refused:
        load_model(_save(2), arch="nets.py")
    assert "Deep: " in refused.value.why and "Network: " in refused.value.why
    assert "--arch nets.py:" in refused.value.hint
    assert not Path("trained").exists()


def test_several_fit(folder: Path) -> None:
    (folder / "twins.py").write_text(NETS + "\nclass Again(Network):\n    pass\n")
    with pytest.raises(ModelError, match="Several of the networks") as refused:
        load_model(_save(5), arch="twins.py")
    assert "Network, Again" in refused.value.why


@pytest.mark.parametrize(
    ("source", "arch"),
    [
        ("import torch\ndef build(): return torch.nn.Linear(6, 3)\n", "one.py:build"),
        ("from torch import nn\nfrom nets import Network\nclass Own(Network): pass\n", "one.py:Own"),
    ],
)
def test_a_file_with_a_single_callable(folder: Path, source: str, arch: str) -> None:
    (folder / "one.py").write_text(source)
    weights = {"weight": torch.zeros(3, 6), "bias": torch.zeros(3)}
    torch.save(weights, "linear.pt")
    name = "linear.pt" if "build" in arch else _save(5)
    assert load_model(name, arch="one.py").arch == arch


@pytest.mark.parametrize("source", ["import torch\nsize = 3\n", "from torch.nn import Linear\n_hidden = 1\n"])
def test_a_file_without_any(folder: Path, source: str) -> None:
    (folder / "none.py").write_text(source)
    with pytest.raises(ModelError, match="has no callable that builds a network"):
        load_model(_save(5), arch="none.py")


def test_functions_alone_are_only_named(folder: Path) -> None:
    (folder / "two.py").write_text("def main(): open('trained', 'w')\ndef other(): open('trained', 'w')\n")
    with pytest.raises(ModelError, match=r"Which callable of two\.py") as refused:
        load_model(_save(5), arch="two.py")
    assert refused.value.why == "Its callables are: main, other."
    assert refused.value.hint == "Name one: --arch two.py:main"
    assert not Path("trained").exists()


@pytest.mark.parametrize(
    ("typed", "closest"),
    [("Netwrk", "Network"), ("deep", "Deep"), ("make_wid", "make_wide"), ("encoder_v2", "Encoder")],
)
def test_the_closest_name_is_offered(typed: str, closest: str) -> None:
    with pytest.raises(ModelError, match="no callable") as refused:
        load_model(_save(5), arch=f"nets.py:{typed}")
    assert refused.value.hint == f"Name one of its own: --arch nets.py:{closest}"


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("net", "Network", "Name its class: --arch nets.py:Network; or write a function in nets.py"),
        ("sequential", "Sequential", "Write a function in nets.py, `def make(): return sequential`"),
    ],
)
def test_an_instance_in_place_of_a_class(name: str, kind: str, hint: str) -> None:
    with pytest.raises(ModelError, match=f"instance of {kind}") as refused:
        load_model(_save(5), arch=f"nets.py:{name}")
    assert refused.value.hint.startswith(hint)


def test_a_name_without_its_suffix() -> None:
    with pytest.raises(ModelError) as refused:
        load_model(_save(5), arch="nets")
    assert "--arch nets.py" in refused.value.hint


@pytest.mark.parametrize("source", ["nets.py", "./nets.py"])
def test_a_python_file_as_the_model_is_not_run(source: str) -> None:
    Path("nets.py").write_text(NETS + "\nopen('trained', 'w')\n")
    with pytest.raises(ModelError) as refused:
        load_model(source)
    assert "Encoder, Network, Deep, make_wide, make_narrow, main" in refused.value.why
    assert f"{Path(source)}:Encoder" in refused.value.hint
    assert not Path("trained").exists()


def test_untrained_without_a_name_lists() -> None:
    with pytest.raises(ModelError, match="Which callable") as refused:
        load_model("nets.py:")
    assert "Encoder, Network" in refused.value.why


def test_a_file_alone_counts_as_code_to_run(folder: Path) -> None:
    assert split_name("a/nets.py") == ("a/nets.py", "")
    assert runs_own_code("nets.py") and not runs_own_code("resnet18")
    assert absolute_name("nets.py") == str(folder / "nets.py")
