"""Are the datasets of a result file numbers, and do their shapes fit one another?

Whoever reads them may then index and multiply without a thought for files that were damaged or edited.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py

from jacli.errors import ResultsError
from jacli.store.dimensions import is_bare_dimension
from jacli.store.schema import CHECKSUMS

_COUNTS = ("done", "sample_index", "near_kink", "labels")
_NORMS = ("frobenius_norm", "spectral_norm", "nuclear_norm", "verified_error")
_SPECTRA = ("singular_values", "singular_value_error")
_ARRAYS = ("class_norms", "outputs", "inputs", "jacobian", "factors/left", "factors/right")


def check_structure(path: Path, file: h5py.File) -> None:
    """Refuse a file of the schema whose datasets are not what the schema says; absent ones are no fault here.

    Raises:
        ResultsError: Naming the dataset.
    """
    names = (*_COUNTS, *_NORMS, *_SPECTRA, *_ARRAYS, "class_index")
    shapes = check_numbers(path, file, names, whole=(*_COUNTS, "class_index"))
    batch = shapes.get("done", (None,))[0]
    for name, shape in shapes.items():
        axes = 1 if name in (*_COUNTS, *_NORMS) else 2 if name in _SPECTRA else len(shape)
        shared = name == "class_index" and len(shape) == 1
        if len(shape) != axes or (shape[0] != batch and not shared):
            raise _misfit(path, name, shape, f"{batch} samples")
    _check_tails(path, shapes)
    _check_batches(path, file, shapes.get("done", (0,))[0])


def _check_batches(path: Path, file: h5py.File, samples: int) -> None:
    """One entry per batch, and no more batches than samples."""
    group = CHECKSUMS.rstrip("/")
    if group in file and not isinstance(file[group], h5py.Group):
        raise ResultsError(
            f"{path} is damaged, or was edited.",
            why=f"Its {group} is not a group of datasets.",
            hint="Copy it again, or compute it again.",
        )
    names = [f"{group}/{name}" for name in dataset_names(file[group])] if group in file else []
    shapes = check_numbers(path, file, ("batch_start", *names), whole=("batch_start", *names))
    entries = shapes.get("batch_start", (0,))
    for name, shape in shapes.items():
        if len(shape) != 1 or shape[0] > samples or shape != entries:
            raise _misfit(path, name, shape, f"batch_start of shape {entries}, and {samples} samples")


def dataset_names(group: h5py.Group) -> list[str]:
    """Names of the datasets in a group or file, at any depth, without bare dimensions.

    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     file["factors/left"] = [1.0]
    ...     dataset_names(file)
    ['factors/left']
    """
    names: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not is_bare_dimension(item):
            names.append(name)

    group.visititems(note)
    return names


def check_numbers(
    path: Path, file: h5py.File, names: Iterable[str], *, whole: Iterable[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Shapes of those datasets that are there, each an array of numbers.

    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     file["done"] = [1, 1, 0]
    ...     check_numbers(Path("x.h5"), file, ["done", "labels"], whole=["done"])
    {'done': (3,)}

    Args:
        path: For the message.
        file: Open.
        names: Of datasets that may be there.
        whole: Those of them whose numbers are whole.

    Raises:
        ResultsError: One is no dataset, or holds something else.
    """
    shapes = {}
    for name in names:
        if name not in file:
            continue
        dataset = file[name]
        kinds = "iu" if name in whole else "fiu"
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in kinds or not dataset.shape:
            raise ResultsError(
                f"{path} is damaged, or was edited.",
                why=f"Its {name} is not an array of {'whole ' if name in whole else ''}numbers.",
                hint="Copy it again, or compute it again.",
            )
        shapes[name] = tuple(int(size) for size in dataset.shape)
    return shapes


def _check_tails(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The axes of outputs and inputs are the same everywhere."""
    pairs: list[tuple[str, tuple[int, ...], str, tuple[int, ...] | None]] = []
    outputs, inputs = (shapes[name][1:] if name in shapes else None for name in ("outputs", "inputs"))
    index = shapes.get("class_index")
    selected = outputs if index is None else index[-1:]
    if index is not None and len(index) > 2:
        raise _misfit(path, "class_index", index, "indices along one axis")
    if "class_norms" in shapes:
        pairs.append(("class_norms", shapes["class_norms"][1:], "outputs", selected))
        selected = shapes["class_norms"][1:]
    if "jacobian" in shapes and selected is not None:
        split = max(1, len(shapes["jacobian"]) - len(selected))
        pairs.append(("jacobian", shapes["jacobian"][split:], "outputs", selected))
        pairs.append(("jacobian", shapes["jacobian"][1:split], "inputs", inputs))
    if "factors/left" in shapes:
        pairs.append(("factors/left", shapes["factors/left"][1:-1], "outputs", selected))
    if "factors/right" in shapes:
        width = shapes["factors/left"][-1:] if "factors/left" in shapes else None
        pairs.append(("factors/right", shapes["factors/right"][1:2], "factors/left", width))
        pairs.append(("factors/right", shapes["factors/right"][2:], "inputs", inputs))
    if "singular_value_error" in shapes:
        expected = shapes.get("singular_values")
        pairs.append(("singular_value_error", shapes["singular_value_error"], "singular_values", expected))
    for name, shape, other, expected in pairs:
        if expected is not None and shape != expected:
            raise _misfit(path, name, shapes[name], f"{other} of shape {expected}")


def _misfit(path: Path, name: str, shape: tuple[int, ...], beside: str) -> ResultsError:
    return ResultsError(
        f"{path} is damaged, or was edited.",
        why=f"Its {name} has shape {shape}, which does not fit {beside}.",
        hint="Copy it again, or compute it again.",
    )
