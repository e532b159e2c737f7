"""Checks the graphs torch compiled from a TorchScript archive: every node must only compute.

The source has been judged before (`jacli.untrusted.torchscript_source`); this is the same question asked of
what will run, after torch resolved every name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jacli.untrusted.operators import computes
from jacli.untrusted.torchscript_source import CUSTOM_CLASSES

_CUSTOM_CLASS = re.compile(r"__torch__\.torch\.classes\.[\w.]+")


def problem_of_graphs(functions: Iterable[Any]) -> str | None:
    """A node that does more than compute, as a sentence; None where there is none.

    Args:
        functions: All compiled functions, methods included (``torch._C.CompilationUnit.get_functions()``).
    """
    for function in functions:
        for node in _nodes(function.graph):
            namespace, _, name = node.kind().partition("::")
            if not computes(namespace, name):
                return f"Its function {function.name} calls {namespace}::{name}, which does not only compute."
            for output in node.outputs():
                for kind in _CUSTOM_CLASS.findall(output.type().annotation_str):
                    if not CUSTOM_CLASSES.fullmatch(kind):
                        return f"Its function {function.name} uses {kind}, which does not only compute."
    return None


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those in nested blocks and subgraphs too."""
    rest = [graph]
    while rest:
        for node in rest.pop().nodes():
            yield node
            rest.extend(node.blocks())
            for name in node.attributeNames():
                if node.kindOf(name) == "g":
                    rest.append(node.g(name))
                elif node.kindOf(name) == "gs":
                    rest.extend(node.gs(name))
