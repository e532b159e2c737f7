"""The linear program of a traced network: local Jacobians, recorded once per batch, for any vectors."""

from jacli.linear_program.program import LinearizedGraph, LinearProgram

__all__ = ["LinearProgram", "LinearizedGraph"]
