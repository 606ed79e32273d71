"""Bypass: what does preference tuning change inside a language model, and what does it leave behind?

The public surface. Everything that the app and the command line do goes through it. Names are read when they are first
used, because reading torch takes seconds that `bypass --help` should not.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.capture import Captured, capture
    from interp.edits import Edit
    from interp.errors import UserError
    from interp.examples import Examples, max_activating
    from interp.generate import Sampling, generate, stream
    from interp.hooks import editing
    from interp.models import Model, ModelPair, load_model
    from interp.patching import patch

__all__ = [
    "Captured", "Edit", "Examples", "Model", "ModelPair", "Sampling", "UserError", "capture", "editing", "generate", "load_model",
    "max_activating", "patch", "stream",
]  # fmt: skip

_HOMES = {
    "Captured": "capture", "capture": "capture", "Edit": "edits", "UserError": "errors",
    "Examples": "examples", "max_activating": "examples", "Sampling": "generate", "generate": "generate",
    "stream": "generate", "editing": "hooks", "Model": "models", "ModelPair": "models", "load_model": "models", "patch": "patching",
}  # fmt: skip


class _Package(ModuleType):
    """Two functions are called like the files they live in; `interp.capture` is the function, whichever was imported first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"interp.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
