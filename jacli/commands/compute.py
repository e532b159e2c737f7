"""``jacli compute``: from a model file and an inputs file to one result file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jacli.choice.choose import choose
from jacli.choice.memory_limit import memory_errors
from jacli.choice.refusals import check_asked
from jacli.device.allocator import reused_memory
from jacli.engine.engine import Chosen, Engine
from jacli.errors import JacliError, OutputError, ResultsError, UsageError
from jacli.in_memory.call_arguments import check_paths
from jacli.network import exact_arithmetic
from jacli.options.table import RunConfig, names_of
from jacli.run.batches import Run
from jacli.run.config_file import resolve_options, result_path
from jacli.run.finished import Finished
from jacli.run.labelled import accuracy_notes
from jacli.run.option_signature import with_options
from jacli.run.outcome import Outcome, Recheck
from jacli.run.pipeline import Pipeline, WrittenBatch
from jacli.run.prepare import Prepared, prepare
from jacli.run.provenance import provenance
from jacli.run.recheck import choose_rows, recheck_samples, tolerance_of
from jacli.run.reference import References
from jacli.run.report import ProgressCall, Report
from jacli.run.resume import Unfinished
from jacli.run.run_log import RunLog
from jacli.store import (
    ResultWriter,
    RunLock,
    check_folder,
    check_place,
    check_room,
    remove_part,
    tidy,
    uninterrupted,
)


def compute(
    model: str | os.PathLike[str],
    inputs: str | os.PathLike[str],
    out: str | os.PathLike[str] = "out.h5",
    **options: Any,
) -> Outcome:
    """Compute every sample's Jacobian and write it with its norms and singular values to ``out``.

    Nothing is printed.  Progress and notes go to the logger ``jacli`` at level INFO, a line every
    ``log_every`` seconds; with ``quiet=True`` neither.  Results that are not right (not finite, or different
    in the recheck) are a warning there, whatever ``quiet`` is.

    >>> files = "sample_models/digits_cnn.pt", "sample_models/digits.npy"
    >>> outcome = compute(*files, out="out.h5", classes="top:2")
    >>> outcome.samples
    64

    Args:
        model: As the command's MODEL: a file, or an architecture's name.
        inputs: As the command's INPUTS: a file, a folder, or ``random:64x3x224x224``.
        out: The result file.
        **options: Every option of the command with underscores (``method="vmap"``, ``classes="top:5"``), and
            ``config``; but for ``json``, ``debug`` and ``dry_run``, which are about what the command prints.

    Raises:
        JacliError: As the command's exit codes; a result with values that are not finite is no
            error here, see `Outcome.not_finite`.
    """
    check_paths(model, inputs, out)
    for name in names_of(lambda option: not option.in_python):
        if name in options:
            raise UsageError(
                f"jacli.compute takes no {name}.",
                why="It is about what the command `jacli compute` prints.",
                hint="Leave it out.",
            )
    given = {"model": model, "inputs": inputs, "out": out, **options}
    config = resolve_options(
        {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}
    )
    log = RunLog(config)
    outcome = run_compute(config, command="jacli.compute(...)", progress=log.progress, waiting=log.waiting)
    log.outcome(outcome)
    return outcome


compute.__signature__ = with_options(compute)  # type: ignore[attr-defined]  # shown by help() and notebooks


def run_compute(
    config: RunConfig,
    *,
    command: str,
    progress: ProgressCall = lambda done, total: None,
    stage: Callable[[str], None] = lambda what: None,
    note: Callable[[str], None] = lambda text: None,
    waiting: Callable[[str], None] = lambda what: None,
    published: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run from checked options to the finished file, or go on with the unfinished one of the same run.

    A finished file of the same run is left as it is, and what its run found is returned.

    Args:
        config: The options.
        command: As it was typed, for the file.
        progress: Called with the samples that are in the file for good, and all; in another thread.
        stage: Called with what the run is busy with: ``choosing a method``, ``computing``.
        note: Called with each note that is known before anything is computed; the outcome has it as well.
        waiting: Called with what is waited for, where another host may still be writing.
        published: Called when the file has its name: from then on there is nothing to be stopped.

    Raises:
        JacliError: See `compute`.
    """
    with exact_arithmetic(), reused_memory(), ExitStack() as stack:
        out = result_path(config)
        check_folder(out)
        lock = RunLock(out, waiting)
        stack.callback(lock.release)
        tidy(out)
        finished, refusal = _look_at_place(out, config)
        if finished is not None:
            stack.enter_context(finished)
        if finished is not None or refusal is not None:
            prepared = _prepare_beside(refusal, config)
            stack.enter_context(prepared.source)
            if finished is not None:
                return finished.outcome(prepared)
        if refusal is not None:
            raise refusal
        shard = None if config.shard is None else str(config.shard)
        report = stack.enter_context(Report(out, command=command, shard=shard, tell=progress, stage=stage))
        report.busy("loading the model")
        with uninterrupted():
            unfinished = Unfinished.of(out, config)
            if unfinished is not None:
                stack.enter_context(unfinished.writer)
                report.found(unfinished.writer.n_samples, unfinished.done)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        if unfinished is not None:
            unfinished.check_model(prepared)
            config = replace(config, repeated_plan=unfinished.plan)
        run = Run(config, prepared, must_follow=unfinished is not None)
        check_asked(run.request, prepared.shapes)
        for text in prepared.notes:
            note(text)
        report.begin(prepared.shapes.n_samples)
        job = ComputeJob(run, out, command, unfinished, report, lock)
        return job.do(stack, published)


def _look_at_place(out: Path, config: RunConfig) -> tuple[Finished | None, OutputError | None]:
    """The finished result that is there already, and why nothing may be written there."""
    with suppress(ResultsError):  # what cannot be read as a result is refused as any other file
        finished = Finished.of(out, config)
        if finished is not None:
            differences = finished.differences
            return finished, finished.refusal(differences) if differences else None
    try:
        check_place(out, overwrite=config.overwrite)
    except OutputError as refusal:
        return None, refusal
    return None, None


def _prepare_beside(refusal: OutputError | None, config: RunConfig) -> Prepared:
    """Prepare a run though its place is taken, so that whatever else is wrong is reported as well."""
    try:
        return prepare(config)
    except JacliError as error:
        if refusal is not None:
            error.besides = (*error.besides, refusal)
        raise


class ComputeJob:
    """One run: its batches, the file they go to, and what is reported in the end."""

    def __init__(
        self,
        run: Run,
        out: Path,
        command: str,
        unfinished: Unfinished | None,
        report: Report,
        lock: RunLock,
    ) -> None:
        self._run = run
        self._out = out
        self._command = command
        self._report = report
        self._lock = lock
        self._unfinished = unfinished
        self._writer = unfinished.writer if unfinished else None
        report.busy("choosing a method" if run.request.is_free else "choosing batch sizes")
        with memory_errors("trying the model on the first samples"):
            self._choice = choose(run.request, run.problem)
        self._engine = self._engine_at_start()
        report.computing()

    def _engine_at_start(self) -> Engine:
        """The engine, where the earlier process stopped, after a look whether what it left is right."""
        run, choice, earlier = self._run, self._choice, self._unfinished
        check_room(self._out, run.layout(choice.plans[0]))
        if earlier is None:
            return Engine(run.request, run.problem, choice)
        earlier.writer.expect(run.layout(choice.plans[0]))
        earlier.check_checksums()
        run.go_on(earlier.rows_hash(run.prepared), earlier.not_finite(run.prepared))
        earlier.check_a_sample(run, choice.plans[0])
        chosen = earlier.chosen(choice)
        now = provenance(run.config, run.prepared, chosen, self._command)
        earlier.writer.set_attributes(earlier.note_what_changed(now))
        proven = chosen if earlier.done else None
        return Engine(run.request, run.problem, choice, start=earlier.done, proven=proven)

    def do(self, stack: ExitStack, published: Callable[[], None]) -> Outcome:
        """Compute what is missing, recheck, and give the file its name."""
        run, engine = self._run, self._engine
        pipeline: Pipeline | None = None
        told: tuple[Chosen, list[str]] | None = None
        for batch in engine.batches():
            chosen = engine.chosen
            assert chosen is not None  # a batch was computed
            if self._writer is None:
                with uninterrupted():
                    self._writer = stack.enter_context(self._created(chosen))
            if pipeline is None:
                self._write_classes(self._writer)
                pipeline = stack.enter_context(self._pipeline(self._writer))
            with memory_errors(f"storing samples {batch.start} to {batch.start + batch.count - 1}"):
                arrays = run.arrays(batch, chosen.plan)
            known = (chosen, self._notes())
            changed = {} if known == told else {"plan": chosen.to_dict(), "notes": known[1]}
            told = known
            ready = WrittenBatch(batch.start, arrays, run.inputs_sha256.hexdigest(), changed)
            alone = not run.memory.holds(engine.held, run.result_bytes(batch.count, chosen.plan))
            del batch, arrays  # or they would be held while the next one is computed
            pipeline.put(ready, wait=alone)
            del ready
        if pipeline is not None:
            pipeline.finish()
        return self._finished(published)

    def _pipeline(self, writer: ResultWriter) -> Pipeline:
        return Pipeline(
            writer,
            self._run.prepared.device,
            before_commit=self._lock.check,
            written=self._report.written,
        )

    def _notes(self) -> list[str]:
        """Notes for the user, of this process and of earlier ones."""
        earlier = self._unfinished.notes if self._unfinished else []
        now = [*self._run.prepared.notes, *self._choice.notes, *self._engine.notes]
        return list(dict.fromkeys([*earlier, *now]))

    def _created(self, chosen: Chosen) -> ResultWriter:
        run = self._run
        remove_part(self._out)  # of --no-resume, now that there is something to take its place
        attributes = provenance(run.config, run.prepared, chosen, self._command)
        return ResultWriter.create(
            self._out, run.layout(chosen.plan), attributes, overwrite=run.config.overwrite
        )

    def _write_classes(self, writer: ResultWriter) -> None:
        classes = self._run.config.classes
        if classes.kind == "indices":
            writer.write_static("class_index", np.array(classes.indices, dtype=np.int64))

    def _finished(self, published: Callable[[], None]) -> Outcome:
        run, engine, writer, prepared = self._run, self._engine, self._writer, self._run.prepared
        chosen = engine.chosen
        assert writer is not None and chosen is not None  # there is a sample at least
        self._report.busy("rechecking")
        rechecked = _recheck(run, writer, chosen)
        notes = list(dict.fromkeys([*self._notes(), *rechecked.notes]))
        writer.set_attributes(
            {
                "inputs_sha256": run.inputs_sha256.hexdigest(),
                "plan": chosen.to_dict(),
                "notes": notes,
                "verified_dtype": rechecked.dtype,
                "tolerance": rechecked.tolerance,
            }
        )
        accuracy = accuracy_notes(writer.datasets) if prepared.labels is not None else []
        self._lock.check()
        writer.finish(published)
        return Outcome(
            out=self._out,
            samples=prepared.shapes.n_samples,
            continued=self._unfinished.done if self._unfinished else 0,
            shape=run.jacobian_shape,
            plan=chosen.to_dict(),
            chosen=chosen,
            not_finite=tuple(run.not_finite),
            overflowed=writer.overflowed,
            rechecked=rechecked,
            notes=(*notes, *run.notes(chosen.plan), *accuracy),
        )


def _recheck(run: Run, writer: ResultWriter, chosen: Chosen) -> Recheck:
    """Hold some samples, as they stand in the file, against the original model; write down what is found."""
    config, prepared = run.config, run.prepared
    wrong = set(run.not_finite)
    errors: list[float] = []
    at_kinks, failed = [], []
    dtype: str | None = None
    rows = choose_rows(prepared.shapes.n_samples, config.verify, config.seed)
    references = References(prepared)
    only_rounding = True
    with memory_errors("rechecking samples"):
        for row, rechecked in recheck_samples(
            prepared, writer.datasets, chosen.plan, config, rows, references=references
        ):
            writer.write_recheck(row, rechecked.error, rechecked.near_kink)
            position, dtype = int(prepared.source.index[row]), rechecked.dtype
            if rechecked.near_kink:
                at_kinks.append(position)
            else:
                errors.append(rechecked.error)
            if rechecked.failed and position not in wrong:
                failed.append(position)
                only_rounding &= rechecked.rounding
                if rechecked.rounding:
                    references.notes.append(
                        f"sample {position} is what plain reverse passes in {config.dtype} give, which is "
                        "too coarse for it: --dtype float64, or a larger --tolerance"
                    )
    worst = max(errors, default=None)
    return Recheck(
        len(rows),
        worst,
        tolerance_of(config, references.reduced),
        dtype,
        tuple(at_kinks),
        tuple(failed),
        tuple(references.notes),
        only_rounding=bool(failed) and only_rounding,
    )
