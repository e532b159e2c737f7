"""What was decided: shapes, method, passes, bytes and seconds of one run.  No torch.

A `Plan` is printed by ``--dry-run``, stored in the result file, and obeyed by the run.  How it is found
by measurement is in `jacli.plans.search`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from jacli.errors import UsageError
from jacli.options.methods import CHAIN, KRYLOV, Method, Primitive
from jacli.plans.factorization import Factorization
from jacli.plans.request import Request

SINGULAR_VALUES_LIMIT = 4096
"""``--singular-values auto`` computes all of them up to this min(n_out, n_in)."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a run, learnt by the probe.

    Attributes:
        n_samples: Samples of this file.
        input_shape: Of a row of INPUTS, per sample, without the batch axis.
        output_shape: Per sample, without the batch axis.
        n_selected: Outputs differentiated (``--classes``), at most the number of outputs.
        fixed_batch: The only batch size the model accepts, or None.
        itemsize: Bytes of a number in the run's dtype.
        domain_shape: Of what is differentiated with respect to, per sample: the columns of J; the inputs if
            empty.
    """

    n_samples: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    n_selected: int
    fixed_batch: int | None
    itemsize: int
    domain_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.domain_shape:
            object.__setattr__(self, "domain_shape", self.input_shape)

    @property
    def n_in(self) -> int:
        """Columns of J."""
        return math.prod(self.domain_shape)

    @property
    def n_out(self) -> int:
        """Flattened outputs per sample."""
        return math.prod(self.output_shape)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's Jacobian in the run's dtype."""
        return self.n_in * self.n_selected * self.itemsize

    def vectors(self, method: Method) -> int:
        """Unit vectors with which a method fills in a sample's Jacobian."""
        return method.vectors(n_in=self.n_in, n_out=self.n_selected)


_LINK = re.compile(r"link (\d+): (\w+)")


@dataclass(frozen=True)
class Measured:
    """One candidate tried on the first samples.

    Attributes:
        method: Its method.
        batch_size: Samples per batch.
        chunk_size: Vectors per pass.
        setup_seconds: Time for a batch before its first vector: the linearisation.
        vector_seconds: Time for one row (or column) of every sample of a batch.
        bytes_held: Most that the process (or the device) held meanwhile, beyond what it held before the run.
        failure: Why it cannot serve, or None.
        link: Number of the link that it fills in, where the network is cut; None for the whole network.
    """

    method: str
    batch_size: int
    chunk_size: int
    setup_seconds: float = math.inf
    vector_seconds: float = math.inf
    bytes_held: int = 0
    failure: str | None = None
    link: int | None = None

    def batch_seconds(self, n_vectors: int) -> float:
        """Seconds of a batch with that many rows (or columns)."""
        return self.setup_seconds + n_vectors * self.vector_seconds

    @property
    def name(self) -> str:
        """The method, after the number of its link if it has one."""
        return self.method if self.link is None else f"link {self.link}: {self.method}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the seconds of what failed."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        values = {n: v for n, v in values.items() if not (isinstance(v, float) and math.isinf(v))}
        values.pop("link", None)
        return values | {"method": self.name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Back from JSON; ``TypeError`` or ``KeyError`` if it is none."""
        named = _LINK.fullmatch(str(values["method"]))
        own = {} if named is None else {"link": int(named[1]), "method": named[2]}
        return cls(**{**values, **own})


@dataclass(frozen=True, kw_only=True)
class _Plan(ABC):
    """What every plan says.

    Attributes:
        why: Why this method.
        batch_size: Samples per batch.
        n_batches: Batches in the run.
        passes: Forward or reverse passes in the whole run, batched ones counted once.
        singular_values: How many per sample: all, the K largest, or 0.
        all_singular_values: Whether that is all of them.
        seconds: Of the whole run's Jacobians, as measured on the first batch; None if nothing was measured.
        measured: What was tried.
        notes: What could not be tried, and why.
    """

    why: str
    batch_size: int
    n_batches: int = 0
    passes: int = 0
    singular_values: int = 0
    all_singular_values: bool = False
    seconds: float | None = None
    measured: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def method(self) -> str:
        """As ``--method`` has it."""

    @property
    @abstractmethod
    def chunk_size(self) -> int:
        """Vectors per pass; the most of any link, where the network is cut."""

    @abstractmethod
    def _with_smaller_chunks(self) -> Self | None:
        """The same with half the vectors per pass; None where that is one."""

    @abstractmethod
    def _passes_per_batch(self, shapes: Shapes) -> int: ...

    def counted(self, shapes: Shapes) -> Self:
        """The plan with batches and passes counted anew."""
        n_batches = math.ceil(shapes.n_samples / self.batch_size)
        return replace(self, n_batches=n_batches, passes=n_batches * self._passes_per_batch(shapes))

    def smaller(self, shapes: Shapes) -> Self | None:
        """The same with half the samples per batch, or half the vectors per pass; None where both are one."""
        if self.batch_size > 1 and not shapes.fixed_batch:
            return replace(self, batch_size=self.batch_size // 2).counted(shapes)
        half = self._with_smaller_chunks()
        return None if half is None else half.counted(shapes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, in the words of the result file."""
        return {
            "method": self.method,
            "why": self.why,
            "batch_size": self.batch_size,
            "chunk_size": self.chunk_size,
            "n_blocks": self.n_batches,
            "passes": self.passes,
            "singular_values": self.singular_values,
            "all_singular_values": self.all_singular_values,
            "factored": None,
            "seconds": self.seconds,
            "measured": [m.to_dict() for m in self.measured],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class WholePlan(_Plan):
    """One method fills in the matrix of the whole network.

    Attributes:
        filled_by: The method.
        vectors_per_pass: Cotangents, or tangents.
    """

    filled_by: Method
    vectors_per_pass: int

    @property
    def method(self) -> str:
        return self.filled_by.name

    @property
    def chunk_size(self) -> int:
        return self.vectors_per_pass

    def _with_smaller_chunks(self) -> WholePlan | None:
        if self.vectors_per_pass == 1 or self.filled_by.single_vector:
            return None
        return replace(self, vectors_per_pass=self.vectors_per_pass // 2)

    def _passes_per_batch(self, shapes: Shapes) -> int:
        sizes = {"n_in": shapes.n_in, "n_out": shapes.n_selected}
        return self.filled_by.passes(**sizes, chunk_size=self.vectors_per_pass)


@dataclass(frozen=True, kw_only=True)
class ChainPlan(_Plan):
    """The network is cut, and the Jacobians of its parts are multiplied in the cheapest order.

    Attributes:
        factorization: The cuts, and what is done between them.
    """

    factorization: Factorization

    @property
    def method(self) -> str:
        return CHAIN

    @property
    def chunk_size(self) -> int:
        return max(link.reverse_chunk for link in self.factorization.links)

    @property
    def largest_chunk(self) -> int:
        """Vectors per pass of any link in any direction."""
        return max(max(link.reverse_chunk, link.forward_chunk) for link in self.factorization.links)

    def _with_smaller_chunks(self) -> ChainPlan | None:
        if self.largest_chunk == 1:
            return None
        links = tuple(link.halved() for link in self.factorization.links)
        return replace(self, factorization=replace(self.factorization, links=links))

    def _passes_per_batch(self, shapes: Shapes) -> int:
        return self.factorization.passes

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"factored": self.factorization.to_dict()}


@dataclass(frozen=True, kw_only=True)
class MatrixFreePlan(_Plan):
    """A few singular triples from products with vectors: no matrix is formed.

    Attributes:
        primitive: The map whose products are taken.
        vectors_per_pass: Vectors per sample in one product.
        matvecs: Products per sample that are expected.
        max_matvecs: Products per sample after which the matrix would have been cheaper; None: no limit.
        max_basis: Basis vectors that fit in memory.
    """

    primitive: Primitive
    vectors_per_pass: int
    matvecs: int
    max_matvecs: int | None
    max_basis: int

    @property
    def method(self) -> str:
        return KRYLOV

    @property
    def chunk_size(self) -> int:
        return self.vectors_per_pass

    def _with_smaller_chunks(self) -> MatrixFreePlan | None:
        if self.vectors_per_pass == 1:
            return None
        return replace(self, vectors_per_pass=self.vectors_per_pass // 2)

    def _passes_per_batch(self, shapes: Shapes) -> int:
        return math.ceil(self.matvecs / self.vectors_per_pass)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"primitive": self.primitive, "matvecs": self.matvecs}


Plan = WholePlan | ChainPlan | MatrixFreePlan


def whole_plan(
    method: Method, why: str, shapes: Shapes, request: Request, *, batch_size: int, chunk_size: int
) -> WholePlan:
    """A plan from a method and its sizes.

    >>> from jacli.options.methods import METHODS
    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=10, fixed_batch=None, itemsize=4)
    >>> plan = whole_plan(METHODS["vmap"], "asked for", shapes, Request(), batch_size=32, chunk_size=5)
    >>> plan.n_batches, plan.passes  # ceil(100 / 32) batches of ceil(10 / 5) passes
    (4, 8)

    Args:
        method: The method.
        why: Why it was chosen.
        shapes: The run's shapes.
        request: What was asked.
        batch_size: Samples per batch.
        chunk_size: Vectors per pass.
    """
    return WholePlan(
        filled_by=method,
        vectors_per_pass=chunk_size,
        why=why,
        batch_size=batch_size,
        **_singular_values(request.singular_values, min(shapes.n_in, shapes.n_selected)),
    ).counted(shapes)


def chain_plan(
    factorization: Factorization, why: str, shapes: Shapes, request: Request, *, batch_size: int
) -> ChainPlan:
    """A plan from a factorization and its batch size; the arguments are those of `whole_plan`."""
    return ChainPlan(
        factorization=factorization,
        why=why,
        batch_size=batch_size,
        **_singular_values(request.singular_values, min(shapes.n_in, shapes.n_selected)),
    ).counted(shapes)


def matrix_free_plan(
    primitive: Primitive,
    why: str,
    shapes: Shapes,
    request: Request,
    *,
    batch_size: int,
    chunk_size: int,
    matvecs: int,
    max_basis: int,
) -> MatrixFreePlan:
    """A plan from a primitive and its sizes; the arguments are those of `whole_plan` and `MatrixFreePlan`."""
    return MatrixFreePlan(
        primitive=primitive,
        vectors_per_pass=chunk_size,
        matvecs=matvecs,
        max_matvecs=None,
        max_basis=max_basis,
        why=why,
        batch_size=batch_size,
        **_singular_values(request.singular_values, min(shapes.n_in, shapes.n_selected)),
    ).counted(shapes)


def check_batch_size(shapes: Shapes, request: Request) -> None:
    """Refuse a batch size that the model does not accept.

    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=10, fixed_batch=16, itemsize=4)
    >>> check_batch_size(shapes, Request(batch_size=8))
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: --batch-size 8 is not possible with this model.
    The model accepts batches of 16 only, the size it was saved with.
    Leave --batch-size out, or give 16.

    Raises:
        UsageError: Naming the one it does.
    """
    if shapes.fixed_batch and request.batch_size not in (None, shapes.fixed_batch):
        raise UsageError(
            f"--batch-size {request.batch_size} is not possible with this model.",
            why=f"The model accepts batches of {shapes.fixed_batch} only, the size it was saved with.",
            hint=f"Leave --batch-size out, or give {shapes.fixed_batch}.",
        )


def _singular_values(asked: str | int, smaller: int) -> dict[str, Any]:
    """The fields of a plan that say how many there are, ``smaller`` being all of them."""
    count = smaller
    if asked == "none" or (asked == "auto" and smaller > SINGULAR_VALUES_LIMIT):
        count = 0
    elif isinstance(asked, int):
        count = min(asked, smaller)
    return {"singular_values": count, "all_singular_values": asked != "none" and count == smaller}
