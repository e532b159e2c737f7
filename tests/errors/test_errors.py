"""What an error says, from what a library raised."""

import pytest

from jacli.errors import InputsError, ModelError, UsageError, means_out_of_memory, telling_line, translating

TORCHSCRIPT = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript (most recent call last):
  File "a.py", line 3, in forward
    return self.conv(x)
           ~~~~~~~~~ <--- HERE
RuntimeError: expected 3 channels"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TORCHSCRIPT, "RuntimeError: expected 3 channels."),
        ("No rule for aten::x.\nPlease file an issue.", "No rule for aten::x."),
        ("", "ValueError."),
    ],
)
def test_the_line_that_tells(text, line):
    assert telling_line(ValueError(text)) == line


def test_out_of_memory_in_every_guise():
    class OutOfMemoryError(RuntimeError):
        """As torch calls its own."""

    assert means_out_of_memory(MemoryError())
    assert means_out_of_memory(OutOfMemoryError("CUDA out of memory"))
    assert means_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not means_out_of_memory(RuntimeError("shape mismatch"))


def test_problems_are_told_together():
    both = UsageError.from_problems([UsageError("A is wrong."), UsageError("B is wrong.", hint="Mend B.")])
    assert "2 options" in str(both)
    assert "A is wrong." in str(both)
    assert "Mend B." in str(both)
    assert (UsageError("x").exit_code, InputsError("x").exit_code) == (2, 4)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (InputsError("jacli's own"), InputsError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (KeyError("a model's own"), ModelError),
        (AssertionError(), ModelError),
    ],
)
def test_what_a_model_raises_is_translated(raised, expected):
    with pytest.raises(expected), translating(lambda error: ModelError(telling_line(error))):
        raise raised
