"""The page and the files of `bypass undo`: sentences first, then behaviour and distribution side by side, then every number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.elasticity.undo import ARMS, UndoRecord
from interp.elasticity.undo_cells import Cell, arm_frame, cells_of, dose_frame
from interp.elasticity.undo_verdict import UndoVerdict, strongest
from interp.files import write_together
from interp.report.markup import embedded, masking, plotly_script
from interp.report.parts import lines_of, table_of, title_of
from interp.results import figures
from interp.results.figure_layout import untitled
from interp.results.result import Figure, plain

FILES = ("undo.json", "undo.csv", "index.html")
# What the page says whatever the numbers are.
LIMITS = (
    "This is no safety rating. A model that is not undone here may be undone by other texts, rates, adapters or more steps.",
    "A behaviour score that returns is not a return to the base: only the KL to the base can show that.",
    "Models of different width are not comparable at one learning rate, and that the text of the benign arm is benign is not tested.",
)  # fmt: skip


def shown_cells(cells: list[Cell]) -> list[Cell]:
    """The cell of each arm that is drawn: that of the attack which undoes most by opposite text, or by the arm where that was not run."""
    best = strongest([cell for cell in cells if cell.arm == "opposite"])
    drawn = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm]
        same_attack = [cell for cell in own if best is not None and cell.attack == best.attack]
        one = strongest(same_attack or own)
        drawn += [one] if one is not None else []
    return drawn


def curve_figures(record: UndoRecord, cells: list[Cell], behaviour: str) -> list[Figure]:
    """Behaviour and KL to the base by step and arm, side by side, and KL by position at the last dose."""
    drawn = shown_cells(cells)
    if not drawn:
        return []
    return [*dose_figures(dose_frame(drawn), sides_frame(record), behaviour), _by_position(drawn, drawn[0].attack.name)]


def dose_figures(doses: pd.DataFrame, sides: pd.DataFrame, behaviour: str) -> list[Figure]:
    """Behaviour and KL to the base by step, one line an arm, beside the values of base and tuned.

    Args:
        doses: rows of `dose_frame`, one attack an arm.
        sides: the rows of `sides_frame`.
    """
    # The start stands at a place of its own, since zero has no logarithm.
    first, last = doses["steps"].min() / 2, doses["steps"].max()
    attack = doses["attack"].iloc[0]
    ticks = {float(first): "before"} | {float(step): f"{step:g}" for step in sorted(doses["steps"].unique())}
    before = sides.set_index("model")
    lines = (
        ("behaviour", "score", f"Behaviour: {behaviour}", behaviour),
        ("distribution", "KL to base", "Distribution: KL to the base", "KL to the base, nats a token"),
    )  # fmt: skip
    drawn = []
    for name, column, title, y_title in lines:
        tuned, base = (float(before.loc[side, column]) for side in ("tuned", "base"))
        starts = pd.DataFrame(
            [{"arm": arm, "steps": first, column: base if arm == "from_base" else tuned} for arm in doses["arm"].unique()]
        )
        ends = pd.DataFrame([{"arm": side, "steps": step, column: value, "role": side}
                             for side, value in (("base", base), ("tuned", tuned)) for step in (first, last)])  # fmt: skip
        whole = pd.concat([starts, doses[["arm", "steps", column]], ends], ignore_index=True)
        drawn.append(figures.lines(
            name, whole, x="steps", y=column, colour="arm", role="role", title=title, x_title="steps (logarithmic)", y_title=y_title,
            log_x=True, x_ticks=ticks, caption=f"Attack: {attack}. Means over prompts and seeds; base and tuned are lines. The leftmost "
            "points are the models before training.",
        ))  # fmt: skip
    return drawn


def _by_position(drawn: list[Cell], attack: str) -> Figure:
    rows = [
        {"arm": cell.arm, "position": place + 1, "KL to base": float(value)}
        for cell in drawn
        for place, value in enumerate(np.mean([row[-1].measurement.kl_base_position for row in cell.points], axis=0))
    ]
    caption = f"Attack: {attack}. After each of the first tokens of held-out texts, at the last dose of each arm."
    return figures.lines("positions", pd.DataFrame(rows), x="position", y="KL to base", colour="arm", title="KL to the base by position",
                         x_title="token", y_title="KL to the base, nats", caption=caption)  # fmt: skip


def sides_frame(record: UndoRecord) -> pd.DataFrame:
    """The two models before any training, as one row each."""
    rows = []
    for name, one in (("base", record.base), ("tuned", record.tuned)):
        rows.append({
            "model": name, "score": float(one.score.mean()), "second score": None if one.second is None else float(one.second.mean()),
            "KL to base": float(one.kl_base.mean()), "KL to tuned": float(one.kl_tuned.mean()),
            "KL to base on prompts": float(one.kl_base_prompts.mean()),
            **{f"bits per byte of {source}": value for source, value in one.bits_per_byte.items()},
            "perplexity under base": one.fluency.perplexity, "distinct-2": one.fluency.distinct_2, "share empty": one.fluency.share_empty,
        })  # fmt: skip
    return pd.DataFrame(rows)


def render(record: UndoRecord, verdict: UndoVerdict, *, file: str, behaviour: str, command: str, show_words: bool = False) -> str:
    """The page as HTML."""
    cells = cells_of(record) if verdict.has_behaviour else []
    drawn = curve_figures(record, cells, behaviour)
    tables = [table_of("before any training", sides_frame(record), FILES[1])]
    if cells:
        tables += [table_of("by arm and attack", arm_frame(cells), FILES[0]), table_of("by dose", dose_frame(cells), FILES[1])]
    page = masking(show_words).get_template("undo.html")
    return page.render(
        file=file, pair=record.about.get("pair", ""), sentences=verdict.sentences, limits=LIMITS, tables=tables, command=command,
        arms=[(arm, ARMS[arm], record.about["arms"].get(arm, "")) for arm in record.arms],
        figures=[{"key": figure.name, "title": title_of(figure.spec), "caption": figure.caption} for figure in drawn],
        settings=[line for line in lines_of(dict(record.about)) if not line[0].startswith("arms")], show_words=show_words,
        specs=embedded({figure.name: plain({**figure.spec, "layout": untitled(figure.spec["layout"])}) for figure in drawn}),
        plotly=plotly_script(),
    )  # fmt: skip


def summary_json(record: UndoRecord, verdict: UndoVerdict) -> dict[str, Any]:
    """The verdict, the settings and all tables as a JSON object."""
    cells = cells_of(record) if verdict.has_behaviour else []
    return plain({
        "verdict": {"has_behaviour": verdict.has_behaviour, "fragile": verdict.fragile, "beyond_neutral": verdict.beyond_neutral,
                    "elastic": verdict.elastic},
        "file": verdict.file, "behaviour": verdict.behaviour, "sentences": list(verdict.sentences), "does_not_show": list(LIMITS),
        "about": dict(record.about),
        "sides": sides_frame(record).to_dict("records"), "arms": arm_frame(cells).to_dict("records") if cells else [],
        "doses": dose_frame(cells).to_dict("records") if cells else [], "left_out": list(record.left_out),
    })  # type: ignore[no-any-return]  # fmt: skip


def write_undo(record: UndoRecord, verdict: UndoVerdict, folder: Path, page: str) -> list[str]:
    """Write `undo.json`, `undo.csv` (one row per arm, attack and dose) and `index.html` into the folder; returns their names."""
    cells = cells_of(record) if verdict.has_behaviour else []
    summary = json.dumps(summary_json(record, verdict), ensure_ascii=False, indent=1, allow_nan=False)
    frame = dose_frame(cells) if cells else sides_frame(record)
    write_together(dict(zip(FILES, (summary, frame.to_csv(index=False), page), strict=True)), folder)
    return list(FILES)
