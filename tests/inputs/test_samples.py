from __future__ import annotations

import pytest

from jacli.errors import InputsError, UsageError
from jacli.inputs import sample_positions


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, list(range(10))),
        ("0:3", [0, 1, 2]),
        ("7,0,9", [7, 0, 9]),
        ("5", [5]),
        ("-1", [9]),
        ("::4", [0, 4, 8]),
        ("-2:", [8, 9]),
        ("8:100", [8, 9]),
        ("::-5", [9, 4]),
        ("0:2, 5 ,8:", [0, 1, 5, 8, 9]),
    ],
)
def test_chosen_positions(spec: str | None, expected: list[int]) -> None:
    positions = sample_positions(spec, 10)
    assert positions.tolist() == expected
    assert positions.dtype == "int64"


@pytest.mark.parametrize("spec", ["", "a", "1.5", "1,,2", "0:1:2:3", "::0", "0-5", "3,3", "9,-1", "0:4,2"])
def test_nonsense_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="--samples"):
        sample_positions(spec, 10)


@pytest.mark.parametrize("spec", ["10", "-11", "0,12", "5:5", "20:30"])
def test_samples_that_are_not_there(spec: str) -> None:
    with pytest.raises(InputsError, match="10 samples, positions 0 to 9"):
        sample_positions(spec, 10)
