"""The rooms stay small: no module over 400 lines, no room over 4,000, no loose file at the top."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jacli

PACKAGE = Path(jacli.__file__).parent
MAX_LINES_OF_A_MODULE, MAX_LINES_OF_A_ROOM = 400, 4000
AT_THE_TOP = {"__init__.py", "__main__.py", "api.py"}


def lines() -> dict[Path, int]:
    return {
        path.relative_to(PACKAGE): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }


def test_no_module_is_long():
    assert {path: n for path, n in lines().items() if n > MAX_LINES_OF_A_MODULE} == {}


def test_no_room_is_large():
    rooms: Counter[str] = Counter()
    for path, n in lines().items():
        rooms[path.parts[0]] += n
    assert {room: n for room, n in rooms.items() if n > MAX_LINES_OF_A_ROOM} == {}


def test_nothing_lies_loose_at_the_top():
    assert {path.name for path in PACKAGE.glob("*.py")} == AT_THE_TOP


def test_every_room_says_what_it_is_for():
    rooms = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) > 15
    for room in rooms:
        assert (room / "__init__.py").read_text(encoding="utf-8").startswith('"""'), room
