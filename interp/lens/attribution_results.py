"""Results of direct logit attribution: every term of a logit, for one model or for both sides of a pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.files import write_together
from interp.results.result import Figure, frame_to_json, plain, show_number

Level = Literal["term", "layer", "head", "neuron"]
LEVELS: tuple[Level, ...] = ("term", "layer", "head", "neuron")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Every term of a logit, or of the difference between two logits, in the logit's units (double precision).

    Attributes:
        embedding: what the token embedding at the last position writes.
        position: what the position embedding writes; 0 where positions are rotary.
        heads, attention_bias: of each layer's attention.
        neurons, mlp_bias: of each layer's MLP.
        norm_bias: the final norm's bias, read by the unembedding.
        unembedding_bias: the unembedding's own bias.
        cap: what capping the logits adds, in models that do.
        logit: the model's own number, which the terms sum to.
    """

    embedding: Float[Tensor, " prompt"]
    position: Float[Tensor, " prompt"]
    heads: Float[Tensor, "prompt layer head"]
    attention_bias: Float[Tensor, "prompt layer"]
    neurons: Float[Tensor, "prompt layer d_mlp"]
    mlp_bias: Float[Tensor, "prompt layer"]
    norm_bias: Float[Tensor, " prompt"]
    unembedding_bias: Float[Tensor, " prompt"]
    cap: Float[Tensor, " prompt"]
    logit: Float[Tensor, " prompt"]
    label: str
    settings: Mapping[str, Any]

    @property
    def attention(self) -> Float[Tensor, "prompt layer"]:
        """What each layer's attention writes, bias included."""
        return self.heads.sum(dim=2) + self.attention_bias

    @property
    def mlp(self) -> Float[Tensor, "prompt layer"]:
        """What each layer's MLP writes, bias included."""
        return self.neurons.sum(dim=2) + self.mlp_bias

    @property
    def total(self) -> Float[Tensor, " prompt"]:
        """The sum of all terms."""
        outside_layers = self.embedding + self.position + self.norm_bias + self.unembedding_bias + self.cap
        return outside_layers + self.attention.sum(dim=1) + self.mlp.sum(dim=1)

    def to_frame(self, level: Level = "term") -> pd.DataFrame:
        """Means over prompts.

        `term`: one row per term (term, layer, contribution), which sum to the logit, attention and MLP of each layer being
        one term each. `layer`: layer, attention, attention_bias, mlp, mlp_bias, contribution (of the layer in all). `head`:
        layer, head, contribution. `neuron`: layer, neuron, contribution.
        """
        if level not in LEVELS:
            raise UserError(f"level {level!r} is unknown", f"use one of {', '.join(LEVELS)}")
        if level in ("head", "neuron"):
            table = (self.heads if level == "head" else self.neurons).mean(dim=0)
            layers, units = (axis.flatten().tolist() for axis in torch.meshgrid(*map(torch.arange, table.shape), indexing="ij"))
            return pd.DataFrame({"layer": layers, level: units, "contribution": table.flatten().tolist()})
        attention, mlp = self.attention.mean(dim=0), self.mlp.mean(dim=0)
        if level == "layer":
            return pd.DataFrame({
                "layer": range(len(attention)), "attention": attention.tolist(), "attention_bias": self.attention_bias.mean(dim=0).tolist(),
                "mlp": mlp.tolist(), "mlp_bias": self.mlp_bias.mean(dim=0).tolist(), "contribution": (attention + mlp).tolist(),
            })  # fmt: skip
        rows: list[tuple[str, int, float]] = [(name, -1, float(getattr(self, name).mean())) for name in ("embedding", "position")]
        for layer, parts in enumerate(zip(attention.tolist(), mlp.tolist(), strict=True)):
            rows += [("attention", layer, parts[0]), ("mlp", layer, parts[1])]
        rows += [(name, -1, float(getattr(self, name).mean())) for name in ("norm_bias", "unembedding_bias", "cap")]
        return pd.DataFrame(rows, columns=["term", "layer", "contribution"])

    def top(self, count: int = 10, level: Level = "neuron") -> pd.DataFrame:
        """The largest terms in size, largest first."""
        frame = self.to_frame(level)
        order = frame["contribution"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].head(count).reset_index(drop=True)

    def figure(self, level: Level = "term") -> Figure:
        """All terms as bars, heads as a heat map, or the largest neurons as bars."""
        from interp.results import figures

        name = f"attribution-{level}"
        total = float(self.logit.mean())
        if level == "head":
            frame = self.to_frame("head").astype({"layer": str, "head": str})
            best = self.top(1, "head").iloc[0]
            caption = (f"Head {int(best['layer'])}.{int(best['head'])} writes most: {show_number(float(best['contribution']))} "
                       f"of {show_number(total)} in all.")  # fmt: skip
            return figures.heatmap(name, frame, x="head", y="layer", z="contribution", title=f"{self.label}: written by each head",
                                   caption=caption, z_title=self.label, centre=0.0)  # fmt: skip
        frame = self.to_frame("term") if level == "term" else self.top(20, level)
        frame["name"] = _names(frame, level)
        best = frame.loc[frame["contribution"].abs().idxmax()]
        caption = (f"The terms sum to {show_number(total)}; the largest, {best['name']}, is "
                   f"{show_number(float(best['contribution']))}.")  # fmt: skip
        if level != "term":
            caption = f"The {len(frame)} largest of all. " + caption.replace("The terms sum", "All terms sum")
        return figures.bars(name, frame, x="name", y="contribution", title=f"{self.label}: what writes it", caption=caption,
                            x_title="term", y_title=self.label)  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write `attribution.json` and one CSV per level, all or nothing; gives the JSON's path."""
        return _save(self, folder, {level: self.to_frame(level) for level in LEVELS}, [self.figure("term"), self.figure("head")])


@dataclass(frozen=True, eq=False)
class PairAttribution:
    """The same logit's terms on both sides of a pair; `difference` is tuned minus base, term by term."""

    base: Attribution
    tuned: Attribution

    @property
    def difference(self) -> Attribution:
        """Tuned minus base, term by term."""
        names = [item.name for item in fields(Attribution) if item.name not in ("label", "settings")]
        parts = {name: getattr(self.tuned, name) - getattr(self.base, name) for name in names}
        return Attribution(**parts, label=f"{self.base.label}, tuned minus base", settings=self.tuned.settings)

    @property
    def label(self) -> str:
        """What the terms sum to, as in `difference`."""
        return self.difference.label

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of each side."""
        return {"base": dict(self.base.settings), "tuned": dict(self.tuned.settings)}

    def to_frame(self, level: Level = "term") -> pd.DataFrame:
        """As `Attribution.to_frame`, with columns base, tuned and difference in place of contribution."""
        frame = self.base.to_frame(level)
        frame = frame.drop(columns=[name for name in frame.columns if name not in ("term", "layer", "head", "neuron")])
        for side, attribution in {"base": self.base, "tuned": self.tuned}.items():
            frame[side] = attribution.to_frame(level)["contribution"]
        return frame.assign(difference=frame["tuned"] - frame["base"])

    def top(self, count: int = 10, level: Level = "neuron") -> pd.DataFrame:
        """The terms that differ most, largest first."""
        frame = self.to_frame(level)
        order = frame["difference"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].head(count).reset_index(drop=True)

    def figure(self, level: Level = "term") -> Figure:
        """Base against tuned, term by term; for heads the difference as a heat map."""
        from interp.results import figures

        if level == "head":
            return self.difference.figure("head")
        frame = self.to_frame("term") if level == "term" else self.top(20, level)
        frame["name"] = _names(frame, level)
        best = frame.loc[frame["difference"].abs().idxmax()]
        gap = float((self.tuned.logit - self.base.logit).mean())
        caption = (f"Tuning moves the {self.base.label} by {show_number(gap)}; {best['name']} moves most, by "
                   f"{show_number(float(best['difference']))}.")  # fmt: skip
        return figures.dumbbell(f"attribution-pair-{level}", frame, row="name", base="base", tuned="tuned", caption=caption,
                                title=f"{self.base.label}: what writes it before and after tuning", x_title=self.base.label,
                                y_title="term")  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write `attribution.json` and one CSV per level, all or nothing; gives the JSON's path."""
        return _save(self, folder, {level: self.to_frame(level) for level in LEVELS}, [self.figure("term"), self.figure("head")])


def _names(frame: pd.DataFrame, level: Level) -> list[str]:
    if level == "neuron":
        return [f"neuron {layer}.{unit}" for layer, unit in zip(frame["layer"], frame["neuron"], strict=True)]
    if level == "layer":
        return [f"layer {layer}" for layer in frame["layer"]]
    return [term.replace("_", " ") if layer < 0 else f"{term} {layer}" for term, layer in zip(frame["term"], frame["layer"], strict=True)]


def _save(
    attribution: Attribution | PairAttribution, folder: str | Path, tables: Mapping[str, pd.DataFrame], figures: list[Figure]
) -> Path:
    record = {
        "label": attribution.label, "settings": plain(attribution.settings),
        "tables": {name: frame_to_json(table) for name, table in tables.items()},
        "figures": [figure.to_json() for figure in figures],
    }  # fmt: skip
    files = {f"attribution-{name}.csv": table.to_csv(index=False) for name, table in tables.items()}
    files["attribution.json"] = json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_together(files, Path(folder))
    return Path(folder) / "attribution.json"
