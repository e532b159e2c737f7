"""Read a pickle without running it: the names it wants and what it does with them.

A pickle is a program for a small stack machine (PEP 307; ``pickletools`` documents every opcode).
Here that program is followed with placeholders in place of objects, so that nothing is imported or
called.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, cast

STORAGE_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "UntypedStorage": 1,
    "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
"""Bytes an element of torch's storages, by the class that a pickle names."""


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names, as ``module.name``."""

    name: str


@dataclass(frozen=True)
class Made:
    """Result of calling or instantiating a global."""

    name: str


@dataclass
class PickleScan:
    """Effects of a pickle.

    Attributes:
        globals: Every class and function named, as ``module.name``, Python 2 names translated.
        dict_like: Those whose instances have items set, like a dict.
        list_like: Those whose instances are appended to, like a list.
        storages: Bytes that each storage of numbers is said to have, by its key.
        root: The object pickled: ``Global``, ``Made``, a string, a number, a tuple, or None for the rest.
    """

    globals: set[str] = field(default_factory=set)
    dict_like: set[str] = field(default_factory=set)
    list_like: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    root: object = None


_MARK = object()
_LARGEST_TUPLE = 2**20
_DEEPEST_TUPLE = 500
_SMALL = 2**16


def scan_pickle(file: IO[bytes]) -> PickleScan:
    """Follow one pickle from the file's position to its STOP.

    >>> import collections, io, pickle
    >>> sorted(scan_pickle(io.BytesIO(pickle.dumps(collections.Counter("aab")))).globals)
    ['collections.Counter']

    Raises:
        ValueError: It is truncated or no pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], _Bounded(file))):
            machine.step(opcode, argument)
    except (IndexError, KeyError, AttributeError, UnicodeError) as error:
        raise ValueError(f"malformed pickle: {error}") from error
    return machine.scan


def lying_storage(scan: PickleScan, records: Mapping[str, int]) -> str | None:
    """A storage that is said to be larger than its record, as a sentence; None where all are honest.

    torch believes the pickle and would read memory beyond the record's end.

    Args:
        scan: Of the pickle.
        records: Key -> bytes that are there.
    """
    for key, size in scan.storages.items():
        there = records.get(key, 0)
        if size > there:
            return f"Its record {key} is said to have {size:,} bytes, and has {there:,}: it is truncated."
    return None


class _Bounded:
    """A file of which no more is asked than it has: a length in a pickle may say terabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        at = file.tell()
        self._end = file.seek(0, 2)
        file.seek(at)

    def read(self, size: int) -> bytes:
        if size > _SMALL:
            size = min(size, self._end - self._file.tell())
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline()

    def tell(self) -> int:
        return self._file.tell()


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how large and deep it is: hashing a tuple follows shared parts again and again.

    Raises:
        ValueError: No dict's key is as large or as deep.
    """

    size: int
    depth: int

    def __new__(cls, items: list[Any]) -> _Tuple:
        new = super().__new__(cls, items)
        inner = [item for item in items if isinstance(item, _Tuple)]
        new.size = len(items) + sum(item.size for item in inner)
        new.depth = 1 + max((item.depth for item in inner), default=0)
        if new.size > _LARGEST_TUPLE or new.depth > _DEEPEST_TUPLE:
            raise ValueError(
                f"a tuple of {new.size:,} entries, shared ones counted as often as they are there, "
                f"nested {new.depth} deep"
            )
        return new


class _Machine:
    """The pickle machine's stack and memo, holding placeholders."""

    def __init__(self) -> None:
        self.scan = PickleScan()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = opcode.name, self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not (isinstance(module, str) and isinstance(attribute, str)):
                raise ValueError("malformed pickle: a class whose name is no text")
            stack.append(self._named(module, attribute))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            del stack[-2 if name == "NEWOBJ_EX" else -1 :]
            called = stack.pop()
            stack.append(Made(called.name) if isinstance(called, Global) else None)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(_Tuple(self._pop_to_mark() if name == "TUPLE" else self._pop(int(name[5:]))))
        elif name in ("SETITEM", "SETITEMS"):
            self._pop_to_mark() if name == "SETITEMS" else self._pop(2)
            self._remember(self.scan.dict_like)
        elif name in ("APPEND", "APPENDS"):
            self._pop_to_mark() if name == "APPENDS" else self._pop(1)
            self._remember(self.scan.list_like)
        elif name == "BINPERSID":
            # Before PyTorch 1.6 a module's class was a "persistent id": ("module", class, file, source).
            pid = stack.pop()
            if isinstance(pid, tuple) and pid[:1] == ("storage",):
                self._note_storage(pid)
            stack.append(pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) else None)
        elif name == "STOP":
            self.scan.root = stack.pop()
        else:
            self._apply_documented_effect(opcode, argument)

    def _apply_documented_effect(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        before = list(opcode.stack_before)
        if pickletools.markobject in before:
            self._pop_to_mark()
            before = before[: before.index(pickletools.markobject)]
        kept = self._pop(len(before))
        after = len(opcode.stack_after)
        if opcode.name == "BUILD":
            self.stack.append(kept[0])
        elif after == 1:
            self.stack.append(argument if isinstance(argument, (str, int)) else None)
        else:
            self.stack.extend(kept[:1] * after)

    def _note_storage(self, pid: tuple[Any, ...]) -> None:
        """("storage", class, key, device, number of elements, ...)."""
        _, kind, key, _, count = pid[:5] if len(pid) >= 5 else (None,) * 5
        itemsize = STORAGE_BYTES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Global) else None
        if itemsize is None or not isinstance(key, (str, int)) or not isinstance(count, int) or count < 0:
            raise ValueError("malformed pickle: a storage without class, key or size")
        self.scan.storages[str(key)] = max(count * itemsize, self.scan.storages.get(str(key), 0))

    def _named(self, module: str, name: str) -> Global:
        # As torch's unpickler and pickle itself do, so that the names agree.
        if (module, name) in _compat_pickle.NAME_MAPPING:
            module, name = _compat_pickle.NAME_MAPPING[(module, name)]
        else:
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        self.scan.globals.add(f"{module}.{name}")
        return Global(f"{module}.{name}")

    def _remember(self, names: set[str]) -> None:
        if isinstance(self.stack[-1], Made):
            names.add(self.stack[-1].name)

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("stack underflow")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        taken: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            taken.append(item)
        return taken[::-1]
