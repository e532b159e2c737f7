"""Recognition by content, whatever the suffix."""

import gzip
import io
import os
import socket
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from jacli.untrusted.content import WHAT_TO_DO, Content, recognise_content, recognise_model


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), buffer)
    return buffer.getvalue()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


FILES = {
    Content.TORCHSCRIPT: scripted,
    Content.TORCHSCRIPT_1_1: lambda: zipped("a/model.json", "a/code/a.py", "a/tensors/0"),
    Content.TORCH_EXPORT: lambda: zipped("a/archive_format", "a/models/model.json"),
    Content.TORCH_ZIP: lambda: saved({"w": torch.zeros(2)}),
    Content.LEGACY_PICKLE: lambda: saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False),
    Content.SAFETENSORS: lambda: save_safetensors({"w": torch.zeros(2)}),
    Content.NPY: npy,
    Content.NPZ: lambda: zipped("a.npy", "b.npy"),
    Content.EMPTY: lambda: b"",
    Content.GIT_LFS: lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    Content.HTML: lambda: b"\n<!DOCTYPE html><html></html>",
    Content.GZIP: lambda: gzip.compress(b"x"),
    Content.DAMAGED_ZIP: lambda: zipped("a/data.pkl")[:40],
    Content.OTHER_ZIP: lambda: zipped("word/document.xml"),
    Content.IMAGE: lambda: b"\x89PNG\r\n\x1a\n0000",
    Content.TEXT: lambda: b"1\n2\n3\n",
    Content.UNKNOWN: lambda: bytes(range(128, 200)),
}


@pytest.mark.parametrize("content", FILES, ids=lambda c: c.name)
def test_recognised(content, tmp_path):
    path = tmp_path / "lying_suffix.tar"
    path.write_bytes(FILES[content]())
    assert recognise_content(path) is content


def test_hdf5_and_folder(tmp_path):
    path = tmp_path / "x.pt"
    h5py.File(path, "w").close()
    assert recognise_content(path) is Content.HDF5
    assert recognise_content(tmp_path) is Content.FOLDER


@pytest.mark.parametrize("recognise", [recognise_content, recognise_model])
def test_pipes_sockets_and_devices_are_not_waited_for(recognise, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "socket", Path("/dev/zero")):
            assert recognise(path) is Content.NO_FILE


def test_a_damaged_safetensors_header_is_still_one(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"\xff" * 8 + FILES[Content.SAFETENSORS]()[8:])
    assert recognise_content(path) is Content.SAFETENSORS


def test_what_holds_nothing_to_load_has_a_remedy():
    for why, hint in WHAT_TO_DO.values():
        assert why.endswith(".")
        assert hint
