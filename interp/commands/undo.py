"""`bypass undo`: how much further training, on what text, takes a tuned behaviour away, and whether that is a return to the base."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.commands import common
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.elasticity.behaviour import Behaviour
    from interp.elasticity.undo import UndoRecord
    from interp.elasticity.undo_verdict import UndoVerdict
    from interp.models.pair import ModelPair

ALL_ARMS = "opposite,benign,neutral,pretraining,same,from_base"
QUICK_ARMS, QUICK_DOSES, QUICK_PROMPTS = "opposite,neutral,same", "8,40,80", 100
# What trains the arms, which this package does not do; `interp.cli` puts it here.
RUNNERS: list[Callable[..., UndoRecord]] = []


def undo(
    texts: Annotated[
        Path,
        typer.Option("--texts", metavar="FILE", help="what may undo the tuning: txt with one a line; csv, tsv, json or jsonl with `text`"),
    ],
    pair: common.Pair = None,
    arms: Annotated[
        str | None, typer.Option(help=f"which kinds of text are trained on [default: those of {ALL_ARMS} that have texts]")
    ] = None,
    neutral: Annotated[Path | None, typer.Option("--neutral", help="in place of the encyclopedic passages that ship")] = None,
    benign: Annotated[Path | None, typer.Option("--benign", help="in place of the questions and answers that ship")] = None,
    pretraining: Annotated[
        Path | None, typer.Option("--pretraining", help="a sample of what the base read; without it there is no such arm")
    ] = None,
    same: Annotated[
        Path | None, typer.Option("--same", help="more of the tuning's own data [default: what the tuned model writes]")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="neutral texts on which KL is measured [default: some that ship]")
    ] = None,
    doses: Annotated[str | None, typer.Option(help="in samples (windows), such as 8,40,80 [default: 8,40,80,200,400]")] = None,
    steps_first: Annotated[str, typer.Option("--steps-first", help="further doses, in steps")] = "5,10",
    rates: Annotated[str, typer.Option("--lr", help="learning rates of full training; the strongest is reported")] = "1e-5,1e-4",
    optimizer: Annotated[str, typer.Option(help="adamw, rmsprop or sgd")] = "adamw",
    full: Annotated[bool, typer.Option("--full/--no-full", help="train all weights")] = True,
    lora: Annotated[int | None, typer.Option("--lora", metavar="RANK", help="train LoRA adapters of this rank too")] = None,
    lora_rates: Annotated[str, typer.Option("--lora-lr", help="learning rates of LoRA")] = "1e-4,1e-3",
    batch: Annotated[int, typer.Option(help="windows a step")] = 8,
    length: Annotated[int, typer.Option(help="tokens of a window")] = 96,
    seeds: Annotated[int | None, typer.Option(help="orders in which the texts are read [default: 3]")] = None,
    behaviour: Annotated[str, typer.Option(help="toxicity, refusal, words, words:FILE or scorer:PATH")] = "toxicity",
    prompts: common.Prompts = None,
    limit: Annotated[int | None, typer.Option(help="so many of the prompts, drawn at random")] = None,
    new_tokens: common.NewTokens = 20,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    scorer: common.ScorerName = "bundled",
    second_scorer: common.SecondScorer = "lexicon",
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="what is planned is cut to it; the same command goes on later")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"arms {QUICK_ARMS}, doses {QUICK_DOSES}, one seed, {QUICK_PROMPTS} prompts")
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="train nothing: measure the two models and one step, and say the plan with its minutes")
    ] = False,
    rank: Annotated[bool, typer.Option("--rank", help="train nothing: rank the texts by what a first step on each would undo")] = False,
    out: Annotated[Path, typer.Option("--out", help="the folder of results; a run that was stopped goes on there")] = Path("undo"),
    device: common.Device = None,
    bos: common.Bos = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """How much further training takes a tuned behaviour away, and whether that is a return to the base.

    It is no safety rating; docs/undo.md says when to believe it and what it does not claim.
    """
    common.check_folder(out)
    steps = dose_steps(doses or (QUICK_DOSES if quick else "8,40,80,200,400"), steps_first, batch)
    attacks: list[tuple[float, int | None]] = [(rate, None) for rate in common.numbers(rates, "--lr")] if full else []
    attacks += [(rate, lora) for rate in common.numbers(lora_rates, "--lora-lr")] if lora is not None else []
    if lora is not None and lora < 1:
        raise UserError(f"--lora is {lora}", "give a rank of at least 1, such as 8")
    if not attacks:
        raise UserError("--no-full leaves no way of training", "add --lora RANK")
    from interp.data.texts import read_texts
    from interp.elasticity.measurement import Reference
    from interp.elasticity.undo_folder import RUNS
    from interp.elasticity.undo_page import render, summary_json, write_undo
    from interp.elasticity.undo_texts import MOST, held_out_texts
    from interp.elasticity.undo_verdict import judge
    from interp.report.markup import command_line

    chosen, sources = chosen_arms(arms or (QUICK_ARMS if quick else ALL_ARMS), texts, neutral, benign, pretraining, same, strict=bool(arms))
    compared = held_out_texts() if held_out is None else read_texts(held_out)
    read = behaviour_of(behaviour, prompts, scorer, second_scorer, new_tokens, common.chat_from(chat, system))
    read = limited(read, limit if limit is not None else QUICK_PROMPTS if quick else None)
    sources = {"neutral": compared[:MOST], **sources}
    plan = {"steps": steps, "batch": batch, "length": length, "seeds": seeds or (1 if quick else 3), "optimizer": optimizer}
    with common.progress(1, "loading the pair") as (bar, task):
        both = common.sides(pair, device=device, bos=bos).both()

        def tell(phrase: str, done: int, total: int) -> None:
            bar.update(task, description=phrase, completed=done, total=total)

        if rank:
            rank_texts(both, read, texts, compared[:MOST], out, tell, show_words=show_words, as_json=as_json)
            return
        reference = Reference(both, read, compared, sources)
        record = RUNNERS[0](
            both, chosen, reference, plan, attacks, out / RUNS, budget, lambda text: common.note(text, bar), tell, plan_only
        )
        verdict = judge(record, texts.name, read.name)
        if plan_only:
            say_gap(verdict, as_json=as_json)
            return
        tell("writing the page", 0, 1)
        page = render(record, verdict, file=texts.name, behaviour=read.name, command=command_line(sys.argv[1:]), show_words=show_words)
        names = write_undo(record, verdict, out, page)
    if as_json:
        common.print_json(summary_json(record, verdict))
        return
    for sentence in verdict.sentences:
        common.print_line(sentence)
    print_doses(record, has_behaviour=verdict.has_behaviour)
    common.print_line(f"written to {out}: {', '.join(names)}")


def say_gap(verdict: UndoVerdict, *, as_json: bool) -> None:
    """Say what there is to undo, before anything is trained."""
    # The other sentences are about training.
    sentences = verdict.sentences[:1] if verdict.has_behaviour else verdict.sentences
    if as_json:
        common.print_json({"has_behaviour": verdict.has_behaviour, "sentences": list(sentences)})
        return
    for sentence in sentences:
        common.print_line(sentence)


def rank_texts(
    pair: ModelPair, behaviour: Behaviour, texts: Path, neutral: Sequence[str], out: Path, tell: Callable[[str, int, int], None], *,
    show_words: bool, as_json: bool,
) -> None:  # fmt: skip
    """Rank the texts of a file by what a first step of gradient descent on each undoes; write `ranking.csv` and print both ends."""
    from interp.data.texts import read_texts
    from interp.elasticity.ranking import ranking, score_of, undoing_effects
    from interp.files import write_text

    score, some = score_of(behaviour, pair), list(dict.fromkeys(read_texts(texts)))
    effects = undoing_effects(pair.tuned, score, some, progress=lambda done, total: tell("texts", done, total))
    null = undoing_effects(pair.tuned, score, neutral, progress=lambda done, total: tell("neutral texts", done, total))
    frame = ranking(some, effects, null)
    write_text(out / "ranking.csv", frame.to_csv(index=False))
    if as_json:
        common.print_json(frame.to_dict("records"))
        return
    ends = frame if len(frame) <= 10 else frame.iloc[[*range(5), *range(len(frame) - 5, len(frame))]]
    rows = [(row["rank"], row["effect"], row["beyond neutral"], str(row["text"])[:200]) for _, row in ends.iterrows()]
    title = f"what a first step would undo most (negative) to least; neutral texts {null.mean():.3g} on average"
    common.print_table(("rank", "effect", "beyond neutral", "text"), rows, title=title, show_words=show_words)
    common.print_line(f"a forecast for the first step alone; all {len(frame)} texts are in {out / 'ranking.csv'}")


def dose_steps(doses: str, steps_first: str, batch: int) -> tuple[int, ...]:
    """The doses in steps: those in samples by the batch, rounded up, and the further ones that are not beyond the largest."""
    if batch < 1:
        raise UserError(f"--batch is {batch}", "give at least 1")
    samples = common.numbers(doses, "--doses")
    if min(samples) < 1:
        raise UserError(f"--doses is {doses!r}", "give at least 1 sample, such as 8,40,80")
    steps = {math.ceil(number / batch) for number in samples}
    further = {round(number) for number in common.numbers(steps_first, "--steps-first")} if steps_first.strip() else set()
    return tuple(sorted(steps | {step for step in further if 0 < step < max(steps)}))


def chosen_arms(
    names: str, texts: Path, neutral: Path | None, benign: Path | None, pretraining: Path | None, same: Path | None, *, strict: bool
) -> tuple[list[tuple[str, Sequence[str] | None, str]], dict[str, Sequence[str]]]:  # fmt: skip
    """The arms by name, texts and source, and the held-out texts of each file by source.

    Raises `UserError` for an unknown arm, and where `strict` for one that has no texts.
    """
    from interp.data.texts import read_texts
    from interp.elasticity.undo import ARMS
    from interp.elasticity.undo_texts import benign_texts, divide, neutral_texts

    wanted_arms = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted_arms if name not in ARMS]
    if unknown:
        raise UserError(f"there is no arm {unknown[0]!r}", f"use some of {', '.join(ARMS)}")
    if strict and "pretraining" in wanted_arms and pretraining is None:
        raise UserError("the arm pretraining has no texts", "name a sample of what the base model read: --pretraining FILE")
    divisions = {name: divide(read_texts(file)) for name, file in
                 (("opposite", texts), ("pretraining", pretraining), ("same", same)) if file is not None}  # fmt: skip
    opposite = divisions["opposite"].trained
    available: dict[str, tuple[Sequence[str] | None, str]] = {
        "opposite": (opposite, f"{len(opposite)} texts of {texts.name}"), "from_base": (opposite, f"{len(opposite)} texts of {texts.name}"),
        "neutral": (neutral_texts(), "encyclopedic passages that ship") if neutral is None else (read_texts(neutral), neutral.name),
        "benign": (benign_texts(), "questions and answers that ship") if benign is None else (read_texts(benign), benign.name),
        "same": (None, "sampled from the tuned model") if same is None else (divisions["same"].trained, same.name),
    }  # fmt: skip
    if pretraining is not None:
        available["pretraining"] = divisions["pretraining"].trained, pretraining.name
    arms = [(name, *available[name]) for name in dict.fromkeys(wanted_arms) if name in available]
    return arms, {name: division.held_out for name, division in divisions.items() if division.held_out}


def behaviour_of(name: str, prompts: Path | None, scorer: str, second: str, new_tokens: int, chat: Any) -> Behaviour:
    """The behaviour that a name describes. Raises `UserError` for an unknown one, and for refusal without prompts."""
    from interp.data.texts import neutral_prompts
    from interp.elasticity.behaviour import RefusalScore, ScorerColumn, TextBehaviour, read_word_odds
    from interp.elasticity.undo_texts import WORDS
    from interp.evaluation.toxicity import load_scorer
    from interp.evaluation.word_scorer import scorer_at

    kind, _, path = name.partition(":")
    if kind == "words":
        return dataclasses.replace(read_word_odds(Path(path) if path else WORDS), new_tokens=new_tokens)
    if kind == "refusal":
        if prompts is None:
            raise UserError("refusal is read on prompts of yours, and there are none", "name them with --prompts FILE")
        return TextBehaviour(common.prompts_from(prompts), RefusalScore(), None, new_tokens, chat)
    if kind == "scorer" and path:
        texts = neutral_prompts() if prompts is None else common.prompts_from(prompts)
        return TextBehaviour(texts, ScorerColumn(scorer_at(path)), None, new_tokens, chat)
    if name == "toxicity":
        another = None if second == "none" else ScorerColumn(load_scorer(second), "toxicity")
        return TextBehaviour(common.prompts_from(prompts), ScorerColumn(load_scorer(scorer), "toxicity"), another, new_tokens, chat)
    raise UserError(f"there is no behaviour {name!r}", "use toxicity, refusal, words, words:FILE or scorer:PATH")


def limited(behaviour: Behaviour, limit: int | None) -> Behaviour:
    """The behaviour on so many of its prompts, drawn at random with a fixed seed; as it is without a limit or with fewer prompts."""
    import numpy as np

    if limit is None or limit >= len(behaviour.prompts):
        return behaviour
    if limit < 2:
        raise UserError(f"--limit is {limit}", "give at least 2 prompts")
    places = sorted(np.random.default_rng(17).choice(len(behaviour.prompts), limit, replace=False).tolist())
    return dataclasses.replace(behaviour, prompts=[behaviour.prompts[place] for place in places])  # type: ignore[type-var]


def print_doses(record: UndoRecord, *, has_behaviour: bool) -> None:
    """Print behaviour and distribution side by side: the two models, and each arm at its last dose."""
    from interp.elasticity.undo_cells import cells_of, dose_frame
    from interp.elasticity.undo_page import sides_frame

    sides = sides_frame(record)
    common.print_table(("model", "score", "KL to base"), sides[["model", "score", "KL to base"]].itertuples(index=False, name=None))
    if not has_behaviour:
        return
    frame = dose_frame(cells_of(record)).groupby(["arm", "attack"], sort=False).tail(1)
    columns = ["arm", "attack", "steps", "tokens", "score", "share undone", "share low", "share high", "KL to base"]
    rows = list(frame[columns].itertuples(index=False, name=None))
    common.print_table(columns, rows, title="at the last dose of each arm")
