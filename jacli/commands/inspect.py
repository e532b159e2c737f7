"""``jacli inspect``: what is this file?"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jacli import inputs as inputs_formats
from jacli import models
from jacli.errors import InputsError, JacliError, ResultsError, UsageError
from jacli.options.config import from_options
from jacli.options.table import flag_of
from jacli.untrusted.content import WHAT_TO_DO, Content, recognise_content, why_unseen

if TYPE_CHECKING:
    from jacli.run.batches import Run

_ROWS = 1024
_BYTES = 64 * 2**20
"""Bytes of rows examined."""


def inspect(
    path: str,
    *,
    inputs: str | None = None,
    inputs_key: str | None = None,
    **of_model: Any,
) -> dict[str, Any]:
    """Describe a file by its content; JSON-able.

    With ``inputs`` (or a model's name in place of a path) the model is loaded and probed on a few
    samples: output shape, state, accepted batch sizes, what ``auto`` would choose.

    >>> inspect("sample_models/digits.npy")["kind"]
    'inputs'

    Args:
        path: The file.
        inputs: What the model is probed on.
        inputs_key: Which array of a file of inputs.
        **of_model: Options of ``jacli compute`` about the model and ``forward``; empty ones are not given.

    Raises:
        JacliError: The file is unreadable, or is none of a model, inputs and a result.
    """
    if inputs is not None:
        return _probed({"model": path, "inputs": inputs, "inputs_key": inputs_key, **of_model})
    given = [flag_of(name) for name, value in of_model.items() if value]
    if given:
        raise UsageError(
            f"{', '.join(given)} goes with --inputs.",
            why="Without inputs the model is described, not built.",
            hint="Add --inputs FILE.",
        )
    file = Path(path)
    if not os.path.exists(file):
        raise InputsError(
            f"There is no file {path}.",
            why=why_unseen(file) or "jacli inspect describes files; an architecture's name needs --inputs.",
            hint="Check the path.",
        )
    content = recognise_content(file)
    if content is Content.HDF5:
        return _result_or_inputs(path, inputs_key)
    if content in models.LOADERS:
        return _model_or_inputs(file, inputs_key)
    if content in inputs_formats.LOADERS:
        return _inputs(path, inputs_key)
    why, hint = WHAT_TO_DO.get(content, (f"It is: {content}.", "Give a model, inputs or a result."))
    raise InputsError(f"{path} is not a model, inputs or a result.", why=why, hint=hint)


def _model_or_inputs(file: Path, key: str | None) -> dict[str, Any]:
    """Weights and inputs share two formats; few tensors of one length, or a key, mean inputs."""
    if key is not None:
        return _inputs(str(file), key)
    try:
        return {"kind": "model", "path": str(file.resolve()), **models.describe_model(file)}
    except JacliError:
        try:
            return _inputs(str(file), None)
        except JacliError:
            pass
        raise


def _inputs(path: str, key: str | None) -> dict[str, Any]:
    """Shape, dtype and range of an array; the range over its first rows."""
    with inputs_formats.open_inputs(path, key=key) as source:
        row_bytes = math.prod(source.shape) * source.dtype.itemsize
        rows = source.read(0, max(1, min(len(source), _ROWS, _BYTES // max(1, row_bytes))))
        numbers = rows.dtype.kind in "fiub"
        finite = np.isfinite(rows) if rows.dtype.kind == "f" else np.ones(rows.shape, bool)
        values = rows[finite].astype(np.float64) if numbers else np.empty(0)
        return {
            "kind": "inputs",
            "path": source.path,
            "format": str(source.format),
            "key": source.key,
            "samples": len(source),
            "shape": list(source.shape),
            "dtype": str(source.dtype),
            "rows_examined": len(rows),
            "min": float(values.min()) if values.size else None,
            "max": float(values.max()) if values.size else None,
            "mean": float(values.mean()) if values.size else None,
            "std": float(values.std()) if values.size else None,
            "not_finite": int((~finite).sum()),
        }


def _result_or_inputs(path: str, key: str | None) -> dict[str, Any]:
    from jacli.store import UnreadableError, describe_results

    if key is not None:
        return _inputs(path, key)
    try:
        return {"kind": "result", "path": str(Path(path).resolve()), **describe_results(Path(path))}
    except UnreadableError:
        raise
    except ResultsError:  # of another program
        pass
    return _inputs(path, None)


def _probed(options: dict[str, Any]) -> dict[str, Any]:
    from jacli.choice.refusals import refusals
    from jacli.network import exact_arithmetic
    from jacli.plans.search import methods_in_order
    from jacli.run.batches import Run
    from jacli.run.prepare import prepare

    config = from_options(options)
    with exact_arithmetic():
        prepared = prepare(config)
        shapes, loaded = prepared.shapes, prepared.loaded
        refused = refusals(shapes.fixed_batch)
        run = Run(config, prepared)
        cuts, why_not = _cuts(run)
        prepared.source.close()
    return {
        "kind": "model on inputs",
        "path": loaded.path or config.model,
        "format": loaded.format,
        "arch": loaded.arch,
        "parameters": sum(p.numel() for p in loaded.module.parameters()),
        "input": list(shapes.input_shape),
        "output": list(shapes.output_shape),
        "samples": shapes.n_samples,
        "jacobian": f"{shapes.n_out} x {shapes.n_in} per sample",
        "batch_sizes": f"{shapes.fixed_batch} only" if shapes.fixed_batch else "any",
        "keeps_state": prepared.network.copy_each_call,
        "methods": {name: why or "serves" for name, why in refused.items()},
        "tried_in_this_order": [method.name for method in methods_in_order(shapes, run.request, refused)],
        "cuts": cuts,
        "not_cut": why_not,
        "notes": list(prepared.notes),
    }


def _cuts(run: Run) -> tuple[list[dict[str, Any]], str | None]:
    """Where the network is narrower than its output, what that saves; or why it is not cut."""
    from jacli.choice.problem import cut_network
    from jacli.network import NotTraceableError

    try:
        cut = cut_network(run.request, run.problem, run.problem.trace())
    except NotTraceableError as failure:
        return [], str(failure)
    shapes = run.problem.shapes
    n_out, n_in = shapes.n_selected, shapes.n_in
    cuts = []
    for place in cut.cuts:
        passes = min(n_out, n_in)
        saves = f"{place.width} passes in place of {passes}" if place.width < passes else "nothing by itself"
        factor_bytes = place.width * (n_out + n_in) * shapes.itemsize
        sizes = f"{factor_bytes:,} bytes per sample as factors, {shapes.sample_bytes:,} as a Jacobian"
        cuts.append(
            {
                "where": place.name,
                "width": f"{place.width} wide",
                "saves": saves,
                "sizes": sizes,
            }
        )
    return cuts, None
