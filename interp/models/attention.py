"""Attention patterns, read from the call in which attention is computed, since no module returns them.

The kernel that is used by default (`scaled_dot_product_attention`) returns the heads' outputs and not the attention weights.
While a pattern is read, a torch function mode intercepts that call, computes the weights from the same queries, keys and mask
that the kernel gets, and then calls the kernel unchanged: no other number changes, not even in the last bit. A pattern that was
changed is multiplied with the values in place of the kernel. Where a model's attention is written out (`eager`), the mode reads
and changes its softmax. A mode belongs to its thread, as the hooks do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interp.errors import UserError

_WATCHED: ContextVar[tuple[WatchedAttention, ...]] = ContextVar("bypass_watched", default=())


class WatchedAttention(TorchFunctionMode):
    """A torch function mode that passes the attention pattern of one module to a function and goes on with what that returns.

    Attributes:
        owner: the attention module.
        seen: whether a pattern has been read since the mode was entered.
    """

    def __init__(self, owner: nn.Module, n_heads: int, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.owner, self.n_heads, self.change = owner, n_heads, change
        self.seen = False

    def __torch_function__(self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.softmax:
            self.seen = True
            return self.change(func(*args, **kwargs))
        if func is functional.scaled_dot_product_attention:
            self.seen = True
            return self._kernel(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _kernel(self, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = ("attn_mask", "dropout_p", "is_causal")
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        weights = attention_weights(query, key, options.get("attn_mask"), options.get("is_causal", False), options.get("scale"))
        # With one query, the heads of a group may come as queries of one head.
        pattern = weights.reshape(len(weights), self.n_heads, -1, weights.shape[-1])
        changed = self.change(pattern)
        if changed is pattern:
            output: Tensor = func(query, key, value, *args, **kwargs)
            return output
        return changed.reshape(weights.shape) @ _repeated(value, query)


def watch_attention(
    attention: nn.Module, site: str, n_heads: int, watcher: Callable[[nn.Module], Callable[[Tensor], Tensor] | None]
) -> None:
    """Install the permanent hooks of an attention module's pattern; `watcher` returns the function to apply to it, or None.

    The forward raises `UserError` where a pattern is to be read, but the kernel does not show one.
    """

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        change = watcher(module)
        if change is not None:
            mode = WatchedAttention(module, n_heads, change)
            mode.__enter__()
            _WATCHED.set((*_WATCHED.get(), mode))

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watched = _WATCHED.get()
        if not watched or watched[-1].owner is not module:
            return
        watched[-1].__exit__(None, None, None)
        _WATCHED.set(watched[:-1])
        if output is not None and not watched[-1].seen:
            raise UserError(
                f"{site} cannot be read: the model's attention kernel does not show its weights",
                "call model.hf.set_attn_implementation('eager'), or load the model anew",
            )

    attention.register_forward_pre_hook(begin)
    # Called also where the forward ends in an `Exception`; there is no output then. `unwatched_after` is for what is none.
    attention.register_forward_hook(end, always_call=True)


@contextlib.contextmanager
def unwatched_after() -> Iterator[None]:
    """Leave every mode that was entered inside the block and is still on: torch calls no hook after a `KeyboardInterrupt`."""
    depth = len(_WATCHED.get())
    try:
        yield
    finally:
        watched = _WATCHED.get()
        for mode in reversed(watched[depth:]):
            mode.__exit__(None, None, None)
        _WATCHED.set(watched[:depth])


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """The attention weights (`batch head pos key_pos`) that `scaled_dot_product_attention` computes from these arguments."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ _repeated(key, query).to(wide).transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # A padding token that may read nothing has no weights.
    return scores.softmax(dim=-1).nan_to_num().to(query.dtype)


def _repeated(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values, repeated for each head of a group."""
    return part if part.shape[1] == query.shape[1] else part.repeat_interleave(query.shape[1] // part.shape[1], dim=1)
