"""Mistakes in calls from Python: each error says what came, and what to give."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.errors import InputsError, JacliError, ModelError, UsageError
from jacli.in_memory import call_arguments
from jacli.options.table import OPTIONS, names_of
from jacli.options.values import parse_classes
from tests.reference import reference_jacobian

PRINTING_ONLY = names_of(lambda option: not option.in_python)


class Network(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.first(x)))
        return y if mask is None else y * mask


MODEL, X = Network().eval(), torch.randn(3, 4)

MODELS = {
    "class": (Network, ModelError, "the class Network", r"model = Network\(\.\.\.\)"),
    "class of torch": (nn.ReLU, ModelError, "the class ReLU", "instance"),
    "path": ("model.pt", ModelError, "a path, 'model.pt'", "jacli.compute"),
    "path object": (Path("model.pt"), ModelError, "a path, 'model.pt'", "jacli.compute"),
    "state dict": (MODEL.state_dict(), ModelError, "state dict .* of 4 tensors", "load_state_dict"),
    "parameters": (dict(MODEL.named_parameters()), ModelError, "state dict", "load_state_dict"),
    "checkpoint": ({"state_dict": MODEL.state_dict(), "epoch": 3}, ModelError, "dict", "load_state_dict"),
    "models": ([MODEL, MODEL], ModelError, "a list of 2", "Give one of them"),
    "nothing": (None, ModelError, "None", "torch.nn.Module"),
    "exported": (torch.export.export(MODEL, (X,)), ModelError, "ExportedProgram", r"\.module\(\)"),
    "swapped": (X, UsageError, "swapped", "model first"),
    "swapped array": (X.numpy(), UsageError, "swapped", "model first"),
}

POINTS = {
    "array": (X.numpy(), InputsError, r"NumPy array, float32 \(3, 4\)", "torch.from_numpy"),
    "array of integers": (np.zeros((3, 4), np.int64), InputsError, "int64", "floating"),
    "samples": (list(X), InputsError, r"a list of 3 \(Tensor\)", "torch.stack"),
    "batch of a loader": ((X, torch.arange(3)), InputsError, "a tuple of 2", r"x\[0\]"),
    "numbers": ([[1.0] * 4], InputsError, "list", "torch.tensor"),
    "path": ("x.npy", InputsError, "a path", "np.load"),
    "loader": (torch.utils.data.DataLoader(X), InputsError, "DataLoader", "next"),  # type: ignore[arg-type]
    "dictionary": ({"pixel_values": X, "n": 1}, InputsError, "dict", "one tensor"),
    "nothing": (None, InputsError, "None", "floating tensor"),
    "module": (nn.Linear(1, 1), InputsError, "a module, Linear", "second"),
    "integers": (X.long(), InputsError, r"tensor, int64 \(3, 4\)", "embeddings"),
    "bytes": (X.to(torch.uint8), InputsError, "uint8", "255"),
    "booleans": (X > 0, InputsError, "bool", "mask"),
    "complex": (X.to(torch.complex64), InputsError, "complex64", "real and imaginary"),
    "sparse": (X.to_sparse(), InputsError, "sparse", "to_dense"),
    "without numbers": (X.to("meta"), InputsError, "device meta", "on another device"),
    "no sample": (X[:0], InputsError, r"\(0, 4\)", "batch"),
    "empty samples": (X[:, :0], InputsError, r"\(3, 0\)", "batch"),
    "another dtype": (X.double(), InputsError, "x is float64, the model float32", 'dtype="float64"'),
    "half": (X.half(), InputsError, "x is float16, the model float32", r"x\.to\(torch\.float32\)"),
    "not finite": (X.masked_fill(X[1, 2] == X, torch.nan), InputsError, "1 of 3 samples", "isfinite"),
}


def _check(call: Callable[[], object], kind: type[JacliError], what: str, hint: str) -> None:
    with pytest.raises(kind, match=what) as raised:
        call()
    assert type(raised.value) is kind
    assert raised.value.why
    assert raised.value.hint
    with pytest.raises(kind, match=hint):
        raise kind(raised.value.hint)


@pytest.mark.parametrize("function", [jacli.jacobian, jacli.singular_values])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_model(name: str, function: Callable[..., Tensor]) -> None:
    given, *expected = MODELS[name]
    _check(lambda: function(given, MODEL if "swapped" in name else X), *expected)


@pytest.mark.parametrize("function", [jacli.jacobian, jacli.singular_values])
@pytest.mark.parametrize("name", POINTS)
def test_what_are_no_points(name: str, function: Callable[..., Tensor]) -> None:
    given, *expected = POINTS[name]
    _check(lambda: function(MODEL, given), *expected)


def test_points_that_are_not_finite_and_how_to_leave_them_out() -> None:
    for x in (torch.tensor([1.0, torch.inf, 2.0, torch.nan]), torch.tensor([[1.0, 2.0], [torch.nan, 1.0]])):
        with pytest.raises(InputsError, match="not finite") as raised:
            jacli.jacobian(torch.sin, x)
        remedy = raised.value.hint.removeprefix("Leave those samples out: ").rstrip(".")
        assert torch.equal(eval(remedy), x[[i for i, row in enumerate(x) if row.isfinite().all()]])


def test_another_dtype_is_not_blamed_for_what_else_is_wrong() -> None:
    class Mixing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.float()).to(x.dtype)
            return y - y.mean(0)

    with pytest.raises(ModelError) as raised:
        jacli.jacobian(Mixing(4, 5), X.double())
    assert "float32" not in raised.value.what


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 7)])
def test_a_sample_without_batch_axis(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(
        nn.Conv2d(shape[0], 2, 3), nn.Flatten(), nn.Linear(2 * (shape[1] - 2) * (shape[2] - 2), 3)
    )
    _check(lambda: jacli.jacobian(model, torch.randn(shape)), InputsError, "no batch axis", r"x\[None\]")


@pytest.mark.parametrize(
    "model",
    [nn.Linear(4, 5, device="meta"), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, device="meta"))],
)
def test_a_model_without_numbers(model: nn.Module) -> None:
    _check(lambda: jacli.jacobian(model, X), ModelError, "device meta", "load_state_dict")


def test_points_of_a_device_that_the_model_is_not_on() -> None:
    class Elsewhere(nn.Linear):
        def parameters(self, recurse: bool = True):
            for parameter in super().parameters(recurse):
                yield type("OnGpu", (), {"device": torch.device("cuda:1"), "shape": parameter.shape})()

    _check(
        lambda: call_arguments.check_points(X, Elsewhere(4, 5)),
        InputsError,
        "x is on cpu, the model on cuda:1",
        r"x\.to\('cuda:1'\)",
    )


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_a_wrong_number_of_singular_values(k: object) -> None:
    _check(lambda: jacli.singular_values(MODEL, X, k=k), UsageError, "k=", "Leave it out")  # type: ignore[arg-type]
    assert jacli.singular_values(MODEL, X, k=np.int64(2)).shape == (3, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("per_sample", ["mask", ["mask"], ("mask",)])
def test_per_sample_is_a_name_or_several(per_sample: object) -> None:
    mask = torch.rand(3, 5)
    J = jacli.jacobian(MODEL, X, mask=mask, per_sample=per_sample)  # type: ignore[arg-type]
    torch.testing.assert_close(J, jacli.jacobian(MODEL, X) * mask[:, None, :])
    _check(
        lambda: jacli.jacobian(MODEL, X, mask=mask[:2], per_sample=per_sample),
        UsageError,
        r"\(2, 5\)",
        "length",
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        ([0, 3], [0, 3]),
        ((4, 1), [4, 1]),
        ("2,0", [2, 0]),
        (3, [3]),
        (torch.tensor([1, 2]), [1, 2]),
        (np.array([4]), [4]),
        (range(2), [0, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["auto", "forward", "factored", "adjoint"])
def test_classes_by_index(classes: object, columns: list[int], method: str) -> None:
    expected = reference_jacobian(MODEL, X)[..., columns]
    J = jacli.jacobian(MODEL, X, classes=classes, method=method)  # type: ignore[arg-type]
    torch.testing.assert_close(J, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_classes_of_each_sample(batch_size: int | None) -> None:
    whole, top = reference_jacobian(MODEL, X), MODEL(X).topk(2).indices
    J = jacli.jacobian(MODEL, X, classes="top:2", batch_size=batch_size)
    torch.testing.assert_close(J, whole.gather(2, top[:, None].expand(-1, 4, -1)), rtol=1e-4, atol=1e-6)
    labels = torch.tensor([4, 0, 4])
    for given in (labels, labels.numpy(), [4, 0, 4]):
        J = jacli.jacobian(MODEL, X, classes="label", labels=given, batch_size=batch_size)  # type: ignore[arg-type]
        torch.testing.assert_close(J[..., 0], whole[torch.arange(3), :, labels], rtol=1e-4, atol=1e-6)
    sigma = jacli.singular_values(MODEL, X, classes="label", labels=labels)
    torch.testing.assert_close(sigma[:, 0], J[..., 0].norm(dim=1).double(), rtol=1e-4, atol=1e-6)


def test_classes_of_several_axes_and_calls() -> None:
    """Flat indices; what is kept of one call serves none with other classes."""
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Unflatten(1, (2, 3))), torch.randn(5, 4)
    whole = reference_jacobian(lambda y: model(y).flatten(1), x)
    for columns in ([5, 0], [1], [5, 0], [2, 3, 4]):
        J = jacli.jacobian(model, x, classes=columns)
        torch.testing.assert_close(J, whole[..., columns], rtol=1e-4, atol=1e-6)
    assert jacli.jacobian(model, x).shape == (5, 4, 2, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": [5]}, "out of range"),
        ({"classes": "top:6"}, "out of range"),
        ({"classes": [-1]}, "--classes"),
        ({"classes": "label"}, "labels"),
        ({"classes": "label", "labels": torch.tensor([0, 1, 7])}, "Label 7"),
        ({"classes": "label", "labels": torch.tensor([0, 1])}, r"int64 \(2,\)"),
        ({"classes": "label", "labels": torch.tensor([0.5, 0.0, 1.0])}, "float32"),
        ({"dtype": "float16"}, "float32 or float64"),
        ({"dtype": torch.int32}, "float32 or float64"),
        ({"dtype": "double"}, "float32 or float64"),
    ],
    ids=str,
)
def test_wrong_classes_and_dtypes(options: dict[str, object], words: str) -> None:
    with pytest.raises(JacliError, match=words):
        jacli.jacobian(MODEL, X, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float64", torch.float64, "float32", torch.float32])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_dtype_converts_a_copy(dtype: str | torch.dtype, own: torch.dtype) -> None:
    model, wanted = Network().to(own), torch.float64 if "64" in str(dtype) else torch.float32
    for x in (X, X.double()):
        J = jacli.jacobian(model, x, dtype=dtype)
        assert J.dtype == wanted and model.first.weight.dtype == own
        twin = Network().to(wanted)
        twin.load_state_dict(model.state_dict())
        tolerance = 1e-10 if wanted == torch.float64 else 1e-4
        torch.testing.assert_close(J, reference_jacobian(twin, x.to(wanted)), rtol=tolerance, atol=tolerance)


def test_dtype_follows_a_model_that_changes() -> None:
    model = Network()
    for factor in (1.0, 2.0):
        with torch.no_grad():
            model.last.weight.mul_(factor)
        twin = Network().double()
        twin.load_state_dict(model.state_dict())
        mask = torch.rand(3, 5)
        J = jacli.jacobian(model, X, dtype="float64", mask=mask, per_sample=["mask"])
        expected = reference_jacobian(twin, X.double()) * mask.double()[:, None]
        torch.testing.assert_close(J, expected, rtol=1e-10, atol=1e-12)
        sigma = jacli.singular_values(model, X, dtype="float64")
        torch.testing.assert_close(
            sigma, torch.linalg.svdvals(reference_jacobian(twin, X.double()).mT), rtol=1e-9, atol=0
        )


def test_dtype_keeps_complex_buffers() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("spectrum", torch.tensor([1 + 2j, 2 - 1j, 0.5j]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.spectrum, n=4)

    model = Filter()
    J = jacli.jacobian(model, X, dtype="float64")
    torch.testing.assert_close(J, jacli.jacobian(model, X).double(), rtol=1e-5, atol=1e-6)
    assert J.dtype == torch.float64 and model.spectrum.dtype == torch.complex64


COMPUTE = {
    "module": ((Network(), "x.npy"), "a module, Network", r"arch=\"file.py:Network\""),
    "scripted": ((torch.jit.script(nn.Linear(4, 5)), "x.npy"), "module", r"model\.save\("),
    "class": ((Network, "x.npy"), "the class Network", "file.py:Network"),
    "state dict": ((MODEL.state_dict(), "x.npy"), "state dict", "torch.save"),
    "function": ((torch.sin, "x.npy"), "a function, sin", "jacli.jacobian"),
    "points": (("model.pt", X), r"a tensor, float32 \(3, 4\)", "np.save"),
    "array": (("model.pt", X.numpy()), "a NumPy array", "np.save"),
    "swapped": ((X, "model.pt"), "a tensor", "model first"),
    "out": (("model.pt", "x.npy", 3), "out is", "out.h5"),
    "nothing": ((None, "x.npy"), "None", "path of a model"),
}


@pytest.mark.parametrize("name", COMPUTE)
def test_compute_takes_files(name: str) -> None:
    arguments, what, hint = COMPUTE[name]
    _check(lambda: jacli.compute(*arguments), UsageError, what, hint)  # type: ignore[arg-type]


def test_compute_reports_all_that_is_no_path() -> None:
    with pytest.raises(UsageError, match=r"(?s)2 options are wrong.*module, Network.*tensor") as raised:
        jacli.compute(MODEL, X)  # type: ignore[arg-type]
    assert len(raised.value.problems) == 2


def test_compute_has_every_option_of_the_command() -> None:
    parameters = inspect.signature(jacli.compute).parameters
    assert set(OPTIONS) - set(PRINTING_ONLY) == set(parameters) - {"config"}
    assert all(name in parameters for name in ("quiet", "log_every", "classes", "resume"))
    assert parse_classes(parameters["classes"].default).kind == "all"
    for name in PRINTING_ONLY:
        with pytest.raises(UsageError, match=f"no {name}"):
            jacli.compute("model.pt", "x.npy", **{name: True})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))).save(folder / "model.pt")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))
    return folder / "model.pt", folder / "x.npy"


def _defaults() -> dict[str, object]:
    parameters = inspect.signature(jacli.compute).parameters
    return {
        name: one.default
        for name, one in parameters.items()
        if one.default is not one.empty and name != "out"
    }


def test_every_default_is_what_leaving_it_out_means(files: tuple[Path, Path], tmp_path: Path) -> None:
    jacli.compute(*files, out=tmp_path / "out.h5")
    again = jacli.compute(*files, out=tmp_path / "out.h5", **_defaults())
    assert again.already_complete


@pytest.mark.parametrize(
    ("options", "told"), [({"log_every": 1e-9}, True), ({}, True), ({"quiet": True}, False)]
)
def test_nothing_is_printed_and_quiet_is_quiet(
    files: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, object],
    told: bool,
) -> None:
    labels = tmp_path / "labels.npy"
    np.save(labels, np.zeros(6, np.int64))
    with caplog.at_level(logging.INFO, "jacli"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, for its own code
        outcome = jacli.compute(*files, out=tmp_path / "out.h5", labels=labels, batch_size=2, **options)
    assert capfd.readouterr() == ("", "")
    said = [record.getMessage() for record in caplog.records]
    assert any(line.endswith("6 of 6 samples") for line in said) == ("log_every" in options)
    assert all(any(note in line for line in said) == told for note in outcome.notes) and outcome.notes
    assert {record.levelno for record in caplog.records} <= {logging.INFO}


def test_results_that_are_not_finite_are_a_warning_even_if_quiet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    torch.jit.script(Root()).save(tmp_path / "root.pt")
    np.save(tmp_path / "x.npy", np.array([[1.0], [0.0], [4.0]], np.float32))
    outcome = jacli.compute(tmp_path / "root.pt", tmp_path / "x.npy", out=tmp_path / "out.h5", quiet=True)
    assert outcome.not_finite == (1,)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 of 3 samples are not finite" in caplog.text


def test_notes_of_a_call_in_memory_go_to_the_logger(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Late(nn.Module):
        """Inside, a layer in float64."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x).double()).to(x.dtype)
            return y

    with caplog.at_level(logging.INFO, "jacli"):
        jacli.jacobian(Late(), X.double(), dtype="float32")
    assert "float64" in caplog.text
    assert capfd.readouterr() == ("", "")
