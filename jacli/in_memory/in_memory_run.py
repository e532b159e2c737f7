"""A model and points in memory: probed, planned, computed batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from jacli.choice.choose import choose
from jacli.choice.memory_limit import MemoryLimit, memory_errors
from jacli.choice.problem import Points, Problem
from jacli.device.precision import check_precision
from jacli.engine.batch_checks import BatchChecks
from jacli.engine.computed_batch import ComputedBatch
from jacli.engine.engine import Engine, OutBuffer
from jacli.engine.module_cache import CachedPlan
from jacli.engine.probed import padded, probed_network
from jacli.engine.whole_result import WholeResult
from jacli.errors import MethodError, UsageError
from jacli.in_memory.call_arguments import (
    check_model,
    check_points,
    dtype_of,
    labels_of,
    mistake_in_points,
    rows_of,
)
from jacli.linear_maps import LinearMap, UnformedMap
from jacli.methods import primitive_map
from jacli.models import LoadedModel
from jacli.models.dtypes import as_dtype, real_dtypes
from jacli.network import Linearized, TensorNetwork, frozen_twin
from jacli.options.methods import Primitive
from jacli.plans.plan import MatrixFreePlan, Plan, Shapes
from jacli.plans.request import Request
from jacli.run.placing import place
from jacli.run.request import WantedOutputs
from jacli.run.run_log import logger
from jacli.run.selection import check_classes, jacobian_shape, selected_outputs
from jacli.run.statistics import statistics_of
from jacli.spectrum import Triples, triples_of_matrices
from jacli.verify import BATCH_SIZES, Probed


class _Function(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *points: Tensor, **extra: object) -> object:
        return self.function(*points, **extra)


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

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What is differentiated of a sample: ``(*output,)``, with ``classes`` ``(k,)``."""
        return jacobian_shape(self.shapes, self._outputs.classes)[self.x.dim() - 1 :]

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
        result = WholeResult(self._request, self.problem)
        for batch, _ in self._batches(result.out_buffer):
            result.take(batch)
            del batch
        return result.matrices.mT.reshape(len(self.x), *jacobian_shape(self.shapes, self._outputs.classes))

    def spectra(self) -> Tensor:
        """The singular values asked for, ``(batch, s)`` float64."""
        parts = []
        for batch, plan in self._batches(None):
            if batch.triples is not None:
                parts.append(batch.triples.values)
                continue
            statistics = statistics_of(batch.matrices.take(slice(batch.count)), plan, seed=self._request.seed)
            assert statistics.spectrum is not None  # they were asked for
            parts.append(statistics.spectrum.values)
            del batch
        return torch.cat(parts)

    def triples(self) -> Triples:
        """The leading singular triples, as many as asked for, of every sample."""
        k, seed = self._request.singular_values, self._request.seed
        assert isinstance(k, int)
        parts = []
        for batch, _ in self._batches(None):
            triples = batch.triples
            if triples is None:
                triples = triples_of_matrices(batch.matrices.take(slice(batch.count)), k, seed=seed)
            parts.append(triples)
            del batch
        return Triples.joined(parts)

    def products(self) -> tuple[Linearized, LinearMap]:
        """The network at all points, and the first of its maps whose products are those of plain passes.

        Raises:
            MethodError: No primitive serves.
            UsageError: The model accepts only batches of another size.
        """
        n = len(self.x)
        if self.probed.fixed_batch not in (None, n):
            raise UsageError(
                f"The linear map of {n} samples cannot be given.",
                why=f"The model accepts batches of {self.probed.fixed_batch} only, as it was saved.",
                hint="Give as many samples.",
            )
        request, problem = replace(self._request, batch_size=n, spectrum="krylov"), self.problem
        with memory_errors("trying the model on the first samples"):
            choice = choose(request, problem)
        (plan,) = choice.plans
        assert isinstance(plan, MatrixFreePlan)  # what was required
        order: tuple[Primitive, ...] = (plan.primitive, "batched", "tape")
        for primitive in dict.fromkeys(order):
            linearization = problem.linearize(problem.points(0, n), choice.graph_of(plan))
            try:
                products = primitive_map(primitive, linearization)
                unformed = UnformedMap(products, plan.vectors_per_pass)
                batch = ComputedBatch(0, n, linearization, unformed)
                BatchChecks(request, problem).error(plan, batch, taken_over=False)
            except MethodError as failure:
                linearization.close()
                last = failure
                continue
            return linearization, products
        raise last

    def _batches(self, out_buffer: OutBuffer | None) -> Iterator[tuple[ComputedBatch, Plan]]:
        """The batches, each with its plan: that of an earlier call, or of a new choice, which is kept."""
        request, problem = self._request, self.problem
        with memory_errors("trying the model on the first samples"):
            choice = choose(request, problem, kept=self._kept.choice)
        engine = Engine(request, problem, choice, out_buffer, history=self._kept.history)
        with memory_errors("putting the results together"):
            for batch in engine.batches():
                assert engine.chosen is not None  # that of this batch
                yield batch, engine.chosen.plan
                del batch
        assert engine.accepted is not None  # there is a sample at least
        self._kept.keep(self.network, self.probed, engine.accepted, self._memory, held=engine.held)
        _tell((*choice.notes, *engine.notes))


def _tell(notes: Sequence[str]) -> None:
    for note in dict.fromkeys(notes):
        logger.info("%s", note)
