"""Archives of torch.export (``.pt2``).

``torch.export.load`` has no safe mode up to torch 2.13: where the archive's configuration says
``use_pickle``, or for opaque constants, it unpickles and so runs code that the file brings.  Every such
member is therefore tried with ``weights_only`` first.

Loading also evaluates the guards and symbolic shapes that are written in the program, and running it calls
what its graph names: `jacli.untrusted.exported_program` looks at those before.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from jacli.errors import ModelError
from jacli.models.damage import check_zip, last_line, reading
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, refuse_weight_options, sha256_of
from jacli.models.tensors import describe_tensors
from jacli.untrusted.exported_program import examine_program
from jacli.untrusted.torch_archive import scan_torch_save
from jacli.untrusted.torchscript_source import problem_of_classes
from jacli.untrusted.zip_archive import read_member

_KIND = "torch.export archive"
_HINT = (
    "Export it again without such members, or, if you trust the file, add --allow-pickle: it runs its code."
)
_PAYLOADS = ("weights", "constants")
_PROGRAM = re.compile(r"models/[^/\\]+\.json")
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_exported(path: Path, request: ModelRequest) -> LoadedModel:
    """Load an exported program as a module; it accepts the shapes it was exported for.

    >>> program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
    >>> torch.export.save(program, "net.pt2")
    >>> load_exported(Path("net.pt2"), ModelRequest()).static_batch
    4
    """
    refuse_weight_options(path, _KIND, request)
    program = _read(path, allow_pickle=request.allow_pickle)
    with reading(path, _KIND):
        module = freeze(_by_name(program.module()))
    size = _batch_size(program)
    static = size if isinstance(size, int) else None
    notes = () if static is None else (f"exported for batches of exactly {static}",)
    return LoadedModel(module, "torch_export", str(path), sha256_of(path), notes=notes, static_batch=static)


class NamedArguments(torch.nn.Module):
    """An exported program, called with its main input first and the others by name.

    torch.export accepts only the form of call that it was given: what was positional then must be
    positional now, and what was named, named.
    """

    def __init__(self, program: torch.nn.Module, positional: list[str], named: list[str]) -> None:
        super().__init__()
        self.program = program
        self.positional = positional
        self.named = named

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the program's arguments, in order."""
        return (*self.positional, *self.named)

    def forward(self, *x: torch.Tensor, **extra: object) -> object:
        names = self.parameter_names
        main, others = names[: len(x)], names[len(x) :]
        unknown = set(extra) - set(others)
        if unknown:
            raise TypeError(f"unexpected keyword argument {sorted(unknown)}; there are {list(others)}")
        missing = [name for name in others if name not in extra]
        if missing:
            raise TypeError(f"missing arguments: {missing}")
        values = {**dict(zip(main, x, strict=True)), **extra}
        return self.program(*[values[n] for n in self.positional], **{n: values[n] for n in self.named})


def _by_name(program: Any) -> Any:
    """The program with named arguments; as it is where an argument is a nested structure."""
    in_spec = program._in_spec
    arguments, keywords = in_spec.children() if hasattr(in_spec, "children") else in_spec.children_specs
    names = [str(node.target) for node in program.graph.nodes if node.op == "placeholder"]
    if not names or len(names) != arguments.num_children + keywords.num_children:
        return program
    return NamedArguments(program, names[: arguments.num_children], list(keywords.context))


def describe_exported(path: Path) -> dict[str, Any]:
    """Parameters and input shapes; an axis of free length is given by its symbol's name.

    >>> program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
    >>> torch.export.save(program, "net.pt2")
    >>> describe_exported(Path("net.pt2"))["num_parameters"]
    8
    """
    program = _read(path, allow_pickle=False)
    return {
        "format": "torch_export",
        **describe_tensors(program.state_dict.values(), parameters=program.parameters()),
        "input_shapes": {
            name: [n if isinstance(n, int) else str(n) for n in tensor.shape]
            for name, tensor in _user_inputs(program).items()
        },
        "dynamic_batch": not isinstance(_batch_size(program), int),
    }


def _read(path: Path, *, allow_pickle: bool) -> torch.export.ExportedProgram:
    check_zip(path)
    if not allow_pickle:
        with reading(path, _KIND), zipfile.ZipFile(path) as archive:
            _require_no_hidden_code(path, archive.namelist())
            for member in _unpickled_members(path, archive):
                _require_plain(path, member, read_member(archive, member))
            quick = [
                _require_no_expressions(path, member, read_member(archive, member))
                for member in archive.namelist()
                if member.lower().endswith(".json") or PurePosixPath(member.lower()).parent.name == "models"
            ]
        if not all(quick):
            _try_in_a_child(path)
    # A file object, because torch warns about every name that does not end in .pt2.
    with (
        reading(path, _KIND),
        path.open("rb") as file,
        _torch_export_environment(weights_only=not allow_pickle),
    ):
        return torch.export.load(file)


_CHILD = """
import resource, sys, warnings
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
warnings.simplefilter("ignore")
import torch
with open(sys.argv[1], "rb") as file:
    torch.export.load(file).module()
"""
_CHILD_CPU_SECONDS = 60
_CHILD_BYTES_PER_SECOND = 20 * 2**20
_SECONDS_PER_CPU_SECOND = 10  # where many processes share the cores


def _try_in_a_child(path: Path, cpu_seconds: int = _CHILD_CPU_SECONDS) -> None:
    """Load the program in a process that can be ended: what sympy makes of a size may take for ever.

    Whatever else goes wrong there goes wrong here too, and is reported then.  Costs a second load, and the
    start of Python and torch, some seconds.

    Args:
        path: The archive, examined.
        cpu_seconds: For a small one; the weights' reading is added.

    Raises:
        ModelError: It takes too long, or the process crashes.
    """
    seconds = cpu_seconds + path.stat().st_size // _CHILD_BYTES_PER_SECOND
    busy = f"torch is busy with its sizes for more than {seconds} s, as was tried in a process of its own."
    try:
        # -P: no module of the current folder is imported.
        code = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(path), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, _FORCE_WEIGHTS_ONLY: "1"},
            timeout=seconds * _SECONDS_PER_CPU_SECOND,
        ).returncode
    except subprocess.TimeoutExpired:
        why = busy
    else:
        if code >= 0:
            return
        crash = (
            f"Reading it crashes torch ({signal.Signals(-code).name}), as was tried in a process of its own."
        )
        why = busy if -code == signal.SIGXCPU else crash
    raise ModelError(
        f"{path} cannot be read as a {_KIND}.", why=why, hint="Export it again with plainer shapes."
    )


def _unpickled_members(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Members that torch.export.load may unpickle.

    Of the payloads (weights, constants) the configuration says which those are; their other members
    are raw numbers, which may look like anything.  Elsewhere the first bytes decide.
    """
    names = archive.namelist()
    raw: set[str] = set()
    for name in names:
        if not name.endswith("_config.json") or PurePosixPath(name).parent.name not in _PAYLOADS:
            continue
        with reading(path, _KIND):
            entries = json.loads(read_member(archive, name))["config"].values()
            folder = str(PurePosixPath(name).parent)
            for entry in entries:
                if entry["path_name"].startswith("opaque_obj"):
                    raise _refuse(path, f"Its constant {entry['path_name']} is a pickled object.")
                if entry["path_name"].startswith("custom_obj"):
                    _require_packed_weights(path, entry["path_name"], archive, folder)
            raw |= {f"{folder}/{entry['path_name']}" for entry in entries if not entry["use_pickle"]}
            pickled = {f"{folder}/{entry['path_name']}" for entry in entries if entry["use_pickle"]}
        raw -= pickled  # one entry that calls a member raw does not clear another that unpickles it
        yield from sorted(pickled & set(names))
    for name in names:
        if name not in raw:
            with archive.open(name) as file:
                head = file.read(2)
            if head == b"PK" or head[:1] == b"\x80":
                yield name


def _require_packed_weights(path: Path, name: str, archive: zipfile.ZipFile, folder: str) -> None:
    """Refuse an object of a class in C++ that is more than packed weights: reading it runs its own code."""
    content = read_member(archive, f"{folder}/{name}")
    try:
        problem = problem_of_classes(
            scan_torch_save(io.BytesIO(content), is_zip=content[:2] == b"PK").globals
        )
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        raise _refuse(path, f"Its constant {name} is an object. {problem}")


def _require_plain(path: Path, member: str, content: bytes) -> None:
    """Refuse a member that is more than tensors and plain containers."""
    try:
        scan_torch_save(io.BytesIO(content), is_zip=content[:2] == b"PK")
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refuse(path, f"Its member {member} is more than tensors: {last_line(error)}") from error


def _require_no_expressions(path: Path, member: str, content: bytes) -> bool:
    """Refuse a program that would have torch evaluate more than arithmetic, or call more than operators.

    Returns:
        Whether what there is to evaluate is quickly done.
    """
    with reading(path, _KIND):
        findings = examine_program(content)
    if findings.problem is not None:
        raise _refuse(path, f"Its member {member} is more than a graph of operators. {findings.problem}")
    return findings.quick


def _require_no_hidden_code(path: Path, names: list[str]) -> None:
    """Refuse compiled code, programs in other places, and names that differ in case, which torch ignores.

    torch takes every member below ``models/`` for a program, whatever its suffix, and looks for the
    configuration of ``models/a/b.json`` in a folder ``a`` of its own.
    """
    compiled = [name for name in names if "/aotinductor/" in name.lower()]
    if compiled:
        raise _refuse(path, f"Its member {compiled[0]} is compiled code, which loading would run.")
    for name in names:
        inside = name.partition("/")[2]
        if inside.lower().startswith("models/") and not _PROGRAM.fullmatch(inside):
            raise _refuse(path, f"Its member {name} is a program in a place where torch writes none.")
    if len({name.lower() for name in names}) < len(names):
        raise _refuse(path, "The names of its members differ only in case.")


def _refuse(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} holds pickled or compiled code.", why=why, hint=_HINT)


@contextmanager
def _torch_export_environment(*, weights_only: bool) -> Iterator[None]:
    """Quiet logs; and a second lock: inside, torch.load ignores every ``weights_only=False``."""
    logger = logging.getLogger("torch.export")
    level, forced = logger.level, os.environ.get(_FORCE_WEIGHTS_ONLY)
    logger.setLevel(logging.CRITICAL)
    if weights_only:
        os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        logger.setLevel(level)
        if weights_only:
            if forced is None:
                del os.environ[_FORCE_WEIGHTS_ONLY]
            else:
                os.environ[_FORCE_WEIGHTS_ONLY] = forced


def _user_inputs(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Name -> fake tensor of every tensor that forward takes, in order."""
    names = set(program.graph_signature.user_inputs)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return {
        node.name: node.meta["val"] for node in placeholders if isinstance(node.meta.get("val"), torch.Tensor)
    }


def _batch_size(program: torch.export.ExportedProgram) -> Any:
    """Length of the first input's first axis: an int, a symbol where it is free, None where there is none."""
    for tensor in _user_inputs(program).values():
        return tensor.shape[0] if tensor.dim() else None
    return None
