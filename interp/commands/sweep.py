"""`bypass sweep`: toxicity, perplexity, F1, distinct-2 and KL of an edit at several strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.commands import common
from interp.errors import UserError

KL_TOKENS = 128


def sweep(
    model: Annotated[str, typer.Argument(help=common.MODEL_HELP)],
    edit: common.Edits = None,
    strengths: Annotated[
        str, typer.Option(help="factors of the edit's strength; for scale_keys and scale the factors themselves")
    ] = "0,0.5,1,2,5",
    prompts: common.Prompts = None,
    passages: common.Passages = None,
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    probe: common.ProbeFolder = None,
    scorer: common.ScorerName = "bundled",
    new_tokens: common.NewTokens = 20,
    max_prompt_tokens: common.PromptTokens = None,
    seed: common.Seed = 0,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="write the table here")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Strength of an edit against toxicity, perplexity, F1, distinct-2 and KL to the unedited model."""
    if not edit:
        raise UserError("sweep was given no edit", "add --edit, for example --edit subtract:resid_post.5:probe:20")
    common.check_file(csv)
    factors, chat_format = common.numbers(strengths, "--strengths"), common.chat_from(chat, system)
    from interp.evaluation.toxicity import load_scorer
    from interp.files import write_together
    from interp.models.chat import chat_settings
    from interp.steering.sweep import sweep as measure

    texts, plain = common.prompts_from(prompts), common.passages_from(passages)
    with common.progress(len(factors), "loading") as (bar, task):
        sides = common.sides(pair, probe, device, bos)
        loaded = sides.load(model)
        edits = sides.edits(edit, model, loaded)
        judge = load_scorer(scorer)
        limit = common.prompt_limit(loaded, texts, new_tokens, max_prompt_tokens, chat_format)
        measured = measure(
            loaded, edits, factors, texts, judge, passages=plain, kl_tokens=KL_TOKENS, max_new_tokens=new_tokens,
            max_prompt_tokens=limit, sampling=common.sampling(0.0, None, None, seed), seed=seed,
            chat=chat_format,
            step=lambda phrase, done, total: bar.update(task, description=phrase, completed=done),
        )  # fmt: skip
        bar.update(task, completed=len(factors))
    table = measured.to_frame().drop(columns="draw")
    rows = table.to_dict("records")
    if csv is not None:
        write_together({csv.name: table.to_csv(index=False)}, csv.parent)
    if as_json:
        record = {
            "model": loaded.name, "edits": [item.to_json() for item in edits], "scorer": judge.name, "n": len(texts),
            **chat_settings(chat_format), "rows": rows,
        }  # fmt: skip
        common.print_json(record)
        return
    common.print_line(common.chat_line(chat_format))
    common.print_table(*_for_people(rows), title=f"{loaded.name}: {' and '.join(edit)}, {len(texts)} prompts, scorer {judge.name}")


def _for_people(rows: list[dict[str, float]]) -> tuple[tuple[str, ...], list[list[Any]]]:
    from interp.results.result import show_number

    def cell(row: dict[str, float], name: str) -> tuple[str, str]:
        return show_number(row[name]), f"{show_number(row[f'{name}_low'])}–{show_number(row[f'{name}_high'])}"

    columns = ("strength", "toxicity", "share above 0.5", "perplexity", "F1", "distinct-2", "KL (nats)")
    names = ("toxicity", "share_above_half", "perplexity", "f1", "distinct_2", "kl")
    return columns, [[row["strength"], *(cell(row, name) if f"{name}_low" in row else row[name] for name in names)] for row in rows]
