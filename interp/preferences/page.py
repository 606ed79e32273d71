"""The page of an audit: what the trainer sees, how the scores are spread and related, and the first and last pairs token by token.

Texts are the user's: they are masked as whole answers before they are divided into tokens, and escaped as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.data.lexicon import mask
from interp.models.model import Model
from interp.preferences.audit import Audit
from interp.preferences.keep import score_column
from interp.preferences.similarity import similarity
from interp.preferences.text_level import FLAGS, plain
from interp.preferences.tokenise import TokenisedPair
from interp.report.markup import embedded, masking, plotly_script
from interp.report.parts import heading, table_of, title_of
from interp.results import figures
from interp.results.figure_layout import untitled
from interp.results.result import Figure, show_number
from interp.results.result import plain as as_json

# Pairs at each end of the ranking that are shown, points of the scatter plot, and characters of a prompt.
SHOWN, POINTS, PROMPT = 20, 4000, 700
AXES = (
    "rank", "n_prompt", "n_chosen", "n_rejected", "length_difference", "edit_similarity", "shared_start", "logp_chosen", "logp_rejected",
    "margin", "ches", "ln_ches", "alpha_ches", "ches_given_length", "share_alpha_positive", "share_hidden_positive", "total_head",
    "influence_head", "own", "entanglement", "total", "influence", "own_sign", "total_sign", "influence_sign",
)  # fmt: skip
# What training moved, as `verification` names it.
MOVED = ("chosen", "rejected", "margin")
# What the axes' names are for readers, where the name alone does not say it.
MEANT = {
    "ches": "CHES", "ln_ches": "ln-CHES", "alpha_ches": "α-CHES", "ches_given_length": "CHES given the lengths (ranks)",
    "logp_chosen": "log π(chosen), nats", "logp_rejected": "log π(rejected), nats", "margin": "log π(chosen) − log π(rejected), nats",
}  # fmt: skip


def render(audit: Audit, model: Model, *, command: str, show_words: bool = False) -> str:
    """The page as HTML; tokens are coloured where the audit ran the model."""
    column, high = score_column(audit.frame, audit.summary["ranked_by"])
    ranked = audit.frame[audit.frame["rank"].notna()].sort_values("rank")
    first, last = ranked.index[:SHOWN].tolist(), ranked.index[max(SHOWN, len(ranked) - SHOWN) :].tolist()[::-1]
    views = pair_views(audit, model, [*last, *first], show_words)
    drawn = [histogram(audit, column)] if len(ranked) else []
    page = masking(show_words).get_template("pairs.html")
    return page.render(
        about=audit.about, file=Path(audit.about["file"]).name, score=named(column), keeps="high" if high else "low", lead=sentences(audit),
        notes=audit.about["notes"],
        tables=tables(audit), ends=[("Ranked last", views[: len(last)]), ("Ranked first", views[len(last) :])], command=command,
        figures=[{"key": figure.name, "title": title_of(figure.spec), "caption": figure.caption} for figure in drawn],
        settings=[(name, str(value)) for name, value in audit.about["settings"].items()], show_words=show_words,
        specs=embedded({figure.name: as_json({**figure.spec, "layout": untitled(figure.spec["layout"])}) for figure in drawn}),
        points=embedded(points(audit.frame)), axes=[(name, named(name)) for name in axes(audit.frame)], plotly=plotly_script(),
    )  # fmt: skip


def named(column: str) -> str:
    """A column's name for readers."""
    return MEANT.get(column, column.replace("_", " "))


def sentences(audit: Audit) -> list[str]:
    """What the audit found, in sentences."""
    summary, trainer, lengths = audit.summary, audit.summary["trainer"], audit.summary["lengths"]
    said = [
        f"{trainer['with_gradient']} of {trainer['rows']} pairs give the trainer a gradient: {trainer['left_out']} are left out because "
        f"their prompt fills the length, {trainer['without_gradient']} have two identical sides."
    ]
    if lengths and lengths["cohens_d"]:
        d = lengths["cohens_d"]
        said.append(
            f"Chosen sides have {show_number(lengths['mean_n_chosen'])} tokens on average, rejected ones "
            f"{show_number(lengths['mean_n_rejected'])}: Cohen's d {show_number(d['value'])} ({show_number(d['low'])} to "
            f"{show_number(d['high'])}), chosen longer in {show_number(lengths['share_chosen_longer'], 'share')} of the pairs."
        )
    if summary["noisy"] is not None:
        said.append(f"{summary['noisy']} pairs are noisy: their margin lies between 0 and {show_number(audit.settings.noisy_below)} nats.")
    falling = summary["expected_to_fall"]
    if falling:
        said.append(
            f"A first step of SGD on {falling['pairs']} of them together is expected to lower the chosen answer of "
            f"{show_number(falling['share'], 'share')} of these (by {named(falling['by'])})."
        )
    if "verification" in summary:
        said.append(verification_sentence(summary["verification"]))
    rows, whole = trainer["rows"], audit.about["rows_in_file"]
    if rows < whole:
        said.append(f"These are {rows} of the file's {whole} rows, drawn at random; repeats and counts of prompts are those among them.")
    return said


def verification_sentence(record: dict[str, Any]) -> str:
    """What training on the filter's pairs did to held-out chosen answers, beside training on as many at random."""
    difference, pairs = record["kept_minus_random"], len(record["held_out"])
    effect = "no difference beyond chance"
    if difference["low"] > 0 or difference["high"] < 0:
        effect = "higher" if difference["value"] > 0 else "lower"
    span = f"{show_number(difference['low'])} to {show_number(difference['high'])}"
    return (
        f"Trained on what is kept, log π(chosen) of {pairs} held-out pairs ends {show_number(difference['value'])} nats from where it ends "
        f"after as many random pairs ({span}): {effect}."
    )


def tables(audit: Audit) -> list[dict[str, Any]]:
    """The tables of the page."""
    summary = audit.summary
    flags = [{"flag": heading(name), "pairs": summary["flags"][name], "what it means": meaning} for name, meaning in FLAGS.items()]
    flags += [{"flag": heading(name), "pairs": count, "what it means": REPEATS[name]} for name, count in summary["repeats"].items()]
    kinds = [{"how both sides begin": kind, "pairs": count} for kind, count in summary["types"].items()]
    made = [table_of("what the trainer sees", pd.DataFrame(flags), "audit.json"), table_of("types", pd.DataFrame(kinds), "audit.json")]
    if "filter" in summary:
        made.append(table_of("what the filter removes", pd.DataFrame(summary["filter"]["table"]), "audit.json"))
    if "verification" in summary:
        arms = [{"trained on": arm["trained_on"], "pairs": arm["pairs"], "steps": arm["steps"],
                 **{f"change of {name}": arm[f"change_{name}"]["value"] for name in MOVED}, "share with a larger margin": arm["accuracy"]}
                for arm in summary["verification"]["arms"]]  # fmt: skip
        made.append(table_of("verification: mean changes in nats", pd.DataFrame(arms), "audit.json"))
    if summary["correlations"]:
        related = pd.DataFrame(summary["correlations"]).assign(
            **{key: lambda frame, key=key: frame[key].map(named) for key in ("first", "second")}
        )
        made.append(table_of("rank correlations of the scores", related.sort_values("rho", ascending=False), "audit.json"))
    spread = [{"score": named(name), **values} for name, values in summary["distributions"].items()]
    if spread:
        made.append(table_of("distributions", pd.DataFrame(spread), "audit.json"))
    if summary["conservation"]:
        made.append(table_of("conservation", pd.DataFrame(summary["conservation"]), "audit.json"))
    return made


REPEATS = {
    "duplicates": "prompt and both sides stand in an earlier row", "near_duplicates": "nearly so: nine tenths of the runs of five words",
    "contradictions": "another row has the same sides with their labels exchanged", "prompts": "different prompts",
    "most_pairs_of_a_prompt": "the most pairs that one prompt has",
}  # fmt: skip


def histogram(audit: Audit, column: str) -> Figure:
    """How the score that ranks is spread, with the threshold of the filter."""
    values = audit.frame[audit.frame["rank"].notna()]
    marks = (
        []
        if audit.selection is None
        else [(audit.selection.threshold, "kept up to" if not score_column(values, audit.selection.by)[1] else "kept from")]
    )
    return figures.histogram(
        "score", values.assign(**{column: values[column].astype(float)}), x=column, title=f"{named(column)} of the pairs",
        caption="One value a pair; pairs without a gradient are left out.", x_title=named(column), y_title="pairs", marks=marks,
    )  # fmt: skip


def axes(frame: pd.DataFrame) -> list[str]:
    """The columns that can be drawn against each other."""
    return [name for name in AXES if name in frame.columns and frame[name].notna().any()]


def points(frame: pd.DataFrame) -> dict[str, Any]:
    """The numbers of the scatter plot by column, of at most `POINTS` pairs."""
    step = -(-len(frame) // POINTS)
    part = frame.iloc[::step]
    columns = {name: [None if not np.isfinite(value) else round(value, 6) for value in part[name].astype(float)] for name in axes(frame)}
    return as_json({"row": part["row"].tolist(), "shown": len(part), "of": len(frame), "columns": columns})


def pair_views(audit: Audit, model: Model, indices: Sequence[int], show_words: bool) -> list[dict[str, Any]]:
    """The pairs at these positions for the page: texts as tokens, each with its part of the negative term of α-CHES."""
    ran = "alpha_ches" in audit.frame
    parts = similarity(model, [audit.tokens[index].token_pair() for index in indices]) if ran and indices else None
    views = []
    for place, index in enumerate(indices):
        ids, row = audit.tokens[index], audit.frame.loc[index]
        weights = (parts.chosen_negative[place], parts.rejected_negative[place]) if parts is not None else (None, None)
        shown = [name for name in axes(audit.frame) if name not in ("n_prompt", "n_chosen", "n_rejected") and pd.notna(row[name])]
        views.append({
            "row": int(row["row"]), "numbers": [(named(name), show_number(row[name], name)) for name in shown],
            "notes": row["format_notes"], "type": row["same_type"], "prompt": _end_of(plain(audit.pairs[index].prompt), show_words),
            "sides": [(name, coloured(model, side, weight, show_words))
                      for name, side, weight in zip(("chosen", "rejected"), (ids.chosen, ids.rejected), weights, strict=True)],
        })  # fmt: skip
    return views


def coloured(
    model: Model, ids: TokenisedPair | Sequence[int], weights: Float[np.ndarray, " token"] | None, show_words: bool
) -> list[dict[str, Any]]:
    """The tokens of an answer as text, each with the strength (0 to 100) and sign of its colour, and its share in words."""
    texts = token_texts(model.tokenizer, ids)  # type: ignore[arg-type]
    whole = "".join(texts)
    # Masking replaces letter by letter, so that tokens stay where they are; a word may be several tokens.
    whole, ends = whole if show_words else mask(whole), np.cumsum([len(text) for text in texts])
    pieces = [whole[end - len(text) : end] for text, end in zip(texts, ends, strict=True)]
    if weights is None:
        return [{"text": piece, "strength": 0, "sign": "none", "share": ""} for piece in pieces]
    largest, total = float(np.abs(weights).max()) or 1.0, float(np.abs(weights).sum()) or 1.0
    return [
        {"text": piece, "strength": round(100 * abs(float(weight)) / largest), "sign": "up" if weight > 0 else "down",
         "share": show_number(float(weight) / total, "share")}
        for piece, weight in zip(pieces, weights, strict=True)
    ]  # fmt: skip


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; of a character that several tokens make up, the last one has it."""
    texts: list[str] = []
    before = ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:count]), clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd") or count == len(ids)
        texts.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return texts


def _end_of(prompt: str, show_words: bool) -> str:
    """The end of a prompt; masked before it is cut, so that no word is cut in two first."""
    text = prompt if show_words else mask(prompt)
    return text if len(text) <= PROMPT else f"… {text[-PROMPT:]}"
