"""The cells of a patching map, and the numbers of a site that each of them replaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import UserError
from interp.forward.resume import Trace
from interp.models.chat import known_roles
from interp.models.model import Model
from interp.models.positions import ROLES, check_positions, parse_positions
from interp.models.sites import ALIASES, KINDS, PATCHED, SiteKind
from interp.patching.maps import Cell

PATCH_WORDS = ("each", "all", "last", *ROLES)


def make_cells(
    model: Model, site: str, positions: Any, layers: Sequence[int] | None, units: Any, lengths: Sequence[int],
    roles: Int[Tensor, "row longest"] | None = None,
) -> tuple[Cell, ...]:  # fmt: skip
    """Every cell of a map, in the order layer, unit, position; raises `UserError` for what the model or the prompts lack.

    `roles` are the roles of the tokens of every row that is run, as `role_codes` gives them.
    """
    kind = patched_kind(site)
    chosen = list(range(model.n_layers)) if layers is None else sorted(set(layers))
    wrong = next((layer for layer in chosen if not 0 <= layer < model.n_layers), None)
    if wrong is not None or not chosen:
        raise UserError(f"layer {wrong} does not exist: the model has {model.n_layers} layers", "count layers from 0, and name one")
    places: list[int | None] = list(_places(positions, kind, lengths, roles))
    count = model.shape(kind.name)[0]
    return tuple(
        Cell(layer, place, unit) for layer in chosen for unit in _units(units, kind, layer, count, model.n_layers) for place in places
    )


def patched_kind(site: str) -> SiteKind:
    """The row of a site that can be patched, by its name without layer; raises `UserError` for any other."""
    name = ALIASES.get(site, site)
    if name not in PATCHED:
        raise UserError(f"site {site!r} cannot be patched", f"use one of {', '.join(PATCHED)}, without a layer")
    return KINDS[name]


def _places(positions: Any, kind: SiteKind, lengths: Sequence[int], roles: Tensor | None) -> Iterator[int | None]:
    default = "all" if kind.unit else "each"
    parsed = parse_positions(default if positions is None else positions, PATCH_WORDS)
    if parsed == "all":
        yield None
        return
    if parsed in ROLES:
        yield from _of_role(parsed, roles)
        return
    if parsed in ("each", "last") and len(set(lengths)) > 1:
        raise UserError(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens, so that their positions do not line up",
            "use prompts of equal length, or positions='all'",
        )
    every = range(min(lengths))
    chosen = tuple(every[-1:] if parsed == "last" else every) if isinstance(parsed, str) else parsed
    check_positions(chosen, min(lengths), "the shortest prompt" if len(lengths) > 1 else "the prompt")
    yield from chosen


def _of_role(role: Any, roles: Tensor | None) -> list[int]:
    """The positions whose token has this role in every row; raises `UserError` where the rows do not agree."""
    of_role = known_roles(roles, role) == ROLES.index(role)
    if bool((of_role != of_role[:1]).any()):
        raise UserError(
            f"the positions {role!r} are not the same in all prompts", "use prompts whose turns line up, or name positions as numbers"
        )
    return [int(at) for at in of_role[0].nonzero()[:, 0]]


def _units(units: Any, kind: SiteKind, layer: int, count: int, n_layers: int) -> list[int | None]:
    if kind.unit is None:
        if units is not None:
            able = " or ".join(name for name in PATCHED if KINDS[name].unit)
            raise UserError(f"site {kind.name!r} has no heads or neurons", f"name units for {able} only")
        return [None]
    if units is None:
        return list(range(count))
    pairs = [tuple(item) if isinstance(item, list | tuple) else (layer, item) for item in units]
    wrong = next((p for p in pairs if len(p) != 2 or not 0 <= p[0] < n_layers or not 0 <= p[1] < count), None)
    if wrong is not None or not pairs:
        raise UserError(f"{kind.unit} {wrong} does not exist: there are {n_layers} layers of {count}", "count from 0, and name one")
    return [index for owner, index in dict.fromkeys(pairs) if owner == layer]


def layers_of(cells: Sequence[Cell]) -> list[int]:
    """The layers of these cells, in order."""
    return sorted({cell.layer for cell in cells})


def chunk_size(target: Trace, memory_mb: float | int) -> int:
    """The number of runs that fit into the memory: residual streams, MLP, attention scores and logits of one block, roughly."""
    model, length = target.model, len(target.row)
    numbers = length * (10 * model.d_model + 3 * model.d_mlp + 2 * model.n_heads * length) + 2 * model.d_vocab
    return max(1, int(memory_mb * 2**20 / (numbers * target.stream.element_size())))


def selection(target: Trace, site: str, cells: Sequence[Cell]) -> Bool[Tensor, "cell pos ..."]:
    """A mask of the numbers of a site that each cell replaces: `cell pos 1`, for heads `cell pos head 1`, for neurons `cell pos d_mlp`."""
    model, length = target.model, len(target.row)
    kind, (units, *width) = KINDS[site], model.shape(site)
    tail = (units if kind.unit else 1, *(1 for _ in width))
    where = torch.zeros((len(cells), length, *tail), dtype=torch.bool)
    for number, cell in enumerate(cells):
        where[number, slice(None) if cell.position is None else cell.position, slice(None) if cell.unit is None else cell.unit] = True
    return where.to(model.device)
