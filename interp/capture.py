"""`capture`: the activations at the sites asked for, and nothing else.

A full cache of a GPT2-medium forward is hundreds of megabytes; most questions need a few sites at the last position.
So sites are named, positions are reduced on the way, texts run in batches of similar length, the forward stops after
the last site that is wanted, and what does not fit into memory is spilled to memory-mapped files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.edits import Edit, transforms_of
from interp.errors import UserError
from interp.hooks import Frame, Work, working
from interp.models import Model
from interp.sites import parse_site
from interp.tokens import Tokens, batches, pad, token_rows

MEMORY_LIMIT = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Captured(Mapping[str, Tensor]):
    """Activations by site: `batch d` (last, mean), or `batch pos d` with `mask` telling which positions are real."""

    tensors: dict[str, Tensor]
    positions: str
    mask: Bool[Tensor, "batch pos"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Tensor:
        try:
            return self.tensors[site]
        except KeyError:
            raise UserError(f"site {site!r} was not captured", f"captured: {', '.join(self.tensors)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def save(self, folder: str | Path) -> Path:
        """Write one `.npy` per site and an index, atomically."""
        target = Path(folder)
        temporary = _fresh(target)
        for site, tensor in self.tensors.items():
            np.save(temporary / f"{site}.npy", tensor.float().numpy())
        return _finish(temporary, target, self)


class _Done(Exception):
    """Raised by the last wanted site of a forward, so that the rest of the model is not computed."""


def capture(
    model: Model, texts: Sequence[str] | Sequence[Sequence[int]], sites: Sequence[str], *, positions: Any = "last",
    units: Mapping[str, Sequence[int]] | None = None, edits: Sequence[Edit] = (), add_bos: bool = False, max_tokens: int | None = None,
    batch_size: int = 64, batch_tokens: int = 4096, spill: str | Path | None = None, memory_limit: int = MEMORY_LIMIT,
) -> Captured:  # fmt: skip
    """What does the model hold at these sites, for these texts?

    Args:
        texts: strings, or rows of token ids.
        positions: `last`, `mean` (over real positions), `all`, a list of absolute positions, or one such list per text.
        units: for a site, the indices of its last axis to keep (for example a few neurons of `mlp_post.3`).
        edits: applied during the forward; what is captured is what the rest of the model reads.
        spill: a folder for results larger than memory; tensors are then memory-mapped.
        memory_limit: bytes; a larger result that is not spilled is refused before anything is computed.

    Raises:
        UserError: no sites, an unknown site, positions beyond a text, or a result beyond the memory limit.
    """
    names = [str(parse_site(site, n_layers=model.n_layers, family=model.family)) for site in sites]
    if not names:
        raise UserError("capture was given no sites", "name at least one, for example resid_post.0")
    if isinstance(texts, str):
        raise UserError("one string was given where a list of texts is expected", "put it into a list: [text]")
    rows = [list(row) for row in texts] if texts and not isinstance(texts[0], str) else token_rows(model, texts, add_bos=add_bos, max_tokens=max_tokens)  # type: ignore[arg-type]
    wanted = _per_row(positions, rows)
    kept = {name: torch.tensor(list(units[name]), device=model.device) for name in names if units and name in units}
    shapes = {name: _shape(model, name, rows, positions, wanted, kept) for name in names}
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if spill is None and size > memory_limit:
        raise UserError(
            f"these activations take {size / 2**30:.1f} GiB, the limit is {memory_limit / 2**30:.1f} GiB",
            "capture fewer sites or positions='last', or give spill=FOLDER",
        )
    temporary = _fresh(Path(spill)) if spill is not None else None
    store = {name: _allocate(shape, temporary, name) for name, shape in shapes.items()}
    transforms = transforms_of(edits, model)
    side = "left" if positions == "last" else "right"
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=batch_tokens):
        tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, side).to(model.device)
        found = _forward(model, tokens, names, transforms, last_only=positions == "last")
        for name, value in found.items():
            _keep(store[name], group, value.flatten(2), tokens, positions, [wanted[i] for i in group] if wanted else None, kept.get(name))
    mask = None
    if positions == "all" and rows:
        mask = pad(rows, 0, "right").mask
    settings = {"texts": len(rows), "edits": [edit.to_json() for edit in edits], "add_bos": add_bos, "max_tokens": max_tokens}
    label = positions if isinstance(positions, str) else "indices"
    if temporary is None:
        tensors = {name: torch.from_numpy(array).view(*array.shape[:-1], *_tail(model, name, array.shape[-1])) for name, array in store.items()}
        return Captured(tensors, label, mask, settings)
    for array in store.values():
        array.flush()  # type: ignore[attr-defined]
    folder = _finish(temporary, Path(spill), Captured({name: torch.empty(0) for name in names}, label, mask, settings))  # type: ignore[arg-type]
    return load_captured(folder)


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
    given = list(positions)
    if not given:
        raise UserError("capture was given an empty list of positions", "name at least one")
    per_row = [list(item) for item in given] if not isinstance(given[0], int) else [given] * len(rows)
    if len(per_row) != len(rows) or len({len(item) for item in per_row}) > 1:
        raise UserError("positions per text must be one list of equal length for each text", f"give {len(rows)} lists")
    for number, (wanted, row) in enumerate(zip(per_row, rows, strict=True)):
        if not all(0 <= position < len(row) for position in wanted):
            raise UserError(f"text {number} has {len(row)} tokens, but position {max(wanted)} is asked for", "count positions from 0 within each text")
    return per_row


def _shape(model: Model, name: str, rows: list, positions: Any, wanted: Any, kept: Mapping[str, Tensor]) -> tuple[int, ...]:
    width = len(kept[name]) if name in kept else model.width(name.split(".")[0])
    if positions in ("last", "mean"):
        return (len(rows), width)
    return (len(rows), len(wanted[0]) if wanted else max((len(row) for row in rows), default=0), width)


def _tail(model: Model, name: str, width: int) -> tuple[int, ...]:
    return (model.n_heads, width // model.n_heads) if name.startswith("head_out") and width == model.d_attention else (width,)


def _allocate(shape: tuple[int, ...], folder: Path | None, name: str) -> np.ndarray:
    if folder is None:
        return np.zeros(shape, dtype=np.float32)
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)


@torch.no_grad()
def _forward(model: Model, tokens: Tokens, names: Sequence[str], transforms: Any, *, last_only: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    stop_early = "logits" not in names

    def collector(name: str) -> Any:
        def collect(value: Tensor, frame: Frame) -> None:
            found[name] = (value[:, -1:] if last_only else value).detach().clone()
            if stop_early and len(found) == len(names):
                raise _Done

        return collect

    work = Work(transforms, {name: (collector(name),) for name in names})
    with working(model, work, tokens.lengths):
        try:
            model.hf(**tokens.inputs(), use_cache=False, logits_to_keep=1 if last_only else 0)
        except _Done:
            pass
    return found


def _keep(store: np.ndarray, group: list[int], value: Tensor, tokens: Tokens, positions: Any, wanted: Any, kept: Tensor | None) -> None:
    if kept is not None:
        value = value[..., kept]
    value = value.float()
    if positions == "last":
        store[group] = value[:, -1].cpu().numpy()
    elif positions == "mean":
        mask = tokens.mask.unsqueeze(-1)
        store[group] = ((value * mask).sum(dim=1) / mask.sum(dim=1)).cpu().numpy()
    elif wanted is not None:
        index = torch.tensor(wanted, device=value.device)
        store[group] = value.gather(1, index.unsqueeze(-1).expand(*index.shape, value.shape[-1])).cpu().numpy()
    else:
        store[group, : value.shape[1]] = (value * tokens.mask.unsqueeze(-1)).cpu().numpy()


def _fresh(target: Path) -> Path:
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def _finish(temporary: Path, target: Path, captured: Captured) -> Path:
    if captured.mask is not None:
        np.save(temporary / "mask.npy", captured.mask.numpy())
    index = {"sites": list(captured.tensors), "positions": captured.positions, "settings": captured.settings}
    (temporary / "index.json").write_text(json.dumps(index))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    return target
