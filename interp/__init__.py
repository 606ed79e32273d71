"""Bypass: what does preference tuning change inside a language model, and what does it leave behind?

The public surface. Everything that the app and the command line do goes through it. Names are read when they are first
used, because reading torch takes seconds that `bypass --help` should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.edits.edit import Edit
    from interp.edits.transforms import editing
    from interp.errors import UserError
    from interp.forward.capture import Captured, capture
    from interp.forward.generate import Sampling, generate, stream
    from interp.models.model import Model, load_model
    from interp.models.pair import ModelPair
    from interp.neurons.example_results import Examples
    from interp.neurons.examples import max_activating
    from interp.patching.patch import patch

__all__ = [
    "Captured", "Edit", "Examples", "Model", "ModelPair", "Sampling", "UserError", "capture", "editing", "generate", "load_model",
    "max_activating", "patch", "stream",
]  # fmt: skip

_HOMES = {
    "Captured": "forward.capture",
    "capture": "forward.capture",
    "Edit": "edits.edit",
    "UserError": "errors",
    "Examples": "neurons.example_results",
    "max_activating": "neurons.examples",
    "Sampling": "forward.generate",
    "generate": "forward.generate",
    "stream": "forward.generate",
    "editing": "edits.transforms",
    "Model": "models.model",
    "ModelPair": "models.pair",
    "load_model": "models.model",
    "patch": "patching.patch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"interp.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
