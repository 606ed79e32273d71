"""Patching maps: the metric of every patched cell in each direction, drawn as heat maps with token labels.

Measured maps and estimated ones (attribution patching) have the same type, so that they can be compared cell by cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from interp.data.lexicon import mask
from interp.errors import UserError
from interp.files import write_together
from interp.models.sites import KINDS
from interp.results.result import Figure, frame_to_json, plain, show_number
from interp.stats.intervals import bootstrap_means

if TYPE_CHECKING:
    from interp.models.model import Model

BARS = 20


@dataclass(frozen=True, order=True)
class Cell:
    """What is patched in one run: a site's layer at one position (None: all), in one head or neuron (None: the whole site)."""

    layer: int
    position: int | None = None
    unit: int | None = None


@dataclass(frozen=True, eq=False)
class PatchMap:
    """The metric of each run in which one activation is replaced by that of another run, with both unpatched runs.

    Attributes:
        site: the name of the site, without layer.
        metric: what was measured.
        method: `patching`, `gradient` or `integrated gradients`.
        directions: for example `denoising` and `noising`, or `base into tuned` and `tuned into base`.
        tokens: a label per position, raw words.
        values: the metric of each patched run.
        target: the metric of the run that is patched, as it is.
        source: the metric of the run that the activations come from.
        null: the metric with random changes of equal size in place of the source's, if they were asked for.
        functions: the caller's own functions of the logits that were measured, which a label does not tell apart; empty for other metrics.
    """

    site: str
    metric: str
    method: str
    directions: tuple[str, ...]
    cells: tuple[Cell, ...]
    tokens: tuple[str, ...]
    values: Float[Tensor, "direction prompt cell"]
    target: Float[Tensor, "direction prompt"]
    source: Float[Tensor, "direction prompt"]
    null: Float[Tensor, "draw direction prompt cell"] | None
    settings: dict[str, Any]
    functions: tuple[Callable[..., Any], ...] = ()

    @property
    def unit(self) -> str | None:
        """The unit that is patched, `head` or `neuron`, or None where a layer is patched whole."""
        return KINDS[self.site].unit

    @property
    def effects(self) -> Float[Tensor, "direction prompt cell"]:
        """The change of the metric by each patch, in its units."""
        return self.values - self.target.unsqueeze(-1)

    @property
    def shares(self) -> Float[Tensor, "direction cell"]:
        """Mean effect over the mean difference between source and target: 0 does nothing, 1 gives the source's value."""
        gap = (self.source - self.target).mean(dim=1, keepdim=True)
        gap = torch.where(gap.abs() > 1e-9, gap, torch.nan)
        return self.effects.mean(dim=1) / gap

    def grid(self, direction: str | None = None) -> Float[Tensor, "layer ..."]:
        """The mean effects of one direction (the first, unless named) as a table to draw: `layer position` or `layer unit`.

        The axes are `layer`, `unit` (head or neuron, where the site has them) and `position` (where positions were patched one
        by one), each over what the map's cells name, in ascending order; a cell that was not patched is NaN.
        """
        at = self.directions.index(self._direction(direction))
        places = [[part for part in (cell.layer, cell.unit, cell.position) if part is not None] for cell in self.cells]
        axes = [sorted(set(axis)) for axis in zip(*places, strict=True)]
        table = torch.full([len(axis) for axis in axes], torch.nan)
        for place, effect in zip(places, self.effects[at].mean(dim=0).tolist(), strict=True):
            table[tuple(axis.index(part) for axis, part in zip(axes, place, strict=True))] = effect
        return table

    @property
    def null_most(self) -> Float[Tensor, "direction cell"] | None:
        """The largest mean effect, in size, of the random changes at each cell."""
        if self.null is None:
            return None
        moved = reduce(self.null - self.target.unsqueeze(-1), "draw direction prompt cell -> draw direction cell", "mean")
        return moved.abs().amax(dim=0)

    def to_frame(self, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """One row per direction and cell.

        Columns: direction, layer, position and token (`all` where every position was patched), head or neuron where there is
        one, value, effect and share (means over prompts); with several prompts low and high, the bootstrap interval of the
        effect; with a null null_most, the largest effect in size of a random change of equal norm.
        """
        parts = []
        most = self.null_most
        for at, direction in enumerate(self.directions):
            frame = self._places()
            frame.insert(0, "direction", direction)
            frame["value"] = self.values[at].mean(dim=0).tolist()
            frame["effect"] = self.effects[at].mean(dim=0).tolist()
            if self.values.shape[1] > 1:
                intervals = bootstrap_means(self.effects[at].numpy(), draws=draws, seed=seed)
                frame["low"], frame["high"] = [i.low for i in intervals], [i.high for i in intervals]
            frame["share"] = self.shares[at].tolist()
            if most is not None:
                frame["null_most"] = most[at].tolist()
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)

    def top(self, count: int = 10, direction: str | None = None) -> pd.DataFrame:
        """The cells that move the metric most, in size: rows of `to_frame`, largest first."""
        frame = self.to_frame()
        frame = frame[frame["direction"] == self._direction(direction)]
        return frame.reindex(frame["effect"].abs().sort_values(ascending=False, kind="stable").index).head(count).reset_index(drop=True)

    def figure(self, direction: str | None = None, *, masked: bool = True) -> Figure:
        """The map of one direction (the first, unless named): layers down, positions or heads across; neurons as bars."""
        from interp.results import figures

        name = self._direction(direction)
        frame = self.to_frame()
        frame = frame[frame["direction"] == name].reset_index(drop=True)
        unit = self.unit
        by_position = self.cells[0].position is not None
        labels = position_labels(self.tokens, masked)
        what = f"{self.site} {'patched' if self.method == 'patching' else 'estimated by ' + self.method}, {name}: effect on {self.metric}"
        caption = self._sentence(frame, self.directions.index(name), masked)
        slug = f"{self.site}-{name}".replace(" ", "-").replace("_", "-")
        frame["layer"] = frame["layer"].astype(str)
        if by_position:
            frame["token"] = [labels[at] for at in frame["position"]]
        if unit == "neuron" or (unit and by_position and len(set(self.cells)) > 400):
            best = frame.reindex(frame["effect"].abs().sort_values(ascending=False).index).head(BARS)
            best = best.assign(place=[self._label(row, unit) for row in best.to_dict("records")])
            low, high = ("low", "high") if "low" in best else (None, None)
            return figures.bars(slug, best, x="place", y="effect", title=what, caption=caption, y_title=f"effect on {self.metric}",
                                x_title=f"layer.{unit}", low=low, high=high)  # fmt: skip
        if unit and by_position:
            frame["row"] = [f"{layer}.{head}" for layer, head in zip(frame["layer"], frame[unit], strict=True)]
        x, y = ("token" if by_position else unit or "token"), ("row" if unit and by_position else "layer")
        titles = {"token": "position and token", "head": "head", "layer": "layer", "row": "layer.head"}
        return figures.heatmap(slug, frame, x=x, y=y, z="effect", title=what, caption=caption, x_title=titles[x], y_title=titles[y],
                               z_title=f"effect on {self.metric}", centre=0.0)  # fmt: skip

    def figures(self, *, masked: bool = True) -> tuple[Figure, ...]:
        """The map of every direction."""
        return tuple(self.figure(direction, masked=masked) for direction in self.directions)

    def save(self, folder: str | Path) -> Path:
        """Write `patch.json` (settings, table, figures) and `patch.csv` (raw words), all or nothing; gives the JSON's path."""
        record = {
            "site": self.site, "metric": self.metric, "method": self.method, "directions": list(self.directions),
            "tokens": list(self.tokens), "target": self.target, "source": self.source, "settings": self.settings,
            "table": frame_to_json(self.to_frame()),
            "figures": [figure.to_json() for figure in self.figures()],
        }  # fmt: skip
        files = {
            "patch.json": json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False),
            "patch.csv": self.to_frame().to_csv(index=False),
        }
        write_together(files, Path(folder))
        return Path(folder) / "patch.json"

    def _places(self) -> pd.DataFrame:
        everywhere = self.cells[0].position is None
        frame = pd.DataFrame({
            "layer": [cell.layer for cell in self.cells],
            "position": ["all" if cell.position is None else cell.position for cell in self.cells],
            "token": ["all" if cell.position is None else self.tokens[cell.position] for cell in self.cells],
        })  # fmt: skip
        if everywhere:
            frame = frame.astype({"position": str})
        if self.unit is not None:
            frame[self.unit] = [cell.unit for cell in self.cells]
        return frame

    def _direction(self, direction: str | None) -> str:
        if direction is not None and direction not in self.directions:
            raise UserError(f"there is no direction {direction!r}", f"use one of: {', '.join(self.directions)}")
        return direction or self.directions[0]

    def _label(self, row: dict[str, Any], unit: str | None) -> str:
        place = f"{row['layer']}.{row[unit]}" if unit else f"layer {row['layer']}"
        return place if row["position"] == "all" else f"{place} at {row['token']}"

    def _sentence(self, frame: pd.DataFrame, at: int, masked: bool) -> str:
        row = frame.loc[frame["effect"].abs().idxmax()].to_dict()
        unit = self.unit
        place = f"layer {row['layer']}" + (f", {unit} {row[unit]}" if unit else "")
        if row["position"] != "all":
            place += ("," if unit else "") + f" at token {position_labels(self.tokens, masked)[row['position']]}"
        gap = float((self.source[at] - self.target[at]).mean())
        if not row["effect"]:
            return f"No cell moves the metric; the whole difference between the two runs is {show_number(gap)}."
        text = f"Strongest is {place}: {show_number(row['effect'])}, where the whole difference between the two runs is {show_number(gap)}."
        if "null_most" in frame:
            text += f" A random change of equal norm moves it by at most {show_number(float(frame['null_most'].max()))} at any cell."
        return text


def position_labels(tokens: Sequence[str], masked: bool = True) -> list[str]:
    """A distinct label per position: its number and its token; words are masked across the tokens that they consist of."""
    text = "".join(tokens)
    printed = mask(text) if masked else text
    labels, start = [], 0
    for at, token in enumerate(tokens):
        piece = printed[start : start + len(token)] if len(printed) == len(text) else mask(token)
        start += len(token)
        clean = piece.strip()
        labels.append(f"{at} {clean if clean and clean.isprintable() else repr(piece)}")
    return labels


def token_texts(model: Model, rows: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """The token at each position of the shortest row; where rows differ, two tokens with a slash between, or an ellipsis."""
    words = [[model.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in row] for row in rows]
    columns = [list(dict.fromkeys(column)) for column in zip(*words, strict=False)]
    return tuple("/".join(column) if len(column) <= 2 else "…" for column in columns)
