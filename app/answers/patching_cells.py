"""One cell of a map: its names, its numbers, and the next tokens and continuations of the run with it patched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st
import torch

from app.answers.patching import Question, runs_of
from app.continuations import EditedModel
from app.model_queue import model_queue
from interp import Edit
from interp.models.sites import KINDS
from interp.patching.cells import selection
from interp.patching.maps import Cell, PatchMap, position_labels
from interp.patching.patch import ACROSS, WITHIN, Runs, run_patched

NEXT, CHANGED = 4, 8


def labels_of(cells: PatchMap) -> list[str]:
    """A name per position, masked, as the map's axis has it."""
    return position_labels(cells.tokens)


def strongest(cells: PatchMap, direction: str) -> Cell:
    """The cell that moves the metric most, which is selected at first.

    Of the residual stream the last layer is left out, because there the last token alone gives the source's answer.
    """
    most = max(cell.layer for cell in cells.cells)
    skip = KINDS[cells.site].stream and most > 0
    size = cells.effects[cells.directions.index(direction)].mean(dim=0).abs().tolist()
    return max((cell for cell in cells.cells if not (skip and cell.layer == most)), key=lambda cell: size[cells.cells.index(cell)])


def number_of(cells: PatchMap, cell: Cell) -> int:
    """The index of a cell in its map."""
    return cells.cells.index(cell)


def choices(cells: PatchMap) -> dict[str, list[str]]:
    """The names of the cells by kind: layer with token or head, or a neuron."""
    names_by_kind: dict[str, dict[str, None]] = {}
    for cell in cells.cells:
        for kind, name in named(cells, cell).items():
            names_by_kind.setdefault(kind, {})[name] = None
    return {kind: list(names) for kind, names in names_by_kind.items()}


def named(cells: PatchMap, cell: Cell) -> dict[str, str]:
    """The names of one cell by kind, masked, so that a link holds no raw words."""
    if cells.unit == "neuron":
        return {"neuron": f"{cell.layer}.{cell.unit}"}
    if cell.position is None:
        return {"layer": str(cell.layer), "head": str(cell.unit)}
    return {"layer": str(cell.layer), "token": labels_of(cells)[cell.position]}


def cell_named(cells: PatchMap, names: dict[str, str]) -> Cell:
    """The cell of these names."""
    return next(cell for cell in cells.cells if named(cells, cell) == names)


def cell_at(cells: PatchMap, point: tuple[Any, Any, Any, Any]) -> Cell | None:
    """The cell of a clicked point (curve, index, x, y), or None where the point is no cell."""
    curve, index, x, y = point
    if cells.unit == "neuron":
        return next((cell for cell in cells.cells if f"{cell.layer}.{cell.unit}" in (str(x), str(y))), None)
    if curve != 1 or not isinstance(index, int) or not 0 <= index < len(cells.cells):
        return None
    return cells.cells[index]


@dataclass(frozen=True)
class Numbers:
    """The effect of one cell, and the metric of the target run, of the patched run and of the source run."""

    effect: float
    share: float
    value: float
    target: float
    source: float
    null: float | None


def numbers_of(cells: PatchMap, direction: str, cell: Cell) -> Numbers:
    """The numbers of one cell."""
    at, place, most = cells.directions.index(direction), number_of(cells, cell), cells.null_most
    parts = (cells.effects[at, :, place], cells.values[at, :, place], cells.target[at], cells.source[at])
    effect, value, target, source = (float(part.mean()) for part in parts)
    return Numbers(effect, float(cells.shares[at, place]), value, target, source, None if most is None else float(most[at, place]))


@dataclass(frozen=True)
class NextTokens:
    """Next-token probabilities of the target, patched and source runs: `likeliest` and `changed` have one row per token.

    Columns: token, id, before, patched, source (probabilities), change (patched minus before).
    """

    likeliest: pd.DataFrame
    changed: pd.DataFrame


@st.cache_data(show_spinner=False, max_entries=512)
def next_tokens(question: Question, direction: str, cell: Cell) -> NextTokens:
    """The likeliest next tokens under one patch, and the tokens whose probabilities it changes most."""
    runs = runs_of(question)
    target, source, where = _parts(runs, direction, cell)
    site = f"{question.site}.{cell.layer}"
    with torch.no_grad(), model_queue.turn():
        patched = run_patched(target, site, source[site].to(target.stream), where)
        size = min(question.model.d_vocab, len(question.model.tokenizer))
        before, after, theirs = (
            reading.logits[0].float().softmax(dim=0)[:size].cpu() for reading in (target.reading, patched, source.reading)
        )
    ids = dict.fromkeys(token for row in (before, after, theirs) for token in row.topk(min(NEXT, size)).indices.tolist())
    likeliest = sorted(ids, key=lambda token: -float(torch.stack([before[token], after[token], theirs[token]]).max()))
    changed = (after - before).abs().topk(min(CHANGED, size)).indices.tolist()

    def frame(tokens: list[int]) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "token": [question.model.tokenizer.decode([token]) for token in tokens], "id": tokens, "before": before[tokens].tolist(),
                "patched": after[tokens].tolist(), "source": theirs[tokens].tolist(), "change": (after - before)[tokens].tolist(),
            }
        )  # fmt: skip

    return NextTokens(frame(likeliest), frame(changed))


def _parts(runs: Runs, direction: str, cell: Cell) -> tuple[Any, Any, Any]:
    target, source = runs.traces[runs.directions.index(direction)][0]
    return target, source, selection(target, runs.site, [cell])


def edited_models(question: Question, direction: str, cell: Cell) -> tuple[tuple[str, EditedModel], ...]:
    """The runs to continue, each with its prompt: the target, the target patched in the prompt, and the source."""
    runs = runs_of(question)
    target, source, where = _parts(runs, direction, cell)
    site = f"{question.site}.{cell.layer}"
    values = torch.where(where, source[site].to(target.stream), target[site].unsqueeze(0))[0].flatten(1)
    edit = Edit.patch(site, values, positions=range(len(target.row)))
    first, second = (question.prompt, question.corrupted or question.prompt)
    prompts = (first, second) if direction in (ACROSS[1], WITHIN[1]) else (second, first)
    return (
        (prompts[0], EditedModel(target.model)), (prompts[0], EditedModel(target.model, (edit,))), (prompts[1], EditedModel(source.model)),
    )  # fmt: skip
