"""`bypass sweep`: an edit at several strengths, its effect on toxicity beside what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import workbench
from interp.commands import common
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.edits.edit import Edit
    from interp.evaluation.metrics import Evaluation

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
    probe: common.ProbeFolder = None,
    scorer: common.ScorerName = "bundled",
    new_tokens: common.NewTokens = 20,
    max_prompt_tokens: common.PromptTokens = None,
    seed: common.Seed = 0,
    csv: Annotated[Path | None, typer.Option("--csv", help="write the table here")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Strength of an edit against toxicity, perplexity, F1, distinct-2 and KL to the unedited model."""
    if not edit:
        raise UserError("sweep was given no edit", "add --edit, for example --edit subtract:resid_post.5:probe:20")
    common.check_file(csv)
    factors = common.numbers(strengths, "--strengths")
    import pandas as pd

    from interp.evaluation.metrics import evaluate, kl_to
    from interp.evaluation.toxicity import load_scorer
    from interp.files import write_together

    held, texts = common.prompts_from(prompts), common.passages_from(passages)
    rows = []
    with common.progress(len(factors), "loading") as (bar, task):
        sides = workbench.Sides(pair, probe, device)
        loaded = sides.load(model)
        edits = sides.edits(edit, model, loaded)
        judge = load_scorer(scorer)
        settings = [at_strength(edits, factor) for factor in factors]
        sampling = common.sampling(0.0, None, None, seed)
        for factor, applied in zip(factors, settings, strict=True):
            bar.update(task, description=f"strength {factor:g}")
            found = evaluate(
                loaded,
                held,
                judge,
                edits=applied,
                passages=texts,
                max_new_tokens=new_tokens,
                max_prompt_tokens=max_prompt_tokens,
                sampling=sampling,
            )
            divergence = kl_to(
                loaded, loaded, [passage.text for passage in texts], edits=applied, max_tokens=min(KL_TOKENS, loaded.context)
            )
            rows.append(_row(factor, found, divergence, seed))
            bar.advance(task)
    table = pd.DataFrame(rows)
    if csv is not None:
        write_together({csv.name: table.to_csv(index=False)}, csv.parent)
    if as_json:
        common.print_json({"model": loaded.name, "edits": [e.to_json() for e in edits], "scorer": judge.name, "n": len(held), "rows": rows})
        return
    common.print_table(*_for_people(rows), title=f"{loaded.name}: {' and '.join(edit)}, {len(held)} prompts, scorer {judge.name}")


def at_strength(edits: list[Edit], factor: float) -> list[Edit]:
    """The edits at one point of the sweep; raises `UserError` for an edit that has no strength."""
    return [replace(edit.times(1.0), strength=factor) if edit.op in ("scale_keys", "scale") else edit.times(factor) for edit in edits]


def _row(strength: float, found: Evaluation, divergence: Any, seed: int) -> dict[str, float]:
    from interp.stats.intervals import bootstrap_mean

    measures = {
        "toxicity": bootstrap_mean(found.toxicity, seed=seed),
        "perplexity": found.perplexity.interval,
        "f1": bootstrap_mean(found.f1, seed=seed),
        "kl": bootstrap_mean(divergence, seed=seed),
    }
    row = {"strength": strength, "share_above_half": float((found.toxicity > 0.5).mean()), "distinct_2": found.distinct_2}
    for name, interval in measures.items():
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    order = ("strength", "toxicity", "toxicity_low", "toxicity_high", "share_above_half")
    return {name: row[name] for name in order} | row


def _for_people(rows: list[dict[str, float]]) -> tuple[tuple[str, ...], list[list[Any]]]:
    from interp.results.result import show_number

    def cell(row: dict[str, float], name: str) -> tuple[str, str]:
        return show_number(row[name]), f"{show_number(row[f'{name}_low'])}–{show_number(row[f'{name}_high'])}"

    columns = ("strength", "toxicity", "share above 0.5", "perplexity", "F1", "distinct-2", "KL (nats)")
    names = ("toxicity", "share_above_half", "perplexity", "f1", "distinct_2", "kl")
    return columns, [[row["strength"], *(cell(row, name) if f"{name}_low" in row else row[name] for name in names)] for row in rows]
