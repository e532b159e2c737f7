"""Load torch.save files whose pickles name unknown classes, without running any code of theirs.

``torch.load(weights_only=True)`` refuses every name outside its own list, and so the ordinary
checkpoints of Lightning, whose hyper-parameters hold ``argparse.Namespace`` or ``AttributeDict``.
Here every such name becomes an inert stand-in: never the object of that name, whether or not its
package is installed.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from jacli.untrusted.pickle_scan import PickleScan


class Inert:
    """An object of a class that was not imported: it takes whatever it is given and does nothing."""

    class_name = "(an attribute of another class)"

    def __new__(cls, *_args: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def stand_in(name: str, scan: PickleScan) -> type:
    """An inert class for the global ``name``, made to fit what the pickle does with its instances.

    torch's unpickler sets items only on objects that are exactly dict or OrderedDict, and appends only
    to exactly list.  So classes used like these give such an object when instantiated; an OrderedDict,
    because it may also have attributes.

    >>> import collections, io, pickle
    >>> from jacli.untrusted.pickle_scan import scan_pickle
    >>> scan = scan_pickle(io.BytesIO(pickle.dumps(1)))
    >>> stand_in("argparse.Namespace", scan)().class_name
    'argparse.Namespace'
    """
    product: Callable[[], Any]
    if name in scan.dict_like:
        product = OrderedDict
    elif name in scan.list_like:
        product = list
    elif name == "builtins.getattr":
        # Bound methods and nested classes are pickled as a call of getattr, whose result is called in turn.
        product = _inert_class
    else:
        return type(name.rpartition(".")[2], (Inert,), {"class_name": name})

    def make(_cls: type, *_args: object) -> Any:
        return product()

    return type(name.rpartition(".")[2], (), {"class_name": name, "__new__": make})


def _inert_class() -> type[Inert]:
    return Inert


def load_with_stand_ins(file: Path | IO[bytes], scan: PickleScan) -> Any:
    """``torch.load(weights_only=True)`` onto the CPU with a stand-in for every name it does not know.

    torch looks into its own list first, so stand-ins for names on it are never used.

    Args:
        file: A torch.save file, zip or legacy.
        scan: Of its pickle.

    Raises:
        Exception: Whatever torch raises for a damaged file or a pickle it refuses.
    """
    stand_ins = [(stand_in(name, scan), name) for name in sorted(scan.globals)]
    stand_ins.append((Inert, f"{Inert.__module__}.Inert"))
    with _safe_globals_only(stand_ins), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def _safe_globals_only(stand_ins: Iterable[tuple[type, str]]) -> Iterator[None]:
    """Exactly these on torch's list of the user's safe globals.

    Libraries add their own classes there when imported; those would be called with a file's arguments.
    """
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(stand_ins))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)
