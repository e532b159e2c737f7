"""The methods that fill in a Jacobian, as a table: which map, rows or columns, how many vectors at a time.

At a batch of points a network is a linear map per sample, of which torch offers three primitives:

``tape``
    plain reverse passes over one recorded forward pass, a vector per pass; no batching rule is involved;
``batched``
    torch.func's ``vjp`` and ``jvp`` under ``vmap``: a chunk of vectors per pass;
``program``
    the traced network as a linear program (`jacli.linear_program`): a chunk of vectors per pass, without
    autograd, in the precision asked for.

A new method is a row in `METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Primitive = Literal["tape", "batched", "program"]


@dataclass(frozen=True)
class Method:
    """How a method fills in the matrix ``J`` of shape ``(n_out, n_in)`` of each sample of a batch.

    Attributes:
        name: As ``--method`` has it.
        primitive: The map whose products with unit vectors it takes.
        by_columns: Whether it pushes tangents forward, for columns; else it pulls cotangents back, for rows.
        single_vector: Whether each pass takes one vector, whatever the chunk size.
        repeats_batch: Whether it runs the model on ``chunk_size`` copies of the batch, a vector for each.
        reruns_network: Whether each pass runs the network anew.
        first_rows: Rows in flight (samples times vectors) with which a search for its sizes begins; 0: those
            that a few samples come to.
        known_as_one_call: Whether its name stands for a single call with all vectors, unless a chunk size is
            asked for.
    """

    name: str
    primitive: Primitive
    by_columns: bool = False
    single_vector: bool = False
    repeats_batch: bool = False
    reruns_network: bool = False
    first_rows: int = 0
    known_as_one_call: bool = False

    @property
    def runs_program(self) -> bool:
        """Whether it needs the traced network, and then computes in any precision."""
        return self.primitive == "program"

    @property
    def needs_batching_rules(self) -> bool:
        """Whether torch must have a batching rule for each operation of the model."""
        return self.primitive == "batched"

    @property
    def is_plain(self) -> bool:
        """Whether it is made of plain reverse passes, over a forward pass with every kernel."""
        return self.primitive == "tape"

    @property
    def is_reference(self) -> bool:
        """Whether it consists of the very passes that every other method is checked with."""
        return self.is_plain and not self.repeats_batch

    def vectors(self, *, n_in: int, n_out: int) -> int:
        """Unit vectors that fill in the matrix."""
        return n_in if self.by_columns else n_out

    def passes(self, *, n_in: int, n_out: int, chunk_size: int) -> int:
        """Passes per batch of samples, batched ones counted once."""
        return math.ceil(self.vectors(n_in=n_in, n_out=n_out) / (1 if self.single_vector else chunk_size))

    def refusal(self, *, fixed_batch: int | None) -> str | None:
        """Why it cannot serve a model that accepts no other batch size than ``fixed_batch``, or None."""
        if fixed_batch is None:
            return None
        if self.repeats_batch:
            return f"it repeats the batch, and the model runs in batches of {fixed_batch} only"
        return trace_refusal(fixed_batch=fixed_batch) if self.runs_program else None


def trace_refusal(*, fixed_batch: int | None) -> str | None:
    """Why a model that accepts only one batch size cannot be traced, or None.

    >>> trace_refusal(fixed_batch=None), trace_refusal(fixed_batch=16)
    (None, 'the network is traced at two batch sizes, and the model accepts 16 only')
    """
    if fixed_batch is None:
        return None
    return f"the network is traced at two batch sizes, and the model accepts {fixed_batch} only"


_ROWS = (
    # n_out passes; memory: the activations of one batch.
    Method("loop", "tape", single_vector=True, first_rows=32),
    # ceil(n_out / chunk) calls; memory: the activations of chunk copies of the batch. A backward pass over
    # eight copies of one sample is often faster than eight over one.
    Method("replicate", "tape", repeats_batch=True, known_as_one_call=True),
    # ceil(n_out / chunk) passes, as torch.func.jacrev(chunk_size=...); memory: the activations of one batch
    # and the cotangents of a chunk.
    Method("vmap", "batched"),
    # ceil(n_in / chunk) passes, as torch.func.jacfwd in chunks; memory: one layer's tangents of a chunk.  For
    # few inputs and many outputs.
    Method("forward", "batched", by_columns=True, reruns_network=True, first_rows=16),
    # ceil(n_out / chunk) passes; memory: the masks and multipliers of one batch, and two or three layers'
    # cotangents of a chunk.
    Method("adjoint", "program"),
    # The same in the other direction: ceil(n_in / chunk) passes.
    Method("tangent", "program", by_columns=True),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ROWS})
"""Every method by its name."""

REFERENCE = next(method for method in _ROWS if method.is_reference)
"""Plain reverse passes: right wherever the network has a derivative."""

CHAIN = "factored"
"""What ``--method`` calls a plan that cuts the network: each part is filled in by a method of the table."""

KRYLOV = "krylov"
"""What a plan is called that pushes a few vectors through and fills in no matrix."""

PRECISIONS = ("ieee", "tf32", "bf16")
"""Arithmetic of the linear passes: that of ``--dtype``, or a reduced one."""

METHOD_NAMES = (*METHODS, CHAIN)

AUTOGRAD_METHODS = tuple(name for name, method in METHODS.items() if not method.runs_program)
"""Those that compute as autograd does, wholly in ``--dtype``."""

PROGRAM_METHODS = tuple(name for name, method in METHODS.items() if method.runs_program)
"""Those that run the traced network, and so compute in every precision."""
