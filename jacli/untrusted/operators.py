"""The operators that compute: what a program from a file may call.

``operators.txt`` lists them by namespace, without overloads; an operator in place (``add_``) counts as its
twin (``add``).  It holds the operators of torch 2.13 but those that touch files (``aten::save``,
``aten::from_file``), other processes (``rpc``, ``c10d``), or memory beyond their arguments: by an address, or
by sizes and positions that they believe unchecked and no network needs (``aten::_reshape_alias``).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import torch


def computes(namespace: str, name: str) -> bool:
    """Whether an operator, such as ``aten``, ``conv2d``, only computes on what it is given.

    >>> computes("aten", "conv2d"), computes("aten", "relu_"), computes("aten", "save")
    (True, True, False)
    """
    known = _listed().get(namespace, frozenset())
    return name in known or (name.endswith("_") and not name.endswith("__") and name[:-1] in known)


def is_operator(namespace: str, name: str) -> bool:
    """Whether this torch has an operator of that name, listed here or not.

    >>> is_operator("aten", "conv2d"), is_operator("aten", "no_such_operator")
    (True, False)
    """
    return bool(torch._C._jit_get_schemas_for_operator(f"{namespace}::{name}"))


@cache
def _listed() -> dict[str, frozenset[str]]:
    by_namespace: dict[str, set[str]] = {}
    namespace = ""
    for word in files("jacli.untrusted").joinpath("operators.txt").read_text(encoding="ascii").split():
        if word.endswith(":"):
            namespace = word[:-1]
        else:
            by_namespace.setdefault(namespace, set()).add(word)
    return {namespace: frozenset(names) for namespace, names in by_namespace.items()}
