"""`bypass generate`: continuations of both sides, or of one model with and without edits, next to one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.commands import common
from interp.errors import UserError


def generate(
    model: Annotated[str, typer.Argument(help=f"both, {common.MODEL_HELP}")],
    prompt: Annotated[list[str] | None, typer.Argument(help="what the model continues", show_default=False)] = None,
    edit: common.Edits = None,
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help=f"a file in place of PROMPT: {common.PROMPTS_HELP}")] = None,
    new_tokens: common.NewTokens = 20,
    max_prompt_tokens: common.PromptTokens = None,
    temperature: common.Temperature = 0.0,
    top_k: common.TopK = None,
    top_p: common.TopP = None,
    seed: common.Seed = 0,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """Continue prompts. With --edit, every text is shown without and with the edits; `both` shows both sides."""
    if bool(prompt) == (prompts is not None):
        raise UserError(
            "generate needs prompts, from the command line or from a file", "write bypass generate MODEL PROMPT, or --prompts FILE"
        )
    from interp import generate as continue_
    from interp.models.chat import chat_settings, check_one_template

    chat_format = common.chat_from(chat, system)
    sampling = common.sampling(temperature, top_k, top_p, seed)
    texts = list(prompt) if prompt else common.prompts_from(prompts)
    columns: dict[str, list[str]] = {}
    limit: int | None = None
    with common.progress(None, "loading") as (bar, task):
        sides = common.sides(pair, device=device, bos=bos)
        models = sides.named(model)
        if chat_format:
            check_one_template(list(models.values()))
        for name, loaded in models.items():
            edits = sides.edits(edit, name, loaded)
            limit = limit if columns else common.prompt_limit(loaded, texts, new_tokens, max_prompt_tokens, chat_format)
            for label, applied in ((name, []), (f"{name} + edit", edits)):
                if applied or label == name:
                    bar.update(task, description=label)
                    columns[label] = continue_(
                        loaded, texts, max_new_tokens=new_tokens, edits=applied, sampling=sampling, max_prompt_tokens=limit,
                        chat=chat_format,
                    )  # fmt: skip
    if as_json:
        # The columns have the names of models, so that how prompts were read stands before them.
        settings = chat_settings(chat_format)
        common.print_json([
            {"prompt": text, **settings, **{label: column[row] for label, column in columns.items()}} for row, text in enumerate(texts)
        ])  # fmt: skip
        return
    common.print_line(common.chat_line(chat_format))
    for row, text in enumerate(texts):
        lines = [(label, column[row]) for label, column in columns.items()]
        common.print_table(("", "continuation"), lines, title=common.shown(text, show_words), show_words=show_words)
