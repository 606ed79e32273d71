"""The converters of a model to other libraries, by name: the adapters enter theirs, since models import nothing above them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interp.errors import UserError

# Each takes a `Model`. `interp.adapters` enters its own here when it is imported.
CONVERTERS: dict[str, Callable[[Any], Any]] = {}


def converter(library: str) -> Callable[[Any], Any]:
    """The converter of a model to this library; raises `UserError` where none has been entered."""
    if library not in CONVERTERS:
        raise UserError(f"no adapter for {library} has been imported", "import interp.adapters, or take the model's class from interp")
    return CONVERTERS[library]
