"""An unfinished file of an earlier process: is it of the same run, and is it right?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jacli.choice.choose import Choice
from jacli.choice.memory_limit import memory_errors
from jacli.choice.recorded_plan import recorded_plan
from jacli.engine.engine import Chosen
from jacli.errors import OutputError, ResultsError
from jacli.options.table import RunConfig
from jacli.plans.plan import Plan
from jacli.run.batches import Run
from jacli.run.prepare import Prepared
from jacli.run.recheck import recheck_samples
from jacli.run.recorded import other_content, other_options, rows_not_finite
from jacli.store import ResultWriter, open_results, part_path, remove_part
from jacli.store.batches import first_damage


class Unfinished:
    """The ``.part`` of an earlier process, reopened.

    Attributes:
        writer: The file; whoever has this closes it.
        done: Samples in it.
        plan: How they were computed, as JSON.
        notes: Of the earlier process, and of what is different now.
    """

    def __init__(self, writer: ResultWriter) -> None:
        self.writer = writer
        self.done = writer.committed
        self._recorded = writer.attributes
        self._config: Mapping[str, Any] = self._recorded.json_object("config")
        self.plan: Mapping[str, Any] = recorded_plan(self._recorded)
        self.notes = self._recorded.json_texts("notes")

    @classmethod
    def of(cls, out: Path, config: RunConfig) -> Unfinished | None:
        """The unfinished result to resume; None if there is none, or if the run starts over.

        The caller holds the lock.

        Raises:
            OutputError: The ``.part`` is not an unfinished result, or that of a run with other options.
        """
        part = part_path(out)
        if not part.exists() or not config.resume:
            return None
        if part.stat().st_nlink > 1 and _is_complete(part):
            # It was killed as it got its final name, under which it has been moved since.
            remove_part(out)
            return None
        writer = ResultWriter.reopen(out, overwrite=config.overwrite)
        try:
            resumed = cls(writer)
            resumed._refuse(other_options(resumed._config, config))
        except BaseException:
            writer.close()
            raise
        return resumed

    def check_checksums(self) -> None:
        """Read all that is finished and compare it with its checksums; much cheaper than computing it again.

        Raises:
            OutputError: It is not what was written.
        """
        damage = first_damage(self.writer.datasets, self.done)
        if damage:
            raise OutputError(
                f"{self.writer.part} was damaged after it was written.",
                why=f"The checksum is wrong: {damage}.",
                hint="Check that disk, and start over with --no-resume, which removes it.",
            )

    def _refuse(self, differences: list[str]) -> None:
        if not differences:
            return
        command = str(self._recorded.get("command", ""))
        raise OutputError(
            f"{self.writer.part} is the unfinished file of another run.",
            why="What differs: " + "; ".join(differences) + f". It was begun by: {command}",
            hint="Run that command to finish it, choose another name with -o, or start anew with "
            "--no-resume, which removes it.",
        )

    def check_model(self, prepared: Prepared) -> None:
        """Compare what the run reads, by content.

        Raises:
            OutputError: The model, its architecture, its arguments or the kind of device is another.
        """
        recorded = self._recorded
        different = other_content(recorded, prepared, self.writer.n_samples)
        kind = str(recorded.get("device", "")).partition(":")[0]
        if kind != prepared.device.type:
            different.append(f"--device was {kind}, is {prepared.device.type}")
        self._refuse(different)

    def note_what_changed(self, attributes: Mapping[str, object]) -> dict[str, object]:
        """Where the run goes on, as far as that is not where it began; as root attributes.

        Args:
            attributes: Those that a run which begins now would have.
        """
        named = ("jacli_version", "torch_version", "device_name")
        changed = [
            f"{name} {attributes[name]} (was {self._recorded.get(name)})"
            for name in named
            if attributes[name] != self._recorded.get(name)
        ]
        if changed and self.done:
            self.notes.append(f"from sample {self.done} on: {', '.join(changed)}")
        # dtype and precision are those of ``config``, which has been compared.
        now = ("config", "dtype", "precision", "model_path", "inputs_path")
        return {**{name: attributes[name] for name in now}, "notes": self.notes}

    def rows_hash(self, prepared: Prepared) -> hashlib._Hash:
        """The hash of the rows that are done, which must be the recorded one.

        Raises:
            OutputError: These rows have changed.
        """
        digest = prepared.source.sha256(0, self.done)
        if self.done and digest.hexdigest() != self.writer.inputs_sha256:
            self._refuse(["the content of INPUTS"])
        return digest

    def chosen(self, choice: Choice) -> Chosen:
        """The method and plan of the earlier process, as this one follows them."""
        plan = choice.plans[0]
        error = float(self.plan.get("row_check_error") or 0.0)
        return Chosen(plan, error, dict(self.plan.get("passed_over") or {}), choice.graph_of(plan))

    def check_a_sample(self, run: Run, plan: Plan) -> None:
        """Compute one of the finished samples again and compare, as the recheck does.

        Not where values have overflowed in the file: what is infinite there is finite in the model.

        Raises:
            OutputError: It differs from what the model gives now.
        """
        row = self._a_sound_row(run)
        if row is None or self.writer.overflowed:
            return
        prepared, datasets = run.prepared, self.writer.datasets
        with memory_errors("computing a finished sample again"):
            for _, rechecked in recheck_samples(prepared, datasets, plan, run.config, [row]):
                if rechecked.failed:
                    raise OutputError(
                        f"{self.writer.part} is not what this run computes.",
                        why=f"Sample {prepared.source.index[row]} of it differs from the model's own "
                        f"derivative by {rechecked.error:.1e} (relative).",
                        hint="Start anew with --no-resume, which removes it; and check that disk.",
                    )

    def _a_sound_row(self, run: Run) -> int | None:
        """One of the finished samples whose numbers are finite; None if there is none."""
        index, not_finite = run.prepared.source.index, frozenset(run.not_finite)
        if self.done == len(not_finite):
            return None
        draw = random.Random(run.config.seed + self.done)
        while int(index[row := draw.randrange(self.done)]) in not_finite:
            pass
        return row

    def not_finite(self, prepared: Prepared) -> list[int]:
        """Positions in INPUTS of the finished samples whose Jacobian or outputs are not finite."""
        return [int(prepared.source.index[row]) for row in rows_not_finite(self.writer.datasets, self.done)]


def _is_complete(part: Path) -> bool:
    with suppress(ResultsError), open_results(part) as results:
        return results.complete
    return False
