"""Read a pickle without running it: the names it wants and what it does with them.

A pickle is a program for a small stack machine (PEP 307; ``pickletools`` documents every opcode).
Here that program is followed with placeholders in place of objects, so that nothing is imported or
called.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from dataclasses import dataclass, field
from typing import IO, Any


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names, as ``module.name``."""

    name: str


@dataclass(frozen=True)
class Made:
    """What a call or an instantiation of a global gives."""

    name: str


@dataclass
class PickleScan:
    """What a pickle would do.

    Attributes:
        globals: Every class and function named, as ``module.name``, Python 2 names translated.
        dict_like: Those whose instances have items set, like a dict.
        list_like: Those whose instances are appended to, like a list.
        root: The object pickled: ``Global``, ``Made``, a string, a number, a tuple, or None for the rest.
    """

    globals: set[str] = field(default_factory=set)
    dict_like: set[str] = field(default_factory=set)
    list_like: set[str] = field(default_factory=set)
    root: object = None


_MARK = object()


def scan_pickle(file: IO[bytes]) -> PickleScan:
    """Follow one pickle from the file's position to its STOP.

    Raises:
        ValueError: It is truncated or no pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode, argument)
    except (IndexError, KeyError, AttributeError, UnicodeError) as error:
        raise ValueError(f"malformed pickle: {error}") from error
    return machine.scan


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
            stack.append(self._named(str(module), str(attribute)))
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
            stack.append(tuple(self._pop_to_mark() if name == "TUPLE" else self._pop(int(name[5:]))))
        elif name in ("SETITEM", "SETITEMS"):
            self._pop_to_mark() if name == "SETITEMS" else self._pop(2)
            self._remember(self.scan.dict_like)
        elif name in ("APPEND", "APPENDS"):
            self._pop_to_mark() if name == "APPENDS" else self._pop(1)
            self._remember(self.scan.list_like)
        elif name == "BINPERSID":
            # Before PyTorch 1.6 a module's class was a "persistent id": ("module", class, file, source).
            pid = stack.pop()
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
