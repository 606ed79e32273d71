"""`bypass attribute`: what each component writes directly to a word's logit, and what tuning changed of it.

At every level the rows are all terms of the logit: the units of that level, and the remaining terms in a few rows more. So the rows
add up to the model's own number, the last row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.commands import common
from interp.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from interp.lens.attribution_results import Attribution

LEVELS = ("layer", "head", "mlp", "neuron")
# The terms that no layer writes.
OUTSIDE = ("embedding", "position", "norm_bias", "unembedding_bias", "cap")


def attribute(
    model: Annotated[str, typer.Argument(help=f"both, {common.MODEL_HELP}")],
    prompt: Annotated[str, typer.Argument(help="the text whose next token is read")],
    token: Annotated[str, typer.Option(metavar="WORD", help="whose logit is divided up")],
    against: Annotated[str | None, typer.Option(metavar="WORD", help="take the logit of this word off")] = None,
    by: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}")] = "layer",
    top: Annotated[int, typer.Option(help="heads or neurons to print; the others are one row")] = 10,
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """Direct logit attribution: what each layer, head, MLP or neuron writes to a word's logit; `both` shows both sides."""
    if by not in LEVELS:
        raise UserError(f"there is no level {common.shown(by)!r}", f"use one of {', '.join(LEVELS)}")
    if top < 1:
        raise UserError(f"the top {top} were asked for", "ask for at least 1")
    chat_format = common.chat_from(chat, system)
    import pandas as pd

    from interp.lens.attribution import attribute as run
    from interp.models.chat import check_one_template

    with common.progress(None, "loading") as (bar, task):
        models = common.sides(pair, device=device, bos=bos).named(model)
        if chat_format:
            check_one_template(list(models.values()))
        reader = next(iter(models.values()))
        ids = [reader.token(word) for word in (token, against) if word is not None]
        if len(set(ids)) < len(ids):
            raise UserError("--token and --against name the same token", "name two different words")
        bar.update(task, description="reading")
        attributions = {name: run(loaded, prompt, *ids, chat=chat_format) for name, loaded in models.items()}
    frames = [terms(attribution, by) for attribution in attributions.values()]
    columns = list(attributions) if len(attributions) > 1 else ["contribution"]
    frame = frames[0].drop(columns="contribution")
    logits = {name: float(attribution.logit.mean()) for name, attribution in zip(columns, attributions.values(), strict=True)}
    frame = pd.concat([frame, *(part["contribution"].rename(name) for name, part in zip(columns, frames, strict=True))], axis=1)
    if len(attributions) > 1:
        frame["difference"] = frame["tuned"] - frame["base"]
        logits["difference"] = logits["tuned"] - logits["base"]
    words = [reader.tokenizer.decode([item]) for item in ids]
    label = next(iter(attributions.values())).label
    if as_json:
        settings = {name: dict(attribution.settings) for name, attribution in attributions.items()}
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        common.print_json({"label": label, "words": words, "by": by, "settings": settings, "logit": logits, "terms": rows})
        return
    common.print_line(common.chat_line(chat_format))
    _show(frame, logits, top, f"{label} of {' against '.join(map(repr, words))} after {prompt!r}", label, show_words)


def terms(attribution: Attribution, by: str) -> pd.DataFrame:
    """Every term of a logit at one level: term, layer and unit (of a head or neuron; None elsewhere), and contribution, a mean
    over prompts; their sum is the logit."""
    import pandas as pd

    rows = [
        *_outside(attribution, OUTSIDE[:2]),
        *_units(attribution, by),
        *_other_terms(attribution, by),
        *_outside(attribution, OUTSIDE[2:]),
    ]
    return pd.DataFrame(rows, columns=["term", "layer", "unit", "contribution"]).astype({"layer": "Int64", "unit": "Int64"})


def _outside(attribution: Attribution, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    for name in names:
        yield name.replace("_", " "), None, None, float(getattr(attribution, name).mean())


def _units(attribution: Attribution, by: str) -> Iterator[tuple[Any, ...]]:
    if by in ("layer", "mlp"):
        whole = attribution.mlp if by == "mlp" else attribution.attention + attribution.mlp
        for layer, value in enumerate(whole.mean(dim=0).tolist()):
            yield f"{'MLP' if by == 'mlp' else 'layer'} {layer}", layer, None, value
        return
    table: Tensor = (attribution.heads if by == "head" else attribution.neurons).mean(dim=0)
    for layer, values in enumerate(table.tolist()):
        for unit, value in enumerate(values):
            yield f"{by} {layer}.{unit}", layer, unit, value


def _other_terms(attribution: Attribution, by: str) -> Iterator[tuple[Any, ...]]:
    """The sums over layers of the terms that are no unit of the level."""
    tables = {
        "layer": {}, "mlp": {"attention of all layers": attribution.attention},
        "head": {"attention biases": attribution.attention_bias, "MLPs of all layers": attribution.mlp},
        "neuron": {"attention of all layers": attribution.attention, "MLP biases": attribution.mlp_bias},
    }  # fmt: skip
    for name, table in tables[by].items():
        yield name, None, None, float(table.mean(dim=0).sum())


def _show(frame: pd.DataFrame, logits: dict[str, float], top: int, title: str, label: str, show_words: bool) -> None:
    columns = list(logits)
    many = frame["unit"].notna()
    order = frame.loc[many, columns[-1]].abs().sort_values(ascending=False, kind="stable").index
    largest, others = frame.loc[order[:top]], frame.loc[order[top:]]
    rows = [[row["term"], *row[columns]] for _, row in largest.iterrows()]
    if len(others):
        rows.append([f"the other {len(others):,}", *others[columns].sum()])
    # Terms that a model does not have are zero and are left out.
    outside = frame.loc[~many & (frame[columns] != 0).any(axis=1)]
    rows += [[row["term"], *row[columns]] for _, row in outside.iterrows()]
    common.print_table(["term", *columns], [*rows, [f"= {label}", *logits.values()]], title=common.shown(title, show_words))
