"""The rules, one function an operator; importing this package registers them all.

A new rule is one function in one file of this folder, old or new: nothing else lists it.  Its cases in
``tests/linear_program/operators`` compare it with plain reverse passes.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from jacli.linear_program.rule import RULES, find_rule

__all__ = ["RULES", "find_rule"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
