"""Trust: a probe before the run, a check of its first block, a recheck; always through the original model."""

from jacli.verify.alone import block_failure, check_alone
from jacli.verify.probe import BATCH_SIZES, Probed, probe
from jacli.verify.recheck import Rechecked, StoredProducts, StoredSample, recheck, recheck_tolerance
from jacli.verify.rows import cotangent_error, row_error, row_tolerance

__all__ = [
    "BATCH_SIZES",
    "Probed",
    "Rechecked",
    "StoredProducts",
    "StoredSample",
    "block_failure",
    "check_alone",
    "cotangent_error",
    "probe",
    "recheck",
    "recheck_tolerance",
    "row_error",
    "row_tolerance",
]
