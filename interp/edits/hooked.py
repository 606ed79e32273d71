"""`hooked`: the caller's own functions at sites, inside a `with` block."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.errors import UserError
from interp.models.hooks import Frame, Transform, Work, working
from interp.models.model import Model
from interp.models.sites import expand_sites


@contextlib.contextmanager
def hooked(model: Model, functions: Mapping[str, Callable[..., Tensor | None]]) -> Iterator[None]:
    """Call the caller's own functions at sites in every forward and generate call of this model in this context and thread.

    A function is called with the activation, `batch pos ...` (heads at `z`: `batch pos head d_head`), and returns the new one, of
    the same shape, dtype and device, or None to change nothing. If it has a parameter named `frame`, it is also given the
    `Frame`, which says which tokens of which rows are passing: with a KV cache `pos` counts the new tokens alone,
    `frame.positions` (`batch pos`) are absolute, and `frame.real` tells padding. Functions and edits of nested blocks act in
    the order in which the blocks were entered. In `generate` a function is called once per new token.

    Args:
        functions: by site; `resid_post.*` and `resid_post.2-5` name several layers, as in `capture`.

    Raises:
        UserError: an unknown site, something that cannot be called with an activation, or, at the forward, a function that
            returns anything but a tensor of the shape, dtype and device that it was given.
    """
    transforms: dict[str, tuple[Transform, ...]] = {}
    for pattern, function in functions.items():
        wants_frame = _wants_frame(function, pattern)
        for site in expand_sites([pattern], n_layers=model.n_layers, family=model.family):
            transforms[site] = (*transforms.get(site, ()), _transform(function, site, wants_frame))
    with working(model.hf, Work(transforms)):
        yield


def _wants_frame(function: Any, site: str) -> bool:
    """Whether a function has a parameter named `frame`; raises `UserError` where it cannot be called with an activation."""
    if not callable(function):
        raise UserError(f"{function!r} at {site} is not a function", "give one that takes the activation and returns the new one, or None")
    try:
        signature = inspect.signature(function)
    except ValueError:  # functions written in C may have no signature
        return False
    wants_frame = "frame" in signature.parameters
    try:
        signature.bind(None, **({"frame": None} if wants_frame else {}))
    except TypeError as error:
        raise UserError(
            f"the function at {site} cannot be called with an activation ({error})", "write it as f(x), or as f(x, frame)"
        ) from error
    return wants_frame


def _transform(function: Callable[..., Tensor | None], site: str, wants_frame: bool) -> Transform:
    def transform(x: Tensor, frame: Frame) -> Tensor:
        new = function(x, frame=frame) if wants_frame else function(x)
        if new is None:
            return x
        if not torch.is_tensor(new):
            raise UserError(f"the function at {site} returned {type(new).__name__}", "return a tensor, or None to change nothing")
        expected, returned = ((tuple(t.shape), t.dtype, t.device) for t in (x, new))
        if returned != expected:
            raise UserError(
                f"the function at {site} was given {_described(*expected)} and returned {_described(*returned)}",
                "return a tensor of the same shape, dtype and device, or None to change nothing",
            )
        return new

    return transform


def _described(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    return f"{list(shape)} {str(dtype).removeprefix('torch.')} on {device}"
