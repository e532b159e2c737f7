"""jacli: what does a trained network's output do when its input moves?

Jacobians of a network's outputs with respect to its inputs, for every sample: from files
(`compute`), or of a model in memory (`jacobian`, `singular_values`).  Nothing heavy is imported
before it is used.  From here on, importing a torchvision that does not fit its torch works too
(`jacli.torchvision_import`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jacli.torchvision_import import repair_imports

if TYPE_CHECKING:
    from jacli.errors import JacliError as JacliError
    from jacli.run.api import jacobian as jacobian
    from jacli.run.api import singular_values as singular_values
    from jacli.run.compute import compute as compute
    from jacli.run.opened import open_with_columns as open

__version__ = "0.1.0"

_PUBLIC = {
    "JacliError": ("jacli.errors", "JacliError"),
    "jacobian": ("jacli.run.api", "jacobian"),
    "singular_values": ("jacli.run.api", "singular_values"),
    "compute": ("jacli.run.compute", "compute"),
    "open": ("jacli.run.opened", "open_with_columns"),
}

__all__ = ["JacliError", "__version__", "compute", "jacobian", "open", "singular_values"]

repair_imports()


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'jacli' has no attribute {name!r}")
