"""One run's batches: from rows read to arrays written."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from jacli.choice.memory_limit import MemoryLimit
from jacli.choice.problem import Points, Problem
from jacli.device.transfer import ArrivingArray, HostCopies
from jacli.engine.computed_batch import ComputedBatch
from jacli.engine.probed import padded
from jacli.linear_maps import FactoredMap, Matrices
from jacli.options.table import RunConfig
from jacli.plans.plan import SINGULAR_VALUES_LIMIT, ChainPlan, Plan, WholePlan
from jacli.plans.request import Request
from jacli.run.factored_array import FactoredArray
from jacli.run.prepare import Prepared
from jacli.run.request import request_of
from jacli.run.selection import jacobian_shape, selected_outputs
from jacli.run.statistics import statistics_of
from jacli.store import ResultLayout

StoredArray = np.ndarray | FactoredArray | ArrivingArray


class Run:
    """A prepared run: its problem, its layout, and its batches as the file stores them.

    Attributes:
        request: What is asked of the engine.
        inputs_sha256: Of the rows read so far.
        not_finite: Positions in INPUTS of the samples so far whose Jacobian or outputs are not finite.
        memory: What may be held.
    """

    def __init__(self, config: RunConfig, prepared: Prepared, *, must_follow: bool = False) -> None:
        self.config = config
        self.request: Request = request_of(config, must_follow=must_follow)
        self.prepared = prepared
        self.inputs_sha256 = hashlib.sha256()
        self.not_finite: list[int] = []
        self.memory = MemoryLimit.of_run(config.memory, prepared.device)
        self._host = HostCopies(prepared.device)

    def go_on(self, inputs_sha256: hashlib._Hash, not_finite: list[int]) -> None:
        """Begin after the samples that an earlier process has done: what it knew of them."""
        self.inputs_sha256 = inputs_sha256
        self.not_finite = not_finite

    def result_bytes(self, count: int, plan: Plan) -> int:
        """Bytes of what waits to be written of so many samples: matrices, or their factors."""
        shapes = self.prepared.shapes
        if isinstance(plan, ChainPlan):
            return count * plan.factorization.width * (shapes.n_in + shapes.n_selected) * shapes.itemsize
        return count * shapes.sample_bytes if self.config.save == "full" else 0

    @property
    def jacobian_shape(self) -> tuple[int, ...]:
        """A sample's stored Jacobian: ``(*domain, *output)``, or ``(*input, k)`` with ``--classes``."""
        return jacobian_shape(self.prepared.shapes, self.config.classes)

    def notes(self, plan: Plan) -> list[str]:
        """Notes on what the plan leaves out without having been told to."""
        shapes = self.prepared.shapes
        smaller = min(shapes.n_in, shapes.n_selected)
        notes = []
        if self.config.chunk_size and isinstance(plan, WholePlan) and plan.filled_by.single_vector:
            notes.append(f"--chunk-size has no part in the method {plan.method}")
        if self.config.singular_values == "auto" and not plan.singular_values:
            notes += [
                f"no singular values: min(n_out, n_in) = {smaller} is above {SINGULAR_VALUES_LIMIT}; "
                "ask for some with --singular-values K"
            ]
        return notes

    def layout(self, plan: Plan) -> ResultLayout:
        """Layout of the result file."""
        config, shapes = self.config, self.prepared.shapes
        saves_factors = config.save == "factors"
        return ResultLayout(
            n_samples=shapes.n_samples,
            input_shape=shapes.input_shape,
            domain_shape=shapes.domain_shape,
            output_shape=shapes.output_shape,
            selected=None if config.classes.kind == "all" else shapes.n_selected,
            per_sample_classes=config.classes.per_sample,
            n_singular_values=plan.singular_values,
            nuclear_norm=plan.all_singular_values,
            save_jacobian=config.save == "full",
            save_inputs=config.save_inputs,
            save_labels=self.prepared.labels is not None,
            save_dtype=config.save_dtype or config.dtype,
            input_dtype=str(self.prepared.source.dtype),
            output_dtype=config.dtype,
            compress=config.compress,
            batch_size=plan.batch_size,
            factor_width=plan.factorization.width if saves_factors and isinstance(plan, ChainPlan) else 0,
        )

    @property
    def problem(self) -> Problem:
        """The run as the engine sees it."""
        return Problem(self.prepared.network, self.prepared.shapes, self._points, self.memory)

    def _points(self, start: int, size: int) -> Points:
        prepared = self.prepared
        stop = min(start + size, prepared.shapes.n_samples)
        _, x, extra = prepared.rows(start, stop)
        if prepared.shapes.fixed_batch:
            x, extra = padded(x, size), {name: padded(value, size) for name, value in extra.items()}
        labels = None
        if prepared.labels is not None:
            labels = padded(torch.from_numpy(prepared.labels[start:stop]), len(x))
        return x, extra, selected_outputs(prepared.network, x, extra, self.config.classes, labels)

    def arrays(self, batch: ComputedBatch, plan: Plan) -> dict[str, StoredArray]:
        """Arrays of a batch, in the datasets' shapes."""
        count, shapes = batch.count, self.prepared.shapes
        raw = self.prepared.source.read(batch.start, batch.start + count)
        index = self.prepared.source.index[batch.start : batch.start + count]
        outputs, matrices = batch.linearization.outputs[:count], batch.matrices.take(slice(count))
        statistics = statistics_of(matrices, plan, seed=self.config.seed)
        finite = torch.isfinite(statistics.frobenius) & torch.isfinite(outputs.reshape(count, -1)).all(1)
        self.not_finite += index[~finite.cpu().numpy()].tolist()
        self.inputs_sha256.update(raw.tobytes())
        output_shape = self.jacobian_shape[len(shapes.domain_shape) :]
        arrays: dict[str, Tensor] = {
            "outputs": outputs,
            "frobenius_norm": statistics.frobenius,
            "class_norms": statistics.class_norms.reshape(count, *output_shape),
        }
        if statistics.spectrum is not None:
            values = statistics.spectrum.values
            arrays |= {"singular_values": values, "singular_value_error": statistics.spectrum.errors}
            arrays["spectral_norm"] = values[:, 0]
            if plan.all_singular_values:
                arrays["nuclear_norm"] = values.sum(1)
        if self.config.classes.per_sample:
            arrays["class_index"] = batch.linearization.selected[:count]
        stored: dict[str, StoredArray] = {
            name: array.detach().cpu().numpy() for name, array in arrays.items()
        }
        stored |= self._large_arrays(matrices, count, output_shape)
        stored["sample_index"] = index
        if self.prepared.labels is not None:
            stored["labels"] = self.prepared.labels[batch.start : batch.start + count]
        if self.config.save_inputs:
            stored["inputs"] = raw
        return stored

    def _large_arrays(
        self, matrices: Matrices, count: int, output_shape: tuple[int, ...]
    ) -> dict[str, StoredArray]:
        """The Jacobian, or its factors; a product is multiplied out piece by piece as it is written."""
        domain_shape = self.prepared.shapes.domain_shape
        if self.config.save == "factors":
            assert isinstance(matrices, FactoredMap)  # the choice sees to it
            left, right = matrices.left, matrices.right
            width = left.shape[2]
            return {
                "factors/left": self._host.copy("left", left.reshape(count, *output_shape, width)),
                "factors/right": self._host.copy("right", right.reshape(count, width, *domain_shape)),
            }
        if self.config.save != "full":
            return {}
        if isinstance(matrices, FactoredMap):
            return {"jacobian": FactoredArray.of(matrices, domain_shape, output_shape)}
        dense = matrices.dense().mT.reshape(count, *self.jacobian_shape)
        return {"jacobian": self._host.copy("jacobian", dense)}
