"""`bypass evaluate`: toxicity of one model's continuations, with perplexity, F1 and distinct-2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.commands import common


def evaluate(
    model: Annotated[str, typer.Argument(help=common.MODEL_HELP)],
    prompts: common.Prompts = None,
    passages: common.Passages = None,
    edit: common.Edits = None,
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    probe: common.ProbeFolder = None,
    scorer: common.ScorerName = "bundled",
    new_tokens: common.NewTokens = 20,
    max_prompt_tokens: common.PromptTokens = None,
    temperature: common.Temperature = 0.0,
    top_k: common.TopK = None,
    top_p: common.TopP = None,
    seed: common.Seed = 0,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="write every continuation and its scores here, unmasked")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Toxicity of continuations (mean, share above 0.5) with perplexity, F1 and distinct-2."""
    common.check_file(csv)
    from interp.evaluation import metrics
    from interp.evaluation.toxicity import load_scorer
    from interp.files import write_together

    sampling, chat_format = common.sampling(temperature, top_k, top_p, seed), common.chat_from(chat, system)
    prompt_texts, texts = common.prompts_from(prompts), common.passages_from(passages)
    with common.progress(None, "loading") as (bar, task):
        sides = common.sides(pair, probe, device, bos)
        loaded = sides.load(model)
        edits = sides.edits(edit, model, loaded)
        judge = load_scorer(scorer)
        limit = common.prompt_limit(loaded, prompt_texts, new_tokens, max_prompt_tokens, chat_format)
        bar.update(task, description=f"{len(prompt_texts)} prompts")
        evaluation = metrics.evaluate(
            loaded,
            prompt_texts,
            judge,
            edits=edits,
            passages=texts,
            max_new_tokens=new_tokens,
            max_prompt_tokens=limit,
            sampling=sampling,
            chat=chat_format,
        )
    if csv is not None:
        write_together({csv.name: evaluation.to_frame().to_csv(index=False)}, csv.parent)
    record = evaluation.to_json()
    if as_json:
        common.print_json(record)
        return
    common.print_line(common.chat_line(chat_format))
    common.print_table(
        ("measure", "value", "95 % interval"), _rows(evaluation, record), title=f"{loaded.name}: {record['n']} prompts, scorer {judge.name}"
    )


def _rows(evaluation: Any, record: dict[str, Any]) -> list[tuple[str, Any, str]]:
    from interp.results.result import show_number
    from interp.stats.intervals import bootstrap_mean

    def span(low: float, high: float) -> str:
        return f"{show_number(low)} to {show_number(high)}"

    toxicity, f1, loss = record["toxicity"], bootstrap_mean(evaluation.f1), evaluation.perplexity.interval
    return [
        ("mean toxicity (0 to 1)", toxicity["mean"], span(*toxicity["interval"])),
        ("share above 0.5", toxicity["share_above_half"], ""),
        ("perplexity of passages", record["perplexity"], span(loss.low, loss.high)),
        ("F1 of continued passages", record["f1"], span(f1.low, f1.high)),
        ("distinct-2", record["distinct_2"], ""),
    ]
