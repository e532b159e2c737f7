"""Trust: a probe before the run, checks of its batches, a recheck; always through the original model."""

from jacli.verify.explain import Mistake
from jacli.verify.independence import batch_failure, check_batch, check_gradients, check_state
from jacli.verify.other_values import with_others_changed
from jacli.verify.passes import PlainPasses
from jacli.verify.probe import BATCH_SIZES, CROSS_SAMPLE_LIMIT, Probed, mixing_error, probe, repeated_rows
from jacli.verify.recheck import (
    MOST_ROWS,
    Rechecked,
    StoredProducts,
    StoredSample,
    recheck,
)
from jacli.verify.rows import (
    batch_errors,
    cotangent_error,
    every_row_errors,
    row_error,
    row_tolerance,
    transpose_error,
)
from jacli.verify.tolerances import recheck_tolerance

__all__ = [
    "BATCH_SIZES",
    "CROSS_SAMPLE_LIMIT",
    "MOST_ROWS",
    "Mistake",
    "PlainPasses",
    "Probed",
    "Rechecked",
    "StoredProducts",
    "StoredSample",
    "batch_errors",
    "batch_failure",
    "check_batch",
    "check_gradients",
    "check_state",
    "cotangent_error",
    "every_row_errors",
    "mixing_error",
    "probe",
    "recheck",
    "recheck_tolerance",
    "repeated_rows",
    "row_error",
    "row_tolerance",
    "transpose_error",
    "with_others_changed",
]
