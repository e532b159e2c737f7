"""``jacli compute``: from a model file and an inputs file to one result file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import jacli
from jacli.config import RunConfig, from_options
from jacli.linear_map import DenseMap
from jacli.methods import Method, fill, load_method
from jacli.network import Linearized, exact_arithmetic
from jacli.plan import SINGULAR_VALUES_LIMIT, Plan, candidates, make_plan
from jacli.run.first_block import Chosen, choose, memory_errors, padded, refusals, require_served
from jacli.run.prepare import Prepared, prepare
from jacli.spectrum import Spectrum, largest_singular_values, singular_values
from jacli.store import ResultLayout, ResultWriter, bytes_on_disk, check_place, check_room, free_bytes

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        out: The result file.
        samples: Number of samples in it.
        shape: Of one sample's Jacobian as stored, ``(*input, *output)``.
        chosen: Method and plan.
        not_finite: Positions in INPUTS of samples whose Jacobian or outputs are not finite.
        overflowed: Values that became infinite in ``--save-dtype``.
        notes: What the user must be told.
    """

    out: Path
    samples: int
    shape: tuple[int, ...]
    chosen: Chosen
    not_finite: tuple[int, ...]
    overflowed: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            "samples": self.samples,
            "jacobian_shape": list(self.shape),
            "plan": self.chosen.to_dict(),
            "not_finite": list(self.not_finite),
            "overflowed": self.overflowed,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class DryRun:
    """What a run would do: nothing was written and no Jacobian computed.

    Attributes:
        shapes: Name to shape, in words.
        plan: The first candidate's plan.
        alternatives: Methods that come next should the first block refuse it.
        disk: Dataset to bytes, uncompressed.
        free: Bytes free where the file would go.
        notes: What the user must be told.
    """

    shapes: Mapping[str, Any]
    plan: Plan
    alternatives: tuple[str, ...]
    disk: Mapping[str, int]
    free: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "shapes": dict(self.shapes),
            "plan": self.plan.to_dict(),
            "alternatives": list(self.alternatives),
            "bytes_on_disk": dict(self.disk),
            "bytes_on_disk_total": sum(self.disk.values()),
            "bytes_free": self.free,
            "notes": list(self.notes),
        }


def compute(model: str, inputs: str, out: str = "out.h5", **options: Any) -> Outcome:
    """Compute every sample's Jacobian and write it with its norms and singular values to ``out``.

    Args:
        model: As the command's MODEL.
        inputs: As the command's INPUTS.
        out: The result file.
        **options: The command's options with underscores (``method="vmap"``, ``classes="top:5"``).

    Raises:
        JacliError: As the command's exit codes; a result with values that are not finite is no
            error here, see `Outcome.not_finite`.
    """
    config = from_options({"model": str(model), "inputs": str(inputs), "out": str(out), **options})
    return run_compute(config, command="jacli.compute(...)")


def run_compute(config: RunConfig, *, command: str, progress: Progress = lambda done, total: None) -> Outcome:
    """Run from checked options to the finished file."""
    with exact_arithmetic(), torch.enable_grad(), ExitStack() as stack:
        out = Path(config.out)
        check_place(out, overwrite=config.overwrite)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        run = _Run(config, prepared)
        check_room(out, run.layout(next(plan for _, plan in run.plans())))
        with memory_errors("computing the first block"):
            chosen, first = run.first_block()
        layout = run.layout(chosen.plan)
        attributes = run.attributes(chosen, command)
        with ResultWriter.create(out, layout, attributes, overwrite=config.overwrite) as writer:
            if config.classes.kind == "indices":
                writer.write_static("class_index", np.array(config.classes.indices, dtype=np.int64))
            total = prepared.shapes.n_samples
            for start, arrays in run.blocks(chosen, first):
                writer.write_block(start, arrays)
                progress(start + len(arrays["sample_index"]), total)
            writer.set_attributes({"inputs_sha256": run.inputs_sha256.hexdigest()})
            writer.finish()
        return Outcome(
            out=out,
            samples=prepared.shapes.n_samples,
            shape=run.jacobian_shape,
            chosen=chosen,
            not_finite=tuple(run.not_finite),
            overflowed=writer.overflowed,
            notes=(*prepared.notes, *run.notes(chosen.plan)),
        )


def dry_run(config: RunConfig) -> DryRun:
    """The plan of a run: shapes, method, passes, bytes."""
    with exact_arithmetic(), ExitStack() as stack:
        check_place(Path(config.out), overwrite=config.overwrite)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        run = _Run(config, prepared)
        plans = [plan for _, plan in run.plans()]
        layout = run.layout(plans[0])
        shapes = {
            "samples": prepared.shapes.n_samples,
            "input": list(prepared.shapes.input_shape),
            "output": list(prepared.shapes.output_shape),
            "jacobian_of_a_sample": list(run.jacobian_shape),
        }
        return DryRun(
            shapes=shapes,
            plan=plans[0],
            alternatives=tuple(plan.method for plan in plans[1:]),
            disk=bytes_on_disk(layout),
            free=free_bytes(Path(config.out)),
            notes=(*prepared.notes, *run.notes(plans[0])),
        )


class _Run:
    """One run's blocks, from rows read to arrays written."""

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
        if self.config.singular_values == "auto" and not plan.singular_values:
            return [
                f"no singular values: min(n_out, n_in) = {smaller} is above {SINGULAR_VALUES_LIMIT}; "
                "ask for some with --singular-values K"
            ]
        return []

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

    def attributes(self, chosen: Chosen, command: str) -> dict[str, object]:
        """Provenance: who made this file, of what, and how."""
        prepared, loaded, source = self.prepared, self.prepared.loaded, self.prepared.source
        resolved = self.config.to_dict()
        resolved["model"] = loaded.path or self.config.model
        resolved["inputs"] = source.path or self.config.inputs
        for name in ("arch", "labels"):
            resolved[name] = _absolute(resolved[name])
        resolved["arg"] = {
            k: f"@{Path(v[1:]).resolve()}" if isinstance(v, str) and v.startswith("@") else v
            for k, v in resolved["arg"].items()
        }
        on_gpu = prepared.device.type == "cuda"
        return {
            "jacli_version": jacli.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "config": resolved,
            "model_path": loaded.path or self.config.model,
            "model_sha256": loaded.sha256,
            "model_format": loaded.format,
            "arch": loaded.arch,
            "arch_sha256": loaded.arch_sha256,
            "inputs_path": source.path or self.config.inputs,
            "torch_version": torch.__version__,
            "device": str(prepared.device),
            "device_name": torch.cuda.get_device_name(prepared.device) if on_gpu else _cpu_name(),
            "dtype": self.config.dtype,
            "precision": "ieee",
            "method": chosen.method.name,
            "plan": chosen.to_dict(),
            "notes": list(prepared.notes),
        }

    def plans(self) -> Iterator[tuple[Method, Plan]]:
        """Candidate methods with their plans, best first."""
        shapes = self.prepared.shapes
        refused = refusals(shapes.fixed_batch)
        require_served(self.config.method, refused)
        for name, why in candidates(shapes, self.config, refused):
            method = load_method(name)
            yield method, make_plan(name, why, shapes, self.config, method.passes)

    def first_block(self) -> tuple[Chosen, dict[str, np.ndarray]]:
        """Choose the method on the first block; its arrays are used, not computed again."""
        raws: dict[int, np.ndarray] = {}

        def linearize(plan: Plan) -> Linearized:
            linearization, raw = self._linearize(0, plan.batch_size)
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
                arrays = self._arrays(start, raw, linearization, dense, plan)
            yield start, arrays

    def _linearize(self, start: int, size: int) -> tuple[Linearized, np.ndarray]:
        prepared = self.prepared
        stop = min(start + size, prepared.shapes.n_samples)
        raw, x, extra = prepared.rows(start, stop)
        if prepared.shapes.fixed_batch and stop - start < size:
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
            return padded(labels, len(x)) if len(labels) < len(x) else labels
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


def _absolute(name: str | None) -> str | None:
    """A path as an absolute one, also in ``file.py:callable``; other names as they are."""
    if name is None:
        return None
    path, colon, rest = name.partition(":")
    return f"{Path(path).resolve()}{colon}{rest}" if Path(path).is_file() else name


def _cpu_name() -> str:
    import platform

    try:
        with Path("/proc/cpuinfo").open() as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
