"""`bypass report`: every experiment with its nulls, as a page, as JSON and as one CSV per table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import workbench
from interp.commands import common
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.experiments.study import Studies
    from interp.models.pair import ModelPair
    from interp.report.prompt_sets import PromptSet
    from interp.results.result import Result


def report(
    out: Annotated[Path, typer.Option("--out", help="the folder that the report is written to")] = Path("report"),
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="this experiment or claim, such as A-E12; can be repeated")
    ] = None,
    experiment: Annotated[
        list[Path] | None,
        typer.Option("--experiment", metavar="FILE", help="a file with an experiment of your own; can be repeated"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer prompts and controls: wider intervals")] = False,
    all_data: Annotated[
        bool, typer.Option("--all-data", help="read every prompt and passage, also of a large model on a CPU: hours")
    ] = False,
    seed: common.Seed = 0,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="run it under so many seeds and compare the verdicts")] = 1,
    logs: Annotated[
        Path | None,
        typer.Option("--logs", metavar="FOLDER", help="training logs of the pair, such as a run's folder [default: those that ship]"),
    ] = None,
    prompts: common.Prompts = None,
    passages: common.Passages = None,
    max_prompt_tokens: common.PromptTokens = None,
    next_token: Annotated[
        str | None,
        typer.Option("--next-token", metavar="TOKEN", help="only prompts that the base model continues with this token, such as ' the'"),
    ] = None,
    joined: Annotated[bool, typer.Option("--joined", help="perplexity over the passages as one text, in windows of the context")] = False,
    paper: Annotated[
        list[str] | None,
        typer.Option("--paper", metavar="A|B|C", help="the experiments of this paper; can be repeated [default: A]"),
    ] = None,
    paper_texts: Annotated[
        bool | None,
        typer.Option(
            "--paper-texts/--no-paper-texts", help="also measure on paper A's texts below BYPASS_DATA [default: where they are there]"
        ),
    ] = None,
    probe: common.ProbeFolder = None,
    scorer: common.ScorerName = "bundled",
    second_scorer: common.SecondScorer = "lexicon",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="experiments that run at once, each in a process [default: as cores, at most 4]"),
    ] = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """Run every experiment on the pair and write the report: index.html, report.json and one CSV per table.

    Results are kept in OUT/results: an interrupted report continues, a repeated one computes only what changed.
    """
    common.check_folder(out)
    if quick and all_data:
        raise UserError("a report is either --quick or has --all-data", "give one of the two")
    chat_format = common.chat_from(chat, system)
    from interp.data.paper import read_paper
    from interp.experiments.ahead import Task, run_ahead, usual_jobs
    from interp.experiments.registry import EXPERIMENTS, find_experiments
    from interp.experiments.run import KEPT, not_kept, result_of, run_report
    from interp.experiments.toxicity.context import NEW_TOKENS
    from interp.experiments.toxicity.make import make_context
    from interp.experiments.toxicity.paper import run_on_paper
    from interp.experiments.user_files import read_experiments
    from interp.models.chat import chat_settings
    from interp.report.terminal import print_prompt_sets, print_seeds, print_summary
    from interp.runs.logs import shipped_logs

    if logs is not None and not logs.is_dir():
        raise UserError(f"there is no folder {logs}", "give the folder of a training run, or one that holds its logs")
    for file in experiment or ():
        read_experiments(file)
    papers = {item.paper for item in find_experiments(only, paper)}
    starts, texts = common.prompts_from(prompts), common.passages_from(passages)
    own_texts = any(value is not None for value in (prompts, passages, next_token)) or chat
    # The texts are paper A's: a report without its experiments has nothing to measure on them.
    material = _material(paper_texts, own=own_texts) if paper_texts or "A" in papers else None
    with common.progress(1, "loading the pair") as (bar, task):
        named = common.sides(pair, probe, device, bos)
        sides = named.both()
        if max_prompt_tokens is None:
            common.check_prompts(sides.base, starts, NEW_TOKENS, chat_format)
        bar.update(task, description="the probe")
        judge = None if probe is None else named.probe_of("base", sides.base)
        context: dict[str, Any] = {
            "quick": quick, "seed": seed, "scorer": scorer, "second_scorer": second_scorer, "probe": judge, "all_data": all_data,
            "logs": logs or shipped_logs(sides),
        }  # fmt: skip
        texts_of: dict[str, Any] = {
            "prompts": starts, "passages": texts, "joined": joined, "next_token": next_token, "chat": chat_format,
            "prompt_tokens": common.prompt_limit(sides.base, starts, NEW_TOKENS, max_prompt_tokens, chat_format),
        }  # fmt: skip
        studies = _studies(sides, context, texts_of)

        def tell(phrase: str, done: int, total: int) -> None:
            bar.update(task, description=phrase, completed=done, total=total)

        told: set[tuple[Any, str]] = set()

        def known(result: Result) -> None:
            # A whole report takes minutes, and into a file or a log no bar is drawn.
            if (result.settings.get("seed"), result.id) not in told:
                told.add((result.settings.get("seed"), result.id))
                common.note(f"{result.id} {result.verdict} ({result.seconds:.0f} s): {result.title}", bar)

        def on_paper() -> Sequence[PromptSet]:
            if material is None:
                return ()
            return run_on_paper(
                read_paper(material),
                partial(make_context, sides, **context),
                out,
                only=only,
                papers=paper,
                quick=quick,
                say=lambda phrase: bar.update(task, description=phrase),
            )

        command = _command(
            pair,
            workbench.chosen_device(device),
            quick,
            seed,
            seeds,
            scorer,
            bos,
            max_prompt_tokens,
            chat,
            [
                ("--system", system),
                *(("--next-token", next_token), ("--second-scorer", None if second_scorer == "lexicon" else second_scorer)),
                *(("--prompts", prompts), ("--passages", passages), ("--probe", probe), ("--logs", logs)),
                *(("--experiment", file) for file in experiment or ()),
                *(("--paper", letter.upper()) for letter in paper or ()),
            ],
            ["--joined"] * joined
            + ["--all-data"] * all_data
            + (["--paper-texts" if paper_texts else "--no-paper-texts"] if paper_texts is not None else []),
        )
        several = jobs if jobs is not None else usual_jobs(sides.base)
        tasks = not_kept(studies, out, find_experiments(only, paper), seeds) if several > 1 else []
        if len(tasks) > 1:
            tell(f"{len(tasks)} experiments, {several} at once", 0, len(tasks))

            def done(there: Task) -> None:
                item = EXPERIMENTS[there[1]]
                known(result_of(item, studies.find(item.study, there[0]), out / KEPT))
                bar.advance(task)

            # The last ones take longest.
            run_ahead(
                partial(_studies_of, named.pair, device, bos, context, texts_of), experiment or (), tasks[::-1], out / KEPT, several, done
            )  # fmt: skip
        ran = run_report(
            studies, out, only=only, papers=paper,
            show_words=show_words, command=command, seeds=seeds, progress=tell, known=known,
            prompt_sets=on_paper,
        )  # fmt: skip
    if as_json:
        experiments = [
            {"id": r.id, "claim": r.claim, "verdict": r.verdict, "statistic": r.statistic, "null": r.null, "seconds": r.seconds}
            for r in ran.results
        ]
        record = {
            **chat_settings(chat_format), "page": str(ran.page), "json": str(out / "report.json"), "experiments": experiments,
            "skipped": ran.skipped, "notes": list(ran.notes), "prompt_sets": [_set_json(item) for item in ran.prompt_sets],
        }  # fmt: skip
        common.print_json(record | ({"seeds": ran.seeds.to_json()} if ran.seeds is not None else {}))
        return
    for sentence in ran.notes:
        common.print_line(common.shown(sentence, show_words))
    print_summary(ran.results, show_words=show_words)
    if ran.seeds is not None:
        print_seeds(ran.seeds)
    print_prompt_sets(ran.prompt_sets, show_words=show_words)
    common.print_line(common.chat_line(chat_format))
    for name, why in ran.skipped.items():
        common.print_line(f"left out: {name}: {common.shown(why, show_words)}")
    common.print_line(f"\nThe report is {ran.page}")


def _studies(sides: ModelPair, context: dict[str, Any], texts: dict[str, Any]) -> Studies:
    """The studies of a report of a pair: `context` are arguments of `make_context` for any texts, `texts` those for the report's own."""
    from interp.experiments.displacement.context import DisplacementContext
    from interp.experiments.elasticity.context import ElasticityContext
    from interp.experiments.study import Studies
    from interp.experiments.toxicity.context import ToxicityContext
    from interp.experiments.toxicity.make import make_context

    settings = {name: context[name] for name in ("logs", "quick", "seed")}
    return Studies(
        {
            ToxicityContext: partial(make_context, sides, **context, **texts),
            DisplacementContext: partial(DisplacementContext, sides, **settings),
            ElasticityContext: partial(ElasticityContext, sides, **settings),
        },
        context["seed"],
    )


def _studies_of(
    pair: tuple[str, str] | None, device: str | None, bos: bool | None, context: dict[str, Any], texts: dict[str, Any]
) -> Studies:
    """The same in a process of its own, which loads the pair by itself."""
    return _studies(workbench.Sides(pair, None, device, bos).both(), context, texts)


def _material(asked: bool | None, *, own: bool) -> Path | None:
    """The folder of the paper's material, where it is asked for or there, unless the report is on prompts of the user's own."""
    from interp.data.paper import FILES, SETTING, paper_folder

    folder = paper_folder()
    if asked and folder is None:
        raise UserError(
            f"--paper-texts was given, and {SETTING} names no folder with {', '.join(FILES)}", f"set {SETTING} to such a folder"
        )
    return folder if asked or (asked is None and not own) else None


def _set_json(item: PromptSet) -> dict[str, Any]:
    """A prompt set as `--json` prints it."""
    experiments = [
        {"id": r.id, "verdict": r.verdict, "statistic": r.statistic, "null": r.null, "interval": r.interval} for r in item.results
    ]
    return {"prompts": item.name, "count": item.count, "experiments": experiments, "left_out": dict(item.left_out)}


def _command(
    pair: tuple[str, str] | None, device: str, quick: bool, seed: int, seeds: int, scorer: str, bos: bool | None, most: int | None,
    chat: bool, files: list[tuple[str, Path | str | None]], flags: list[str],
) -> str:  # fmt: skip
    """The command line that gives the same numbers again."""
    words = ["bypass", "report"]
    words += ["--pair", *pair] if pair else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--quick"] if quick else []
    words += [] if bos is None else ["--bos" if bos else "--no-bos"]
    words += [] if most is None else ["--max-prompt-tokens", str(most)]
    words += ["--seed", str(seed)] if seed else []
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    words += ["--chat"] if chat else []
    words += [word for option, file in files if file is not None for word in (option, str(file))]
    words += flags
    words += ["--scorer", scorer] if scorer != "bundled" else []
    return shlex.join(words)
