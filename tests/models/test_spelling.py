"""Tied tensors that are stored once, names of wrappers inside keys, extra tensors and half a network's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jacli.errors import ModelError, UsageError
from jacli.models import load_anew, load_model

from .networks import Net, saved, write_arch

ARCH = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5, bias=False)
        self.last = nn.Linear(3, 5, bias=False)
        self.back = nn.Linear(5, 3)
        self.last.weight = self.first.weight


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 5)
        self.decode = nn.Linear(5, 3)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().t())


class Permuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Conv2d(2, 3, 2, bias=False)
        self.decode = nn.Conv2d(3, 2, 2, bias=False)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().permute(1, 0, 3, 2))


class Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(6, 4))
        self.register_buffer("lower", self.table[3:])


class Untied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5, bias=False)
        self.last = nn.Linear(3, 5, bias=False)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.decoder = nn.Linear(2, 6)


class Nested(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.module = nn.Linear(4, 4)
        self.head = nn.Linear(4, num_classes)


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner


class Compiled(Nested):
    def __init__(self):
        super().__init__()
        self.encoder = Wrapper(self.encoder)


def encoder():
    return Autoencoder().encoder
"""


@pytest.fixture
def arch(tmp_path: Path) -> str:
    write_arch(tmp_path, ARCH)
    return str(tmp_path / "arch.py")


def nested() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    encoder, own, head = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4), nn.Linear(4, 3)
    parts = {"encoder": encoder, "module": own, "head": head}
    return {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("stored", ["first.weight", "last.weight"])
def test_a_tied_tensor_may_be_stored_under_either_name(
    tmp_path: Path, arch: str, stored: str, dtype: torch.dtype
) -> None:
    weight = torch.arange(15, dtype=dtype).reshape(5, 3)
    file = {
        stored: weight,
        "back.weight": torch.ones(3, 5, dtype=dtype),
        "back.bias": torch.ones(3, dtype=dtype),
    }
    save_file(file, tmp_path / "net.safetensors")
    loaded = load_model(str(tmp_path / "net.safetensors"), arch=f"{arch}:Tied")
    for again in (loaded, load_anew(loaded), load_anew(loaded, dtype=torch.float64)):
        assert torch.equal(again.module.first.weight.double(), weight.double())
        assert torch.equal(again.module.last.weight.double(), weight.double())
    assert any("shares its memory with" in note for note in loaded.notes)


def test_a_tied_view_takes_the_values_that_belong_to_it(tmp_path: Path, arch: str) -> None:
    weight = torch.arange(15.0).reshape(5, 3)
    file = {"encode.weight": weight, "encode.bias": torch.ones(5), "decode.bias": torch.ones(3)}
    module = load_model(str(saved(file, tmp_path / "a.pt")), arch=f"{arch}:Transposed").module
    assert torch.equal(module.decode.weight, weight.t())
    # In float16, the two no longer share memory: each holds the values all the same.
    half = {name: tensor.half() for name, tensor in file.items()}
    module = load_model(str(saved(half, tmp_path / "b.pt")), arch=f"{arch}:Transposed").module
    assert torch.equal(module.decode.weight.float(), weight.t())
    table = torch.arange(24.0).reshape(6, 4)
    module = load_model(str(saved({"table": table}, tmp_path / "c.pt")), arch=f"{arch}:Sliced").module
    assert torch.equal(module.lower, table[3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "shape", "axes"), [("Transposed", (3, 5), (1, 0)), ("Permuted", (2, 3, 2, 2), (1, 0, 3, 2))]
)
def test_only_the_view_is_stored(
    tmp_path: Path, arch: str, name: str, shape: tuple[int, ...], axes: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = torch.arange(torch.Size(shape).numel(), dtype=dtype).reshape(shape)
    file = {"decode.weight": weight}
    if name == "Transposed":
        file |= {"encode.bias": torch.ones(5, dtype=dtype), "decode.bias": torch.ones(3, dtype=dtype)}
    save_file(file, tmp_path / "net.safetensors")
    module = load_model(str(tmp_path / "net.safetensors"), arch=f"{arch}:{name}").module
    assert torch.equal(module.decode.weight, weight)
    assert torch.equal(module.encode.weight, weight.permute(axes))


def test_a_missing_tensor_that_nothing_shares_stays_missing(tmp_path: Path, arch: str) -> None:
    for name, value in (
        ("Untied", {"first.weight": torch.ones(5, 3)}),
        ("Sliced", {"lower": torch.ones(3, 4)}),
    ):
        with pytest.raises(ModelError):
            load_model(str(saved(value, tmp_path / "net.pt")), arch=f"{arch}:{name}")


@pytest.mark.parametrize(
    ("written", "replaced"),
    [
        ("encoder.", "encoder._orig_mod."),
        ("encoder.", "_orig_mod.encoder._fsdp_wrapped_module."),
        ("encoder.0.", "encoder.0._checkpoint_wrapped_module._fsdp_wrapped_module."),
        ("head.", "head.module."),
        ("encoder.", "encoder._fsdp_wrapped_module.module."),
        ("module.", "module.module._checkpoint_wrapped_module."),
        ("", "model._orig_mod."),
    ],
)
def test_names_of_wrappers_are_dropped_anywhere(
    tmp_path: Path, arch: str, written: str, replaced: str
) -> None:
    file = {
        replaced + name.removeprefix(written) if name.startswith(written) else name: value
        for name, value in nested().items()
    }
    loaded = load_model(str(saved(file, tmp_path / "net.pt")), arch=f"{arch}:Nested")
    for again in (loaded, load_anew(loaded)):
        assert all(torch.equal(value, nested()[name]) for name, value in again.module.state_dict().items())
    assert any("removed" in note for note in loaded.notes)


@pytest.mark.parametrize("prefix", ["model.", "net.model."])
def test_prefix_wrapper_and_number_of_classes_at_once(tmp_path: Path, arch: str, prefix: str) -> None:
    file = {
        prefix + name.replace("encoder.", "encoder._orig_mod."): value for name, value in nested().items()
    }
    file[f"{prefix}head.weight"], file[f"{prefix}head.bias"] = torch.ones(7, 4), torch.ones(7)
    loaded = load_model(str(saved(file, tmp_path / "net.pt")), arch=f"{arch}:Nested")
    assert loaded.module.head.out_features == 7
    assert load_anew(loaded).module.head.out_features == 7
    assert f"removed the prefix '{prefix}' from 11 keys" in loaded.notes
    assert any("'_orig_mod.'" in note for note in loaded.notes)


def test_an_architecture_that_wraps_takes_plain_names(tmp_path: Path, arch: str) -> None:
    loaded = load_model(str(saved(nested(), tmp_path / "net.pt")), arch=f"{arch}:Compiled")
    assert torch.equal(loaded.module.state_dict()["encoder._orig_mod.0.weight"], nested()["encoder.0.weight"])


def test_names_that_would_meet_are_not_shortened(tmp_path: Path, arch: str) -> None:
    file = nested() | {f"encoder._orig_mod.{n}.weight": torch.ones(1) for n in range(2)}
    with pytest.raises(ModelError, match=r"encoder\._orig_mod\.0\.weight"):
        load_model(str(saved(file, tmp_path / "net.pt")), arch=f"{arch}:Nested")


@pytest.mark.parametrize("asked", ["ema.model", "ema.model."])
def test_a_prefix_may_be_asked_for_without_its_dot(tmp_path: Path, asked: str) -> None:
    net, arch = Net(), write_arch(tmp_path)
    file = {start + k: v for start in ("ema.model.", "raw.") for k, v in net.state_dict().items()}
    file["raw.fc.weight"] = torch.zeros(2, 3)
    path = str(saved(file, tmp_path / "net.pt"))
    loaded = load_model(path, arch=arch, strip_prefix=asked)
    assert torch.equal(loaded.module.fc.weight, net.fc.weight)


def test_a_prefix_without_any_dot_is_taken_as_it_is(tmp_path: Path) -> None:
    file = {f"net_{name}": value for name, value in Net().state_dict().items()}
    path = str(saved(file, tmp_path / "net.pt"))
    assert load_model(path, arch=write_arch(tmp_path), strip_prefix="net_").module.fc.out_features == 2
    with pytest.raises(ModelError, match=r"no tensor below the prefix 'net\.'"):
        load_model(path, arch=write_arch(tmp_path), strip_prefix="net.")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_extra_tensors_are_left_aside_when_asked(tmp_path: Path, prefix: str) -> None:
    net = Net()
    extra = {"ema_decay": torch.ones(1), "teacher.fc.weight": torch.ones(2, 3)}
    file = {prefix + name: value for name, value in {**net.state_dict(), **extra}.items()}
    path, arch = str(saved(file, tmp_path / "net.pt")), write_arch(tmp_path)
    with pytest.raises(ModelError, match="--ignore-extra-weights"):
        load_model(path, arch=arch)
    loaded = load_model(path, arch=arch, ignore_extra_weights=True)
    for again in (loaded, load_anew(loaded)):
        assert torch.equal(again.module.fc.weight, net.fc.weight)
    listed = "left aside 2 tensors that the architecture does not have: ema_decay, teacher.fc.weight"
    assert listed in loaded.notes


def test_ignoring_extra_tensors_ignores_nothing_else(tmp_path: Path) -> None:
    arch = write_arch(tmp_path)
    state: dict[str, Any] = {**Net().state_dict(), "extra": torch.ones(1)}
    for change in ({"fc.bias": torch.ones(5)}, {"fc.bias": None}):
        file = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(ModelError, match=r"fc\.bias") as caught:
            load_model(str(saved(file, tmp_path / "net.pt")), arch=arch, ignore_extra_weights=True)
        assert "leave them aside" not in str(caught.value)
    with pytest.raises(UsageError, match="needs --arch"):
        load_model(str(saved(state, tmp_path / "net.pt")), ignore_extra_weights=True)
    with pytest.raises(UsageError, match="--ignore-extra-weights"):
        load_model("torchvision:resnet18", ignore_extra_weights=True)


@pytest.mark.parametrize("prefix", ["encoder.", "", "model.encoder."])
def test_half_a_network_is_named(tmp_path: Path, arch: str, prefix: str) -> None:
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    path = str(saved({prefix + k: v for k, v in encoder.state_dict().items()}, tmp_path / "net.pt"))
    with pytest.raises(ModelError, match=r"of only a part of .*: encoder") as caught:
        load_model(path, arch=f"{arch}:Autoencoder")
    assert "decoder.weight" in caught.value.why and "returns the network's encoder" in caught.value.hint
    assert torch.equal(load_model(path, arch=f"{arch}:encoder").module[0].weight, encoder[0].weight)
