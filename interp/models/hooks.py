"""The hooks at the sites of a model, on which `editing` and `capture` are built.

One hook per site is installed when a model is loaded and stays; attention patterns have theirs in `interp.models.attention`.
A hook does nothing unless the current context (`contextvars`) has transforms or collectors for its model, so that threads
sharing one model never see each other's edits, and leaving a `with` block removes edits exactly, also after an exception.
Positions are absolute: a frame recorded at each forward tells the hooks which tokens of which rows are passing, with any padding
and with or without a KV cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.architectures import Architecture, Tap, check_unshared
from interp.models.attention import unwatched_after, watch_attention
from interp.models.frames import Frame as Frame
from interp.models.frames import current_frame, ended_frame, enter_forward, frame_of, frame_restored, leave_forward, set_frame
from interp.models.frames import framed as framed
from interp.models.sites import KINDS, Site
from interp.models.views import View

Transform = Callable[[Tensor, Frame], Tensor]
Collector = Callable[[Tensor, Frame], None]
# The arguments of a block beside the residual stream: masks, rotary embeddings and the like.
BlockCall = tuple[tuple[Any, ...], dict[str, Any]]


class Stopped(Exception):
    """Raised where a forward is to stop early (see `Work.stop`)."""


@dataclass(frozen=True)
class Work:
    """The transforms and collectors at the sites of one model in the current context, and what is known of its rows.

    `prompt_lengths` counts the tokens of each row's prompt, `roles` has their roles where they are conversations (see `role_codes`), and
    `rows` each row's place in the caller's list. Roles belong to the prompt lengths that they are given with.

    `stop` is the number of blocks after which the forward ends with `Stopped`: with all blocks, after the final norm. None runs it whole.
    """

    transforms: Mapping[str, tuple[Transform, ...]] = field(default_factory=dict)
    collectors: Mapping[str, tuple[Collector, ...]] = field(default_factory=dict)
    prompt_lengths: Int[Tensor, " batch"] | None = None
    rows: tuple[int, ...] | None = None
    stop: int | None = None
    roles: Int[Tensor, "batch longest"] | None = None

    def plus(self, other: Work) -> Work:
        """Both together: this one's transforms and collectors first; what the other one knows of its rows takes precedence."""
        return Work(
            _join(self.transforms, other.transforms),
            _join(self.collectors, other.collectors),
            self.prompt_lengths if other.prompt_lengths is None else other.prompt_lengths,
            self.rows if other.rows is None else other.rows,
            self.stop if other.stop is None else other.stop,
            self.roles if other.prompt_lengths is None and other.roles is None else other.roles,
        )


_WORK: ContextVar[Mapping[int, Work]] = ContextVar("bypass_work", default={})  # noqa: B039  (never mutated)
# The models with hooks; an entry goes when the model does.
_INSTALLED: WeakSet[nn.Module] = WeakSet()
_CALLS: ContextVar[tuple[int, list[BlockCall]] | None] = ContextVar("bypass_calls", default=None)


def _join(first: Mapping[str, tuple], second: Mapping[str, tuple]) -> dict[str, tuple]:
    return {site: first.get(site, ()) + second.get(site, ()) for site in (*first, *second)}


@contextlib.contextmanager
def working(hf: nn.Module, work: Work, prompt_lengths: Int[Tensor, " batch"] | None = None) -> Iterator[None]:
    """Apply the transforms and collectors of `work` in every forward of this Hugging Face model inside the block."""
    if prompt_lengths is not None:
        work = replace(work, prompt_lengths=prompt_lengths)
    key = id(hf)
    outer = _WORK.get()
    token = _WORK.set({**outer, key: outer.get(key, Work()).plus(work)})
    try:
        with frame_restored(), unwatched_after():
            yield
    finally:
        _WORK.reset(token)


def active(hf: nn.Module) -> Work:
    """The transforms and collectors that are active for this model, for engines that apply them by other means."""
    return _WORK.get().get(id(hf), Work())


@contextlib.contextmanager
def recording_calls(hf: nn.Module) -> Iterator[list[BlockCall]]:
    """Record the arguments of each block's calls inside the block, so that it can be called again with the same ones."""
    calls: list[BlockCall] = []
    token = _CALLS.set((id(hf), calls))
    try:
        yield calls
    finally:
        _CALLS.reset(token)


def install(hf: nn.Module, architecture: Architecture, views: Mapping[str, View]) -> None:
    """Install the permanent hooks of every site, once per model, also where it is wrapped several times.

    A deep copy of a model has these hooks too; each therefore acts only on the module that it was installed on.
    """
    key = id(hf)
    if hf in _INSTALLED:
        return
    check_unshared(hf, architecture)
    _INSTALLED.add(hf)
    body = hf.get_submodule(hf.base_model_prefix)  # type: ignore[arg-type]
    blocks = list(hf.get_submodule(architecture.blocks).children())
    body.register_forward_pre_hook(_frame_hook(key, id(body)), with_kwargs=True)
    body.register_forward_hook(_frame_end_hook(key, id(body), len(blocks)), always_call=True)
    for layer, block in enumerate(blocks):
        block.register_forward_pre_hook(_call_hook(key, id(block), layer), with_kwargs=True)
        for name, tap in architecture.taps.items():
            module, site = block.get_submodule(tap.path), str(Site(name, layer))
            if KINDS[name].axis == "pattern":
                watch_attention(module, site, views[name].heads or 1, _watcher(key, id(module), site))
            else:
                _install_tap(module, tap, key, site, views[name])
    _install_tap(hf.get_submodule(architecture.final_norm), Tap("", "output"), key, "ln_final", View())
    hf.register_forward_hook(_logits_hook(key))


def check_first(collected: Mapping[str, Tensor], site: str) -> None:
    """Raise `UserError` where a site fires a second time in one forward: only one of its activations could be stored."""
    if site in collected:
        raise UserError(
            f"{site} fires twice in one forward: its module is called more than once, so that which activation is meant is open",
            "capture a site that runs once, or use a model without repeated modules",
        )


def _install_tap(module: nn.Module, tap: Tap, key: int, site: str, view: View) -> None:
    if tap.side == "input":
        module.register_forward_pre_hook(_input_hook(key, id(module), site, view, tap.shared), with_kwargs=True)
    else:
        module.register_forward_hook(_output_hook(key, id(module), site, view))


def _watcher(key: int, owner: int, site: str) -> Callable[[nn.Module], Callable[[Tensor], Tensor] | None]:
    """A function that returns the change of a module's pattern in the current context, or None where there is none."""

    def watcher(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        work = _work_at(key, site)
        return None if work is None or id(module) != owner else lambda pattern: _apply(pattern, site, work, pattern.shape[2])

    return watcher


def _call_hook(key: int, owner: int, layer: int) -> Callable[..., Any]:
    """A hook that stops the forward before this block where it is to stop there, and else records the arguments of the call."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if id(module) != owner:
            return
        _stop_at(key, layer)
        recording = _CALLS.get()
        if recording is not None and recording[0] == key:
            recording[1].append((args[1:], dict(kwargs)))

    return hook


def _frame_hook(key: int, owner: int) -> Callable[..., Any]:
    """A hook that records the frame of a forward, and sets the positions of left-padded rows where the caller sets none."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        work = _WORK.get().get(key)
        if work is None or id(module) != owner:
            return None
        # First, because the hook that leaves the forward runs also where this one raises an error.
        enter_forward(owner)
        frame, kwargs = frame_of(args, kwargs, work.prompt_lengths, work.rows, work.roles)
        set_frame(frame)
        return args, kwargs

    return hook


def _frame_end_hook(key: int, owner: int, n_layers: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        if id(module) == owner:
            leave_forward(owner)
            # There is no output where the forward ends in an exception.
            if output is not None:
                _stop_at(key, n_layers)

    return hook


def _stop_at(key: int, layer: int) -> None:
    work = _WORK.get().get(key)
    if work is not None and work.stop == layer:
        raise Stopped


def _apply(value: Tensor, site: str, work: Work, count: int | None = None) -> Tensor:
    """The activation after a site's transforms, with which its collectors are called; `count` positions, by default its second axis."""
    frame = current_frame()
    if frame is None:
        raise RuntimeError(f"{site} was reached outside a forward of its model")
    frame = frame.last(value.shape[1] if count is None else count)
    for transform in work.transforms.get(site, ()):
        value = transform(value, frame)
    for collect in work.collectors.get(site, ()):
        collect(value, frame)
    return value


def _work_at(key: int, site: str) -> Work | None:
    work = _WORK.get().get(key)
    return work if work is not None and (site in work.transforms or site in work.collectors) else None


def _input_hook(key: int, owner: int, site: str, view: View, shared: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        work = _work_at(key, site)
        if work is None or id(module) != owner:
            return None
        name = None if args else next(iter(kwargs))
        value = args[0] if name is None else kwargs[name]
        seen = view.read(value)
        new = _apply(seen, site, work)
        if new is seen:
            return None
        new = view.write(value, new)
        if shared:
            value.copy_(new)
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    return hook


def _output_hook(key: int, owner: int, site: str, view: View) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        work = _work_at(key, site)
        if work is None or id(module) != owner:
            return None
        value = output[0] if isinstance(output, tuple) else output
        seen = view.read(value)
        new = _apply(seen, site, work)
        if new is seen:
            return None
        new = view.write(value, new)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def _logits_hook(key: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        work = _work_at(key, "logits")
        if work is None or id(module) != key:
            return None
        with framed(ended_frame()):
            new = _apply(output.logits, "logits", work)
        if new is not output.logits:
            output.logits = new
        return output

    return hook
