"""Schema ``jacli/2``: which datasets a result file holds, their shapes, dtypes and dimension names.

A table, computed from a few integers: the writer lays it out, ``--dry-run`` sums it, a text snapshot
in the tests keeps it. B is the number of samples of the file.

``jacli/1`` had neither ``batch_start`` nor ``checksums/``, and its ``near_kink`` (uint8) was 0 where nothing
had been checked; `jacli.store.reader` reads it as if it were of this schema.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

SCHEMA = "jacli/2"
READABLE_SCHEMAS = ("jacli/1", SCHEMA)

AFTERWARDS = frozenset({"verified_error", "near_kink", "done"})
"""Per-sample datasets that no batch brings: the recheck and the writer itself fill them."""

CHECKSUMS = "checksums/"
"""Where the checksums of a dataset lie: ``checksums/NAME``."""

_MAX_BATCHES_PER_CHUNK = 1024

_CHUNK_BYTES = 4 * 2**20
"""Writes in aligned chunks of 1 to 4 MiB are the fastest (FINDINGS section 4)."""
_SMALL_CHUNK_BYTES = 64 * 2**10
"""Below this a chunk costs more in the file's index than in its values."""
_CONTIGUOUS_BYTES = 2**20


@dataclass(frozen=True)
class DatasetLayout:
    """One dataset: shape, dtype, the name of each axis, and how it lies on disk.

    Attributes:
        dims: One name an axis; the first is ``batch`` unless the dataset belongs to the whole run.
        long_name: What it is, in words.
        units: "1" for numbers that count nothing; empty where the unit is the model's own.
        chunks: Chunk shape; None for a contiguous dataset.
        unwritten: What a whole number reads as until it is written; others read as NaN.
        grows: Whether the first axis starts empty and grows with the run: one entry per batch.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    dims: tuple[str, ...]
    long_name: str
    units: str = ""
    chunks: tuple[int, ...] | None = None
    unwritten: int = 0
    grows: bool = False

    @property
    def fill_value(self) -> float | int:
        """Fill value: what is read where nothing was written."""
        return math.nan if self.dtype.kind == "f" else self.unwritten

    @property
    def nbytes(self) -> int:
        """Bytes of the values, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def nbytes_of(self, count: int) -> int:
        """Bytes of so many samples."""
        return count * math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class ResultLayout:
    """Shapes and options of a run, from which every dataset of its file follows.

    Attributes:
        n_samples: B.
        input_shape: Of one row of INPUTS.
        output_shape: Of one sample's whole output.
        selected: k of ``--classes``; None for all outputs, each along its own axes.
        per_sample_classes: The k outputs differ from sample to sample (``top:k``, ``label``).
        n_singular_values: s, stored for each sample; 0 for none.
        nuclear_norm: Whether all singular values were computed, so that their sum is known.
        save_jacobian: False for ``--save factors`` and ``none``.
        factor_width: r of ``--save factors``: each Jacobian is left (n_out, r) times right (r, n_in).
            0 for no factors.
        save_inputs: Whether the inputs are copied into the file.
        save_labels: Whether each sample has a label.
        save_dtype: Of the Jacobian, or its factors, in the file.
        input_dtype: Of the inputs as they were read.
        output_dtype: The run's arithmetic.
        compress: none, gzip, lzf or zstd.
        batch_size: Samples per batch; chunks are aligned to it.
        domain_shape: Of what is differentiated with respect to, per sample: the first axes of the Jacobian;
            the inputs if empty.
    """

    n_samples: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    selected: int | None = None
    per_sample_classes: bool = False
    n_singular_values: int = 0
    nuclear_norm: bool = False
    save_jacobian: bool = True
    factor_width: int = 0
    save_inputs: bool = True
    save_labels: bool = False
    save_dtype: str = "float32"
    input_dtype: str = "float32"
    output_dtype: str = "float32"
    compress: str = "none"
    batch_size: int = 1
    domain_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.domain_shape:
            object.__setattr__(self, "domain_shape", self.input_shape)

    def datasets(self) -> dict[str, DatasetLayout]:
        """Name -> layout, in the order of INTERFACE section 4."""
        input_dims, output_dims = dimension_names(self.input_shape, self.output_shape)
        domain_dims = input_dims
        if self.domain_shape != self.input_shape:  # a dimension has one size in a file
            domain_dims = tuple(f"domain_{axis}" for axis in range(len(self.domain_shape)))
        differentiated, differentiated_dims = self.output_shape, output_dims
        if self.selected is not None:
            differentiated, differentiated_dims = (self.selected,), ("selected",)
        singular = (self.n_singular_values,), ("singular_value",)
        table: dict[str, DatasetLayout] = {}

        def add(
            name: str,
            shape: tuple[int, ...],
            dims: tuple[str, ...],
            dtype: str,
            long_name: str,
            units: str = "",
            unwritten: int = 0,
        ) -> None:
            layout = DatasetLayout(
                (self.n_samples, *shape),
                np.dtype(dtype),
                ("batch", *dims),
                long_name,
                units,
                unwritten=unwritten,
            )
            table[name] = self._with_chunks(layout)

        if self.save_jacobian:
            add(
                "jacobian",
                (*self.domain_shape, *differentiated),
                (*domain_dims, *differentiated_dims),
                self.save_dtype,
                "derivative of each output with respect to each input",
                "output per input",
            )
        if self.factor_width:
            add(
                "factors/left",
                (*differentiated, self.factor_width),
                (*differentiated_dims, "bottleneck"),
                self.save_dtype,
                "derivative of each output with respect to the bottleneck",
                "output per number of the bottleneck",
            )
            add(
                "factors/right",
                (self.factor_width, *self.domain_shape),
                ("bottleneck", *domain_dims),
                self.save_dtype,
                "derivative of the bottleneck with respect to each input",
                "number of the bottleneck per input",
            )
        add("sample_index", (), (), "int64", "position of the sample in the inputs", "1")
        if self.save_labels:
            add("labels", (), (), "int64", "class of each sample, as given with --labels", "1")
        if self.save_inputs:
            add("inputs", self.input_shape, input_dims, self.input_dtype, "inputs, as read")
        add("outputs", self.output_shape, output_dims, self.output_dtype, "all outputs of the model")
        for name, long_name in self._norms().items():
            add(name, (), (), "float64", long_name, "output per input")
        add(
            "class_norms",
            differentiated,
            differentiated_dims,
            "float64",
            "2-norm of each output's input-gradient",
            "output per input",
        )
        if self.n_singular_values:
            add(
                "singular_values",
                *singular,
                "float64",
                "singular values of the matrix (n_out, n_in), decreasing",
                "output per input",
            )
            add(
                "singular_value_error",
                *singular,
                "float64",
                "bound on the absolute error of each singular value",
                "output per input",
            )
        if self.selected is not None:
            long_name = "flat index of each selected output"
            if self.per_sample_classes:
                add("class_index", (self.selected,), ("selected",), "int64", long_name, "1")
            else:
                table["class_index"] = DatasetLayout(
                    (self.selected,), np.dtype("int64"), ("selected",), long_name, "1"
                )
        add(
            "verified_error",
            (),
            (),
            "float64",
            "relative error found by the recheck, NaN if not rechecked",
            "1",
        )
        near_kink = "1 at a kink, where float64 gives another derivative; 0 not at one; -1 not checked"
        add("near_kink", (), (), "int8", near_kink, "1", unwritten=-1)
        add("done", (), (), "uint8", "1 once everything of the sample is on disk", "1")
        return table | self._batches(table)

    def _batches(self, table: Mapping[str, DatasetLayout]) -> dict[str, DatasetLayout]:
        """``batch_start`` and the checksums of what batches bring: one entry per batch as it ran."""
        expected = math.ceil(self.n_samples / self.batch_size)
        chunks = (max(1, min(expected, _MAX_BATCHES_PER_CHUNK)),)

        def per_batch(dtype: str, long_name: str) -> DatasetLayout:
            return DatasetLayout((0,), np.dtype(dtype), ("batches",), long_name, "1", chunks, grows=True)

        checksums = {
            CHECKSUMS + name: per_batch("uint32", f"CRC-32 of each batch's rows of {name}")
            for name, layout in table.items()
            if layout.dims[0] == "batch" and name not in AFTERWARDS
        }
        return {"batch_start": per_batch("int64", "first row of each batch as it ran"), **checksums}

    def _norms(self) -> dict[str, str]:
        norms = {"frobenius_norm": "Frobenius norm of the Jacobian"}
        if self.n_singular_values:
            norms["spectral_norm"] = "largest singular value of the Jacobian"
        if self.nuclear_norm:
            norms["nuclear_norm"] = "sum of the singular values of the Jacobian"
        return norms

    def _with_chunks(self, layout: DatasetLayout) -> DatasetLayout:
        plain = self.compress == "none" and layout.nbytes <= _CONTIGUOUS_BYTES
        if plain or len(layout.shape) == 1:
            return layout
        chunks = chunk_shape(layout.shape, layout.dtype.itemsize, self.batch_size)
        return replace(layout, chunks=chunks)


def dimension_names(
    input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the axes of one sample's input and output.

    Images (three axes) are c, h, w and a vector of outputs is n_classes; anything else is numbered.

    >>> dimension_names((3, 32, 32), (10,)), dimension_names((128,), (4, 5))
    ((('c', 'h', 'w'), ('n_classes',)), (('input_0',), ('output_0', 'output_1')))
    """
    inputs = (
        ("c", "h", "w")
        if len(input_shape) == 3
        else tuple(f"input_{axis}" for axis in range(len(input_shape)))
    )
    outputs = (
        ("n_classes",)
        if len(output_shape) == 1
        else tuple(f"output_{axis}" for axis in range(len(output_shape)))
    )
    return inputs, outputs


def bytes_on_disk(layout: ResultLayout) -> dict[str, int]:
    """Bytes of each dataset, uncompressed; without those that have a number per batch, which are small.

    >>> bytes_on_disk(ResultLayout(100, (3, 32, 32), (10,)))["jacobian"]  # 100 x 3072 x 10 float32 numbers
    12288000
    """
    return {name: dataset.nbytes for name, dataset in layout.datasets().items() if not dataset.grows}


def chunk_shape(shape: tuple[int, ...], itemsize: int, batch_size: int) -> tuple[int, ...]:
    """The chunk of a dataset (B, ...): whole samples, at most 4 MiB, aligned to the batches that are written.

    The number of samples divides ``batch_size``, so that no batch ends inside a chunk; where whole batches
    are tiny, a chunk is several of them. A sample beyond 4 MiB is split along its leading axes.

    >>> chunk_shape((1000, 3, 32, 32, 10), itemsize=4, batch_size=64)  # 120 KiB per sample
    (32, 3, 32, 32, 10)
    """
    batch = min(batch_size, shape[0])
    chunk = list(shape)
    for axis, size in enumerate(shape):
        row_bytes = math.prod(shape[axis + 1 :]) * itemsize
        fit = _CHUNK_BYTES // row_bytes
        if fit == 0:
            chunk[axis] = 1
        elif axis == 0:
            batches = max(1, _SMALL_CHUNK_BYTES // (batch * row_bytes))
            chunk[0] = min(shape[0], batch * batches) if batches > 1 else _largest_divisor(batch, fit)
            break
        else:
            chunk[axis] = _even_split(size, fit)
            break
    return tuple(chunk)


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _even_split(size: int, fit: int) -> int:
    """At most ``fit``: a divisor of ``size`` unless that is too small, then parts of nearly equal length."""
    divisor = _largest_divisor(size, fit)
    if divisor * 4 >= fit or divisor == size:
        return divisor
    return math.ceil(size / math.ceil(size / fit))
