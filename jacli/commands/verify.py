"""``jacli verify``: are the Jacobians in a result file those of its model at its inputs?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jacli.choice.memory_limit import memory_errors
from jacli.choice.recorded_plan import recorded_plan
from jacli.errors import InputsError, JacliError, ModelError, ResultsError
from jacli.errors.numbers import json_ready
from jacli.errors.printable import count_of
from jacli.inputs import RANDOM_PREFIX
from jacli.models.loaded import sha256_of
from jacli.network import exact_arithmetic
from jacli.options.config import from_options
from jacli.options.methods import PRECISIONS
from jacli.options.table import RunConfig
from jacli.run.config_file import read_options
from jacli.run.prepare import Prepared, prepare
from jacli.run.recheck import choose_rows, recheck_samples, tolerance_of
from jacli.run.recorded import same_inputs
from jacli.run.reference import References
from jacli.store import Results, open_results
from jacli.store.batches import damaged_batches
from jacli.store.sources import sources_of
from jacli.store.untrusted_file import reading_results
from jacli.verify import Rechecked


@dataclass(frozen=True)
class VerifiedSample:
    """One sample and what the recheck found.

    Attributes:
        sample_index: Its position in INPUTS.
        found: The recheck's findings.
    """

    sample_index: int
    found: Rechecked

    @property
    def verdict(self) -> str:
        """In words."""
        if self.found.mixes:
            return "mixes samples"
        if self.found.failed:
            return f"wrong: {self.found.part}"
        return "at a kink" if self.found.near_kink else "ok"


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        path: The result file.
        samples: Those rechecked.
        tolerance: Largest relative error of a right result.
        notes: What the user must be told.
        damaged: Batches of datasets whose checksum is wrong, among all samples that are done.
    """

    path: str
    samples: tuple[VerifiedSample, ...]
    tolerance: float
    notes: tuple[str, ...]
    damaged: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions in INPUTS of the samples that differ from the model."""
        return tuple(sample.sample_index for sample in self.samples if sample.found.failed)

    @property
    def only_rounding(self) -> bool:
        """Whether plain reverse passes in the run's own arithmetic give what each failed sample holds."""
        return all(sample.found.rounding for sample in self.samples if sample.found.failed)

    @property
    def worst_error(self) -> float | None:
        """Largest error of samples away from kinks; None if all are near one."""
        return max((s.found.error for s in self.samples if not s.found.near_kink), default=None)

    @property
    def at_kinks(self) -> tuple[int, ...]:
        """Positions in INPUTS of the samples at a kink, which `worst_error` leaves out."""
        return tuple(s.sample_index for s in self.samples if s.found.near_kink)

    @property
    def worst_at_kinks(self) -> float | None:
        """The largest difference of a sample at a kink from the reference; None where there is none."""
        return max((s.found.error for s in self.samples if s.found.near_kink), default=None)

    @property
    def dtype(self) -> str:
        """Arithmetic of the reference."""
        return self.samples[0].found.dtype

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``; numbers that are not finite as text."""
        return {
            "path": self.path,
            "tolerance": self.tolerance,
            "verified_dtype": self.dtype,
            "worst_error": json_ready(self.worst_error),
            "at_kinks": list(self.at_kinks),
            "worst_error_at_kinks": json_ready(self.worst_at_kinks),
            "failed": list(self.failed),
            "samples": [
                {
                    "sample_index": sample.sample_index,
                    "error": json_ready(sample.found.error),
                    "near_kink": sample.found.near_kink,
                    "cross_sample": json_ready(sample.found.cross_sample),
                    "verdict": sample.verdict,
                }
                for sample in self.samples
            ],
            "damaged": list(self.damaged),
            "notes": list(self.notes),
        }


def verify(
    path: str | Path,
    *,
    samples: int | None = 4,
    seed: int = 0,
    tolerance: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **moved: Any,
) -> Verification:
    """Recheck samples of a result file against reverse passes through its model; the file stays as it is.

    >>> from jacli import compute
    >>> _ = compute("sample_models/digits_cnn.pt", "sample_models/digits.npy", "checked.h5", samples="0:4")
    >>> verify("checked.h5", samples=1).failed
    ()

    Args:
        path: A result file, or an unfinished ``OUT.part``; only samples that are done are rechecked.
        samples: How many, chosen at random; all of them if None.
        seed: Seed for the choice of samples, rows and probes.
        tolerance: Largest relative error; by the run's dtype and precision if None.
        progress: Called with samples done and samples in all.
        **moved: ``model``, ``inputs``, ``arch``, ``allow_pickle``, ``device`` in place of those recorded.

    Raises:
        ResultsError: ``path`` is no result file, or nothing in it is done.
        ModelError: The model is not the recorded one.
        InputsError: The inputs are not the recorded ones.
        UsageError: The file names code that is not the recorded code.
    """
    given = {name: value for name, value in moved.items() if value not in (None, False)}
    with open_results(path) as results, reading_results(results.path), exact_arithmetic():
        config, judged = _recorded_config(Path(path), results, given, tolerance)
        done = np.flatnonzero(results["done"])
        if not len(done):
            raise ResultsError(
                f"{path} holds no finished sample.",
                why="The run that wrote it stopped in its first batch.",
                hint="Compute it again.",
            )
        missing = {"sample_index", "outputs", "class_norms", "plan"} - {*results.names, *results.attrs}
        if missing:
            raise ResultsError(
                f"{path} cannot be rechecked.",
                why=f"It lacks {', '.join(sorted(missing))}.",
                hint="Copy it again, or compute it again.",
            )
        damaged, notes = _check_checksums(results, len(done))
        _check_model(config, results, given)
        if not config.inputs.startswith(RANDOM_PREFIX) and not os.path.exists(config.inputs):
            raise _gone(InputsError, config.inputs, "inputs", given)
        prepared = prepare(config)
        with prepared.source:
            _check_weights(prepared, results)
            _check_constants(prepared, results)
            notes += _check_what_it_is(prepared, results, len(done))
            rows = [int(done[i]) for i in choose_rows(len(done), samples or len(done), seed)]
            _check_inputs(prepared, results, rows)
            index, verified = results["sample_index"], []
            references = References(prepared)
            with memory_errors("rechecking"):
                plan = recorded_plan(results.attrs)
                for row, rechecked in recheck_samples(
                    prepared, results.datasets, plan, judged, rows, seed=seed, references=references
                ):
                    verified.append(VerifiedSample(int(index[row]), rechecked))
                    progress(len(verified), len(rows))
        allowed = tolerance_of(judged, references.reduced)
        return Verification(str(path), tuple(verified), allowed, (*notes, *references.notes), damaged)


def _recorded_config(
    path: Path, results: Results, given: Mapping[str, Any], tolerance: float | None
) -> tuple[RunConfig, RunConfig]:
    """Options to compute with, and those by which the result is judged: with the precision of its passes."""
    options = read_options(path, given)
    # Which outputs were differentiated is in the file: the labels that said so may be gone.
    for name in ("classes", "labels"):
        options.pop(name, None)
    options |= {"verify": 1, **given}
    if tolerance is not None:
        options["tolerance"] = tolerance
    # The recheck's own passes are plain, on any device: the precision only says what may differ.
    precision = options.get("precision", "ieee")
    if precision in PRECISIONS:
        options["precision"] = "ieee"
    config = from_options(options)
    return config, replace(config, precision=precision)


def _check_checksums(results: Results, done: int) -> tuple[tuple[str, ...], list[str]]:
    """Compare everything that is finished with its checksums: what is damaged, and notes."""
    datasets = results.datasets
    if "batch_start" not in datasets:
        schema = results.attrs["schema"]
        return (), [f"schema {schema} has no checksums: damage shows in the rechecked samples only"]
    try:
        return tuple(str(batch) for batch in damaged_batches(datasets, done)), []
    except ValueError as error:
        return (str(error),), []


def _check_model(config: RunConfig, results: Results, given: Mapping[str, Any]) -> None:
    """Before anything of it runs: is it the recorded file?"""
    recorded = results.attrs.get("model_sha256")
    if recorded is None:
        return
    path = Path(config.model)
    if not os.path.isfile(path):
        raise _gone(ModelError, config.model, "model", given)
    if sha256_of(path) != recorded:
        raise ModelError(
            f"{path} is not the model of {results.path}.",
            why=f"Its sha256 is not the recorded {str(recorded)[:12]}...: the results belong to another "
            "file.",
            hint="Give the original model: --model PATH.",
        )


def _check_weights(prepared: Prepared, results: Results) -> None:
    """A network without a file: does its callable give the recorded weights?"""
    recorded, now = results.attrs.get("weights_sha256"), prepared.loaded.weights_sha256
    if recorded is not None and now is not None and recorded != now:
        raise ModelError(
            f"{prepared.loaded.arch} does not give the weights of {results.path}.",
            why=f"Their sha256 is not the recorded {str(recorded)[:12]}...: the results belong to other "
            "weights.",
            hint="Give the callable the weights that it loaded then, or use the version of torch that "
            "drew its random weights "
            f"({results.attrs.get('torch_version')}).",
        )


def _check_constants(prepared: Prepared, results: Results) -> None:
    if results.attrs.get("constants_sha256") != prepared.constants_sha256:
        raise InputsError(
            f"A file given with --constant is not the one of {results.path}.",
            why="Their values are not the recorded ones (sha256): the results belong to another function.",
            hint="Put back the original files.",
        )


def _gone(kind: type[JacliError], path: str, option: str, given: Mapping[str, Any]) -> JacliError:
    recorded = "Nothing is at the path given." if option in given else "It was there when the file was made."
    return kind(f"{path}: no such file.", why=recorded, hint=f"Say where it is now: --{option} PATH.")


def _check_what_it_is(prepared: Prepared, results: Results, done: int) -> list[str]:
    """Shapes as recorded; and what may make right results differ."""
    shapes, datasets = prepared.shapes, results.datasets
    samples = count_of(len(results), "sample")
    if len(results) != shapes.n_samples:
        raise InputsError(
            f"{prepared.source.path or 'The inputs'} are not the inputs of {results.path}.",
            why=f"The file holds {samples}, and the inputs have {shapes.n_samples}.",
            hint="Give the same inputs with --inputs PATH.",
        )
    if datasets["outputs"].shape[1:] != shapes.output_shape:
        raise ModelError(
            f"The model is not the one of {results.path}.",
            why=f"Its outputs have shape {shapes.output_shape} per sample; recorded are "
            f"{datasets['outputs'].shape[1:]}.",
            hint="Give the same model and architecture with --model and --arch.",
        )
    notes = []
    if (precision := results.attrs.get("precision", "ieee")) != "ieee":
        notes.append(f"computed with linear passes in {precision}: most of the error is their rounding")
    if done < len(results):
        notes.append(f"unfinished: only the {done} of {samples} that are done are rechecked")
    if prepared.loaded.arch_sha256 != results.attrs.get("arch_sha256"):
        notes.append("the architecture's source file is not the recorded one")
    computed_on = results.attrs.get("device", str(prepared.device))
    if computed_on != str(prepared.device):
        notes.append(
            f"computed on {computed_on}, rechecked on {prepared.device}: samples at a kink may look wrong"
        )
    return notes


def _check_inputs(prepared: Prepared, results: Results, rows: list[int]) -> None:
    """By the sha256 of all rows as read; in an unfinished file, which has none yet, by the copies in it.

    Of a merged file, by the sha256 of the rows of each shard.
    """
    source = prepared.source
    same = same_inputs(source, results.attrs, sources_of(results.path, results.attrs))
    if same is None and "inputs" in results:
        same = all(np.array_equal(results["inputs"][row], source.read(row, row + 1)[0]) for row in rows)
    if same is False:
        raise InputsError(
            f"{source.path or 'The inputs'} are not the inputs of {results.path}.",
            why="Their values are not the recorded ones (sha256): the results belong to other samples.",
            hint="Give the original inputs: --inputs PATH.",
        )
