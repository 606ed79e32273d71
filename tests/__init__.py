"""Tests, in folders that mirror the sources."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping

ROOT = Path(__file__).resolve().parents[1]
_checked = jaxtyping.jaxtyped


def jaxtyped(*functions: Any, **options: Any) -> Any:
    """The decorator that the import hook puts on every function: one that checks annotations, for less time than jaxtyping's own takes.

    Wrapping a function takes jaxtyping and beartype 4 ms. Here it is wrapped at its first call, and one that is defined within another
    function not at all: these are made anew at each call of the other, a model's hooks by the dozen, and none of them states a shape
    (tests/test_house.py).
    """
    decorated = _checked(*functions, **options)
    if functions:
        return decorated

    def decorate(function: Callable[..., Any]) -> Any:
        if not inspect.isfunction(function):
            return decorated(function)
        if "<locals>" in function.__qualname__:
            return function
        wrapped: Callable[..., Any] | None = None

        @functools.wraps(function)
        def checking(*args: Any, **named: Any) -> Any:
            nonlocal wrapped
            wrapped = wrapped or decorated(function)
            return wrapped(*args, **named)

        return checking

    return decorate


jaxtyping.jaxtyped = jaxtyped
