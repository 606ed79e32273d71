"""Tests, in folders that mirror the sources."""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

ROOT = Path(__file__).resolve().parents[1]
_checked = jaxtyping.jaxtyped
# A wrong type is the same exception either way, a TypeError.
_typed = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def jaxtyped(*functions: Any, **options: Any) -> Any:
    """The decorator that the import hook puts on every function: one that checks annotations, for less time than jaxtyping's own takes.

    Wrapping a function takes jaxtyping and beartype 4 ms. Here it is wrapped at its first call, and one that is defined within another
    function not at all: these are made anew at each call of the other, a model's hooks by the dozen, and none of them states a shape
    (tests/test_house.py). A function that states no shape is checked by beartype alone, without a memory of the axes, which costs a
    call as much as many functions do.
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
            if jaxtyping.config.jaxtyping_disable:
                return function(*args, **named)
            wrapped = wrapped or (decorated(function) if states_shape(function) else _typed(function))
            return wrapped(*args, **named)

        return checking

    return decorate


def states_shape(function: Callable[..., Any]) -> bool:
    """Whether an annotation of the function has an array with axes in it, or cannot be read, so that it may have one."""
    try:
        return has_axes(list(typing.get_type_hints(function).values()))
    except Exception:
        return True


def has_axes(hint: Any) -> bool:
    """Whether a type hint is an array of jaxtyping, or has one among its arguments, at any depth."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts: Sequence[Any] = hint if isinstance(hint, list | tuple) else typing.get_args(hint)
    return any(has_axes(part) for part in parts)


jaxtyping.jaxtyped = jaxtyped
