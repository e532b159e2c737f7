"""Progress and notes of a run in Python: the logger ``jacli``, nothing on the screen."""

from __future__ import annotations

import logging
from time import monotonic

from jacli.options.table import RunConfig
from jacli.run.outcome import Outcome

logger = logging.getLogger("jacli")
"""The logger of the Python interface: notes and progress at INFO, results that are not right at WARNING."""


class RunLog:
    """Progress, notes and the end of one run.

    Args:
        config: Its options: ``quiet`` and ``log_every`` are followed.
    """

    def __init__(self, config: RunConfig) -> None:
        self._quiet = config.quiet
        self._every = config.log_every
        self._out = config.out
        self._told = monotonic()

    def progress(self, done: int, total: int) -> None:
        """Samples that are done, and all; called after each batch, from another thread."""
        if self._quiet or monotonic() - self._told < self._every:
            return
        self._told = monotonic()
        logger.info("%s: %d of %d samples", self._out, done, total)

    def waiting(self, what: str) -> None:
        """Log what the run waits for."""
        if not self._quiet:
            logger.info("%s", what)

    def outcome(self, outcome: Outcome) -> None:
        """Notes, and what is not right with the results."""
        if not self._quiet:
            for note in outcome.notes:
                logger.info("%s: %s", self._out, note)
        if outcome.not_finite:
            logger.warning(
                "%s: %d of %d samples are not finite, see Outcome.not_finite",
                self._out,
                len(outcome.not_finite),
                outcome.samples,
            )
        if outcome.rechecked.failed:
            logger.warning(
                "%s: %d samples differ from the model's own derivative, see Outcome.rechecked",
                self._out,
                len(outcome.rechecked.failed),
            )
