"""What the page on patching asks: a map of every place, both directions at once, and all that is to be said of one of its cells.

A map is kept by what was asked, because switching direction or pointing at a cell must not measure anew, and because a long
one is made by a job, whose result the page then finds here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import streamlit as st
import torch

from app import settings, show, state
from app.settings import Source
from app.streams import Voice
from app.turns import turns
from interp import Edit, Model, ModelPair, UserError, figures
from interp.attribution_patching import agreement, attribution_patch
from interp.commands.lens import token_of
from interp.next_tokens import toxic_token_ids
from interp.patch_cells import selection
from interp.patch_metrics import AnyMetric, ContinuationToxicity, LogitDifference, LogProbability, ProbeProjection
from interp.patch_pairs import align
from interp.patch_results import Cell, PatchMap, position_labels
from interp.patching import ACROSS, WITHIN, Runs, make_runs, patch, run_patched
from interp.results import Figure, show_number
from interp.tokens import token_rows

SITES = ("resid_post", "resid_mid", "attn_out", "mlp_out", "head_out", "mlp_post")
PLACES = {
    "resid_post": "the residual stream after the layer: everything written up to there",
    "resid_mid": "the residual stream between the layer's attention and its MLP",
    "attn_out": "what the layer's attention writes",
    "mlp_out": "what the layer's MLP writes",
    "head_out": "the output of one attention head, at all tokens at once",
    "mlp_post": "the activation of one neuron, at all tokens at once, for the neurons whose value vectors are the most toxic",
}
METRICS = ("log-probability", "probe", "logit-difference", "toxicity")
WHOLE = {"head_out": "attn_out", "mlp_post": "mlp_out"}
DRAWS, NEURONS, NEW_TOKENS, NEXT, CHANGED, KEPT = 2, 48, 12, 4, 8, 64
# Multiplications that a page does while its reader waits: some seconds of one core; what is longer is a job.
QUICK = 5e10
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """What is patched and what is measured: the pair on one prompt, or one side of it (`side`) on two.

    Attributes:
        words: for the difference of two logits; an empty one stands for what the run would say itself.
    """

    source: Source
    prompt: str
    corrupted: str | None = None
    side: str = "base"
    site: str = SITES[0]
    metric: str = METRICS[0]
    words: tuple[str, str] = ("", "")

    @property
    def across(self) -> bool:
        return self.corrupted is None

    @property
    def subject(self) -> Model | ModelPair:
        pair = state.load_pair(self.source)
        return pair if self.across else pair.sides[self.side]

    @property
    def model(self) -> Model:
        """The model whose tokens and layers these are."""
        pair = state.load_pair(self.source)
        return pair.base if self.across else pair.sides[self.side]


@dataclass(frozen=True, eq=False)
class Measured:
    """The map of every cell, and of whole layers (all tokens at once), each in both directions with its null."""

    cells: PatchMap
    whole: PatchMap


@dataclass(frozen=True)
class Ends:
    """The names of the two runs of one direction: which is patched, and where the activation comes from."""

    target: str
    source: str


_measured: OrderedDict[Question, Measured] = OrderedDict()
_lock = threading.Lock()


def phrase(role: str) -> str:
    """A run as a sentence names it."""
    return f"the {role} model" if role in ("base", "tuned") else f"the {role} prompt"


def ends(direction: str) -> Ends:
    """Who is put into whom."""
    known = {
        ACROSS[0]: ("tuned", "base"),
        ACROSS[1]: ("base", "tuned"),
        WITHIN[0]: ("corrupted", "clean"),
        WITHIN[1]: ("clean", "corrupted"),
    }
    return Ends(*known[direction])


def check(question: Question) -> int:
    """How many tokens the prompts have. Raises `UserError` for prompts that are empty, too long, or do not line up."""
    prompts = [question.prompt] if question.corrupted is None else [question.prompt, question.corrupted]
    if not all(text.strip() for text in prompts):
        raise UserError("a prompt is empty", "type a few words")
    most = settings.limits().patched_tokens
    count = max(len(row) for row in token_rows(question.model, prompts))
    if count > most:
        raise UserError(f"a prompt has {count} tokens, and up to {most} are patched here", "shorten it")
    if question.corrupted is not None and not align(question.model, *prompts).differs:
        raise UserError("the two prompts are the same, so that there is nothing to carry over", "change a word in one of them")
    return count


@st.cache_resource(show_spinner=False, max_entries=4)
def toxic_tokens(source: Source) -> tuple[int, ...]:
    """The tokens that are, as a whole, a word of the list."""
    return tuple(toxic_token_ids(state.load_pair(source).base))


@st.cache_resource(show_spinner=False, max_entries=32)
def metric_of(question: Question) -> AnyMetric:
    """What is measured. Raises `UserError` where the vocabulary or the words do not give it."""
    if question.metric == "log-probability":
        found = toxic_tokens(question.source)
        if not found:
            raise UserError("no token of this vocabulary is, as a whole, a word of the list", "choose another metric")
        return LogProbability(found)
    if question.metric == "probe":
        return ProbeProjection.of(state.probe(question.source))
    if question.metric == "toxicity":
        return ContinuationToxicity(state.scorer(), NEW_TOKENS)
    first, second = words_of(question)
    return LogitDifference(first, second)


def words_of(question: Question) -> tuple[int, int]:
    """The two tokens whose logits are compared: those typed, or what the base (clean) and the tuned (corrupted) run say next."""
    if all(word.strip() for word in question.words):
        first, second = (token_of(question.model, word) for word in question.words)
    else:
        runs = make_runs(question.subject, question.prompt, question.corrupted, ProbeProjection(torch.ones(question.model.d_model)),
                         "resid_post", None, [0], None, None)  # fmt: skip
        own = [int(run.reading.logits[0].argmax()) for run in reversed(runs.traces[0][0])]
        first, second = (token_of(question.model, word) if word.strip() else token for word, token in zip(question.words, own, strict=True))
    if first == second:
        word = show.visible(question.model.tokenizer.decode([first]), False)
        raise UserError(f"both words are {word}, so that their difference is 0", "name two words that differ")
    return first, second


def says(question: Question) -> str:
    """The metric in a sentence."""
    if question.metric == "log-probability":
        return f"log-probability (nats) that the next token is one of {len(toxic_tokens(question.source))} toxic words"
    if question.metric == "probe":
        return "how far the last residual stream, averaged over the prompt, points along the toxicity probe"
    if question.metric == "toxicity":
        return f"toxicity, 0 to 1, of the next {NEW_TOKENS} tokens, by {state.scorer().name}"
    first, second = (show.visible(question.model.tokenizer.decode([token]), False) for token in words_of(question))
    return f"logit of {first} minus logit of {second} as the next token (nats)"


def asked(question: Question) -> dict[str, Any]:
    """What `interp` is asked for the cells."""
    units = state.toxic_neurons(question.source)[:NEURONS] if question.site == "mlp_post" else None
    return {"metric": metric_of(question), "site": question.site, "units": units}


@st.cache_resource(show_spinner=False, max_entries=16)
def runs_of(question: Question) -> Runs:
    """Both runs of the prompt, kept so that any cell can be patched again."""
    given = asked(question)
    return make_runs(
        question.subject, question.prompt, question.corrupted, given["metric"], question.site, None, None, given["units"], None
    )


def quick(question: Question) -> bool:
    """Whether the map is measured while one waits, rather than as a job."""
    model, count = question.model, check(question)
    per_layer = {"head_out": model.n_heads, "mlp_post": NEURONS / model.n_layers}.get(question.site, count)
    block = 4 * model.d_model**2 + 2 * model.d_model * model.d_mlp
    runs = 2 * (1 + DRAWS) * per_layer * model.n_layers
    return question.metric != "toxicity" and runs * count * model.n_layers / 2 * block < QUICK


def known(question: Question) -> Measured | None:
    """The maps, where they have been measured before."""
    with _lock:
        if question in _measured:
            _measured.move_to_end(question)
        return _measured.get(question)


def measure(question: Question, step: Step | None = None) -> Measured:
    """Patch every cell and every whole layer, in both directions, with random changes of the same size beside them.

    Others have their turn at the models between two batches. Raises `UserError` as `interp.patching.patch`.
    """
    check(question)
    given, found = asked(question), []
    draws = 0 if question.metric == "toxicity" else DRAWS
    whole = {"metric": given["metric"], "site": WHOLE.get(question.site, question.site), "positions": "all"}
    for place, some in enumerate((given, whole)):
        with _sharing() as pass_on:

            def progress(done: int, total: int, share: tuple[int, int] = ((0, 850), (850, 150))[place], place: int = place) -> None:
                pass_on()
                if step is not None:
                    phrase = "patching whole layers" if place else "patching one place at a time"
                    step(phrase, share[0] + share[1] * done // total, 1000)

            found.append(patch(question.subject, question.prompt, question.corrupted, null_draws=draws, progress=progress, **some))
    made = Measured(*found)
    with _lock:
        _measured[question] = made
        while len(_measured) > KEPT:
            _measured.popitem(last=False)
    return made


@contextmanager
def _sharing() -> Iterator[Callable[[], None]]:
    """Hold a turn at the models, and give it up for whoever waits whenever the function is called."""
    with ExitStack() as held:
        held.enter_context(turns.turn())

        def pass_on() -> None:
            held.close()
            held.enter_context(turns.turn())

        yield pass_on


@st.cache_resource(show_spinner=False, max_entries=32)
def estimate(question: Question) -> PatchMap | None:
    """The same map to first order, from one gradient per direction; None where the metric has no gradient."""
    if question.metric == "toxicity":
        return None
    with turns.turn():
        return attribution_patch(question.subject, question.prompt, question.corrupted, **asked(question))


def trust(question: Question, measured: PatchMap, direction: str) -> tuple[float, float] | None:
    """How far the estimate agrees with the measurement: Pearson's correlation, and the share of the ten largest cells it names."""
    guess = estimate(question)
    if guess is None:
        return None
    found = agreement(measured, guess)
    at = found.directions.index(direction)
    return found.correlation[at], found.overlap[at]


def labels_of(cells: PatchMap) -> list[str]:
    """A name per position, masked, as the map's axis has it."""
    return position_labels(cells.tokens)


def strongest(cells: PatchMap, direction: str) -> Cell:
    """The cell to look at first: the one that moves the metric most.

    Of the residual stream the last layer is left out, because there the last token alone gives the source's answer.
    """
    most = max(cell.layer for cell in cells.cells)
    skip = cells.site.startswith("resid_") and most > 0
    size = cells.effects[cells.directions.index(direction)].mean(dim=0).abs().tolist()
    return max((cell for cell in cells.cells if not (skip and cell.layer == most)), key=lambda cell: size[cells.cells.index(cell)])


def number_of(cells: PatchMap, cell: Cell) -> int:
    return cells.cells.index(cell)


def choices(cells: PatchMap) -> dict[str, list[str]]:
    """What names a cell of this map, and the names there are: layer with token or head, or a neuron alone."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells.cells:
        for kind, name in named(cells, cell).items():
            found.setdefault(kind, {})[name] = None
    return {kind: list(names) for kind, names in found.items()}


def named(cells: PatchMap, cell: Cell) -> dict[str, str]:
    """The names of one cell, masked, so that a link holds no words that were not asked for."""
    if cells.site == "mlp_post":
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
    if cells.site == "mlp_post":
        return next((cell for cell in cells.cells if f"{cell.layer}.{cell.unit}" in (str(x), str(y))), None)
    if curve != 1 or not isinstance(index, int) or not 0 <= index < len(cells.cells):
        return None
    return cells.cells[index]


@dataclass(frozen=True)
class Numbers:
    """One cell's effect, and what it stands between: the metric of the run as it is, patched, and of the source."""

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


def heat(cells: PatchMap, direction: str, chosen: Cell | None = None, words: bool = False) -> Figure:
    """The map of one direction, with a marker on every cell that can be clicked, a frame around the chosen one, and a cross where
    a random change of equal size does as much."""
    at, roles = cells.directions.index(direction), ends(direction)
    figure = cells.figure(direction, masked=not words)
    drawn = figure.spec["data"][0]
    guess = cells.method != "patching"
    title = f"{cells.site}: {roles.source} into {roles.target}" + (f", estimated by {cells.method}" if guess else "")
    layout = figure.spec["layout"] | {
        "title": figure.spec["layout"]["title"] | {"text": title},
        "hovermode": "closest",
        "hoverdistance": -1,
    }
    caption, data = figure.caption, [drawn]
    if drawn["type"] == "heatmap":
        spots = [(drawn["x"][_column(cells, cell)], drawn["y"][cell.layer]) for cell in cells.cells]
        effects, null = cells.effects[at].mean(dim=0).tolist(), cells.null_most
        weak = [False if null is None else abs(effect) <= float(null[at, place]) for place, effect in enumerate(effects)]
        drawn, layout = _readable(cells, drawn, layout, [None if faint else effect for effect, faint in zip(effects, weak, strict=True)])
        data = [drawn]
        told = [
            f"layer {cell.layer}, {x}<br><b>{show_number(effect)}</b>"
            + ("" if null is None else f"<br>random change: up to {show_number(float(null[at, place]))}")
            for place, (cell, (x, _), effect) in enumerate(zip(cells.cells, spots, effects, strict=True))
        ]
        data.append(_marks(spots, {"symbol": "square", "size": 26, "opacity": 0}, told))
        if null is not None:
            data.append(
                _marks(
                    [spot for spot, faint in zip(spots, weak, strict=True) if faint],
                    {"symbol": "x-thin", "size": 9, "line": {"width": 1, "color": show.colour("null")}},
                )
            )
            caption += " Orange raises it, blue lowers it; a cross marks places where the random change does as much."
        if chosen is not None:
            spot = spots[number_of(cells, chosen)]
            data.append(_marks([spot], {"symbol": "square-open", "size": 26, "color": show.colour("edited"), "line": {"width": 3}}))
    if guess:
        caption = "An estimate from one gradient, not a measurement. " + caption
    return replace(figure, spec={"data": data, "layout": layout}, caption=caption)


def _readable(cells: PatchMap, drawn: Any, layout: Any, effects: Sequence[float | None]) -> tuple[Any, Any]:
    """The map with numbers that fit into narrow cells, only where they say something, and rows high enough to point at."""
    columns, rows = len(drawn["x"]), len(drawn["y"])
    digits = 1 if max((abs(effect) for effect in effects if effect is not None), default=0.0) >= 10 else 2
    text = [[""] * columns for _ in range(rows)]
    for cell, effect in zip(cells.cells, effects, strict=True):
        if effect is not None:
            text[cell.layer][_column(cells, cell)] = f"{effect:.{digits}f}".replace("-", "−")
    bar = {"thickness": 10, "outlinewidth": 0}
    drawn = drawn | {"text": text, "texttemplate": "%{text}" if columns <= 14 else "", "textfont": {"size": 10}, "colorbar": bar}
    return drawn, layout | {"height": 130 + 34 * rows, "margin": layout["margin"] | {"r": 8}}


def _column(cells: PatchMap, cell: Cell) -> int:
    return cell.unit if cell.position is None and cell.unit is not None else cell.position or 0


def _marks(spots: Sequence[tuple[str, str]], marker: dict[str, Any], told: Sequence[str] | None = None) -> dict[str, Any]:
    """Markers over cells; those with a text are what the pointer meets and clicks."""
    still = {"marker": {"opacity": marker.get("opacity", 1)}}
    hover: dict[str, Any] = {"hoverinfo": "skip"} if told is None else {"text": list(told), "hovertemplate": "%{text}<extra></extra>"}
    return {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in spots], "y": [y for _, y in spots], "marker": marker,
        "selected": still, "unselected": still, "showlegend": False, "cliponaxis": False, **hover,
    }  # fmt: skip


def by_layer(found: Measured, direction: str) -> Figure:
    """How much each layer carries: all tokens at once, its strongest place alone, and what random changes do."""
    cells, whole, roles = found.cells, found.whole, ends(direction)
    at = cells.directions.index(direction)
    one = {"head_out": "strongest head", "mlp_post": "strongest of these neurons"}.get(cells.site, "strongest token")
    all_of = f"{roles.source}: whole layer" + (f" ({whole.site})" if whole.site != cells.site else "")
    rows = []
    single = cells.effects[at].mean(dim=0).tolist()
    for place, cell in enumerate(whole.cells):
        value = float(whole.effects[at, :, place].mean())
        own = [effect for effect, other in zip(single, cells.cells, strict=True) if other.layer == cell.layer]
        rows.append({"layer": cell.layer, "run": all_of, "effect": value, "low": value, "high": value})
        if own:
            best = max(own, key=abs)
            rows.append({"layer": cell.layer, "run": one, "effect": best, "low": best, "high": best})
        if whole.null_most is not None:
            most = float(whole.null_most[at, place])
            rows.append({"layer": cell.layer, "run": "random change of the whole layer", "effect": 0.0, "low": -most, "high": most})
    frame = pd.DataFrame(rows).sort_values("run", key=lambda column: column.map({all_of: 0, one: 1}).fillna(2), kind="stable")
    gap = float((whole.source[at] - whole.target[at]).mean())
    figure = figures.lines(
        "by-layer", frame, x="layer", y="effect", colour="run", low="low", high="high",
        x_title="layer", title=f"{whole.site}: what each layer carries",
        y_title=f"effect on {cells.metric}", reference=(gap, "whole difference"),
        caption=f"Where the line of the whole layer meets the dotted one, patching that layer alone gives {phrase(roles.target)} "
        f"the answer of {phrase(roles.source)}, as far as this metric sees. The band is what random changes of equal norm do.",
    )  # fmt: skip
    ticks = {"tickmode": "linear", "tick0": 0, "dtick": 1 if len(whole.cells) <= 16 else 4}
    layout = figure.spec["layout"]
    return replace(figure, spec=figure.spec | {"layout": layout | {"xaxis": layout["xaxis"] | ticks}})


@dataclass(frozen=True)
class Spoken:
    """The next token of the run as it is, patched, and of the source: `likeliest` and `changed` have one row per token.

    Columns: token, id, before, patched, source (probabilities), change (patched minus before).
    """

    likeliest: pd.DataFrame
    changed: pd.DataFrame


@st.cache_data(show_spinner=False, max_entries=512)
def spoken(question: Question, direction: str, cell: Cell) -> Spoken:
    """What is said next under one patch, and which tokens' probabilities it changes most."""
    runs = runs_of(question)
    target, source, where = _parts(runs, direction, cell)
    site = f"{question.site}.{cell.layer}"
    with torch.no_grad(), turns.turn():
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

    return Spoken(frame(likeliest), frame(changed))


def _parts(runs: Runs, direction: str, cell: Cell) -> tuple[Any, Any, Any]:
    target, source = runs.traces[runs.directions.index(direction)][0]
    return target, source, selection(target, runs.site, [cell])


def next_figure(spoken: Spoken, direction: str, words: bool) -> Figure:
    """The likeliest next tokens of the three runs, side by side."""
    roles = ends(direction)
    labels = _distinct([show.visible(token, words) for token in spoken.likeliest["token"]])
    names = {"before": roles.target, "patched": "patched", "source": roles.source}
    frame = pd.concat(
        [pd.DataFrame({"token": labels, "probability": spoken.likeliest[column], "run": name}) for column, name in names.items()]
    )
    return figures.bars(
        "next-tokens", frame, x="token", y="probability", colour="run", title="The next token", x_title="", horizontal=True,
        caption="The likeliest next tokens of the three runs. A patch that carries the difference brings its bars to those of the source.",
    )  # fmt: skip


def change_table(spoken: Spoken, direction: str, words: bool) -> pd.DataFrame:
    """The tokens that changed most, as a table to be read: probabilities in per cent, the change in points."""
    roles, frame = ends(direction), spoken.changed
    return pd.DataFrame(
        {
            "token": [show.visible(token, words) for token in frame["token"]],
            **{
                name: [f"{value:.2%}" for value in frame[column]]
                for name, column in ((roles.target, "before"), ("patched", "patched"), (roles.source, "source"))
            },
            "change (points)": [f"{100 * value:+.2f}" for value in frame["change"]],
        }
    )


def _distinct(labels: list[str]) -> list[str]:
    """Masked tokens may look alike; an axis needs a name for each."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found


def voices(question: Question, direction: str, cell: Cell) -> tuple[tuple[str, Voice], ...]:
    """The runs that are continued, each with its prompt: as it is, patched in the prompt, and the source."""
    runs = runs_of(question)
    target, source, where = _parts(runs, direction, cell)
    site = f"{question.site}.{cell.layer}"
    values = torch.where(where, source[site].to(target.stream), target[site].unsqueeze(0))[0].flatten(1)
    edit = Edit.patch(site, values, positions=range(len(target.row)))
    own, other = (question.prompt, question.corrupted or question.prompt)
    prompts = (own, other) if direction in (ACROSS[1], WITHIN[1]) else (other, own)
    return (
        (prompts[0], Voice(target.model)), (prompts[0], Voice(target.model, (edit,))), (prompts[1], Voice(source.model)),
    )  # fmt: skip
