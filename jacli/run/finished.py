"""A finished file under the name that a run would write to: is it of the same run, and how did that end?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from jacli.choice.recorded_plan import recorded_plan
from jacli.errors import OutputError, ResultsError, UsageError
from jacli.errors.printable import quote_path
from jacli.options.config import from_options
from jacli.options.table import Changes, RunConfig, flag_of, names_of, usual_options
from jacli.run.labelled import accuracy_notes
from jacli.run.outcome import Outcome, Recheck
from jacli.run.prepare import Prepared
from jacli.run.recheck import tolerance_of
from jacli.run.recorded import (
    NOT_COMPARED,
    other_content,
    other_options,
    rows_not_finite,
    same_inputs,
)
from jacli.run.selection import jacobian_shape
from jacli.store import Results, open_results
from jacli.store.sources import attributes_of_done, check_sources, sources_of

_ROUNDING_ONLY = names_of(lambda option: option.changes is Changes.ROUNDING)
"""Options with which a finished file counts as that of the same run: they change numbers by rounding only."""

_ROWS_READ = 64
"""Rows of stored inputs that are compared at once."""


class Finished:
    """A finished result, opened to be compared with the run that is asked for.

    Attributes:
        differences: Options that are not those of the run that made it.
    """

    def __init__(self, results: Results, config: RunConfig) -> None:
        self._results = results
        self._recorded = results.json("config")
        self._config = config
        may_differ: tuple[str, ...] = (*NOT_COMPARED, *_ROUNDING_ONLY)
        if config.method == results.attrs.get("method"):
            may_differ = (*may_differ, "method")  # `auto` had chosen the one that is asked for by name
        self.differences = other_options(self._recorded, config, may_differ=may_differ)

    @classmethod
    def of(cls, out: Path, config: RunConfig) -> Finished | None:
        """The finished result at ``out``; None where the run is to write there, or may not.

        Raises:
            ResultsError: It is damaged.
        """
        if config.overwrite or not config.resume or out.is_symlink() or not out.is_file():
            return None
        results = open_results(out)
        try:
            if not results.complete:
                raise ResultsError(f"{out} is not complete.")
            check_sources(out, results.attrs)
            return cls(results, config)
        except BaseException:
            results.close()
            raise

    def outcome(self, prepared: Prepared) -> Outcome:
        """Outcome of the run that made the file, provided that it is the run requested now.

        Raises:
            OutputError: It is not; everything that differs is named.
            ResultsError: The file is damaged.
        """
        results, attributes = self._results, self._results.attrs
        differences = [*self.differences, *other_content(attributes, prepared, len(results))]
        if len(results) == prepared.shapes.n_samples:
            sources = sources_of(results.path, attributes)
            same = same_inputs(prepared.source, attributes, sources)
            if same is None:
                same = "inputs" in results and self._holds_inputs(prepared)
            if not same or not np.array_equal(results["sample_index"], prepared.source.index):
                differences.append("the content of INPUTS")
        if differences:
            raise self.refusal(differences)
        index = np.asarray(results["sample_index"])
        rows = list(rows_not_finite(results.datasets, len(results)))
        plan = recorded_plan(attributes)
        return Outcome(
            out=results.path,
            samples=len(results),
            continued=len(results),
            shape=jacobian_shape(prepared.shapes, self._config.classes),
            plan=plan,
            chosen=None,
            not_finite=tuple(int(index[row]) for row in rows),
            overflowed=attributes_of_done(results.path, results.datasets["done"]).count("overflowed"),
            rechecked=self._recheck(index, rows),
            notes=(
                *attributes.json_texts("notes"),
                *accuracy_notes(results.datasets),
                *self._notes(prepared),
            ),
        )

    def refusal(self, differences: list[str]) -> OutputError:
        """The error for a file that is the result of another run."""
        path, command = self._results.path, self._results.attrs.text("command")
        made = f" It was made by: {command}" if command else ""
        return OutputError(
            f"{path} exists already.",
            why="It is the finished result of another run. What differs: "
            + "; ".join(differences)
            + f".{made}",
            hint="Choose another name with -o, or give --overwrite.",
        )

    def _holds_inputs(self, prepared: Prepared) -> bool:
        stored, step = self._results["inputs"], _ROWS_READ
        return all(
            np.array_equal(
                stored[start : start + step], prepared.source.read(start, min(start + step, len(stored)))
            )
            for start in range(0, len(stored), step)
        )

    def _recheck(self, index: np.ndarray, not_finite: list[int]) -> Recheck:
        """Result of the run's recheck, from the values stored per sample."""
        results = self._results
        if "verified_error" not in results or "near_kink" not in results:
            return Recheck(0, None, self._tolerance(), None, (), ())
        errors, kinks = np.asarray(results["verified_error"]), np.asarray(results["near_kink"])
        checked, kink = kinks >= 0, kinks == 1
        plain = checked & ~kink
        allowed = self._tolerance()
        failed = plain & ~(errors <= allowed)
        failed[not_finite] = False
        return Recheck(
            samples=int(checked.sum()),
            worst_error=float(errors[plain].max()) if plain.any() else None,
            tolerance=allowed,
            dtype=results.attrs.text("verified_dtype"),
            at_kinks=tuple(int(i) for i in index[kink]),
            failed=tuple(int(i) for i in index[failed]),
        )

    def _tolerance(self) -> float:
        """Tolerance of the run; from its options if the file is older than that attribute."""
        recorded = self._results.attrs.get("tolerance")
        if isinstance(recorded, float):
            return recorded
        known = {**usual_options(), **self._recorded}
        try:
            return tolerance_of(from_options({name: known[name] for name in usual_options()}))
        except UsageError as error:
            raise self._results.attrs.damaged("config", error.what) from error

    def _notes(self, prepared: Prepared) -> Iterator[str]:
        """Options of this command that the file was not made with, though it counts as the same run."""
        path, config = quote_path(self._results.path), self._config
        before = {**usual_options(), **self._recorded}
        for name in _ROUNDING_ONLY:
            now = getattr(config, name)
            if now is not None and now != before.get(name):
                was = before.get(name) or "auto"
                yield f"computed with {flag_of(name)} {was}, not {now}: equal to rounding"
        kind = str(self._results.attrs.get("device", "")).partition(":")[0]
        if kind != prepared.device.type:
            yield f"computed on {kind}, not on {prepared.device.type}: equal to rounding"
        checked = before.get("verify", 0)
        if isinstance(checked, int) and config.verify > checked:
            again = f"jacli verify {path} -n {config.verify}"
            yield f"it was made with --verify {checked}; to recheck more of it: {again}"

    def close(self) -> None:
        """Close the file."""
        self._results.close()

    def __enter__(self) -> Finished:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
