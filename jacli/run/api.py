"""Jacobians and singular values of a model in memory: ``jacli.jacobian`` and ``jacli.singular_values``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jacli.config import COLUMN_METHODS, RunConfig, from_options
from jacli.errors import InputsError, UsageError, means_out_of_memory
from jacli.linear_map import FactoredMap
from jacli.matrix_product import product
from jacli.network import TensorNetwork, exact_arithmetic, frozen_twin
from jacli.network.settings import reduced_precision
from jacli.plan import Plan, Shapes
from jacli.printable import count_of
from jacli.run.batch_checks import BatchChecks
from jacli.run.choose import Choice
from jacli.run.engine import Engine
from jacli.run.kept import Kept
from jacli.run.memory import MemoryLimit, memory_errors
from jacli.run.precision import check_precision
from jacli.run.probed import padded, probed_network
from jacli.run.reused_memory import reused_memory
from jacli.run.task import ComputedBlock, Points, Task
from jacli.spectrum import largest_singular_values
from jacli.spectrum import singular_values as all_singular_values
from jacli.verify import BATCH_SIZES, Probed

_NO_FILES = {"model": "-", "inputs": "-"}
"""Options are checked as the command's; model and inputs are in memory here."""

_CONVERGED = 1e-4
"""Relative error up to which matrix-free singular values are given out; beyond, J is formed."""


class _Function(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *points: Tensor, **extra: object) -> object:
        return self.function(*points, **extra)


def jacobian(
    model: Callable[..., object],
    x: Tensor,
    *,
    method: str = "auto",
    precision: str = "ieee",
    batch_size: int | None = None,
    chunk_size: int | None = None,
    memory: int | str | None = None,
    select: str | None = None,
    of: str = "logits",
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> Tensor:
    """The Jacobian of the outputs with respect to the inputs, for every sample.

    ``J[b, *i, *o] = d model(x)[b, *o] / d x[b, *i]``.  The class axis is last, as in the field's
    papers; ``torch.func.jacrev`` gives it first.  A module runs in eval mode, on a frozen copy: the
    module itself stays as it is.  A function runs as it is.

    The first call for a module and a shape finds out which method and sizes are the fastest, cutting the
    network where it is narrow; that is kept for the next call, as long as the module lives.

    Args:
        model: A module (TorchScript too) or a function, ``(batch, *input) -> (batch, *output)``.
        x: The points, ``(batch, *input)``, floating.
        method: ``auto``, ``loop``, ``replicate``, ``vmap``, ``forward``, ``adjoint``, ``tangent`` or
            ``factored``.
        precision: Arithmetic of the linear passes alone: ``ieee`` (the dtype's own), ``bf16``, or ``tf32`` on
            a GPU.  The point of linearisation is computed in the dtype whatever the precision.
        batch_size: Samples per batch; decided if None.  With 1, samples may influence one another in larger
            batches: each is computed alone.
        chunk_size: Outputs or, with ``forward`` and ``tangent``, inputs a pass; decided if None.
        memory: What the work may hold beside the result, in bytes or as ``"4GiB"``; a share of what is
            free if None.
        select: Which output, where the model returns several.
        of: ``logits``, ``probs`` or ``log-probs``.
        seed: Chooses the rows that are checked.
        per_sample: Names of the arguments that have one row a sample.
        **arguments: Further arguments of the model; the same for every sample unless named in
            ``per_sample``.  ``x`` is the first argument of the model that they do not name.

    Returns:
        ``(batch, *input, *output)``, on the device and in the dtype of ``x``; a view, in memory the
        input's axes are last (``.contiguous()`` makes a copy in the order of the shape).

    Raises:
        ModelError: There is no per-sample Jacobian, or the method cannot serve the model.
        InputsError: ``x`` is not floating, empty or not accepted by the model.
        UsageError: Wrong options.
    """
    config = from_options(
        {**_NO_FILES, "select": select, "of": of, "method": method, "seed": seed}
        | {"batch_size": batch_size, "chunk_size": chunk_size, "memory": memory}
        | {"precision": precision, "singular_values": "none"}
    )
    with exact_arithmetic(), reused_memory():
        return _Work(model, x, config, arguments, per_sample).dense()


def singular_values(
    model: Callable[..., object],
    x: Tensor,
    *,
    k: int | None = None,
    precision: str = "ieee",
    select: str | None = None,
    of: str = "logits",
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> Tensor:
    """Singular values of every sample's Jacobian as a matrix ``(n_out, n_in)``, decreasing.

    With ``k`` well below ``min(n_out, n_in)`` the Jacobian is not formed: Golub-Kahan-Lanczos on
    products with J and its transpose, a few dozen passes, aiming at 1e-6 of the largest value; where
    its error bounds exceed 1e-4 of it, for other ``k`` and in a reduced precision, the Jacobian is formed and
    its Gram matrix decomposed in float64.

    Args:
        model: As `jacobian`.
        x: As `jacobian`.
        k: How many, the largest; all if None.
        precision: As `jacobian`; the values are those of the matrix so computed, and have its error.
        select: As `jacobian`.
        of: As `jacobian`.
        seed: Starts the Lanczos vectors.
        per_sample: As `jacobian`.
        **arguments: As `jacobian`.

    Returns:
        ``(batch, min(k, n_out, n_in))``, float64.

    Raises:
        JacliError: As `jacobian`.
    """
    if k is not None and (not isinstance(k, int) or k < 1):
        raise UsageError(f"k={k!r} is wrong.", why="It must be a whole number of at least 1.")
    config = from_options({**_NO_FILES, "select": select, "of": of, "seed": seed, "precision": precision})
    with exact_arithmetic(), reused_memory():
        work = _Work(model, x, config, arguments, per_sample)
        few = k is not None and 4 * k < min(work.shapes.n_in, work.shapes.n_out)
        # Reduced products with J and J' are not transposes of one another: there J is formed, once.
        if k is not None and few and precision == "ieee":
            values = work.largest(k)
            if values is not None:
                return values
        dense = work.dense()
        matrices = dense.reshape(len(x), work.shapes.n_in, work.shapes.n_out).mT
        return all_singular_values(matrices).values[:, :k]


class _Work:
    """A model and points in memory, probed, ready to be linearised block by block."""

    def __init__(
        self,
        model: Callable[..., object],
        x: Tensor,
        config: RunConfig,
        arguments: dict[str, object],
        per_sample: Sequence[str],
    ) -> None:
        _check_points(x)
        check_precision(config.precision, x.device, x.dtype)
        self.x = x.detach()
        self.extra = _rows_of(arguments, per_sample, len(x))
        self.constant = {name: value for name, value in arguments.items() if name not in per_sample}
        self.config = config
        self._kept = Kept.of(model, self.x, config, arguments, self.extra)
        self._memory = MemoryLimit.of_run(config, x.device)
        with memory_errors("running the model on the first samples"):
            self.network, self.probed = self._kept.network or self._probed(model)

    def _probed(self, model: Callable[..., object]) -> tuple[TensorNetwork, Probed]:
        module = model if isinstance(model, nn.Module) else _Function(model)
        return probed_network(
            frozen_twin(module),
            self.x[:4],
            self._rows(0, 4),
            arguments=self.constant,
            signature=model,
            select=self.config.select,
            of=self.config.of,
            batch_hints=[size for size in (self.config.batch_size, *BATCH_SIZES, len(self.x)) if size],
            alone=self.config.batch_size == 1,
        )

    @property
    def shapes(self) -> Shapes:
        """The run's shapes."""
        return Shapes(
            n_samples=len(self.x),
            input_shape=tuple(self.x.shape[1:]),
            output_shape=self.probed.output_shape,
            n_selected=math.prod(self.probed.output_shape),
            fixed_batch=self.probed.fixed_batch,
            itemsize=self.x.element_size(),
        )

    def _rows(self, start: int, stop: int) -> dict[str, Tensor]:
        return {name: rows[start:stop] for name, rows in self.extra.items()}

    def _points(self, start: int, size: int) -> Points:
        """Samples ``start:start + size``; padded with the last one where the model needs that size."""
        stop = min(start + size, len(self.x))
        x, extra = self.x[start:stop], self._rows(start, stop)
        if self.probed.fixed_batch:
            x, extra = padded(x, size), {name: padded(rows, size) for name, rows in extra.items()}
        return x, extra, None

    @property
    def task(self) -> Task:
        """The work as the engine sees it."""
        return Task(
            self.network,
            self.shapes,
            self.config,
            self._points,
            self._memory,
            keeps_dense=True,
            share=10.0 if self._kept.is_kept else 0.25,  # it is the first call of many
        )

    def dense(self) -> Tensor:
        """All Jacobians, ``(batch, *input, *output)``; in memory the rows of a sample are contiguous."""
        task = self.task
        with memory_errors("trying the model on the first samples"):
            choice = Choice(task, kept=self._kept.choice)
        result = _Result(task)
        engine = Engine(task, choice, result.place)
        with memory_errors("putting the Jacobian together"):
            for block in engine.blocks():
                result.take(block)
                del block
        assert engine.accepted is not None  # there is a sample at least
        self._kept.keep(self.network, self.probed, engine.accepted)
        return result.matrices.mT.reshape(*self.x.shape, *self.shapes.output_shape)

    def largest(self, k: int) -> Tensor | None:
        """The k largest singular values without forming J; None where they did not converge.

        So too where a primitive has no rule for this model or is wrong on it: the matrix has to be formed.
        """
        size = self.probed.fixed_batch or len(self.x)
        task, parts = self.task, []
        checks = BatchChecks(task)
        for start in range(0, len(self.x), size):
            linearization = task.linearize(self._points(start, size))
            try:
                if not checks.products_serve(linearization, start=start):
                    return None
                spectrum = largest_singular_values(
                    linearization, k, seed=self.config.seed, dtype=self.x.dtype, device=self.x.device
                )
            except (RuntimeError, NotImplementedError) as error:
                if means_out_of_memory(error):
                    raise
                return None
            if not bool((spectrum.errors <= _CONVERGED * spectrum.values[:, :1]).all()):
                return None
            parts.append(spectrum.values[: min(size, len(self.x) - start)])
            linearization.close()
        return torch.cat(parts)


def _check_points(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1 or len(x) == 0:
        given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputsError(
            f"x is {given}.",
            why="A Jacobian needs a floating tensor (batch, *input) with a sample at least.",
            todo="Convert it, for example x.float().",
        )
    if not bool(torch.isfinite(x).all()):
        raise InputsError(
            "x has values that are not finite.",
            why="A Jacobian at NaN or infinity does not exist.",
            todo="Leave those samples out.",
        )


def _rows_of(arguments: dict[str, object], per_sample: Sequence[str], batch: int) -> dict[str, Tensor]:
    """The arguments that have a row a sample."""
    found: dict[str, Tensor] = {}
    for name in per_sample:
        rows = arguments.get(name)
        if not isinstance(rows, Tensor) or rows.dim() == 0 or len(rows) != batch:
            raise UsageError(
                f"The argument {name} has no row a sample.",
                why=f"per_sample names it, and x has {count_of(batch, 'sample')}.",
                todo="Give a tensor of that length.",
            )
        found[name] = rows
    return found


class _Result:
    """The whole result; blocks are computed into it.

    Attributes:
        matrices: ``(n_samples, n_out, n_in)``.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.matrices = torch.empty(0)

    def place(self, plan: Plan, start: int, count: int) -> Tensor | None:
        """The part of it that belongs to some samples; None where the only block can be the result."""
        shapes = self._task.shapes
        vectors = shapes.n_in if plan.method in COLUMN_METHODS else shapes.n_selected
        if count == shapes.n_samples and plan.chunk_size >= vectors:
            return None
        if len(self.matrices) == 0:
            x, _, _ = self._task.points(0, 1)
            n_samples, n_out, n_in = shapes.n_samples, shapes.n_selected, shapes.n_in
            by_columns = plan.method in COLUMN_METHODS
            self.matrices = (
                x.new_empty(n_samples, n_in, n_out).mT if by_columns else x.new_empty(n_samples, n_out, n_in)
            )
        return self.matrices[start : start + count]

    def take(self, block: ComputedBlock) -> None:
        """A block that was computed elsewhere; of factors, their product."""
        matrices, stop = block.matrices, block.start + block.count
        if isinstance(matrices, FactoredMap):
            if len(self.matrices) == 0:
                shape = (self._task.shapes.n_samples, matrices.n_out, matrices.n_in)
                self.matrices = matrices.left.new_empty(shape)
            factors = matrices.samples(0, block.count)
            # Their error is that of reduced passes: an exact product would cost more than them on a GPU.
            reduced = "ieee" if self._task.config.precision == "ieee" else "tf32"
            with reduced_precision(reduced):
                product(factors.left, factors.right, self.matrices[block.start : stop])
            return
        dense = matrices.samples(0, block.count).dense()
        if len(self.matrices) == 0:
            self.matrices = dense
        elif dense.data_ptr() != self.matrices[block.start : stop].data_ptr():
            self.matrices[block.start : stop] = dense
