"""`jacli summarize`: tables of norms and singular values of result files, in little memory.

What `compute` stored is read; what is missing is computed from the Jacobian in pieces of a few MiB, so that
neither many samples nor one huge sample is ever in memory as a whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from jacli import summary
from jacli.errors import ResultsError, UsageError
from jacli.run.jacobian_pieces import PIECE_BYTES, StoredJacobian
from jacli.summary import COLUMNS, Array, FileSummary, Statistics, Table

MAX_GRAM_SIDE = 4096
"""Singular values are computed while min(n_out, n_in) is at most this (a Gram matrix of 128 MiB)."""

BLOCK_SAMPLES = 65536
"""Samples a block where little is read of each."""
