"""The root attributes of a result, each read as what the schema says it is.

A file may be damaged, edited or made to do harm: whoever needs an attribute asks for it by its type, and
every reader gives the same answer to one that is not of that type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jacli.errors import ResultsError
from jacli.untrusted.json_values import parse_json

Kind = TypeVar("Kind")


class Attributes(Mapping[str, object]):
    """Root attributes as Python values, JSON as its text; immutable.

    Args:
        path: Of the file, for messages.
        values: Name -> value.
    """

    def __init__(self, path: Path, values: Mapping[str, object]) -> None:
        self._path = path
        self._values = dict(values)

    def __getitem__(self, name: str) -> object:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Attributes({self._values!r})"

    def text(self, name: str) -> str | None:
        """A text; None where there is none.

        Raises:
            ResultsError: It is something else.
        """
        return self._typed(name, str, "text")

    def flag(self, name: str) -> bool:
        """Yes or no.

        Raises:
            ResultsError: It is something else, or not there.
        """
        value = self._typed(name, bool, "yes or no")
        if value is None:
            raise self.damaged(name, "it is not there")
        return value

    def count(self, name: str) -> int:
        """A number of things; 0 where there is none.

        Raises:
            ResultsError: It is something else.
        """
        value = self._values.get(name, 0)
        if type(value) is not int or value < 0:
            raise self.damaged(name, f"{value!r:.60} is no count")
        return value

    def json_object(self, name: str) -> dict[str, Any]:
        """The object that a text describes in JSON: ``config``, ``plan``.

        Raises:
            ResultsError: It is something else, or not there.
        """
        if name not in self._values:
            raise self.damaged(name, "it is not there")
        value: dict[str, Any] = self._json(name, dict, "object")
        return value

    def json_list(self, name: str) -> list[Any]:
        """The list that a text describes in JSON: ``notes``, ``sources``; empty where there is none.

        Raises:
            ResultsError: It is something else.
        """
        values: list[Any] = self._json(name, list, "list") if name in self._values else []
        return values

    def json_texts(self, name: str) -> list[str]:
        """A list of texts, empty where there is none.

        Raises:
            ResultsError: It is something else.
        """
        texts = self.json_list(name)
        if not all(isinstance(part, str) for part in texts):
            raise self.damaged(name, "it is not a list of strings")
        return texts

    def damaged(self, name: str, why: str) -> ResultsError:
        """The error for an attribute of the wrong type."""
        return ResultsError(
            f"{self._path} cannot be read.",
            why=f"Its attribute `{name}` is damaged: {why}.",
            hint="Copy it again, or compute it again.",
        )

    def _typed(self, name: str, kind: type[Kind], said: str) -> Kind | None:
        value = self._values.get(name)
        if value is None or isinstance(value, kind):
            return value
        raise self.damaged(name, f"it is not {said}, but {type(value).__name__}")

    def _json(self, name: str, kind: type, said: str) -> Any:
        try:
            value = parse_json(self.text(name) or "")
        except ValueError as error:
            raise self.damaged(name, str(error)) from error
        if not isinstance(value, kind):
            raise self.damaged(name, f"it is no JSON {said}")
        return value
