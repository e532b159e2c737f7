"""A traced network as a program of linear maps, linearised once a block and run for any number of vectors."""

from jacli.linear_program.program import Program, ProgramMap

__all__ = ["Program", "ProgramMap"]
