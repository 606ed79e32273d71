"""`capture`: the activations at the sites asked for, and nothing else.

A full cache of a GPT2-medium forward is hundreds of megabytes; most questions need a few sites at the last position.
So sites are named, positions are reduced on the way, texts run in batches of similar length, the forward stops after
the last site that is wanted, and what does not fit into memory is spilled to memory-mapped files.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from interp.forward.pattern import by_key_position, by_position, by_query, is_pattern, pattern_shape
from interp.models.hooks import Frame, Work, working
from interp.models.model import Model
from interp.models.sites import parse_site
from interp.models.tokens import Tokens, batches, pad, token_rows

MEMORY_LIMIT = 4 * 2**30


class NotCaptured(UserError, KeyError):
    """Also a `KeyError`, so that `in` and `get` answer as those of any mapping."""

    __str__ = ValueError.__str__


@dataclass(frozen=True, eq=False)
class Captured(Mapping[str, Tensor]):
    """Activations by site: `batch d` (last, mean), or `batch pos d` with `mask` telling which positions are real."""

    tensors: dict[str, Tensor]
    positions: str
    mask: Bool[Tensor, "batch pos"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Tensor:
        try:
            return self.tensors[site if site in self.tensors else str(parse_site(site))]
        except (KeyError, UserError):
            raise NotCaptured(f"site {site!r} was not captured", f"use one of {', '.join(self.tensors)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def save(self, folder: str | Path) -> Path:
        """Write one `.npy` per site and an index, atomically."""
        target = Path(folder)
        with _fresh(target) as temporary:
            for site, tensor in self.tensors.items():
                np.save(temporary / f"{site}.npy", tensor.float().numpy())
            return _finish(temporary, target, self)


# One forward of a batch with the work done on the way: `(model, tokens, names, work, last_only=...)` gives the named sites, each
# `batch pos ...`, or its last position alone.
Forward = Callable[..., dict[str, Tensor]]


class _Done(Exception):
    """Raised by the last wanted site of a forward, so that the rest of the model is not computed."""


def capture(
    model: Model, texts: Sequence[str] | Sequence[Sequence[int]], sites: Sequence[str], *, positions: Any = "last",
    units: Mapping[str, Sequence[int]] | None = None, edits: Sequence[Edit] = (), add_bos: bool = False, max_tokens: int | None = None,
    batch_size: int = 64, batch_tokens: int = 4096, spill: str | Path | None = None, memory_limit: int = MEMORY_LIMIT,
    forward: Forward | None = None,
) -> Captured:  # fmt: skip
    """What does the model hold at these sites, for these texts?

    Args:
        texts: strings, or rows of token ids.
        positions: `last`, `mean` (over real positions), `all`, a list of absolute positions, or one such list per text.
        units: for a site, the indices of its last axis to keep (for example a few neurons of `mlp_post.3`).
        edits: applied during the forward; what is captured is what the rest of the model reads.
        spill: a folder for results larger than memory; tensors are then memory-mapped.
        memory_limit: bytes; a larger result that is not spilled is refused before anything is computed.
        forward: what runs a batch, in place of this project's own hooks (see `interp.adapters.run`).

    Raises:
        UserError: no sites, an unknown site, positions beyond a text, or a result beyond the memory limit.
    """
    names = list(dict.fromkeys(str(parse_site(site, n_layers=model.n_layers, family=model.family)) for site in sites))
    if not names:
        raise UserError("capture was given no sites", "name at least one, for example resid_post.0")
    rows = token_rows(model, texts, add_bos=add_bos, max_tokens=max_tokens)
    wanted = _per_row(positions, rows)
    positions = positions if isinstance(positions, str) else "indices"
    kept = _units(model, names, units or {})
    transforms = transforms_of(edits, model)
    shapes = {name: _shape(model, name, rows, positions, wanted, kept) for name in names}
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if spill is None and size > memory_limit:
        raise UserError(
            f"these activations take {size / 2**30:.1f} GiB, the limit is {memory_limit / 2**30:.1f} GiB",
            "capture fewer sites or positions='last', or give spill=FOLDER",
        )
    mask = pad(rows, 0, "right").mask if positions == "all" and rows else None
    settings = {"texts": len(rows), "edits": [edit.to_json() for edit in edits], "add_bos": add_bos, "max_tokens": max_tokens}

    def fill(store: Mapping[str, np.ndarray]) -> None:
        for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=batch_tokens):
            tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "left" if positions == "last" else "right").to(
                model.device
            )
            work = Work(transforms, rows=tuple(group))
            found = (forward or _forward)(model, tokens, names, work, last_only=positions == "last")
            places = [wanted[i] for i in group] if wanted else None
            for name, value in found.items():
                held = store[name]
                if is_pattern(name):
                    value, held = by_key_position(value, tokens, held.shape[-1]), by_position(held, positions)
                _keep(held, group, value.flatten(2), tokens, positions, places, kept.get(name))

    if spill is None:
        store = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        fill(store)
        return Captured({name: torch.from_numpy(array) for name, array in store.items()}, positions, mask, settings)
    target = Path(spill)
    with _fresh(target) as temporary:
        mapped = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
            for name, shape in shapes.items()
        }
        fill(mapped)
        for array in mapped.values():
            array.flush()
        _finish(temporary, target, Captured({name: torch.empty(0) for name in names}, positions, mask, settings))
    return load_captured(target)


def load_captured(folder: str | Path) -> Captured:
    """Open a saved or spilled capture; its tensors are memory-mapped."""
    target = Path(folder)
    if not (target / "index.json").is_file():
        raise UserError(f"{target} holds no capture", "give a folder that capture(spill=...) or Captured.save wrote")
    index = json.loads((target / "index.json").read_text())
    tensors = {site: torch.from_numpy(np.load(target / f"{site}.npy", mmap_mode="c")) for site in index["sites"]}
    mask = torch.from_numpy(np.load(target / "mask.npy")) if (target / "mask.npy").is_file() else None
    return Captured(tensors, index["positions"], mask, index["settings"])


def _per_row(positions: Any, rows: list[list[int]]) -> list[list[int]] | None:
    if isinstance(positions, str):
        if positions not in {"last", "mean", "all"}:
            raise UserError(f"positions {positions!r} is unknown", "use last, mean, all, or a list of absolute positions")
        return None
    try:
        given = [
            operator.index(item) if hasattr(item, "__index__") else [operator.index(position) for position in item] for item in positions
        ]
    except TypeError as error:
        raise UserError(f"positions {positions!r} are unknown", "use last, mean, all, or a list of absolute positions") from error
    shared = [item for item in given if isinstance(item, int)]
    if not given or [] in given:
        raise UserError("capture was given an empty list of positions", "name at least one")
    per_row = [shared] * len(rows) if len(shared) == len(given) else [item for item in given if isinstance(item, list)]
    if len(per_row) != len(rows) or len({len(item) for item in per_row}) > 1:
        raise UserError("positions per text must be one list of equal length for each text", f"give {len(rows)} lists")
    for number, (wanted, row) in enumerate(zip(per_row, rows, strict=True)):
        for position in wanted:
            if not 0 <= position < len(row):
                raise UserError(
                    f"text {number} has {len(row)} tokens, but position {position} is asked for", "count positions from 0 within each text"
                )
    return per_row


def _units(model: Model, names: Sequence[str], units: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    for site, indices in units.items():
        place = parse_site(site, n_layers=model.n_layers, family=model.family)
        name = str(place)
        if name not in names:
            raise UserError(
                f"units are given for {name}, which is not among the sites", f"capture it too, or name one of {', '.join(names)}"
            )
        if is_pattern(name):
            kept[name] = torch.tensor([])
            continue
        found, width = [int(index) for index in indices], model.width(place.name)
        if not found or min(found) < 0 or max(found) >= width:
            raise UserError(f"units {found[:8]} of {name} do not exist", f"use at least one index from 0 to {width - 1}")
        kept[name] = torch.tensor(found, device=model.device)
    return kept


def _shape(model: Model, name: str, rows: list, positions: Any, wanted: Any, kept: Mapping[str, Tensor]) -> tuple[int, ...]:
    longest = max((len(row) for row in rows), default=0)
    count = len(wanted[0]) if wanted else longest
    if is_pattern(name):
        return pattern_shape(name, len(rows), model.n_heads, longest, positions, count, name in kept)
    tail = (len(kept[name]),) if name in kept else model.shape(parse_site(name).name)
    return (len(rows), *tail) if positions in {"last", "mean"} else (len(rows), count, *tail)


@torch.no_grad()
def _forward(model: Model, tokens: Tokens, names: Sequence[str], work: Work, *, last_only: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    stop_early = "logits" not in names

    def collector(name: str) -> Any:
        def collect(value: Tensor, frame: Frame) -> None:
            value = by_query(value) if is_pattern(name) else value
            found[name] = (value[:, -1:] if last_only else value).detach().clone()
            if stop_early and len(found) == len(names):
                raise _Done

        return collect

    work = work.plus(Work(collectors={name: (collector(name),) for name in names}))
    with working(model.hf, work, tokens.lengths), contextlib.suppress(_Done):
        model.hf(**tokens.inputs(), use_cache=False, logits_to_keep=1 if last_only else 0)
    return found


def _keep(store: np.ndarray, group: list[int], value: Tensor, tokens: Tokens, positions: Any, wanted: Any, kept: Tensor | None) -> None:
    if kept is not None:
        value = value[..., kept.to(value.device)]
    # Layers may lie on several devices; the mask is where the texts entered.
    value = value.to(tokens.mask.device, torch.float32)
    if wanted is not None:
        index = torch.tensor(wanted, device=value.device)
        part = value.gather(1, index.unsqueeze(-1).expand(*index.shape, value.shape[-1]))
    elif positions == "last":
        part = value[:, -1]
    elif positions == "mean":
        real = torch.where(rearrange(tokens.mask, "batch pos -> batch pos 1"), value, 0)
        part = reduce(real, "batch pos d -> batch d", "sum") / rearrange(tokens.lengths, "batch -> batch 1")
    else:
        part = torch.where(tokens.mask.unsqueeze(-1), value, 0)
    # Heads have an axis of their own in the store; a selection of units, and every other site, has not.
    rows = part.cpu().numpy().reshape(*part.shape[:-1], *store.shape[part.dim() - 1 :])
    if part.dim() == 2:
        store[group] = rows
    else:
        store[group, : part.shape[1]] = rows


@contextlib.contextmanager
def _fresh(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, gone afterwards whatever happens; refuses a target that is not a capture."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "index.json").is_file()):
        raise UserError(f"{target} exists and is not a capture", "give a new folder")
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _finish(temporary: Path, target: Path, captured: Captured) -> Path:
    if captured.mask is not None:
        np.save(temporary / "mask.npy", captured.mask.numpy())
    index = {"sites": list(captured.tensors), "positions": captured.positions, "settings": captured.settings}
    (temporary / "index.json").write_text(json.dumps(index))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    return target
