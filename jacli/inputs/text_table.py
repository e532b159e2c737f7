"""Tables of numbers in text files (CSV): jacli reads none, and says how to make an array of one."""

from __future__ import annotations

from pathlib import Path

from jacli.errors.printable import join_words

_HEAD_BYTES = 2**16
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces"}


def text_table(path: Path) -> tuple[str, str] | None:
    r"""Why a table of numbers cannot be read, and the command that converts it; None of anything else.

    The first line may be a header; the second one tells.

    >>> _ = Path("x.csv").write_text("a,b\n1,2")
    >>> print(text_table(Path("x.csv"))[0])
    It is a text file, a table of 2 numbers per line between commas.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    try:
        text = head.decode("utf-8-sig", "strict" if len(head) < _HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(head) == _HEAD_BYTES:
        lines = lines[:-1]  # cut off
    if not lines:
        return None
    first, tell = lines[0], lines[min(1, len(lines) - 1)]
    delimiter = next((d for d in _DELIMITERS if d in tell and _are_numbers(tell, d)), None)
    if delimiter is None:
        return None
    columns = len(tell.split(None if delimiter == " " else delimiter))
    header = "" if _are_numbers(first, delimiter) else ", skiprows=1"
    between = "" if delimiter == " " else f", delimiter={delimiter!r}"
    saved = path.with_suffix(".npy").name
    code = (
        f"import numpy; numpy.save({saved!r}, numpy.loadtxt({str(path)!r}{between}{header}, "
        "dtype='float32', ndmin=2, encoding='utf-8-sig'))"
    )
    why = f"It is a text file, a table of {columns} numbers per line between {_DELIMITERS[delimiter]}."
    hint = (
        f"Save it as an array: {_command(code)} and give {saved}; "
        "take out columns that are no inputs, and reshape images to (batch, c, h, w)."
    )
    return why, hint


def _command(code: str) -> str:
    """The shell's command that runs some Python; in double quotes where these change nothing in it."""
    if code.isprintable() and not set(code) & set('"$`\\!'):
        return f'python -c "{code}"'
    return join_words(["python", "-c", code])


def _are_numbers(line: str, delimiter: str) -> bool:
    try:
        return all(float(field) is not None for field in line.split(None if delimiter == " " else delimiter))
    except ValueError:
        return False
