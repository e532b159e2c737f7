"""File types, recognised by content; a suffix is never believed.

Only the standard library is used, nothing is unpickled, and at most the table of contents of an
archive is read.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

MAX_EXPANSION = 2**30
"""Bytes of memory that a file's content may take beyond the file's size: a bomb declares terabytes."""

_HEAD = 4096
_KERAS_HEAD = 2**16


class Content(StrEnum):
    """Kinds of files, by their bytes."""

    TORCHSCRIPT = "TorchScript archive"
    TORCHSCRIPT_1_1 = "TorchScript archive of PyTorch 1.0 or 1.1"
    TORCH_EXPORT = "torch.export archive"
    TORCH_ZIP = "torch.save archive"
    LEGACY_PICKLE = "pickle (torch.save before PyTorch 1.6)"
    TORCH_TAR = "torch.save tar archive of PyTorch 0.1"
    SAFETENSORS = "safetensors file"
    NPY = "NumPy array"
    NPZ = "NumPy archive"
    HDF5 = "HDF5 file"
    IMAGE = "image"
    FOLDER = "folder"
    NO_FILE = "device, pipe or socket"
    EMPTY = "empty file"
    GIT_LFS = "Git LFS pointer"
    HTML = "HTML page"
    GZIP = "gzip-compressed file"
    DAMAGED_ZIP = "damaged zip archive"
    OTHER_ZIP = "zip archive of another kind"
    ONNX = "ONNX model"
    GGUF = "GGUF model"
    TENSORFLOW = "TensorFlow model"
    KERAS = "Keras model"
    KERAS_HDF5 = "Keras HDF5 model"
    STABLE_BASELINES = "stable-baselines3 archive"
    TENSORFLOW_FOLDER = "TensorFlow SavedModel folder"
    MODEL_FOLDER = "model folder with config.json"
    TEXT = "text file"
    UNKNOWN = "unknown file"


_CONVERT = "Build the same network in PyTorch, copy the weights over, and save its state_dict()."

WHAT_TO_DO = {
    Content.NO_FILE: (
        "It is a device, a pipe or a socket, and files are read at random positions.",
        "Write it to a file first, and give that.",
    ),
    Content.EMPTY: ("It has 0 bytes.", "Copy or download it again."),
    Content.GIT_LFS: (
        "It is a Git LFS pointer: the real file was not downloaded.",
        "Run `git lfs pull` where it came from.",
    ),
    Content.HTML: (
        "It is an HTML web page, most likely an error or login page saved by a download.",
        "Download the file itself.",
    ),
    Content.GZIP: ("It is compressed with gzip.", "Unpack it first: `gunzip`, or `tar xf` for a .tar.gz."),
    Content.DAMAGED_ZIP: (
        "It is a damaged zip archive: truncated, its table of contents is missing.",
        "Copy or download it again.",
    ),
    Content.OTHER_ZIP: (
        "It is a zip archive, but not one written by torch or numpy.",
        "Unpack it and give the file inside.",
    ),
    Content.ONNX: (
        "It looks like an ONNX model, which jacli does not read.",
        "Give the TorchScript or torch.export file, or the weights with --arch.",
    ),
    Content.GGUF: (
        "It is a GGUF model (llama.cpp), whose weights are quantised and have no torch network.",
        "Give the safetensors file that it was converted from, with --arch.",
    ),
    Content.TENSORFLOW: (
        "It is a TensorFlow graph, which jacli does not read: it runs PyTorch networks.",
        _CONVERT,
    ),
    Content.KERAS: ("It is a Keras model, which jacli does not read: it runs PyTorch networks.", _CONVERT),
    Content.KERAS_HDF5: (
        "It is a Keras model in HDF5, which jacli does not read: it runs PyTorch networks.",
        _CONVERT,
    ),
    Content.TENSORFLOW_FOLDER: (
        "It is the folder of a TensorFlow SavedModel, which jacli does not read: it runs PyTorch networks.",
        _CONVERT,
    ),
    Content.STABLE_BASELINES: (
        "It is an archive of stable-baselines3.",
        "Unpack it and give its policy.pth, with --arch file.py:callable for the policy's network.",
    ),
    Content.MODEL_FOLDER: (
        "It is a folder with config.json, as Hugging Face models are saved.",
        "Give the file of weights inside (model.safetensors or pytorch_model.bin), with --arch "
        "file.py:callable that builds the network from config.json.",
    ),
    Content.TEXT: ("It is a text file.", "Give a file of one of the formats in `jacli compute --help`."),
    Content.UNKNOWN: (
        "Its first bytes belong to no format that jacli knows; it may be damaged.",
        "Check where it came from; formats: `jacli compute --help`.",
    ),
}
"""For files that hold nothing to load: why, and what to do."""


def why_unseen(path: str | os.PathLike[str]) -> str | None:
    """Why the system does not even say whether a path is there; None where it does.

    `os.path.exists` says no of a name that is too long, of links in a circle, of a folder that may not be
    entered and of a disk that fails: to tell the user that there is no such file would be wrong.

    >>> why_unseen("no such file") is None, why_unseen("x" * 5000)
    (True, 'File name too long.')
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{error.strerror or error}."
    except ValueError:
        return "A name cannot hold a null character."
    return None


def what_is_no_file(name: str) -> tuple[str, str]:
    """Why there is no such file, and what to do; empty where nothing is known but that there is none.

    >>> print(what_is_no_file("https://example.org/model.pt")[0])
    It is an address, and jacli reads files.
    """
    why = why_unseen(name)
    if why is not None:
        return why, ""
    if re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
        return "It is an address, and jacli reads files.", "Download it first, and give the file."
    if name.startswith("~"):
        return "A shell expands ~ outside of quotes only.", "Write it without quotes, or as a full path."
    if any(character in name for character in "*?["):
        return (
            "A shell puts names in place of * ? [ ] where files match, and outside of quotes; none did.",
            "Give one file: a run takes one array of all samples.",
        )
    return "", ""


@contextmanager
def path_as_text(path: Path) -> Iterator[str]:
    """A path for libraries in C++ and Rust, which take names in UTF-8 only: others go by an open descriptor.

    >>> with path_as_text(Path("x.npy")) as name:
    ...     name
    'x.npy'

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


def recognise_content(path: Path) -> Content:
    """Say what ``path`` is by its bytes.

    >>> recognise_content(Path("sample_models/digits_cnn.pt"))
    <Content.TORCHSCRIPT: 'TorchScript archive'>

    Raises:
        OSError: The file cannot be opened or read.
    """
    if os.path.isdir(path):
        return Content.FOLDER
    if not stat.S_ISREG(os.stat(path).st_mode):
        return Content.NO_FILE  # opening a pipe waits for somebody at its other end
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Content.EMPTY
    if head.startswith(b"PK"):
        return _recognise_zip(path)
    for magic, content in _MAGIC:
        if head.startswith(magic):
            return content
    if head[8:9] == b"{" or _is_safetensors_length(head, path):
        return Content.SAFETENSORS
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Content.LEGACY_PICKLE
    if head[257:262] == b"ustar":
        return (
            Content.TORCH_TAR
            if head.startswith((b"sys_info", b"pickle", b"storages", b"tensors"))
            else Content.UNKNOWN
        )
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return Content.HTML
    if head.startswith(b"\x08") and (b"pytorch" in head or b"onnx" in head.lower()):
        return Content.ONNX
    if all(byte in _TEXT_BYTES for byte in head[:512]):
        return Content.TEXT
    return Content.UNKNOWN


_MAGIC = (
    (b"version https://git-lfs.github.com", Content.GIT_LFS),
    (b"\x1f\x8b", Content.GZIP),
    (b"\x93NUMPY", Content.NPY),
    (b"\x89HDF\r\n\x1a\n", Content.HDF5),
    (b"GGUF", Content.GGUF),
    (b"\x89PNG\r\n", Content.IMAGE),
    (b"\xff\xd8\xff", Content.IMAGE),
    (b"GIF8", Content.IMAGE),
    (b"BM", Content.IMAGE),
)
_TEXT_BYTES = frozenset(range(32, 127)) | {9, 10, 13}


def _is_safetensors_length(head: bytes, path: Path) -> bool:
    """Whether a safetensors header of a plausible length starts a little late (a damaged length)."""
    return b'"dtype"' in head and b'"data_offsets"' in head and path.stat().st_size > 16


def recognise_model(path: Path) -> Content:
    """Say what ``path`` is where a model is asked for: formats of other programs are told apart too.

    >>> recognise_model(Path("sample_models/digits_shufflenet.safetensors"))
    <Content.SAFETENSORS: 'safetensors file'>

    Raises:
        OSError: The file cannot be opened or read.
    """
    content = recognise_content(path)
    if content is Content.FOLDER:
        if os.path.exists(path / "saved_model.pb"):
            return Content.TENSORFLOW_FOLDER
        return Content.MODEL_FOLDER if os.path.exists(path / "config.json") else content
    if content is Content.OTHER_ZIP:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
        if {"config.json", "model.weights.h5"} <= names:
            return Content.KERAS
        return Content.STABLE_BASELINES if {"data", "policy.pth"} <= names else content
    if content is Content.NO_FILE:
        return content
    with path.open("rb") as file:
        head = file.read(_KERAS_HEAD)
    if content is Content.HDF5 and (b"keras_version" in head or b"layer_names" in head):
        return Content.KERAS_HDF5
    if content is Content.UNKNOWN:
        return _recognise_protobuf(head)
    return content


def _recognise_protobuf(head: bytes) -> Content:
    """Messages begin with a field's number: those of ONNX, and a SavedModel's or graph's of TensorFlow."""
    if head.startswith(b"\x08\x01\x12"):
        return Content.TENSORFLOW
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42") and 3 <= head[1] <= 30:
        return Content.ONNX
    named = head[:1] == b"\x0a" and any(kind in head for kind in (b"\x12\x0bPlaceholder", b"\x12\x05Const"))
    return Content.TENSORFLOW if named else Content.UNKNOWN


def _recognise_zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return Content.DAMAGED_ZIP
    inner = {name.split("/", 1)[1] for name in names if "/" in name}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return Content.TORCHSCRIPT
    if "model.json" in inner and any(name.startswith("code/") for name in inner):
        return Content.TORCHSCRIPT_1_1
    if "archive_format" in inner or "archive_format" in names or "serialized_exported_program.json" in names:
        return Content.TORCH_EXPORT
    if "data.pkl" in inner:
        return Content.TORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        return Content.NPZ
    return Content.OTHER_ZIP
