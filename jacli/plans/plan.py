"""What was decided: shapes, method, passes, bytes and seconds of one run.  No torch.

A `Plan` is printed by ``--dry-run``, stored in the result file, and obeyed by the run.  How it is found
by measurement is in `jacli.plans.search`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jacli.errors import UsageError
from jacli.options.config import RunConfig
from jacli.plans import bracketing
from jacli.plans.bracketing import Bracketing, Product

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
        """Flattened outputs a sample."""
        return math.prod(self.output_shape)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's Jacobian in the run's dtype."""
        return self.n_in * self.n_selected * self.itemsize


@dataclass(frozen=True)
class LinkPlan:
    """How the matrix of a link is filled in.

    Attributes:
        reverse_method: ``adjoint``, ``loop``, ``vmap`` or ``replicate``.
        reverse_chunk: Cotangents a pass.
        forward_chunk: Tangents a pass.
        forward_method: ``tangent`` or ``forward``.
    """

    reverse_method: str
    reverse_chunk: int
    forward_chunk: int
    forward_method: str = "forward"


@dataclass(frozen=True)
class FactoredPlan:
    """A network in links, and the order in which their Jacobians are multiplied.

    Attributes:
        cuts: Where, in words, from the input to the output.
        widths: Numbers a sample at the input, at each cut and at the output.
        split: Number of the cut, from 1, at which the two factors meet.
        tree: A product whose upper part ends, and lower part begins, at that cut.
        links: A plan each, from the input to the output.
    """

    cuts: tuple[str, ...]
    widths: tuple[int, ...]
    split: int
    tree: Bracketing
    links: tuple[LinkPlan, ...]

    def __post_init__(self) -> None:
        fits = len(self.widths) == len(self.links) + 1 == len(self.cuts) + 2
        spans = (self.tree.first, self.tree.last) == (0, len(self.links))
        if not (fits and spans and isinstance(self.tree, Product) and self.tree.upper.first == self.split):
            raise ValueError("a factored plan is a product at one of its cuts")

    @property
    def order(self) -> str:
        """The order of work in words: which part in which direction."""
        return bracketing.describe(self.tree, self.cuts)

    @property
    def width(self) -> int:
        """R of ``J = (n_out, r)(r, n_in)``."""
        return self.widths[self.split]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "tree": bracketing.to_dict(self.tree)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FactoredPlan:
        """Back from JSON; ``ValueError``, ``KeyError`` or ``TypeError`` if it is none."""
        return cls(
            cuts=tuple(map(str, values["cuts"])),
            widths=tuple(map(int, values["widths"])),
            split=int(values["split"]),
            tree=bracketing.from_dict(values["tree"]),
            links=tuple(LinkPlan(**link) for link in values["links"]),
        )


@dataclass(frozen=True)
class Measured:
    """One candidate tried on the first samples.

    Attributes:
        method: Its method; for part of a cut network, ``link: method``.
        batch_size: Samples a block.
        chunk_size: Outputs (or tangents) a pass.
        setup_seconds: Of a block, before its first vector: the linearisation.
        vector_seconds: Of one row (or column) of every sample of a block.
        bytes_held: Most that the process (or the device) held meanwhile, beyond what it held before the run.
        failure: Why it cannot serve, or None.
    """

    method: str
    batch_size: int
    chunk_size: int
    setup_seconds: float = math.inf
    vector_seconds: float = math.inf
    bytes_held: int = 0
    failure: str | None = None

    def block_seconds(self, n_vectors: int) -> float:
        """Seconds of a block with that many rows (or columns)."""
        return self.setup_seconds + n_vectors * self.vector_seconds

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the seconds of what failed."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {n: v for n, v in values.items() if not (isinstance(v, float) and math.isinf(v))}


@dataclass(frozen=True)
class Plan:
    """How a run is done.

    Attributes:
        method: Name in ``METHODS``.
        why: Why this method.
        batch_size: Samples a block.
        chunk_size: Outputs (or tangents) a pass.
        n_blocks: Blocks in the run.
        passes: Forward or reverse passes in the whole run, batched ones counted once.
        singular_values: How many a sample: all, the K largest, or 0.
        all_singular_values: Whether that is all of them.
        factored: For ``factored``: the cuts and what is done between them.
        seconds: Of the whole run's Jacobians, as measured on the first block; None if nothing was measured.
        measured: What was tried.
        notes: What could not be tried, and why.
    """

    method: str
    why: str
    batch_size: int
    chunk_size: int
    n_blocks: int
    passes: int
    singular_values: int
    all_singular_values: bool
    factored: FactoredPlan | None = None
    seconds: float | None = None
    measured: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **asdict(self),
            "factored": self.factored and self.factored.to_dict(),
            "measured": [m.to_dict() for m in self.measured],
            "notes": list(self.notes),
        }

    def smaller(self, shapes: Shapes, passes: Callable[..., int]) -> Plan | None:
        """The same with half the samples a block, or half the vectors a pass; None where both are one."""
        if self.batch_size > 1 and not shapes.fixed_batch:
            half = replace(self, batch_size=self.batch_size // 2)
        elif self.factored:
            if max(_chunks(self.factored)) == 1:
                return None
            links = tuple(
                replace(
                    link,
                    reverse_chunk=max(1, link.reverse_chunk // 2),
                    forward_chunk=max(1, link.forward_chunk // 2),
                )
                for link in self.factored.links
            )
            half = replace(self, factored=replace(self.factored, links=links))
        elif self.chunk_size > 1 and self.method != "loop":
            half = replace(self, chunk_size=self.chunk_size // 2)
        else:
            return None
        return with_counts(half, shapes, passes)


def _chunks(factored: FactoredPlan) -> list[int]:
    return [chunk for link in factored.links for chunk in (link.reverse_chunk, link.forward_chunk)]


def make_plan(
    method: str,
    why: str,
    shapes: Shapes,
    config: RunConfig,
    *,
    batch_size: int,
    chunk_size: int,
    passes: Callable[..., int],
    factored: FactoredPlan | None = None,
) -> Plan:
    """A plan from its sizes.

    Args:
        method: Name of the method.
        why: Why it was chosen.
        shapes: The run's shapes.
        config: What was asked.
        batch_size: Samples a block.
        chunk_size: Outputs (or tangents) a pass.
        passes: The method's cost a block, ``passes(n_in=, n_out=, chunk_size=)``.
        factored: For the method ``factored``.
    """
    count, all_of_them = _singular_value_count(config.singular_values, min(shapes.n_in, shapes.n_selected))
    plan = Plan(method, why, batch_size, chunk_size, 0, 0, count, all_of_them, factored)
    return with_counts(plan, shapes, passes)


def with_counts(plan: Plan, shapes: Shapes, passes: Callable[..., int]) -> Plan:
    """The plan with blocks and passes counted anew."""
    n_blocks = math.ceil(shapes.n_samples / plan.batch_size)
    if plan.factored:
        a_block = sum(_seeds(plan.factored.tree, plan.factored))
    else:
        a_block = passes(n_in=shapes.n_in, n_out=shapes.n_selected, chunk_size=plan.chunk_size)
    return replace(plan, n_blocks=n_blocks, passes=n_blocks * a_block)


def _seeds(tree: Bracketing, plan: FactoredPlan) -> list[int]:
    """Batched passes of each part of a bracketing, through one or more links at once."""
    if isinstance(tree, bracketing.Seed):
        link = plan.links[tree.first]
        if tree.direction == "forward":
            return [math.ceil(plan.widths[tree.first] / link.forward_chunk)]
        chunk = 1 if link.reverse_method == "loop" else link.reverse_chunk
        return [math.ceil(plan.widths[tree.last] / chunk)]
    if isinstance(tree, bracketing.Product):
        return _seeds(tree.upper, plan) + _seeds(tree.lower, plan)
    if isinstance(tree, bracketing.Pull):
        chunk = plan.links[tree.through_first].reverse_chunk
        return [*_seeds(tree.upper, plan), math.ceil(plan.widths[tree.last] / chunk)]
    chunk = plan.links[tree.through_first].forward_chunk
    return [*_seeds(tree.lower, plan), math.ceil(plan.widths[tree.first] / chunk)]


def check_batch_size(shapes: Shapes, config: RunConfig) -> None:
    """Refuse a batch size that the model does not accept.

    Raises:
        UsageError: Naming the one it does.
    """
    if shapes.fixed_batch and config.batch_size not in (None, shapes.fixed_batch):
        raise UsageError(
            f"--batch-size {config.batch_size} is not possible with this model.",
            why=f"The model accepts batches of {shapes.fixed_batch} only, the size it was saved with.",
            todo=f"Leave --batch-size out, or give {shapes.fixed_batch}.",
        )


def _singular_value_count(asked: str | int, smaller: int) -> tuple[int, bool]:
    if asked == "none" or (asked == "auto" and smaller > SINGULAR_VALUES_LIMIT):
        return 0, False
    if isinstance(asked, int) and asked < smaller:
        return asked, False
    return smaller, True
