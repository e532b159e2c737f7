"""Damaged files, and the exceptions of libraries that meet them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jacli.errors import JacliError, ModelError
from jacli.untrusted import zip_archive
from jacli.untrusted.torch_archive import UNPACKED

COPY_AGAIN = "Copy or download it again."


def check_zip(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip archive, each compared with its checksum; torch itself does not.

    Costs one read of the file.

    >>> len(check_zip(Path("sample_models/digits_cnn.pt"))) > 0
    True

    Raises:
        ModelError: A member is damaged, or the table of contents is: two members of one name, of which
            readers would disagree which counts; sizes that are not true.
    """
    try:
        with path.open("rb") as file:
            return zip_archive.check_zip(file, expansion=UNPACKED)
    except zip_archive.ArchiveError as error:
        raise ModelError(f"{path} is damaged.", why=str(error), hint=COPY_AGAIN) from error


@contextmanager
def reading(path: Path, kind: str, *, hint: str = COPY_AGAIN) -> Iterator[None]:
    """Turn whatever a library raises while it reads ``path`` into a ModelError.

    Libraries raise nearly every type for a bad file (EOFError without a message, struct.error,
    AttributeError, RuntimeError, ...), so every Exception is taken.

    >>> with reading(Path("net.pt"), "state dict"):
    ...     raise EOFError
    Traceback (most recent call last):
        ...
    jacli.errors.ModelError: net.pt cannot be read as a state dict; it may be damaged.
    The library raised EOFError; the file ends early.
    Copy or download it again.
    """
    try:
        yield
    except JacliError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as a {kind}; it may be damaged.", why=last_line(error), hint=hint
        ) from error


def last_line(error: BaseException) -> str:
    """The line of a library's message that says what happened, without its advice.

    The advice of torch's weights-only errors is ``weights_only=False``, which runs the file's code.

    >>> last_line(RuntimeError("unexpected EOF")), last_line(EOFError())
    ('unexpected EOF', 'The library raised EOFError; the file ends early.')
    """
    _, refused, reason = str(error).partition("WeightsUnpickler error:")
    if refused:
        return next((line.split("Please use")[0].strip() for line in reason.splitlines() if line.strip()), "")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else f"The library raised {type(error).__name__}; the file ends early."


def what_it_raised(error: BaseException) -> str:
    """A sentence on what ended a user's code.

    >>> what_it_raised(ValueError("no such width")), what_it_raised(SystemExit(2))
    ('It raised ValueError: no such width', 'It called exit(2).')
    """
    if isinstance(error, SystemExit):
        return f"It called exit({error.code})."
    return f"It raised {type(error).__name__}: {last_line(error)}"
