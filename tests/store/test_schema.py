from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from jacli.store import ResultLayout, bytes_on_disk, dimension_names, open_results
from jacli.store.schema import chunk_shape
from tests.store.layouts import IMAGES, write_file

MIB = 2**20

SNAPSHOT = """\
batch_start           (3,)              int64    batches
checksums/class_norms (3,)              uint32   batches
checksums/frobenius_norm (3,)              uint32   batches
checksums/inputs      (3,)              uint32   batches
checksums/jacobian    (3,)              uint32   batches
checksums/nuclear_norm (3,)              uint32   batches
checksums/outputs     (3,)              uint32   batches
checksums/sample_index (3,)              uint32   batches
checksums/singular_value_error (3,)              uint32   batches
checksums/singular_values (3,)              uint32   batches
checksums/spectral_norm (3,)              uint32   batches
class_norms           (10, 7)           float64  batch n_classes
done                  (10,)             uint8    batch
frobenius_norm        (10,)             float64  batch
inputs                (10, 3, 5, 4)     float32  batch c h w
jacobian              (10, 3, 5, 4, 7)  float32  batch c h w n_classes
near_kink             (10,)             int8     batch
nuclear_norm          (10,)             float64  batch
outputs               (10, 7)           float32  batch n_classes
sample_index          (10,)             int64    batch
singular_value_error  (10, 7)           float64  batch singular_value
singular_values       (10, 7)           float64  batch singular_value
spectral_norm         (10,)             float64  batch
verified_error        (10,)             float64  batch
"""


def test_the_schema_is_the_recorded_one(tmp_path: Path) -> None:
    write_file(tmp_path / "out.h5")
    with open_results(tmp_path / "out.h5") as results:
        lines = [
            f"{name:21} {results._file[name].shape!s:17} {results._file[name].dtype!s:8} "
            + " ".join(axis.label for axis in results._file[name].dims)
            for name in results.names
        ]
    assert "\n".join(lines) + "\n" == SNAPSHOT


@pytest.mark.parametrize(
    ("input_shape", "output_shape", "inputs", "outputs"),
    [
        ((3, 5, 4), (7,), ("c", "h", "w"), ("n_classes",)),
        ((6,), (), ("input_0",), ()),
        ((6, 2), (7, 3), ("input_0", "input_1"), ("output_0", "output_1")),
        ((), (1,), (), ("n_classes",)),
    ],
)
def test_dimension_names(input_shape, output_shape, inputs, outputs) -> None:
    assert dimension_names(input_shape, output_shape) == (inputs, outputs)


def test_selected_outputs_replace_the_output_axes() -> None:
    table = ResultLayout(4, (6,), (7, 3), selected=2).datasets()
    assert table["jacobian"].shape == (4, 6, 2)
    assert table["jacobian"].dims == ("batch", "input_0", "selected")
    assert table["class_norms"].shape == (4, 2)
    assert table["outputs"].shape == (4, 7, 3)
    assert table["class_index"].dims == ("selected",)


def test_classes_of_each_sample_have_a_row_a_sample() -> None:
    table = ResultLayout(4, (6,), (7,), selected=2, per_sample_classes=True).datasets()
    assert table["class_index"].shape == (4, 2)


def test_what_is_not_computed_is_not_in_the_file() -> None:
    table = ResultLayout(4, (6,), (7,), save_jacobian=False, save_inputs=False).datasets()
    assert list(table) == [
        "sample_index",
        "outputs",
        "frobenius_norm",
        "class_norms",
        "verified_error",
        "near_kink",
        "done",
        "batch_start",
        "checksums/sample_index",
        "checksums/outputs",
        "checksums/frobenius_norm",
        "checksums/class_norms",
    ]
    assert "nuclear_norm" not in ResultLayout(4, (6,), (7,), n_singular_values=1).datasets()


def test_factors_take_the_place_of_the_jacobian() -> None:
    more = {"save_jacobian": False, "factor_width": 2, "save_dtype": "float16"}
    table = ResultLayout(10, (3, 5, 4), (7,), **more).datasets()
    assert "jacobian" not in table
    assert (table["factors/left"].shape, table["factors/right"].shape) == ((10, 7, 2), (10, 2, 3, 5, 4))
    assert table["factors/left"].dims == ("batch", "n_classes", "bottleneck")
    assert table["factors/right"].dims == ("batch", "bottleneck", "c", "h", "w")
    assert table["factors/left"].dtype == table["factors/right"].dtype == "float16"
    table = ResultLayout(10, (3, 5, 4), (7,), selected=4, **more).datasets()
    assert table["factors/left"].shape == (10, 4, 2)
    assert table["factors/left"].dims == ("batch", "selected", "bottleneck")
    large = ResultLayout(10, (3, 224, 224), (1000,), save_jacobian=False, factor_width=512, batch_size=4)
    assert 2**20 <= prod(large.datasets()["factors/right"].chunks) * 4 <= 4 * MIB


def test_a_domain_that_is_not_the_inputs_has_axes_of_its_own() -> None:
    layout = ResultLayout(10, (3, 5, 4), (7,), domain_shape=(8, 2), factor_width=2)
    table = layout.datasets()
    assert (table["jacobian"].shape, table["factors/right"].shape) == ((10, 8, 2, 7), (10, 2, 8, 2))
    assert table["jacobian"].dims == ("batch", "domain_0", "domain_1", "n_classes")
    assert table["factors/right"].dims == ("batch", "bottleneck", "domain_0", "domain_1")
    assert (table["inputs"].shape, table["inputs"].dims) == ((10, 3, 5, 4), ("batch", "c", "h", "w"))


def test_bytes_follow_the_dtypes() -> None:
    sizes = bytes_on_disk(ResultLayout(10, (3, 5, 4), (7,), save_dtype="float16", output_dtype="float64"))
    assert sizes["jacobian"] == 10 * 60 * 7 * 2
    assert sizes["outputs"] == 10 * 7 * 8
    assert sizes["done"] == 10


@pytest.mark.parametrize("batch_size", [1, 2, 6, 16, 61, 64, 1000])
@pytest.mark.parametrize(
    "sample", [(3, 224, 224, 1000), (3, 32, 32, 10), (1, 28, 28, 10), (7,), (3, 223, 223, 11), (2**26,)]
)
def test_chunks_fit_the_blocks(sample: tuple[int, ...], batch_size: int) -> None:
    shape = (50_000, *sample)
    chunk = chunk_shape(shape, 4, batch_size)
    nbytes = prod(chunk) * 4
    assert nbytes <= 4 * MIB
    assert all(1 <= part <= size for part, size in zip(chunk, shape, strict=True))
    assert batch_size % chunk[0] == 0 or chunk[0] % batch_size == 0  # no block ends inside a chunk
    if prod(sample) * 4 > 4 * MIB:
        assert chunk[0] == 1
        assert nbytes >= MIB / 2
    padded = prod(-(-size // part) * part for size, part in zip(shape[1:], chunk[1:], strict=True))
    assert padded <= 1.12 * prod(sample)  # parts at the edge are stored whole


def test_chunks_of_imagenet_samples_are_one_to_four_mib() -> None:
    assert chunk_shape((50_000, 3, 224, 224, 1000), 4, 8) == (1, 1, 4, 224, 1000)


def test_small_datasets_are_contiguous_and_compressed_ones_are_not() -> None:
    assert IMAGES.datasets()["jacobian"].chunks is None
    assert (
        ResultLayout(10, (3, 5, 4), (7,), compress="gzip", batch_size=4).datasets()["jacobian"].chunks
        is not None
    )
