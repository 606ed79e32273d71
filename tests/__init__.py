"""Tests, in folders that mirror the sources."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping

ROOT = Path(__file__).resolve().parents[1]
_checked = jaxtyping.jaxtyped


def jaxtyped(*functions: Any, **options: Any) -> Any:
    """The decorator that the import hook puts on every function, which leaves those alone that are defined within another.

    These are made anew at each call of the other, a model's hooks by the dozen, and each would be wrapped in 4 ms, more than most of
    them ever run. None of them states a shape (tests/test_house.py).
    """
    decorated = _checked(*functions, **options)
    if functions:
        return decorated

    def decorate(function: Callable[..., Any]) -> Any:
        return function if "<locals>" in getattr(function, "__qualname__", "") else decorated(function)

    return decorate


jaxtyping.jaxtyped = jaxtyped
