"""Standard output and error: a run never fails because of them, and nothing reaches them unescaped.

`guard` puts an `Output` in the place of each.  What jacli, its libraries and models print passes through
it: characters that do not print are escaped, those that the stream's encoding lacks are replaced, and an
error of the stream (closed, full, a reader that left, a terminal that hung up) ends the printing and
nothing else.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import select
import sys
import threading
from typing import Any, TextIO, cast

from jacli.errors.numbers import json_ready
from jacli.errors.printable import escape, escape_lines

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("─━═╌╍╴╸╶╺", "-"),
        **dict.fromkeys("│┃║╎╏", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┣┫┳┻╋╭╮╯╰", "+"),
        **dict.fromkeys("\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}", "'"),
        **dict.fromkeys("\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
        **dict.fromkeys("\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}", "-"),
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{BULLET}": "*",
    }
)
"""In place of characters that an encoding lacks; of all others their escape is written."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """How `str.encode` goes on at characters that the encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)  # as of a registered handler of `str.encode` alone
    lacking = error.object[error.start : error.end]
    return lacking.translate(_PLAIN).encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("jacli.plain", _plain)

_lines_kept = False
"""Whether what the command is for lies in a file, so that what it prints may get lost."""


class Output(io.TextIOBase):
    """A standard stream that raises nothing; what is written appears a line at a time, or when flushed.

    Args:
        stream: Where it goes; None where the descriptor was closed before this process began.

    Attributes:
        failure: What ended the printing, other than a reader who left; None if nothing did.
    """

    errors = "backslashreplace"

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._held = ""
        self._gone = stream is None
        self._lock = threading.RLock()  # rich draws its bar in a thread
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream: rich draws in ASCII where it is not a UTF."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() takes str, not {type(text).__name__}")
        self.write_trusted(escape(text, keep="\n\t"))
        return len(text)

    def write_trusted(self, text: str) -> None:
        """Write text of jacli's own, with its escape sequences: what is not its own is escaped in it."""
        with self._lock:
            self._held += text
            if "\n" in text:
                self.flush()

    def flush(self) -> None:
        with self._lock:
            text, self._held = self._held, ""
            if not text or self._gone or self._stream is None:
                return
            try:
                _put(self._stream, text)
            except OSError as error:
                self._gone = True
                self.failure = None if error.errno == errno.EPIPE else error
            except ValueError:  # a stream of Python's own that was closed
                self._gone = True

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True


class _Trusted(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        if isinstance(self._stream, Output):
            self._stream.write_trusted(text)
        else:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def trusted(stream: TextIO) -> TextIO:
    """For rich, which writes escape sequences of its own: a stream without the escaping."""
    return cast(TextIO, _Trusted(stream))


def guard() -> None:
    """Let nothing that befalls standard output and error end the command, from now on.

    A descriptor that is closed is opened on /dev/null: else the next file opened, which may be a
    result, would get its number, and what a library prints would be written into it.
    """
    global _lines_kept
    _lines_kept = False
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)


def results_are_kept() -> None:
    """The command has done what it is for, in a file: what is printed from now on may get lost."""
    global _lines_kept
    _lines_kept = True


def lost_output() -> OSError | None:
    """Why what was printed as the command's result did not arrive; None if it did, or nobody wanted it."""
    sys.stdout.flush()
    return None if _lines_kept else getattr(sys.stdout, "failure", None)


def say(line: str) -> None:
    """A line to stderr: a note, progress, an error; several if it is `Lines`."""
    for part in escape_lines(line):
        print(part, file=sys.stderr)


def show(line: str = "") -> None:
    r"""A line of data to stdout.

    >>> show("two\twords")
    two\twords
    """
    print(escape(line))


def show_json(value: Any) -> None:
    """Data to stdout as JSON, which escapes by itself; numbers that are not finite as text.

    >>> show_json({"error": float("nan")})
    {
      "error": "NaN"
    }
    """
    # JSON lets DEL pass, which terminals act on.
    text = json.dumps(json_ready(value), indent=2, default=str, allow_nan=False).replace("\x7f", r"\u007f")
    print(text)


def _put(stream: TextIO, text: str) -> None:
    """All of a text, at once; where the encoding lacks a character, plain ones in its place."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    content = text.encode(encoding, "jacli.plain")
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):  # a stream in memory
        stream.write(content.decode(encoding))
        return
    while content:
        try:
            content = content[os.write(descriptor, content) :]
        except BlockingIOError:  # a pipe whose other end made it non-blocking
            select.select([], [descriptor], [])
