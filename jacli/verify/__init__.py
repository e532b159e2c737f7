"""Trust: the probe before a run, the check of its first block; always through the original model."""

from jacli.verify.alone import check_alone
from jacli.verify.probe import BATCH_SIZES, Probed, probe
from jacli.verify.rows import row_error, row_tolerance

__all__ = ["BATCH_SIZES", "Probed", "check_alone", "probe", "row_error", "row_tolerance"]
