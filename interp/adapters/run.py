"""`run`: activations at sites under edits, captured by any of three engines.

Positions, padding, batching and the effect of an edit on a tensor are decided once, in `capture` and `edits`. An engine only reads
tensors from the inside of a forward and writes them back, so engines that disagree show an error in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.capture import capture
from interp.forward.captured import Captured
from interp.models.chat import Chat
from interp.models.model import Model

Engine = Literal["hooks", "transformer_lens", "nnsight"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def run(
    model: Model, prompts: Sequence[str] | Sequence[Sequence[int]], *, sites: Sequence[str], edits: Sequence[Edit] = (),
    engine: str = "hooks", positions: Any = "last", units: Mapping[str, Sequence[int]] | None = None, bos: bool | None = None,
    max_tokens: int | None = None, chat: Chat | bool = False, batch_size: int = 64, remote: bool | str = False, seconds: float | int = 600,
) -> Captured:  # fmt: skip
    """The activations at these sites, under these edits, captured by this engine.

    Args:
        prompts, sites, edits, positions, units, bos, max_tokens, chat, batch_size: as in `capture`.
        engine: `hooks` (this project's own, on the model itself), `transformer_lens` or `nnsight`; these two make a copy of
            the weights at every call, which takes the memory of a second model and about a second.
        remote: with `nnsight`, True runs the model of that hub id on NDIF, whatever was done to the weights here; `dry` only
            packs the request as for the server and runs it here.
        seconds: how long an answer of NDIF is waited for, per batch.

    Raises:
        UserError: as `capture`; a library that is missing; an architecture that it does not know; and for `remote`, a
            private or local checkpoint, no API key, no network, a model that NDIF does not run, or no answer in time.
    """
    if engine not in ENGINES:
        raise UserError(f"there is no engine {engine!r}", f"use one of {', '.join(ENGINES)}")
    if remote not in (False, True, "dry"):
        raise UserError(f"remote is {remote!r}", "give True, False or 'dry'")
    if remote and engine != "nnsight":
        raise UserError(f"the engine {engine} cannot run on NDIF", "use engine='nnsight' with remote")
    settings: dict[str, Any] = {
        "positions": positions, "units": units, "edits": edits, "bos": bos, "max_tokens": max_tokens, "chat": chat,
        "batch_size": batch_size,
    }  # fmt: skip
    if engine == "transformer_lens":
        from interp.adapters.transformer_lens import transformer_lens_forward

        settings["forward"] = transformer_lens_forward(model)
    elif engine == "nnsight":
        from interp.adapters.nnsight import nnsight_forward

        settings["forward"] = nnsight_forward(model, remote=remote, seconds=seconds)  # type: ignore[arg-type]
    return capture(model, prompts, sites, **settings)
