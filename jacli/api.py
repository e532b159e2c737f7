"""Jacobians and singular values of a model in memory: ``jacli.jacobian`` and ``jacli.singular_values``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from jacli.choice.choose import choose
from jacli.choice.memory_limit import MemoryLimit, memory_errors
from jacli.choice.problem import Points, Problem
from jacli.device.allocator import reused_memory
from jacli.device.precision import check_precision
from jacli.engine.batch_checks import BatchChecks
from jacli.engine.engine import Engine
from jacli.engine.module_cache import CachedPlan
from jacli.engine.probed import padded, probed_network
from jacli.engine.whole_result import WholeResult
from jacli.errors import means_out_of_memory
from jacli.models import LoadedModel
from jacli.models.dtypes import as_dtype, real_dtypes
from jacli.network import TensorNetwork, exact_arithmetic, frozen_twin
from jacli.plans.plan import Shapes
from jacli.plans.request import Request
from jacli.run.call_arguments import (
    check_count,
    check_model,
    check_points,
    dtype_of,
    labels_of,
    mistake_in_points,
    rows_of,
)
from jacli.run.placing import place
from jacli.run.request import WantedOutputs, asked_of_call
from jacli.run.run_log import logger
from jacli.run.selection import check_classes, jacobian_shape, selected_outputs
from jacli.spectrum import largest_singular_values
from jacli.spectrum import singular_values as all_singular_values
from jacli.verify import BATCH_SIZES, Probed

_VECTORS_PER_VALUE = 400
"""Rows or columns of a matrix that take as long as one of its largest singular values without it."""

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
    classes: str | int | Sequence[int] = "all",
    labels: Tensor | None = None,
    of: str = "logits",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> Tensor:
    """The Jacobian of the outputs with respect to the inputs, for every sample.

    ``J[b, *i, *o] = d model(x)[b, *o] / d x[b, *i]``.  The class axis is last, as in the field's
    papers; ``torch.func.jacrev`` gives it first.  A module runs in eval mode, on a frozen copy: the
    module itself stays as it is.  A function runs as it is.

    Forward hooks and forward pre-hooks of the module run in each of jacli's forward passes (a few dozen
    for the first call), since they may be part of the function.  Backward hooks do not run: they would change
    gradients and not the function.

    The first call for a module and a shape finds out which method and sizes are the fastest, cutting the
    network where it is narrow; that is kept for the next call, also with fewer samples, as long as the module
    lives.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))
    >>> x = torch.randn(2, 3)
    >>> jacobian(model, x).shape, jacobian(model, x, classes=[0, 4]).shape
    (torch.Size([2, 3, 5]), torch.Size([2, 3, 2]))
    >>> jacobian(model, x, classes="top:1", dtype="float64").dtype  # the model itself stays float32
    torch.float64

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
        classes: Which outputs, as flat indices: ``[0, 3, 7]`` or ``"0,3,7"``, ``"top:5"`` (each sample's five
            largest, in that order), ``"label"`` (each sample's label) or ``"all"``.
        labels: ``(batch,)`` whole numbers, for ``classes="label"``.
        of: ``logits``, ``probs`` or ``log-probs``.
        dtype: ``float32`` or ``float64``: ``x`` and a copy of the module are converted to it, and the outputs
            are compared with those before.  A module that is converted is planned anew in each call.  A
            function is not converted, but called with points in the dtype.
        seed: Chooses the rows that are checked.
        per_sample: Names of the arguments that have one row per sample.
        **arguments: Further arguments of the model; the same for every sample unless named in
            ``per_sample``.  ``x`` is the first argument of the model that they do not name.

    Returns:
        ``(batch, *input, *output)``, with ``classes`` ``(batch, *input, k)``, on the device of ``x``, in
        ``dtype`` or that of ``x``; a view: in memory the input's axes are last (``.contiguous()`` makes a
        copy in the order of the shape).

    Raises:
        ModelError: The model is no network, has no per-sample Jacobian, or the method cannot serve it.
        InputsError: ``x`` is no tensor, not floating, empty, not finite or not accepted by the model.
        UsageError: Wrong options.

    What a run would tell as a note goes to the logger ``jacli`` at level INFO; nothing is printed.
    """
    request, which = asked_of_call(
        select=select,
        classes=classes,
        labels=labels,
        of=of,
        method=method,
        precision=precision,
        batch_size=batch_size,
        chunk_size=chunk_size,
        memory=memory,
        seed=seed,
    )
    with exact_arithmetic(), reused_memory():
        run = InMemoryRun(model, x, request, which, arguments, per_sample, dtype=dtype, labels=labels)
        return run.dense()


def singular_values(
    model: Callable[..., object],
    x: Tensor,
    *,
    k: int | None = None,
    precision: str = "ieee",
    select: str | None = None,
    classes: str | int | Sequence[int] = "all",
    labels: Tensor | None = None,
    of: str = "logits",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> Tensor:
    """Singular values of every sample's Jacobian as a matrix ``(n_out, n_in)``, decreasing.

    Where ``min(n_out, n_in)`` is at least ``400 k``, or the Jacobians do not fit in memory, they are
    not formed: Golub-Kahan-Lanczos on products with J and its transpose, a few dozen passes, aiming at 1e-6
    of the largest value.  Elsewhere that takes longer than all singular values do, and they are computed: the
    Jacobian is formed and its Gram matrix decomposed in float64; so too where the error bounds exceed 1e-4
    of the largest value, and in a reduced precision.

    >>> model = torch.nn.Linear(4, 3)
    >>> sigma = singular_values(model, torch.randn(2, 4), k=2)
    >>> torch.allclose(sigma[0], torch.linalg.svdvals(model.weight.detach().double())[:2], rtol=1e-4)
    True

    Args:
        model: As `jacobian`.
        x: As `jacobian`.
        k: How many, the largest; all if None.
        precision: As `jacobian`; the values are those of the matrix so computed, and have its error.
        select: As `jacobian`.
        classes: As `jacobian`: the rows of the matrix.
        labels: As `jacobian`.
        of: As `jacobian`.
        dtype: As `jacobian`; the values are float64 in any case.
        seed: Starts the Lanczos vectors.
        per_sample: As `jacobian`.
        **arguments: As `jacobian`.

    Returns:
        ``(batch, min(k, n_out, n_in))``, float64.

    Raises:
        JacliError: As `jacobian`.
    """
    k = check_count(k)
    request, which = asked_of_call(
        labels=labels, select=select, of=of, classes=classes, precision=precision, seed=seed
    )
    with exact_arithmetic(), reused_memory():
        run = InMemoryRun(model, x, request, which, arguments, per_sample, dtype=dtype, labels=labels)
        # Reduced products with J and J' are not transposes of one another: there J is formed, once.
        if k is not None and request.is_exact and run.pays_without_matrix(k):
            values = run.largest(k)
            if values is not None:
                return values
        dense = run.dense()
        matrices = dense.reshape(len(x), run.shapes.n_in, run.shapes.n_selected).mT
        return all_singular_values(matrices).values[:, :k]


class InMemoryRun:
    """A model and points in memory, probed, ready to be linearised batch by batch."""

    def __init__(
        self,
        model: Callable[..., object],
        x: Tensor,
        request: Request,
        outputs: WantedOutputs,
        arguments: dict[str, object],
        per_sample: Sequence[str],
        *,
        dtype: str | torch.dtype | None,
        labels: Tensor | None,
    ) -> None:
        check_model(model, x)
        points, asked = check_points(x, model), dtype_of(dtype)
        self.x = points if asked is None else points.to(asked)
        check_precision(request.precision, x.device, self.x.dtype)
        self.extra = rows_of(arguments, per_sample, len(x))
        self.constant = {name: value for name, value in arguments.items() if name not in self.extra}
        if asked is not None:
            self.extra = {name: as_dtype(rows, asked) for name, rows in self.extra.items()}
        self.labels = None if labels is None else labels_of(labels, x)
        converted = asked is not None and isinstance(model, nn.Module) and real_dtypes(model) != {asked}
        self._outputs = outputs
        what = replace(request, seed=0), outputs
        self._kept = CachedPlan.of(model, self.x, what, arguments, self.extra, keep=not converted)
        # Where its plan is kept, it is the first call of many.
        self._request = replace(request, search_share=10.0) if self._kept.is_kept else request
        self._memory = self._kept.memory or MemoryLimit.of_run(request.memory, x.device)
        with memory_errors("running the model on the first samples"):
            self.network, self.probed = self._kept.network or self._probed(model, converted=converted)
        n_out = math.prod(self.probed.output_shape)
        check_classes(outputs.classes, None if self.labels is None else self.labels.cpu().numpy(), n_out)

    def _probed(self, model: Callable[..., object], *, converted: bool) -> tuple[TensorNetwork, Probed]:
        module = frozen_twin(model if isinstance(model, nn.Module) else _Function(model))
        batch_size = self._request.batch_size
        hints = [size for size in (batch_size, *BATCH_SIZES, len(self.x)) if size]
        select, of, alone = self._outputs.select, self._outputs.of, batch_size == 1
        x, rows = self.x[:4], self._rows(0, 4)
        if converted:
            placed = place(
                LoadedModel(module.cpu(), format="", path=None, sha256=None),
                x.cpu(),
                {name: some.cpu() for name, some in rows.items()},
                dtype=x.dtype,
                device=x.device,
                arguments={
                    name: value.cpu() if isinstance(value, Tensor) else value
                    for name, value in self.constant.items()
                },
                select=select,
                of=of,
                batch_hints=hints,
                alone=alone,
            )
            _tell(placed.notes)
            return placed.network, placed.probed
        return probed_network(
            module,
            x,
            rows,
            arguments=self.constant,
            signature=model,
            select=select,
            of=of,
            batch_hints=hints,
            alone=alone,
            mistake=partial(mistake_in_points, module, self.x),
        )

    @property
    def shapes(self) -> Shapes:
        """The run's shapes."""
        return Shapes(
            n_samples=len(self.x),
            input_shape=tuple(self.x.shape[1:]),
            output_shape=self.probed.output_shape,
            n_selected=self._outputs.classes.count(math.prod(self.probed.output_shape)),
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
        labels = None if self.labels is None else padded(self.labels[start:stop], len(x))
        return x, extra, selected_outputs(self.network, x, extra, self._outputs.classes, labels)

    @property
    def problem(self) -> Problem:
        """The work as the engine sees it."""
        return Problem(self.network, self.shapes, self._points, self._memory)

    def dense(self) -> Tensor:
        """All Jacobians, ``(batch, *input, *output)``; in memory the rows of a sample are contiguous."""
        request, problem = self._request, self.problem
        with memory_errors("trying the model on the first samples"):
            choice = choose(request, problem, kept=self._kept.choice)
        result = WholeResult(request, problem)
        engine = Engine(request, problem, choice, result.out_buffer, history=self._kept.history)
        with memory_errors("putting the Jacobian together"):
            for batch in engine.batches():
                result.take(batch)
                del batch
        assert engine.accepted is not None  # there is a sample at least
        self._kept.keep(self.network, self.probed, engine.accepted, self._memory, held=engine.held)
        _tell((*choice.notes, *engine.notes))
        return result.matrices.mT.reshape(len(self.x), *jacobian_shape(self.shapes, self._outputs.classes))

    def pays_without_matrix(self, k: int) -> bool:
        """Whether k singular values take less by products with vectors than by the matrices.

        Products are passes of one vector per sample each, dozens of them for each value where the spectrum is
        flat; a matrix has its vectors batched (benchmarks/NOTES.md).
        """
        shapes = self.shapes
        smaller = min(shapes.n_in, shapes.n_selected)
        too_large = shapes.n_samples * shapes.sample_bytes > self._memory.limit
        return smaller >= _VECTORS_PER_VALUE * k or (4 * k < smaller and too_large)

    def largest(self, k: int) -> Tensor | None:
        """The k largest singular values without forming J; None where they did not converge.

        So too where a primitive has no rule for this model or is wrong on it: the matrix has to be formed.
        """
        size = self.probed.fixed_batch or len(self.x)
        problem, parts = self.problem, []
        checks = BatchChecks(self._request, problem)
        for start in range(0, len(self.x), size):
            with problem.linearize(self._points(start, size)) as linearization:
                try:
                    if not checks.products_serve(linearization, start=start):
                        return None
                    spectrum = largest_singular_values(linearization.batched(), k, seed=self._request.seed)
                except (RuntimeError, NotImplementedError) as error:
                    if means_out_of_memory(error):
                        raise
                    return None
            if not bool((spectrum.errors <= _CONVERGED * spectrum.values[:, :1]).all()):
                return None
            parts.append(spectrum.values[: min(size, len(self.x) - start)])
        self._kept.keep(self.network, self.probed, None, self._memory, held=self._memory.limit)
        return torch.cat(parts)


def _tell(notes: Sequence[str]) -> None:
    for note in dict.fromkeys(notes):
        logger.info("%s", note)
