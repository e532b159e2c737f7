"""One run's blocks: from rows read to arrays written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from jacli.config import RunConfig
from jacli.linear_map import DenseMap
from jacli.methods import Method, fill
from jacli.network import Linearized
from jacli.plan import SINGULAR_VALUES_LIMIT, Plan
from jacli.run.first_block import Chosen, choose, memory_errors, padded, served_plans
from jacli.run.prepare import Prepared
from jacli.spectrum import Spectrum, largest_singular_values, singular_values
from jacli.store import ResultLayout
from jacli.verify import check_alone


class Run:
    """A prepared run: its layout, its candidate methods, and its blocks as the file stores them.

    Attributes:
        inputs_sha256: Of the rows read so far.
        not_finite: Positions in INPUTS of the samples so far whose Jacobian or outputs are not finite.
    """

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self.config = config
        self.prepared = prepared
        self.inputs_sha256 = hashlib.sha256()
        self.not_finite: list[int] = []

    @property
    def jacobian_shape(self) -> tuple[int, ...]:
        """Of a sample as stored: ``(*input, *output)``, or ``(*input, k)`` with ``--classes``."""
        shapes = self.prepared.shapes
        outputs = shapes.output_shape if self.config.classes.kind == "all" else (shapes.n_selected,)
        return (*shapes.input_shape, *outputs)

    def notes(self, plan: Plan) -> list[str]:
        """What the plan leaves out without having been told to."""
        shapes = self.prepared.shapes
        smaller = min(shapes.n_in, shapes.n_selected)
        found = []
        if self.config.chunk_size and plan.method in ("loop", "replicate"):
            found.append(f"--chunk-size has no part in the method {plan.method}")
        if self.config.singular_values == "auto" and not plan.singular_values:
            found += [
                f"no singular values: min(n_out, n_in) = {smaller} is above {SINGULAR_VALUES_LIMIT}; "
                "ask for some with --singular-values K"
            ]
        return found

    def layout(self, plan: Plan) -> ResultLayout:
        """What the file will hold."""
        config, shapes = self.config, self.prepared.shapes
        return ResultLayout(
            n_samples=shapes.n_samples,
            input_shape=shapes.input_shape,
            output_shape=shapes.output_shape,
            selected=None if config.classes.kind == "all" else shapes.n_selected,
            per_sample_classes=config.classes.per_sample,
            n_singular_values=plan.singular_values,
            nuclear_norm=plan.all_singular_values,
            save_jacobian=config.save == "full",
            save_inputs=config.save_inputs,
            save_dtype=config.save_dtype or config.dtype,
            input_dtype=str(self.prepared.source.dtype),
            output_dtype=config.dtype,
            compress=config.compress,
            batch_size=plan.batch_size,
        )

    def plans(self) -> Iterator[tuple[Method, Plan]]:
        """Candidate methods with their plans, best first."""
        return served_plans(self.prepared.shapes, self.config)

    def first_block(self) -> tuple[Chosen, dict[str, np.ndarray]]:
        """Choose the method on the first block; its arrays are used, not computed again."""
        raws: dict[int, np.ndarray] = {}

        def linearize(plan: Plan) -> Linearized:
            linearization, raw = self._linearize(0, plan.batch_size)
            self._check_alone(linearization, 0, len(raw))
            raws[plan.batch_size] = raw
            return linearization

        chosen, linearization, dense = choose(self.plans(), linearize, seed=self.config.seed)
        raw = raws[chosen.plan.batch_size]
        return chosen, self._arrays(0, raw, linearization, dense, chosen.plan)

    def blocks(
        self, chosen: Chosen, first: dict[str, np.ndarray]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Every block's first sample and its arrays, in the datasets' shapes."""
        plan = chosen.plan
        yield 0, first
        first.clear()
        for start in range(plan.batch_size, self.prepared.shapes.n_samples, plan.batch_size):
            stop = min(start + plan.batch_size, self.prepared.shapes.n_samples)
            with memory_errors(f"computing samples {start} to {stop - 1}"):
                linearization, raw = self._linearize(start, plan.batch_size)
                dense = fill(chosen.method, linearization, chunk_size=plan.chunk_size)
                self._check_alone(linearization, start, len(raw))
                arrays = self._arrays(start, raw, linearization, dense, plan)
            yield start, arrays

    def _check_alone(self, linearization: Linearized, start: int, count: int) -> None:
        check_alone(
            linearization,
            self.prepared.network.module,
            position=(self.config.seed + start + count // 2) % count,
            fixed_batch=self.prepared.shapes.fixed_batch is not None,
        )

    def _linearize(self, start: int, size: int) -> tuple[Linearized, np.ndarray]:
        prepared = self.prepared
        stop = min(start + size, prepared.shapes.n_samples)
        raw, x, extra = prepared.rows(start, stop)
        if prepared.shapes.fixed_batch:
            x, extra = padded(x, size), {name: padded(value, size) for name, value in extra.items()}
        return Linearized(prepared.network, x, extra, self._selected(start, stop, x, extra)), raw

    def _selected(self, start: int, stop: int, x: Tensor, extra: Mapping[str, Tensor]) -> Tensor | None:
        """Flat output indices of each row of ``x``, ``(batch, k)``; None for all."""
        classes = self.config.classes
        if classes.kind == "all":
            return None
        if classes.kind == "indices":
            return torch.tensor(classes.indices, device=x.device).expand(len(x), -1)
        if classes.kind == "label":
            assert self.prepared.labels is not None  # checked with the options
            labels = torch.from_numpy(self.prepared.labels[start:stop, None]).to(x.device)
            return padded(labels, len(x))
        outputs = Linearized(self.prepared.network, x, extra).outputs.reshape(len(x), -1)
        return outputs.topk(classes.k, dim=1).indices

    def _arrays(
        self, start: int, raw: np.ndarray, linearization: Linearized, dense: Tensor, plan: Plan
    ) -> dict[str, np.ndarray]:
        """What the file stores of a block; ``dense`` is ``(batch, n_out, n_in)``, possibly padded."""
        count = len(raw)
        index = self.prepared.source.index[start : start + count]
        dense, outputs = dense[:count], linearization.outputs[:count]
        class_norms = torch.linalg.vector_norm(dense, dim=2, dtype=torch.float64)
        frobenius = torch.linalg.vector_norm(class_norms, dim=1)
        finite = torch.isfinite(frobenius) & torch.isfinite(outputs.reshape(count, -1)).all(1)
        self.not_finite += index[~finite.cpu().numpy()].tolist()
        self.inputs_sha256.update(raw.tobytes())
        output_shape = self.jacobian_shape[len(self.prepared.shapes.input_shape) :]
        arrays: dict[str, Tensor] = {
            "outputs": outputs,
            "frobenius_norm": frobenius,
            "class_norms": class_norms.reshape(count, *output_shape),
        }
        if plan.singular_values:
            spectrum = _spectrum(dense, plan, self.config.seed)
            arrays |= {"singular_values": spectrum.values, "singular_value_error": spectrum.errors}
            arrays["spectral_norm"] = spectrum.values[:, 0]
            if plan.all_singular_values:
                arrays["nuclear_norm"] = spectrum.values.sum(1)
        if self.config.classes.per_sample:
            arrays["class_index"] = linearization.selected[:count]
        if self.config.save == "full":
            arrays["jacobian"] = dense.mT.reshape(count, *self.jacobian_shape)
        linearization.close()
        stored = {name: array.detach().cpu().numpy() for name, array in arrays.items()}
        stored["sample_index"] = index
        if self.config.save_inputs:
            stored["inputs"] = raw
        return stored


def _spectrum(dense: Tensor, plan: Plan, seed: int) -> Spectrum:
    """All singular values by Gram matrix or QR; few of a large matrix by Lanczos."""
    k = plan.singular_values
    if min(dense.shape[1:]) <= SINGULAR_VALUES_LIMIT or plan.all_singular_values:
        every = singular_values(dense)
        return Spectrum(every.values[:, :k], every.errors[:, :k])
    return largest_singular_values(DenseMap(dense), k, seed=seed, dtype=dense.dtype, device=dense.device)
