"""What was decided: shapes, method, passes and bytes of one run.  Integers only, no torch.

A `Plan` is printed by ``--dry-run``, stored in the result file, and obeyed by the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from jacli.config import RunConfig
from jacli.errors import UsageError

SINGULAR_VALUES_LIMIT = 4096
"""``--singular-values auto`` computes all of them up to this min(n_out, n_in)."""

_BLOCK_BYTES = 256 * 2**20
_LOOP_SAMPLES = 64
_CHUNK_BYTES = 64 * 2**20
_CHUNK = 32
_FEW = 8


@dataclass(frozen=True)
class Shapes:
    """Shapes of a run, learnt by the probe.

    Attributes:
        n_samples: Samples of this file.
        input_shape: Per sample, without the batch axis.
        output_shape: Per sample, without the batch axis.
        n_selected: Outputs differentiated (``--classes``), at most the number of outputs.
        fixed_batch: The only batch size the model accepts, or None.
        itemsize: Bytes of a number in the run's dtype.
    """

    n_samples: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    n_selected: int
    fixed_batch: int | None
    itemsize: int

    @property
    def n_in(self) -> int:
        """Flattened inputs a sample."""
        return math.prod(self.input_shape)

    @property
    def n_out(self) -> int:
        """Flattened outputs a sample."""
        return math.prod(self.output_shape)


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
    """

    method: str
    why: str
    batch_size: int
    chunk_size: int
    n_blocks: int
    passes: int
    singular_values: int
    all_singular_values: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def candidates(shapes: Shapes, config: RunConfig, refusals: dict[str, str | None]) -> list[tuple[str, str]]:
    """Methods to try, best first, each with why: a rule of thumb, confirmed on the first block.

    Forward mode costs n_in passes and reverse n_out; a batched pullback spares the per-call
    overhead where few samples share a pass; else a plain reverse pass over many samples at once is
    as fast and holds less.

    Args:
        shapes: The run's shapes.
        config: What was asked.
        refusals: Method to the reason why it cannot serve this model, or None.
    """
    if config.method != "auto":
        return [(config.method, "asked for")]
    n_in, n_out = shapes.n_in, shapes.n_selected
    samples = shapes.fixed_batch or min(shapes.n_samples, config.batch_size or _LOOP_SAMPLES)
    order = []
    if n_in < n_out:
        order.append(("forward", f"{n_in} inputs are fewer than {n_out} outputs"))
    if samples < _FEW and n_out > 1:
        order += [
            ("vmap", f"samples a block: {samples}, so batched cotangents fill a pass"),
            ("loop", "plain passes"),
        ]
    else:
        order += [("loop", f"samples a block: {samples}, which fill a pass"), ("vmap", "batched cotangents")]
    return [(name, why) for name, why in order if refusals.get(name) is None]


def make_plan(method: str, why: str, shapes: Shapes, config: RunConfig, passes: Callable[..., int]) -> Plan:
    """Decide block and chunk sizes for a method.

    Blocks keep the dense Jacobian of a block under 256 MiB where one sample allows it; chunks keep
    the batched cotangents under 64 MiB.

    Args:
        method: Name of the method.
        why: Why it was chosen.
        shapes: The run's shapes.
        config: What was asked.
        passes: The method's cost a block, ``passes(n_in=, n_out=, chunk_size=)``.

    Raises:
        UsageError: A batch size was asked for that the model does not accept.
    """
    n_in, n_out = shapes.n_in, shapes.n_selected
    batch_size = shapes.fixed_batch or config.batch_size or _auto_batch(method, shapes)
    if shapes.fixed_batch and config.batch_size not in (None, shapes.fixed_batch):
        raise UsageError(
            f"--batch-size {config.batch_size} is not possible with this model.",
            why=f"The model accepts batches of {shapes.fixed_batch} only, the size it was saved with.",
            todo=f"Leave --batch-size out, or give {shapes.fixed_batch}.",
        )
    if not shapes.fixed_batch:
        batch_size = min(batch_size, shapes.n_samples)
    per_row = batch_size * (n_in + n_out) * shapes.itemsize
    chunk_size = config.chunk_size or max(1, min(_CHUNK, _CHUNK_BYTES // max(per_row, 1)))
    chunk_size = min(chunk_size, n_in if method == "forward" else n_out)
    n_blocks = math.ceil(shapes.n_samples / batch_size)
    count, all_of_them = _singular_value_count(config.singular_values, min(n_in, n_out))
    return Plan(
        method=method,
        why=why,
        batch_size=batch_size,
        chunk_size=chunk_size,
        n_blocks=n_blocks,
        passes=n_blocks * passes(n_in=n_in, n_out=n_out, chunk_size=chunk_size),
        singular_values=count,
        all_singular_values=all_of_them,
    )


def _auto_batch(method: str, shapes: Shapes) -> int:
    most = 8 if method == "replicate" else _LOOP_SAMPLES
    sample_bytes = shapes.n_in * shapes.n_selected * shapes.itemsize
    if method == "replicate":  # the model runs on batch * n_out inputs at once
        most = max(1, min(most, 1024 // max(shapes.n_selected, 1)))
    return max(1, min(most, _BLOCK_BYTES // max(sample_bytes, 1)))


def _singular_value_count(asked: str | int, smaller: int) -> tuple[int, bool]:
    if asked == "none" or (asked == "auto" and smaller > SINGULAR_VALUES_LIMIT):
        return 0, False
    if isinstance(asked, int) and asked < smaller:
        return asked, False
    return smaller, True
