"""The tree of errors, each with its exit code.

An error is one sentence of what is wrong, one of why, and one of what to do.  The command line
prints the three and exits with ``exit_code``; nothing else in jacli decides an exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jacli.errors.printable import Lines, escape

_USER_CODE = "raised by the code of"


class JacliError(Exception):
    """Something the user can act on.

    Args:
        what: What is wrong, naming the file, option or layer.
        why: The cause: what was expected and what came.
        hint: The remedy, as an instruction.

    Each is printed on one line, whatever a name in it holds; `Lines` on several.

    Attributes:
        besides: What else is wrong, printed after it.
    """

    exit_code = 1
    besides: tuple[JacliError, ...] = ()

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        self.what = what
        self.why = why
        self.hint = hint
        super().__init__("\n".join(part for part in (what, why, hint) if part))

    @property
    def summary(self) -> str:
        """What is wrong and why, on one line, for an error or a note that this one is the cause of."""
        return f"{self.what} {self.why}".rstrip()

    @property
    def reason(self) -> str:
        """Why, as a clause of a longer sentence: without the full stop."""
        return self.why.rstrip(".")


class UsageError(JacliError):
    """Wrong options or arguments; all are reported at once.

    Attributes:
        problems: The errors that this one was made of (`from_problems`).
    """

    exit_code = 2
    problems: tuple[JacliError, ...] = ()

    @classmethod
    def from_problems(cls, problems: Sequence[JacliError], *, command: str = "") -> UsageError:
        """One error out of all that is wrong with a call, in the order in which it was found.

        Args:
            problems: One at least.
            command: The command whose help lists the options; empty where Python's own help does.
        """
        listed = f"`{command} --help` lists every option." if command else ""
        if len(problems) == 1:
            only = problems[0]
            hint = f"{only.hint} {listed}" if only.hint else f"Correct it; {listed}"
            found = cls(only.what, why=only.why, hint=hint if listed else only.hint)
        else:
            lines = [escape(" ".join(filter(None, (p.what, p.why, p.hint)))) for p in problems]
            found = cls(
                Lines("\n".join([f"{len(problems)} options are wrong:", *lines])),
                hint=f"Correct them together; {listed}" if listed else "Correct them together.",
            )
        found.problems = tuple(problems)
        return found


class ModelError(JacliError):
    """The model is unreadable, damaged, unsafe, of another architecture, or has no per-sample Jacobian."""

    exit_code = 3


class MethodError(ModelError):
    """A method does not work with this model (a missing rule, a fixed batch size); another one may."""


class InputsError(JacliError):
    """The inputs have a wrong shape or dtype, are damaged, or are not finite."""

    exit_code = 4


class OutputError(JacliError):
    """The place to write: the file exists, the disk is full, another process is writing."""

    exit_code = 4


class ResultsError(JacliError):
    """A file given as a result cannot be read as one."""

    exit_code = 4


class OutOfMemoryError(JacliError):
    """Out of memory at this batch size."""

    exit_code = 5


class UnsoundResultsError(JacliError):
    """Finished, but some results are not finite."""

    exit_code = 6


class StoppedError(JacliError):
    """Stopped by a signal of the system (a batch scheduler, a shutdown)."""

    exit_code = 75


class InterruptedRunError(JacliError):
    """Interrupted from the keyboard."""

    exit_code = 130


def means_out_of_memory(error: BaseException) -> bool:
    """Does an exception of Python or torch say that an allocation failed, on the host or on a device?

    Decided by name, since torch is not imported here; its CPU allocator raises a plain RuntimeError.  What
    jacli itself says (`OutOfMemoryError`) does not count: its remedy has been tried.

    >>> means_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    if isinstance(error, JacliError):
        return False
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in str(error)
    )


def allocation_failure(error: BaseException) -> str:
    r"""The first line of what an allocator said.

    >>> allocation_failure(MemoryError("tried 40 GiB\nadvice")), allocation_failure(MemoryError())
    ('tried 40 GiB', 'The allocation failed.')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "The allocation failed."


def telling_line(error: BaseException) -> str:
    """The line of an error's text that says what happened, as a sentence.

    TorchScript wraps the message in its own traceback and ends in ``RuntimeError: ...``; torch begins
    with the message and ends in advice.

    >>> print(telling_line(RuntimeError("shapes do not match")))
    shapes do not match.
    """
    noise = ("File", "Traceback", "at ", "Serialized")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "~" not in line and not line.startswith(noise)]
    named = [line for line in lines if "Error" in line]
    text = named[-1] if named else lines[0] if lines else type(error).__name__
    return text[:300].rstrip(".") + "."


@contextmanager
def translating(translate: Callable[[Exception], JacliError]) -> Iterator[None]:
    """Around a model's own code, which may raise anything, and its derivatives.

    What jacli says itself passes; a failed allocation becomes a MemoryError, of which the run knows
    the remedy; the rest becomes what ``translate`` makes of it.

    >>> with translating(lambda error: ModelError("The model fails.", why=telling_line(error))):
    ...     raise KeyError("bias")
    Traceback (most recent call last):
        ...
    jacli.errors.ModelError: The model fails.
    'bias'.
    """
    try:
        yield
    except JacliError:
        raise
    except Exception as error:
        if means_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise translate(error) from error


@contextmanager
def noting_user_code(what: str) -> Iterator[None]:
    """Around code of the user's: an exception that leaves it gets a note of where it was raised.

    The exception itself stays what it is, since some callers try again in another way.  One that nobody
    foresaw is reported as the model's by `user_code_behind`, not as a defect of jacli.

    >>> try:
    ...     with noting_user_code("net.py:Net"):
    ...         raise KeyError("bias")
    ... except KeyError as error:
    ...     print(user_code_behind(error).what)
    The model fails in net.py:Net.
    """
    try:
        yield
    except JacliError:
        raise
    except Exception as error:
        error.add_note(f"{_USER_CODE} {what}")
        raise


def user_code_behind(error: BaseException) -> ModelError | None:
    """The error that names the user's code which raised, and its last line; None where jacli itself did.

    >>> user_code_behind(KeyError("bias")) is None  # nothing says that it was the user's
    True
    """
    for note in getattr(error, "__notes__", ()):
        if note.startswith(_USER_CODE):
            return ModelError(
                f"The model fails in {note.removeprefix(_USER_CODE).strip()}.",
                why=f"It raised {type(error).__name__}: {telling_line(error)}",
                hint="Correct the model, or give inputs that it accepts; --debug shows where it was raised.",
            )
    return None
