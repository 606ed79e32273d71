"""Results of a search for max-activating examples: windows of tokens, and the distribution of activations.

A window is shown in three ways: as strips of (token, activation) that an app can colour, as a line of text, as a row of a
table. Words are masked in all three unless asked for, also where a word is cut into several tokens.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from interp.data.lexicon import mask
from interp.files import write_text
from interp.results.result import Figure


@dataclass(frozen=True)
class Window:
    """A piece of text around the token on which a neuron of one model fires most, with its activations in every model.

    Attributes:
        side: the model whose neuron found this window.
        rank: 1 is the highest peak.
        peak: the activation at the peak, in that model.
        text: number of the text in the file, counting from 0 and leaving out blank ones.
        position: which token of that text the peak is.
        tokens: the window as strings, which make its text when put together.
        at: the peak's place in `tokens`.
        activations: for each model, the neuron's activation at every token.
    """

    side: str
    layer: int
    neuron: int
    rank: int
    peak: float
    text: int
    position: int
    tokens: tuple[str, ...]
    at: int
    activations: dict[str, tuple[float, ...]]

    def strip(self, side: str | None = None, *, masked: bool = True) -> list[tuple[str, float]]:
        """Each token with the neuron's activation, in the model named (that of the peak, unless named)."""
        return list(zip(_masked(self.tokens) if masked else self.tokens, self.activations[side or self.side], strict=True))

    def context(self, *, masked: bool = True) -> str:
        """The window on one line, the peak's token in brackets."""
        tokens = list(_masked(self.tokens) if masked else self.tokens)
        tokens[self.at] = f"[{tokens[self.at]}]"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in "".join(tokens))

    def __str__(self) -> str:
        return f"{self.side} {self.layer}.{self.neuron} #{self.rank} {self.peak:.3g}: {self.context()}"

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """A JSON object, with raw words."""
        return {**vars(self), "tokens": list(self.tokens), "activations": {side: list(v) for side, v in self.activations.items()}}


@dataclass(frozen=True, eq=False)
class Examples:
    """The windows of each model and neuron, best first, and how the neuron's activations are spread over all tokens.

    `spread` has one row per model and neuron: side, layer, neuron, active (share of tokens beyond the threshold), mean, min,
    the quantiles p50 to p99.9, and max. The quantiles are exact for `settings["tokens"]` up to `settings["sample"]`, and
    beyond that those of a random sample of so many tokens.
    """

    windows: tuple[Window, ...]
    spread: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def of(self, layer: int, neuron: int, side: str | None = None) -> list[Window]:
        """The windows of one neuron, best first; of the first model, unless another is named."""
        side = side if side is not None else self.settings["sides"][0]
        return [w for w in self.windows if (w.layer, w.neuron, w.side) == (layer, neuron, side)]

    def to_frame(self, *, masked: bool = True) -> pd.DataFrame:
        """One row per window: side, layer, neuron, rank, peak, the activation there in each model, text, position, token, context."""
        columns = ["side", "layer", "neuron", "rank", "peak", *(f"peak_{side}" for side in self.settings["sides"])]
        rows = [
            [
                w.side, w.layer, w.neuron, w.rank, w.peak, *(w.activations[side][w.at] for side in self.settings["sides"]),
                w.text, w.position, w.strip(masked=masked)[w.at][0], w.context(masked=masked),
            ]
            for w in self.windows
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=[*columns, "text", "position", "token", "context"])

    def figure(self) -> Figure:
        """A bar chart of the share of tokens on which each neuron is active, per model."""
        from interp.results import figures

        frame = self.spread.assign(name=[f"{row.layer}.{row.neuron}" for row in self.spread.itertuples()])
        return figures.bars(
            "active", frame, x="name", y="active", colour="side" if len(self.settings["sides"]) > 1 else None, x_title="neuron",
            y_title="share of tokens", title="How often each neuron is active",
            caption=f"Share of {self.settings['tokens']:,} tokens on which the activation is beyond {self.settings['above']:g}.",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """A JSON object, with raw words."""
        return {
            "settings": self.settings, "spread": self.spread.to_dict(orient="records"), "windows": [w.to_json() for w in self.windows],
        }  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write `examples.json` into a folder, atomically; gives its path."""
        target = Path(folder) / "examples.json"
        write_text(target, json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False))
        return target


def _masked(tokens: Sequence[str]) -> tuple[str, ...]:
    """Tokens with the profane words of the whole text masked, also where a word is cut into several tokens."""
    ends = list(itertools.accumulate(len(token) for token in tokens))
    text = mask("".join(tokens))
    return tuple(text[end - len(token) : end] for token, end in zip(tokens, ends, strict=True))
