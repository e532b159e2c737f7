"""Every format, recognised by content; every damaged file refused with what it is."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jacli.errors import ModelError, UsageError
from jacli.models import describe_model, load_model

from .networks import Net, saved, write_arch


@pytest.fixture
def arch(tmp_path: Path) -> str:
    return write_arch(tmp_path)


def test_importing_the_room_imports_no_torch() -> None:
    code = "import sys, jacli.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("suffix", [".pt", ".tar", ".jit"])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_load_whatever_their_suffix(tmp_path: Path, arch: str, suffix: str, legacy: bool) -> None:
    net = Net()
    path = saved(net.state_dict(), tmp_path / f"net{suffix}", legacy=legacy)
    loaded = load_model(str(path), arch=arch)
    x = torch.randn(2, 3)
    assert torch.equal(loaded.module(x), net.eval()(x))
    assert loaded.format == "state_dict" and loaded.arch == "arch.py:Net" and loaded.arch_sha256
    assert loaded.path == str(path) and len(loaded.sha256 or "") == 64
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_safetensors(tmp_path: Path, arch: str) -> None:
    net = Net()
    save_file(net.state_dict(), tmp_path / "net.bin")
    loaded = load_model(str(tmp_path / "net.bin"), arch=arch)
    assert loaded.format == "safetensors"
    assert torch.equal(loaded.module.fc.weight, net.fc.weight)
    assert describe_model(tmp_path / "net.bin")["num_parameters"] == 3 * 2 + 2 + 2 + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtype_is_the_files(tmp_path: Path, arch: str, dtype: torch.dtype) -> None:
    path = saved(Net().to(dtype).state_dict(), tmp_path / "net.pt")
    assert load_model(str(path), arch=arch).module.fc.weight.dtype == dtype


def test_mixed_dtypes_are_the_files(tmp_path: Path, arch: str) -> None:
    state = Net().state_dict()
    state["fc.weight"] = state["fc.weight"].half()
    module = load_model(str(saved(state, tmp_path / "net.pt")), arch=arch).module
    assert (module.fc.weight.dtype, module.fc.bias.dtype) == (torch.float16, torch.float32)


def test_torchscript_saved_in_training_mode(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    script(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()).save(str(path))
    loaded = load_model(str(path))
    x = torch.randn(2, 3)
    assert torch.equal(loaded.module(x), loaded.module(x))
    assert loaded.format == "torchscript" and "training mode" in loaded.notes[0]
    assert describe_model(path)["forward"].startswith("forward(")


def test_options_about_weights_are_refused_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    script(nn.Linear(3, 2)).save(str(path))
    with pytest.raises(UsageError, match="--arch"):
        load_model(str(path), arch="resnet18")


def script(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_saved_on_cuda(tmp_path: Path, arch: str, legacy: bool) -> None:
    path = saved(Net().state_dict(), tmp_path / "cpu.pt", legacy=legacy)
    if not legacy:  # the tag is inside the zip; write the archive again with it
        tagged = tmp_path / "cuda.pt"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tagged, "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                new.writestr(
                    name, tag_as_cuda(old.read(name)) if name.endswith("data.pkl") else old.read(name)
                )
    else:
        tagged = tmp_path / "cuda.pt"
        tagged.write_bytes(tag_as_cuda(path.read_bytes()))
    assert b"cuda:0" in tagged.read_bytes()
    assert load_model(str(tagged), arch=arch).module.fc.weight.device.type == "cpu"


def tag_as_cuda(pickled: bytes) -> bytes:
    return pickled.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")


def bytes_of(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def flipped() -> bytes:
    content = bytearray(bytes_of({"w": torch.full((4096,), 3.25)}))
    content[content.index(torch.full((8,), 3.25).numpy().tobytes()) + 1000] ^= 4
    return bytes(content)


ZIP = bytes_of({"w": torch.zeros(4096)})
LEGACY = bytes_of({"w": torch.zeros(4096)}, legacy=True)
DAMAGED = {
    "empty": (b"", "0 bytes"),
    "half a zip": (ZIP[: len(ZIP) // 2], "truncated"),
    "flipped bit": (flipped(), "checksum"),
    "half a legacy pickle": (LEGACY[: len(LEGACY) // 2], "truncated"),
    "100 bytes of a legacy pickle": (LEGACY[:100], "truncated"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS"),
    "html page": (b"<!DOCTYPE html><html></html>", "HTML"),
    "gzip": (gzip.compress(ZIP), "gzip"),
    "safetensors cut": (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20, "header"),
    "plain pickle": (b"\x80\x02}q\x00.", "not one written by torch.save"),
    "numpy": (b"\x93NUMPY\x01\x00", "NumPy"),
    "text": (b"hello", "text"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_and_foreign_files_say_what_they_are(tmp_path: Path, kind: str) -> None:
    content, word = DAMAGED[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    for load in (load_model, describe_model):
        with pytest.raises(ModelError, match=word) as caught:
            load(str(path))
        assert "weights_only" not in str(caught.value)  # the library's advice would run the file's code


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        load_model(str(tmp_path / "nothing.pt"))


def test_describe_a_checkpoint(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in Net().state_dict().items()}
    found = describe_model(saved({"model": state}, tmp_path / "net.pt"))
    assert found["weights_key"] == "model" and found["common_prefix"] == "module."
    assert found["first_tensors"][0] == {"name": "module.fc.weight", "shape": [2, 3]}
    assert found["architectures"] == [] and found["dtypes"] == ["float32", "int64"]
