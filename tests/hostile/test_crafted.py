"""Files made to do harm, each for one trick; and the sound ones, which every command must still read."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from .conftest import Worker
from .corpus import archive_of, edited_json, members_of
from .mutations import EDITS, plant_a_bomb, running, zeros_deflated

CANARY = "open('../../canary', 'w').write('it ran')"
AS_MODEL = ("compute", "FILE", "CORPUS/x.npy", "-o", "out.h5", "--arch", "CORPUS/arch.py:make", "--quiet")
AS_PROGRAM = ("compute", "FILE", "CORPUS/x.npy", "-o", "out.h5", "--quiet")
AS_INPUTS = ("compute", "CORPUS/model.pt", "FILE", "-o", "out.h5", "--quiet", "--method", "loop")
INSPECT = ("inspect", "FILE")
SUMMARIZE = ("summarize", "FILE")


@pytest.fixture
def ask(worker: Worker, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a command on these bytes: nothing goes wrong, and jacli ends with one of these exit codes."""

    def ask(content: bytes, command: tuple[str, ...], *codes: int, says: str = "") -> dict[str, Any]:
        file = tmp_path / "made"
        file.write_bytes(content)
        found = worker.ask(specimen="made by hand", file=str(file), command=command)
        assert not found["wrong"], f"{found['wrong']}\n{found['stderr']}"
        assert found["code"] in codes, found["stderr"]
        assert says in found["stderr"]
        return found

    return ask


def test_every_sound_file_is_read(worker: Worker) -> None:
    for name in worker.specimens:
        for found in worker.ask(read=name):
            assert (found["code"], found["wrong"]) == (0, []), (
                f"{name}: {found['command']}\n{found['stderr']}"
            )


EVIL = running(CANARY)


def _legacy(evil: bytes) -> bytes:
    """The evil pickle in the place of the object, behind the magic number, version and system."""
    head = b"".join(
        pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    return head + evil + pickle.dumps([], protocol=2)


def _in_place(content: bytes, ending: str, member: bytes) -> bytes:
    members = members_of(content)
    (name,) = [name for name in members if name.endswith(ending)]
    return archive_of(members | {name: member})


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, (CANARY,)


PICKLES = {
    "a bare pickle": EVIL,
    "a legacy file": _legacy(EVIL),
    "the pickle of an archive": _in_place(_saved({"a": torch.zeros(2)}), "data.pkl", EVIL),
    "an object beside the weights": _saved({"state_dict": {"a": torch.zeros(2)}, "args": _Evil()}),
    "an object in place of a tensor": _saved({"state_dict": {"0.weight": _Evil()}}),
    "an object of arrays": b"\x93NUMPY\x01\x00" + struct.pack("<H", 62)
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }".ljust(61) + b"\n" + EVIL,
}  # fmt: skip


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES.keys())
@pytest.mark.parametrize("command", [AS_MODEL, AS_INPUTS, INSPECT], ids=["model", "inputs", "inspect"])
def test_no_pickle_runs(ask: Callable[..., Any], content: bytes, command: tuple[str, ...]) -> None:
    # Beside weights, an object of an unknown class is left aside, and inspect says nothing of it.
    ask(content, command, 0, 3, 4)


def test_no_pickle_of_a_npz_runs(ask: Callable[..., Any]) -> None:
    ask(archive_of({"x.npy": PICKLES["an object of arrays"]}), AS_INPUTS, 4)


@pytest.mark.parametrize("ending", ["data.pkl", "constants.pkl"])
def test_no_pickle_of_a_program_runs(ask: Callable[..., Any], worker: Worker, ending: str) -> None:
    ask(_in_place(worker.sound("scripted"), f"/{ending}", EVIL), AS_PROGRAM, 3)


def test_a_programs_notes_on_its_sources_may_be_anything(ask: Callable[..., Any], worker: Worker) -> None:
    """They are read when torch first names a source, after the program was loaded."""
    for specimen in ("scripted", "traced"):
        members = members_of(worker.sound(specimen))
        notes = [name for name in members if name.endswith(".debug_pkl")]
        for content in (b"", b"PK\x03\x04", pickle.dumps(7, protocol=2), pickle.dumps(((1,),), protocol=2)):
            changed = archive_of(members | dict.fromkeys(notes, content))
            ask(changed, AS_PROGRAM, 0, 3)
            ask(changed, INSPECT, 0, 3, 4)


def test_no_pickle_of_an_exported_program_runs(ask: Callable[..., Any], worker: Worker) -> None:
    exported = worker.sound("exported")
    ask(_in_place(exported, "sample_inputs/model.pt", _saved(_Evil())), AS_PROGRAM, 3)
    members = members_of(exported)
    (config,) = [name for name in members if name.endswith("model_weights_config.json")]
    entries = json.loads(members[config])
    first = next(iter(entries["config"].values()))
    first["use_pickle"] = True
    folder = config.rpartition("/")[0]
    changed = {config: json.dumps(entries).encode(), f"{folder}/{first['path_name']}": _saved(_Evil())}
    ask(archive_of(members | changed), AS_PROGRAM, 3, says="more than tensors")


EXPRESSIONS = (
    f"exec({CANARY!r})",
    f"Symbol('s0').func.__init__.__globals__['__builtins__']['exec']({CANARY!r})",
    f"[exec({CANARY!r}) for _ in (1,)][0]",
    f"S({CANARY!r})",
    f"(lambda: exec({CANARY!r}))()",
)


@pytest.mark.parametrize("evil", EXPRESSIONS)
def test_no_size_of_an_exported_program_is_evaluated(
    ask: Callable[..., Any], worker: Worker, evil: str
) -> None:
    program = worker.sound("exported")
    (name,) = [name for name in members_of(program) if name.endswith("models/model.json")]
    graph = json.loads(members_of(program)[name])
    size = graph["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]
    size["as_expr"]["expr_str"] = evil
    mutated = archive_of(members_of(program) | {name: json.dumps(graph).encode()})
    ask(mutated, AS_PROGRAM, 3, says="no arithmetic")
    ask(mutated, INSPECT, 3, 4)


@pytest.mark.parametrize(
    "evil", [f"exec({CANARY!r})", f"L['input'].size()[0] == 2 or exec({CANARY!r})", "L['input'].__class__"]
)
def test_no_guard_of_an_exported_program_is_executed(
    ask: Callable[..., Any], worker: Worker, evil: str
) -> None:
    program = worker.sound("exported")
    (name,) = [name for name in members_of(program) if name.endswith("models/model.json")]
    graph = json.loads(members_of(program)[name])
    graph["guards_code"] = [evil]
    ask(archive_of(members_of(program) | {name: json.dumps(graph).encode()}), AS_PROGRAM, 3, says="guard")


@pytest.mark.parametrize(
    "evil",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "_operator.methodcaller",
    ],
)
def test_nodes_of_an_exported_program_are_operators(
    ask: Callable[..., Any], worker: Worker, evil: str
) -> None:
    mutated = edited_json(worker.sound("exported"), "torch.ops.aten.relu.default", evil)
    ask(mutated, AS_PROGRAM, 3, says="no operator")


class Saves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "../../canary")
        return x.flatten(1)


class Maps(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) + torch.from_file("../../canary", True, 4).sum()


@pytest.mark.parametrize("module", [Saves(), Maps()], ids=["save", "from_file"])
def test_programs_that_touch_files_are_refused(ask: Callable[..., Any], module: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    ask(buffer.getvalue(), AS_PROGRAM, 3, says="does more than compute")


def test_code_nested_deeply_is_refused(ask: Callable[..., Any], worker: Worker) -> None:
    members = members_of(worker.sound("scripted"))
    name = next(name for name in members if name.endswith("container.py"))
    for deep in (b"(" * 100_000 + b"1" + b")" * 100_000, b"-" * 100_000 + b"1", b"not " * 100_000 + b"True"):
        code = members[name].replace(b"return ", b"y = " + deep + b"\n    return ", 1)
        assert code != members[name]
        ask(archive_of(members | {name: code}), AS_PROGRAM, 3)


@pytest.mark.parametrize("specimen", ["state_dict", "scripted", "exported", "inputs npz", "inputs pt"])
def test_archives_that_unpack_to_gigabytes(ask: Callable[..., Any], worker: Worker, specimen: str) -> None:
    sound = worker.sound(specimen)
    for seed in range(6):
        command = AS_INPUTS if "inputs" in specimen else AS_PROGRAM if specimen != "state_dict" else AS_MODEL
        ask(plant_a_bomb(sound, Random(seed)), command, 0, 3, 4)


def test_a_npz_may_be_well_packed(ask: Callable[..., Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros((40_000, 3, 5, 4), np.float32))
    ask(buffer.getvalue(), (*AS_INPUTS, "--samples", "0,1"), 0)


@pytest.mark.parametrize("specimen", ["state_dict", "scripted", "legacy", "inputs pt", "inputs legacy pt"])
def test_storages_are_as_long_as_they_say(ask: Callable[..., Any], worker: Worker, specimen: str) -> None:
    """Torch believes the pickle, and would read beyond what is there."""
    sound = worker.sound(specimen)
    is_zip = sound.startswith(b"PK")
    text = next(m for n, m in members_of(sound).items() if n.endswith("/data.pkl")) if is_zip else sound
    at = text.index(b"K", text.index(b"cpu"))  # the number of elements follows the device
    longer = text[:at] + b"\x8a\x05\x00\x00\x00\x10\x00" + text[at + 2 :]
    mutated = _in_place(sound, "/data.pkl", longer) if is_zip else longer
    command = AS_INPUTS if "inputs" in specimen else AS_PROGRAM if specimen == "scripted" else AS_MODEL
    ask(mutated, command, 3, 4, says="said to h")


def test_a_tensor_of_one_number_that_declares_terabytes(ask: Callable[..., Any]) -> None:
    ask(_saved(torch.zeros(1).expand(2, 3, 10**6, 10**6)), AS_INPUTS, 4, says="declares")
    ask(_saved(torch.zeros(1).expand(10**12, 60)), AS_INPUTS, 4, says="declares")
    ask(_saved(torch.zeros(1).expand(2, 3, 10**6, 10**6)), INSPECT, 3)


def _hdf5(make: Callable[[h5py.File], object], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        make(file)
    return buffer.getvalue()


def _declared(shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> bytes:
    return _hdf5(lambda file: file.create_dataset("x", shape, "f4", chunks=chunks, **options))


def test_hdf5_inputs_that_declare_terabytes(ask: Callable[..., Any]) -> None:
    many = _declared((10**12, 3, 5, 4), (1, 3, 5, 4), compression="gzip")
    ask(many, AS_INPUTS, 4, says="declares")
    ask(many, INSPECT, 4, says="declares")
    wide = _declared((2, 3, 10**6, 10**6), (1, 1, 1000, 1000))
    ask(wide, AS_INPUTS, 4, says="declares")
    ask(wide, INSPECT, 4, says="declares")


def test_hdf5_chunks_that_unpack_to_gigabytes(ask: Callable[..., Any]) -> None:
    declared = _declared((2, 3, 500, 10**6), (2, 3, 500, 10**5 * 4), compression="gzip")
    ask(declared, AS_INPUTS, 4, says="in chunks of")

    def overfull(file: h5py.File) -> None:
        data = file.create_dataset("x", (2, 3, 5, 4), "f4", chunks=(2, 3, 5, 4), compression="gzip")
        stream = b"\x78\x9c" + zeros_deflated(4 * 2**30) + b"\0\0\0\0"
        data.id.write_direct_chunk((0, 0, 0, 0), stream)

    ask(_hdf5(overfull), AS_INPUTS, 4, says="unpacks to more")


def test_hdf5_files_that_read_other_files(ask: Callable[..., Any], tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((2, 3, 5, 4), np.float32)

    def external(file: h5py.File) -> None:
        file.create_dataset("x", (2, 3, 5, 4), "f4", external=[("/etc/passwd", 0, 480)])

    def linked(file: h5py.File) -> None:
        file["jacobian"] = h5py.ExternalLink(str(secret), "x")

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((2, 3, 5, 4), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "x", (2, 3, 5, 4))
        file.create_virtual_dataset("x", layout)

    ask(_hdf5(external), AS_INPUTS, 4, says="another file")
    ask(_hdf5(external), ("summarize", "FILE", "--dataset", "x"), 4, says="another file")
    ask(_hdf5(linked), SUMMARIZE, 4, says="link to another file")
    ask(_hdf5(linked), (*AS_INPUTS, "--inputs-key", "/jacobian"), 4)
    ask(_hdf5(virtual), AS_INPUTS, 4, says="another place")
    ask(_hdf5(virtual), ("summarize", "FILE", "--dataset", "x"), 4, says="another place")


def test_hdf5_datasets_made_of_themselves(ask: Callable[..., Any]) -> None:
    def circle(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((2, 3, 5, 4), "f4")
        layout[:] = h5py.VirtualSource(".", "x", (2, 3, 5, 4))
        file.create_virtual_dataset("x", layout)

    ask(_hdf5(circle), AS_INPUTS, 4, says="made of parts")


def test_hdf5_groups_in_circles_and_in_depth(ask: Callable[..., Any]) -> None:
    def circles(file: h5py.File) -> None:
        file["x"] = np.ones((2, 3, 5, 4), np.float32)
        file["group/here"] = file["/"]
        file["loop"] = h5py.SoftLink("/loop")
        file["outside"] = h5py.ExternalLink("/etc/passwd", "/")

    ask(_hdf5(circles), AS_INPUTS, 0)

    def deep(file: h5py.File) -> None:
        group = file
        for _ in range(2000):
            group = group.create_group("g")
        file["x"] = np.ones((2, 3, 5, 4), np.float32)

    ask(_hdf5(deep), AS_INPUTS, 0, 4)
    ask(_hdf5(deep), SUMMARIZE, 4)


def test_hdf5_attributes_of_gigabytes(ask: Callable[..., Any]) -> None:
    def large(file: h5py.File) -> None:
        file["x"] = np.ones((2, 3, 5, 4), np.float32)
        for n in range(3):
            file.attrs[f"a{n}"] = np.zeros(4 * 2**20)

    ask(_hdf5(large, libver="latest"), AS_INPUTS, 4, says="attributes")
    evil = _hdf5(lambda file: file.attrs.__setitem__("config", np.void(EVIL)))
    ask(evil, ("compute", "--config", "FILE", "-o", "out.h5"), 2, 4)


def test_results_that_declare_what_they_do_not_hold(ask: Callable[..., Any]) -> None:
    def many(file: h5py.File) -> None:
        file.create_dataset("jacobian", (10**12, 4, 3), "f4", chunks=(1, 4, 3))

    def wide(file: h5py.File) -> None:
        file.create_dataset("jacobian", (2, 10**12, 2), "f4", chunks=(1, 10**5, 2))

    def long_rows(file: h5py.File) -> None:
        file.create_dataset("class_norms", (2, 10**11), "f8", chunks=(1, 10**5))

    for make in (many, wide, long_rows):
        ask(_hdf5(make), SUMMARIZE, 4, says="declare")


def _result(worker: Worker, change: Callable[[h5py.File], object], tmp_path: Path) -> bytes:
    path = tmp_path / "result.h5"
    path.write_bytes(worker.sound("result"))
    with h5py.File(path, "r+") as file:
        change(file)
    return path.read_bytes()


ATTRIBUTES = ("", "[", "null", '{"model": 3}', "[" * 100_000, np.zeros(3), np.bytes_(b"\xff\0\x80"))
READERS = {
    "config": (("verify", "FILE"), ("compute", "--config", "FILE", "-o", "out.h5")),
    "plan": (("verify", "FILE"), ("compute", "--config", "FILE", "-o", "out.h5")),
    "sources": (SUMMARIZE, INSPECT),
    "schema": (SUMMARIZE, INSPECT),
    "complete": (SUMMARIZE, INSPECT),
    "model_sha256": (("verify", "FILE"),),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("value", ATTRIBUTES, ids=range(len(ATTRIBUTES)))
def test_attributes_of_a_result_may_be_anything(
    ask: Callable[..., Any], worker: Worker, tmp_path: Path, name: str, value: Any
) -> None:
    content = _result(worker, lambda file: file.attrs.__setitem__(name, value), tmp_path)
    for command in READERS[name]:
        ask(content, command, 0, 2, 3, 4, 6)


@pytest.mark.parametrize("change", EDITS)
def test_a_results_datasets_may_be_anything(
    ask: Callable[..., Any], worker: Worker, tmp_path: Path, change: str
) -> None:
    names = ("class_norms", "done", "sample_index", "jacobian", "outputs", "singular_values")
    number = sorted(EDITS).index(change)

    def edit(file: h5py.File) -> None:
        name = names[number % len(names)]
        old = file[name][...]
        del file[name]
        if change == "a group":
            file.create_group(name)
        elif change != "nothing":
            file[name] = EDITS[change](old)

    content = _result(worker, edit, tmp_path)
    for command in (SUMMARIZE, INSPECT, ("verify", "FILE")):
        ask(content, command, 0, 2, 3, 4, 6)


def test_numbers_that_cannot_be_unpacked(ask: Callable[..., Any], worker: Worker, tmp_path: Path) -> None:
    content = bytearray(worker.sound("packed result"))
    (tmp_path / "packed.h5").write_bytes(content)
    with h5py.File(tmp_path / "packed.h5") as file:
        for name in ("jacobian", "class_norms", "outputs"):
            at = file[name].id.get_chunk_info(0).byte_offset
            content[at + 4 : at + 20] = b"\xff" * 16
    ask(bytes(content), ("verify", "FILE"), 4, says="is damaged")
    ask(bytes(content), SUMMARIZE, 4, says="cannot be read")


def test_a_safetensors_header_of_terabytes(ask: Callable[..., Any]) -> None:
    ask((2**40).to_bytes(8, "little") + b'{"x":{"dtype":"F32"' + b" " * 1000, AS_MODEL, 3)
    ask((2**40).to_bytes(8, "little") + b'{"x":{"dtype":"F32"' + b" " * 1000, AS_INPUTS, 4)


def test_the_mutations_are_the_same_for_a_seed() -> None:
    from .mutations import mutators_of

    content = archive_of(
        {"a/data.pkl": pickle.dumps({"x": 1}, protocol=2), "a/data/0": zlib.compress(b"x" * 99)}
    )
    for name, mutate in mutators_of(content).items():
        assert mutate(content, Random(name)) == mutate(content, Random(name)), name
    assert zipfile.is_zipfile(io.BytesIO(content))
