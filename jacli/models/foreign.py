"""Pickles of other programs: healthy, and no network of torch's."""

from __future__ import annotations

from pathlib import Path

from jacli.errors import ModelError

_HEAD = 2**16
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""Magic number of a file of torch.save before PyTorch 1.6, after the pickle's protocol."""

_NOT_A_NETWORK = "It is no PyTorch network: build the same function in PyTorch and save its state_dict()."
_OTHERS = {
    "fastai": (
        "a fastai Learner",
        "In fastai, run torch.save(learn.model.state_dict(), 'weights.pt') and give that file with --arch.",
    ),
    "sklearn": ("a scikit-learn estimator", _NOT_A_NETWORK),
    "joblib": ("a joblib file, as scikit-learn models are saved", _NOT_A_NETWORK),
    "xgboost": ("an XGBoost model", _NOT_A_NETWORK),
    "lightgbm": ("a LightGBM model", _NOT_A_NETWORK),
    "keras": ("a pickled Keras model", _NOT_A_NETWORK),
}
"""Package -> what its pickles are, and what to do with them."""


def foreign_class(path: Path, class_name: str) -> ModelError | None:
    """The error for an object of another program's class; None where it belongs to none of those known.

    >>> foreign_class(Path("net.pkl"), "torch.nn.Linear") is None
    True
    >>> print(foreign_class(Path("net.pkl"), "sklearn.svm.SVC").what)
    net.pkl is not a model that can be loaded.
    """
    package = class_name.partition(".")[0]
    return _refusal(path, package) if package in _OTHERS else None


def foreign_pickle(path: Path) -> ModelError | None:
    """The error for a plain pickle that names another program's classes; None for any other file.

    joblib writes arrays between a pickle's instructions, so that it cannot be followed: the names of the
    classes stand at its start.

    >>> foreign_pickle(Path("sample_models/digits_cnn.pt")) is None
    True
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if _TORCH_MAGIC in head[:32] or head[:1] != b"\x80":
        return None
    for package in _OTHERS:
        if f"{package}.".encode() in head:
            return _refusal(path, package)
    return None


def _refusal(path: Path, package: str) -> ModelError:
    kind, hint = _OTHERS[package]
    return ModelError(
        f"{path} is not a model that can be loaded.", why=f"It is a pickle of {kind}.", hint=hint
    )
