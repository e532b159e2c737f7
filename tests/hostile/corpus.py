"""Small sound files of every format, with the commands that read them; all that is here must succeed."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

import jacli
from jacli.commands.merge import merge

ARCH = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
"""

_QUICK = ("--method", "loop", "--batch-size", "2", "--quiet", "--device", "cpu")


@dataclass(frozen=True)
class Specimen:
    """A sound file.

    Attributes:
        content: Its bytes.
        commands: What reads it; ``FILE`` stands for it, ``CORPUS`` for the folder of sound files,
            ``BESIDE`` for the file's own.
        name: Of the file, where that matters.
        beside: Sound files that are put beside it.
    """

    content: bytes
    commands: tuple[tuple[str, ...], ...]
    name: str = "file"
    beside: tuple[str, ...] = ()


def make_corpus(folder: Path) -> dict[str, Specimen]:
    """Write the files that commands need beside the one under test, and make the specimens."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "arch.py").write_text(ARCH)
    namespace: dict[str, object] = {}
    exec(ARCH, namespace)
    network: nn.Module = namespace["make"]().eval()  # type: ignore[operator]
    x = torch.randn(2, 3, 5, 4)
    np.save(folder / "x.npy", x.numpy())
    programs, weights = _programs(network, x), _weights(network)
    (folder / "model.pt").write_bytes(programs["scripted"])
    read_as_program = (("compute", "FILE", "CORPUS/x.npy", "-o", "out.h5", *_QUICK), ("inspect", "FILE"))
    arch = ("--arch", "CORPUS/arch.py:make")
    read_as_weights = (
        ("compute", "FILE", "CORPUS/x.npy", *arch, "-o", "out.h5", *_QUICK),
        ("inspect", "FILE"),
    )
    read_as_inputs = (
        ("compute", "CORPUS/model.pt", "FILE", "-o", "out.h5", "--samples", "0,1", *_QUICK),
        ("inspect", "FILE"),
    )
    specimens = {name: Specimen(content, read_as_program) for name, content in programs.items()}
    specimens |= {name: Specimen(content, read_as_weights) for name, content in weights.items()}
    specimens |= {f"inputs {n}": Specimen(c, read_as_inputs) for n, c in _inputs(folder, x).items()}
    return specimens | _results(folder) | _shards(folder)


def _programs(network: nn.Module, x: torch.Tensor) -> dict[str, bytes]:
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, program in (
            ("scripted", torch.jit.script(network)),
            ("traced", torch.jit.trace(network, x)),
        ):
            buffer = io.BytesIO()
            torch.jit.save(program, buffer)
            found[name] = buffer.getvalue()
        shapes = ({0: torch.export.Dim.AUTO},)
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(network, (x,), dynamic_shapes=shapes), buffer)
        found["exported"] = buffer.getvalue()
    return found


def _weights(network: nn.Module) -> dict[str, bytes]:
    state = network.state_dict()
    nested = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    lightning = {
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(4)}}}],
        "hyper_parameters": {"lr": 0.1},
    }
    found = {}
    for name, value in {"state_dict": state, "nested": nested, "lightning": lightning}.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        found[name] = buffer.getvalue()
    for name, value in {"legacy": state, "legacy_nested": nested}.items():
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=False)
        found[name] = buffer.getvalue()
    found["safetensors"] = safetensors.torch.save({k: v.contiguous() for k, v in state.items()})
    return found


def _inputs(folder: Path, x: torch.Tensor) -> dict[str, bytes]:
    array = x.numpy()
    plain, packed, zipped, legacy = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, array)
    np.savez_compressed(packed, x=array)
    torch.save(x, zipped)
    torch.save({"x": x}, legacy, _use_new_zipfile_serialization=False)
    return {
        "npy": plain.getvalue(),
        "npz": packed.getvalue(),
        "pt": zipped.getvalue(),
        "legacy pt": legacy.getvalue(),
        "safetensors": safetensors.numpy.save({"x": array}),
        "hdf5": _hdf5(array),
        "hdf5 in chunks": _hdf5(array, chunks=(1, 3, 5, 4), compression="gzip"),
        "hdf5 of the latest kind": _hdf5(array, libver="latest", chunks=(1, 3, 5, 4), shuffle=True),
    }


def _hdf5(array: np.ndarray, *, libver: str = "earliest", **how: object) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver) as file:
        group = file.create_group("a group")
        group.create_dataset("x", data=array, **how)
        group.attrs["text"] = "some words"
        file.attrs["list"] = np.arange(5)
        file["soft"] = h5py.SoftLink("/a group/x")
    return buffer.getvalue()


def _results(folder: Path) -> dict[str, Specimen]:
    read = (
        ("summarize", "FILE"),
        ("summarize", "FILE", "--per-sample"),
        ("summarize", "FILE", "--per-class"),
        ("inspect", "FILE"),
        ("verify", "FILE"),
        ("status", "FILE"),
        ("compute", "--config", "FILE", "-o", "out.h5", "--quiet"),
    )
    found = {}
    for name, options in {
        "result": {},
        "packed result": {"compress": "gzip"},
        "result of norms": {"save": "none", "singular_values": "2"},
    }.items():
        out = folder / f"{name}.h5"
        jacli.compute(
            folder / "model.pt",
            folder / "x.npy",
            out=out,
            method="loop",
            batch_size=2,
            device="cpu",
            **options,
        )
        with h5py.File(out, "r+") as file:  # the same bytes each time, so that a seed is the same mutation
            file.attrs["created"] = "2026-01-01T00:00:00+00:00"
            file.attrs["command"] = "jacli"
        computed = () if name == "result of norms" else (("summarize", "FILE", "--dataset", "jacobian"),)
        found[name] = Specimen(out.read_bytes(), read + computed)
        out.unlink()
    return found


def _shards(folder: Path) -> dict[str, Specimen]:
    """One of two shards, and the index over both."""
    out = folder / "whole.h5"
    for part in ("1/2", "2/2"):
        jacli.compute(
            folder / "model.pt",
            folder / "x.npy",
            out=out,
            shard=part,
            method="loop",
            batch_size=1,
            device="cpu",
        )
    first, second = (folder / f"whole.0000{n}-of-00002.h5" for n in (1, 2))
    merge([out])
    merging = (
        ("merge", "FILE", f"BESIDE/{second.name}", "-o", "out.h5", "--overwrite"),
        ("merge", "FILE", f"BESIDE/{second.name}", "-o", "out.h5", "--copy"),
        ("status", "FILE"),
        ("summarize", "FILE", f"BESIDE/{second.name}"),
    )
    reading = (
        ("summarize", "FILE"),
        ("summarize", "FILE", "--dataset", "jacobian"),
        ("inspect", "FILE"),
        ("verify", "FILE"),
    )
    index = out.read_bytes()
    out.unlink()
    return {
        "shard": Specimen(first.read_bytes(), merging, first.name, (second.name,)),
        "index": Specimen(index, reading, out.name, (first.name, second.name)),
    }


def archive_of(members: dict[str, bytes]) -> bytes:
    """A zip archive of these members, stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    """Name -> bytes of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def edited_json(content: bytes, old: str, new: str) -> bytes:
    """An exported program with a text in its graph replaced, as JSON writes it."""
    members = members_of(content)
    (name,) = [name for name in members if name.endswith("models/model.json")]
    text = members[name].decode()
    wanted = json.dumps(old)[1:-1]
    assert wanted in text, f"{old} does not stand in the program"
    members[name] = text.replace(wanted, json.dumps(new)[1:-1]).encode()
    return archive_of(members)
