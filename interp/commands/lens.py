"""`bypass lens`: the logit lens after each half layer, on both sides of the pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.commands import common

if TYPE_CHECKING:
    from interp.models.chat import Chat
    from interp.models.model import Model


def lens(
    prompt: Annotated[str, typer.Argument(help="the text whose next token is read")],
    model: Annotated[str, typer.Option("--model", help=f"both, {common.MODEL_HELP}")] = "both",
    token: Annotated[
        str | None, typer.Option(metavar="WORD", help="follow the probability of this word in place of the top tokens")
    ] = None,
    top: Annotated[int, typer.Option(help="tokens per half layer")] = 5,
    edit: common.Edits = None,
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """The logit lens at every half layer: the likeliest tokens, or the probability of one word."""
    rows: list[dict[str, Any]] = []
    chat_format = common.chat_from(chat, system)
    from interp.models.chat import chat_settings, check_one_template

    with common.progress(None, "loading") as (bar, task):
        sides = common.sides(pair, device=device, bos=bos)
        models = sides.named(model)
        if chat_format:
            check_one_template(list(models.values()))
        for name, loaded in models.items():
            bar.update(task, description=name)
            edits = sides.edits(edit, name, loaded)
            if token is not None:
                rows += _word(loaded, name, prompt, token, edits, chat_format)
            else:
                rows += _tops(loaded, name, prompt, top, edits, chat_format)
    if as_json:
        common.print_json([{**row, **chat_settings(chat_format)} for row in rows])
        return
    common.print_line(common.chat_line(chat_format))
    names = list(dict.fromkeys(row["side"] for row in rows))
    points = list(dict.fromkeys(row["label"] for row in rows))
    title = common.shown(prompt if token is None else f"{prompt} → {rows[0]['token']}", show_words)
    if token is None:
        cells = [[label, *(_joined(rows, label, name) for name in names)] for label in points]
        common.print_table(["after", *names], cells, title=title, show_words=show_words)
        return
    by_point = {(row["label"], row["side"]): row for row in rows}
    cells = [[label, *(by_point[label, name][key] for name in names for key in ("probability", "rank"))] for label in points]
    common.print_table(
        ["after", *(f"{name} {key}" for name in names for key in ("probability", "rank"))], cells, title=title, show_words=show_words
    )


def _tops(model: Model, name: str, prompt: str, top: int, edits: list[Any], chat: Chat | bool) -> list[dict[str, Any]]:
    from interp.lens.logit_lens import logit_lens

    frame = logit_lens(model, [prompt], top=top, edits=edits, chat=chat).top(masked=False)
    return [{"side": name, **row} for row in frame.drop(columns=["prompt", "point", "id"]).to_dict(orient="records")]


def _word(model: Model, name: str, prompt: str, word: str, edits: list[Any], chat: Chat | bool) -> list[dict[str, Any]]:
    from interp.lens.logit_lens import logit_lens

    token = model.token(word)
    lens = logit_lens(model, [prompt], [token], edits=edits, chat=chat)
    points = zip(lens.labels, lens.steps, lens.probabilities[0].tolist(), lens.ranks[0].tolist(), strict=True)
    text = model.tokenizer.decode([token])
    return [{"side": name, "label": label, "step": step, "token": text, "probability": p, "rank": rank} for label, step, p, rank in points]


def _joined(rows: list[dict[str, Any]], label: str, name: str) -> str:
    return " · ".join(
        f"{row['token'].strip() or repr(row['token'])} {row['probability']:.0%}"
        for row in rows
        if row["label"] == label and row["side"] == name
    )
