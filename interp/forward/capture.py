"""`capture`: the activations of texts at named sites.

A full cache of a GPT2-medium forward is hundreds of megabytes, and most analyses need a few sites at the last position.
Therefore sites are named, positions are reduced during the forward, texts run in batches of similar length, the forward stops
after the block of the last named site, and what does not fit into memory is written to memory-mapped files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool
from torch import Tensor

from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.errors import UserError
from interp.forward.captured import Captured, load_captured, replacing_capture, write_index
from interp.forward.pattern import by_key_position, by_position, by_query, is_pattern, pattern_shape
from interp.models.chat import Chat, chat_settings, known_roles, prompt_rows, role_codes
from interp.models.hooks import Frame, Stopped, Work, check_first, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.positions import MEAN, MEAN_AFTER_FIRST, ROLES, parse_positions_per_text
from interp.models.sites import Site, expand_sites, parse_site
from interp.models.tokens import Tokens, adds_bos, batches, pad

MEMORY_LIMIT = 4 * 2**30
CAPTURE_WORDS = ("last", "all", MEAN, MEAN_AFTER_FIRST, *ROLES)
# A function that runs one batch: `(model, tokens, names, work, last_only=...)` returns the activations by site, each `batch pos ...`,
# or those of the last position alone. `work` has the transforms to apply.
Forward = Callable[..., dict[str, Tensor]]


def capture(
    model: Model, texts: str | Sequence[str] | Sequence[Sequence[int]], sites: Sequence[str | Site], *, positions: Any = "last",
    units: Mapping[str, Sequence[int]] | None = None, edits: Sequence[Edit] = (), bos: bool | None = None, max_tokens: int | None = None,
    chat: Chat | bool = False, batch_size: int = 64, batch_tokens: int = 4096, spill: str | Path | None = None,
    memory_limit: int = MEMORY_LIMIT, forward: Forward | None = None,
) -> Captured:  # fmt: skip
    """The activations of these texts at these sites, by default at each text's LAST position only.

    Args:
        texts: a string, strings, or rows of token ids, such as the conversations that `render_chat` returns.
        sites: `name.layer`; `name.*` names every layer, `name.2-5` layers 2 to 5.
        positions: `last`, `all`, absolute positions, or one list of absolute positions per text (see `interp.models.positions`); or
            `mean`, which reads all positions and keeps their mean over each text, or `mean_after_first`, that without the first position
            (which a text of one token keeps); or a role of conversations, such as `user`, which keeps what `all` does for the tokens
            of this role, with zeros and a false `mask` at all others.
        units: for a site, the indices of its last axis to keep (for example a few neurons of `mlp_post.3`).
        bos: whether each text begins with the BOS token; unless given, as the model's tokenizer does (rows of ids stay as they are).
        edits: applied during the forward; what is captured is what the rest of the model reads.
        chat: read each text as a user turn of the model's chat template, up to where the answer begins; a `Chat` sets the system prompt.
        spill: a folder to write results to that are larger than memory; tensors are then memory-mapped.
        memory_limit: bytes; a larger result that is not spilled is refused before anything is computed.
        forward: the function that runs a batch, in place of this project's own hooks (see `interp.adapters.run`).

    Raises:
        UserError: no sites, an unknown site, positions beyond a text, or a result beyond the memory limit.
    """
    names = expand_sites(sites, n_layers=model.n_layers, family=model.family)
    if not names:
        raise UserError("capture was given no sites", "name at least one, for example resid_post.0")
    rows = prompt_rows(model, [texts] if isinstance(texts, str) else texts, chat, bos=bos, max_tokens=max_tokens)
    parsed = parse_positions_per_text(positions, CAPTURE_WORDS, [len(row) for row in rows])
    positions, per_text = (parsed, None) if isinstance(parsed, str) else ("indices", parsed)
    unit_indices = _units(model, names, units or {})
    transforms = transforms_of(edits, model)
    shapes = {name: _shape(model, name, rows, positions, per_text, unit_indices) for name in names}
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if spill is None and size > memory_limit:
        raise UserError(
            f"these activations take {size / 2**30:.1f} GiB, the limit is {memory_limit / 2**30:.1f} GiB",
            "capture fewer sites or positions='last', or give spill=FOLDER",
        )
    mask = pad(rows, 0, "right").mask if positions in ("all", *ROLES) and rows else None
    if mask is not None and positions in ROLES:
        mask = known_roles(role_codes(rows), positions) == ROLES.index(positions)
    settings = {"texts": len(rows), "edits": [edit.to_json() for edit in edits], "max_tokens": max_tokens,
                "bos": adds_bos(model) if bos is None else bos, "n_layers": model.n_layers, **chat_settings(chat)}  # fmt: skip

    def fill(store: Mapping[str, np.ndarray]) -> None:
        for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=batch_tokens):
            tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "left" if positions == "last" else "right").to(
                model.device
            )
            work = Work(transforms, rows=tuple(group), roles=role_codes([rows[i] for i in group]))
            activations = (forward or _forward)(model, tokens, names, work, last_only=positions == "last")
            positions_of_group = [per_text[i] for i in group] if per_text else None
            for name, value in activations.items():
                array = store[name]
                if is_pattern(name):
                    value, array = by_key_position(value, tokens, array.shape[-1]), by_position(array, positions)
                chosen = tokens.mask if mask is None else mask[group][:, : tokens.mask.shape[1]]
                _store(array, group, value.flatten(2), tokens, positions, positions_of_group, unit_indices.get(name), chosen)

    if spill is None:
        store = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        fill(store)
        return Captured({name: torch.from_numpy(array) for name, array in store.items()}, positions, mask, settings)
    target = Path(spill)
    with replacing_capture(target) as temporary:
        mapped = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
            for name, shape in shapes.items()
        }
        fill(mapped)
        for array in mapped.values():
            array.flush()
        write_index(temporary, Captured({name: torch.empty(0) for name in names}, positions, mask, settings))
    return load_captured(target)


def _units(model: Model, names: Sequence[str], units: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The indices of the units to capture, by site; raises `UserError` for a site that is not captured, or units that do not exist."""
    by_site: dict[str, Tensor] = {}
    for site, indices in units.items():
        place = parse_site(site, n_layers=model.n_layers, family=model.family)
        name = str(place)
        if name not in names:
            raise UserError(
                f"units are given for {name}, which is not among the sites", f"capture it too, or name one of {', '.join(names)}"
            )
        if is_pattern(name):
            # `pattern_shape` raises an error for units of a pattern.
            by_site[name] = torch.tensor([])
            continue
        numbers, width = [int(index) for index in indices], model.width(place.name)
        if not numbers or min(numbers) < 0 or max(numbers) >= width:
            raise UserError(f"units {numbers[:8]} of {name} do not exist", f"use at least one index from 0 to {width - 1}")
        by_site[name] = torch.tensor(numbers, device=model.device)
    return by_site


def _shape(model: Model, name: str, rows: list, positions: Any, per_text: Any, unit_indices: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The shape of the captured activations at a site."""
    longest = max((len(row) for row in rows), default=0)
    count = len(per_text[0]) if per_text else longest
    if is_pattern(name):
        return pattern_shape(name, len(rows), model.n_heads, longest, positions, count, name in unit_indices)
    tail = (len(unit_indices[name]),) if name in unit_indices else model.shape(parse_site(name).name)
    return (len(rows), *tail) if positions in {"last", MEAN, MEAN_AFTER_FIRST} else (len(rows), count, *tail)


@torch.no_grad()
def _forward(model: Model, tokens: Tokens, names: Sequence[str], work: Work, *, last_only: bool) -> dict[str, Tensor]:
    check_no_dropout(model)
    activations: dict[str, Tensor] = {}

    def collector(name: str) -> Any:
        def collect(value: Tensor, frame: Frame) -> None:
            check_first(activations, name)
            value = by_query(value) if is_pattern(name) else value
            activations[name] = (value[:, -1:] if last_only else value).detach().clone()

        return collect

    work = work.plus(Work(collectors={name: (collector(name),) for name in names}, stop=_last_block(model, names)))
    with working(model.hf, work, tokens.lengths), contextlib.suppress(Stopped):
        model.hf(**tokens.inputs(), use_cache=False, logits_to_keep=1 if last_only else 0)
    return activations


def _last_block(model: Model, names: Sequence[str]) -> int | None:
    """The number of blocks that have to be run for these sites, or None where the unembedding has to be run too.

    A forward does not stop within a block, so that a site is seen that fires a second time in it.
    """
    if "logits" in names:
        return None
    layers = [parse_site(name).layer for name in names]
    return max(model.n_layers if layer is None else layer + 1 for layer in layers)


def _store(
    array: np.ndarray, group: list[int], value: Tensor, tokens: Tokens, positions: Any, per_text: Any, units: Tensor | None,
    chosen: Bool[Tensor, "batch pos"],
) -> None:  # fmt: skip
    """Write the activations of a batch at one site to their rows of the array: at the positions and units to capture.

    `chosen` are the tokens to write where the positions are those of all tokens, or of a role.
    """
    if units is not None:
        value = value[..., units.to(value.device)]
    # Layers may be on several devices; the mask is on that of the embedding.
    value = value.to(tokens.mask.device, torch.float32)
    if per_text is not None:
        index = torch.tensor(per_text, device=value.device)
        part = value.gather(1, index.unsqueeze(-1).expand(*index.shape, value.shape[-1]))
    elif positions == "last":
        part = value[:, -1]
    elif positions in (MEAN, MEAN_AFTER_FIRST):
        counted = tokens.mask.clone()
        if positions == MEAN_AFTER_FIRST:
            # Such captures are padded on the right, so the first position is the first column.
            counted[:, 0] &= tokens.lengths == 1
        real = torch.where(rearrange(counted, "batch pos -> batch pos 1"), value, 0)
        part = reduce(real, "batch pos d -> batch d", "sum") / rearrange(counted.sum(dim=1), "batch -> batch 1")
    else:
        part = torch.where(chosen.to(value.device).unsqueeze(-1), value, 0)
    # The array has an axis for heads; a selection of units, and every other site, is flat.
    rows = part.cpu().numpy().reshape(*part.shape[:-1], *array.shape[part.dim() - 1 :])
    if part.dim() == 2:
        array[group] = rows
    else:
        array[group, : part.shape[1]] = rows
