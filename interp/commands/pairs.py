"""`bypass pairs`: preference pairs before they are trained on (`audit`), and what a run did to both sides (`watch`)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.commands import common
from interp.commands.examples import epilog
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.preferences.audit import Audit

pairs = typer.Typer(name="pairs", no_args_is_help=True, help="Look at preference pairs before training on them, and at runs of DPO.")
BLOCKS = "blocks"
# What checks a filter by training, which this package does not do; `interp.cli` puts it here.
VERIFIERS: list[Callable[..., dict[str, Any]]] = []


@pairs.command("audit", epilog=epilog("audit"))
def audit_pairs(
    file: Annotated[Path, typer.Argument(help="jsonl, jsonl.gz, json, csv, parquet, or a folder of save_to_disk")],
    model: Annotated[
        str, typer.Option("--model", help=f"the model to be trained: {common.MODEL_HELP}; default is the base that ships")
    ] = "default",
    split: Annotated[str, typer.Option(help="of a folder with several splits")] = "train",
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="prompt=COLUMN,chosen=COLUMN,rejected=COLUMN; prompt=none leaves a prompt column out"),
    ] = None,
    layout: Annotated[str | None, typer.Option(help="in place of the one that is recognised, such as 'standard implicit'")] = None,
    level: Annotated[str, typer.Option(help="text (no model is run), forward, or gradient (exact scores of a sample)")] = "forward",
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", help="tokens of prompt and side that the trainer reads [default: TRL's 1024, or the context]"),
    ] = None,
    truncation: Annotated[str, typer.Option(help="keep_start, TRL's default")] = "keep_start",
    eos: Annotated[
        str, typer.Option(help="auto (as TRL: text gets the end token, conversations what their template writes), yes or no")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="so many rows, drawn at random")] = None,
    seed: common.Seed = 0,
    sample: Annotated[int, typer.Option(help="pairs of the gradient level, drawn at random")] = 256,
    refusals: Annotated[Path | None, typer.Option(help="how refusals begin, one a line [default: a list that ships]")] = None,
    noisy_below: Annotated[float, typer.Option("--noisy-below", help="a pair whose margin lies between 0 and so many nats is noisy")] = 3.0,
    keep: Annotated[float | None, typer.Option(metavar="SHARE", help="write kept.jsonl, dropped.jsonl and random.jsonl")] = None,
    by: Annotated[
        str, typer.Option(help="what ranks: harm (least first), total, alpha_ches, ches, ln_ches, length, edit or random")
    ] = "harm",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="with --keep: train on all, on what is kept and on as many at random, and measure on held-out pairs"),
    ] = False,
    learning_rate: Annotated[float, typer.Option("--verify-lr", help="of that training")] = 5e-6,
    optimizer: Annotated[str, typer.Option("--verify-optimizer", help="rmsprop, adamw or sgd")] = "rmsprop",
    out: Annotated[Path, typer.Option("--out", help="the folder of results; a run that was stopped goes on there")] = Path("pairs-audit"),
    device: common.Device = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """What TRL will train on, and which pairs a first step is expected to push the wrong way.

    It ranks and measures pairs at this checkpoint and calls none bad; docs/pairs.md says when to believe it.
    """
    if truncation != "keep_start":
        raise UserError(
            f"--truncation is {truncation!r}", "use keep_start; TRL deprecates keep_end, which gives the sides different prompts"
        )
    if verify and keep is None:
        raise UserError("--verify checks a filter, and none is asked for", "add --keep SHARE")
    common.check_folder(out)
    from interp.preferences.audit import Settings, audit
    from interp.preferences.files import read_pair_file
    from interp.preferences.formats import parse_columns, read_pairs
    from interp.preferences.outputs import write_audit
    from interp.preferences.page import render
    from interp.preferences.text_level import read_refusals
    from interp.report.markup import command_line

    settings = Settings(
        level=level, max_length=max_length, eos=eos, limit=limit, seed=seed, sample=sample, noisy_below=noisy_below, by=by, keep=keep,  # type: ignore[arg-type]
        refusals=read_refusals(refusals),
    )  # fmt: skip
    named = parse_columns(columns)
    data = read_pairs(read_pair_file(file, split=split, columns=(named["chosen"], named["rejected"])), columns=named, layout=layout)
    common.note(f"{file}: {len(data.pairs):,} pairs, {data.file.container}, layout {data.layout}")
    for text in data.notes:
        common.note(text)
    with common.progress(1, "loading the model") as (bar, task):
        loaded = common.sides(device=device).load("base" if model == "default" else model)

        def tell(phrase: str, done: int, total: int) -> None:
            bar.update(task, description=phrase, completed=done, total=total)

        result = audit(data, loaded, settings, folder=out / BLOCKS, say=common.note, tell=tell)
        if verify:
            checked = VERIFIERS[0](result, loaded, learning_rate, optimizer, seed, out / BLOCKS, tell)
            result = dataclasses.replace(result, summary={**result.summary, "verification": checked})
        tell("writing the page", 0, 1)
        page = render(result, loaded, command=command_line(sys.argv[1:]), show_words=show_words)
        names = write_audit(result, out, page)
    for text in result.about["notes"][len(data.notes) :]:
        common.note(text)
    if as_json:
        common.print_json(result.to_json())
        return
    print_audit(result)
    common.print_line(f"written to {out}: {', '.join(names)}")


def print_audit(result: Audit) -> None:
    """Print the summary as tables."""
    from interp.preferences.page import MOVED, REPEATS, named, sentences
    from interp.preferences.text_level import FLAGS
    from interp.results.result import show_number

    for sentence in sentences(result):
        common.print_line(sentence)
    summary = result.summary
    flags: list[tuple[Any, ...]] = [(name.replace("_", " "), summary["flags"][name], meaning) for name, meaning in FLAGS.items()]
    flags += [(name.replace("_", " "), count, REPEATS[name]) for name, count in summary["repeats"].items()]
    flags += [(f"{kind} pairs", count, "by how both sides begin") for kind, count in summary["types"].items()]
    common.print_table(("flag", "pairs", "meaning"), flags, title=result.about["model"]["name"])
    spread = [
        (named(name), row["mean"], row["q5"], row["q50"], row["q95"], row["share_below_zero"])
        for name, row in summary["distributions"].items()
    ]
    if spread:
        common.print_table(("score", "mean", "5 %", "median", "95 %", "share below 0"), spread)
    related = sorted(summary["correlations"], key=lambda row: -abs(row["rho"]))[:8]
    if related:
        rows = [(named(row["first"]), named(row["second"]), row["rho"], row["low"], row["high"], row["n"]) for row in related]
        common.print_table(("score", "with", "rank correlation", "low", "high", "pairs"), rows, title="the strongest rank correlations")
    if "filter" in summary:
        record = summary["filter"]
        title = f"kept {record['kept']} by {record['column']}; {record['without_score']} rows without the score are dropped"
        measures = [name for name in record["table"][0] if name != "part"]
        cells = [[name.replace("_", " "), *(show_number(part[name], name) for part in record["table"])] for name in measures]
        common.print_table(("", *(part["part"] for part in record["table"])), cells, title=title)

    if "verification" in summary:
        arms = [(arm["trained_on"], arm["pairs"], arm["steps"], *(arm[f"change_{name}"]["value"] for name in MOVED), arm["accuracy"])
                for arm in summary["verification"]["arms"]]  # fmt: skip
        common.print_table(("trained on", "pairs", "steps", "log π(chosen)", "log π(rejected)", "margin", "accuracy (share)"), arms,
                           title="mean changes on held-out pairs, nats")  # fmt: skip


@pairs.command("watch", epilog=epilog("watch"))
def watch_run(
    run: Annotated[Path, typer.Argument(help="a run's folder or log, or a trainer_state.json that TRL wrote")],
    as_json: common.AsJson = False,
) -> None:
    """Say in a sentence what a DPO run moved where: log π of chosen, of rejected, and the margin."""
    from interp.preferences.watch import NAMES, watch

    watched = watch(run)
    if as_json:
        common.print_json(watched.to_json())
        return
    common.print_line(watched.sentence)
    rows = [(NAMES[name], move.start, move.end, move.change, move.low, move.high, move.n) for name, move in watched.moves.items()]
    common.print_table(("", "first tenth", "last tenth", "change", "low", "high", "logged"), rows)
