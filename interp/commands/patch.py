"""`bypass patch`: activation and path patching between the two sides of the pair, or between two prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import workbench
from interp.commands import common
from interp.errors import UserError
from interp.models.sites import PATCHED

if TYPE_CHECKING:
    from interp.models.model import Model
    from interp.models.pair import ModelPair
    from interp.patching.gradient import Agreement
    from interp.patching.maps import PatchMap
    from interp.patching.metrics import AnyMetric
    from interp.patching.paths import PathMap

METRICS = ("logit-difference", "log-probability", "probe", "toxicity")
METHODS = ("patching", "gradient", "integrated")
STEPS = 16
SITE_HELP = f"{', '.join(PATCHED)}; z is each head's output before the output projection"


def patch(
    prompt: Annotated[str, typer.Argument(help="the text; with --corrupted the clean one")],
    corrupted: Annotated[str | None, typer.Option(help="a second text of as many tokens: patch within one model")] = None,
    model: Annotated[str, typer.Option("--model", help=f"with --corrupted: {common.MODEL_HELP}")] = "base",
    source: Annotated[str | None, typer.Option("--from", help="base or tuned; with --corrupted clean or corrupted [default: both]")] = None,
    into: Annotated[str | None, typer.Option("--into", help="the other one")] = None,
    site: Annotated[str, typer.Option(help=SITE_HELP)] = "resid_post",
    metric: Annotated[str | None, typer.Option(help=f"{', '.join(METRICS)} [default: by --tokens or --token, otherwise probe]")] = None,
    tokens: Annotated[tuple[str, str] | None, typer.Option(metavar="A B", help="logit of the word A minus logit of the word B")] = None,
    token: Annotated[list[str] | None, typer.Option(metavar="WORD", help="log-probability of this word; repeat it for a set")] = None,
    positions: Annotated[
        str | None,
        typer.Option(help="each, all, last, numbers such as 0,3, or with --chat a role such as user [default: each; for units all]"),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="such as 0,3 [default: all]")] = None,
    units: Annotated[str | None, typer.Option(help="heads or neurons: such as 0,3 in every layer, or 5.770,4.12")] = None,
    paths: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="SENDERS RECEIVERS", help="direct paths: embed,head.0.3 mlp.2,head.4.1.q,logits"),
    ] = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}: the last two are estimates")] = "patching",
    check: Annotated[bool, typer.Option("--check", help="measure too, and say how far the estimate agrees")] = False,
    null: Annotated[int, typer.Option(help="repeat with this many random changes of equal norm")] = 2,
    top: Annotated[int, typer.Option(help="rows to print for each direction")] = 10,
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    probe: common.ProbeFolder = None,
    scorer: common.ScorerName = "bundled",
    new_tokens: common.NewTokens = 20,
    memory: Annotated[float, typer.Option("--memory-mb", help="bound on the activations of one batch")] = 64,
    seed: common.Seed = 0,
    chat: common.AsChat = False,
    system: common.SystemPrompt = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="write tables, JSON and a page with the maps here")] = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """Activation patching: base into tuned and tuned into base, or between two prompts."""
    if method not in METHODS:
        raise UserError(f"there is no method {common.shown(method)!r}", f"use one of {', '.join(METHODS)}")
    if check and (method == "patching" or paths):
        raise UserError(
            "--check compares an estimate with the measurement", "add --method gradient or --method integrated, without --paths"
        )
    if top < 1:
        raise UserError(f"the top {top} were asked for", "ask for at least 1")
    directions, chat_format = _directions(source, into, corrupted is not None), common.chat_from(chat, system)
    if out is not None:
        common.check_folder(out)
    from interp.patching.gradient import agreement, attribution_patch
    from interp.patching.patch import patch as run
    from interp.patching.paths import path_patch

    agreed: Agreement | None = None
    patch_map: PatchMap | PathMap
    with common.progress(1, "loading") as (bar, task):
        sides = common.sides(pair, probe, device, bos)
        subject: Model | ModelPair = sides.both() if corrupted is None else sides.load(model)
        reader: Model = _reader(subject)
        measure = _metric(reader, model if corrupted is not None else "base", sides, metric, tokens, token, scorer, new_tokens)
        arguments: dict[str, Any] = {
            "metric": measure, "site": site, "positions": _positions(positions), "layers": _whole(layers, "--layers"),
            "units": _units(units), "directions": directions,
            "chat": chat_format,
        }  # fmt: skip
        bar.update(task, description="patching")
        count: dict[str, Any] = {"memory_mb": memory, "progress": lambda done, total: bar.update(task, completed=done, total=total)}
        if paths is not None:
            ends = [[name.strip() for name in text.split(",")] for text in paths]
            patch_map = path_patch(
                subject, prompt, corrupted, metric=measure, senders=ends[0], receivers=ends[1], directions=directions,
                chat=chat_format,
            )  # fmt: skip
        elif method == "patching":
            patch_map = run(subject, prompt, corrupted, null_draws=null, seed=seed, **count, **arguments)
        else:
            patch_map = attribution_patch(subject, prompt, corrupted, steps=STEPS if method == "integrated" else None, **arguments)
            agreed = agreement(run(subject, prompt, corrupted, **count, **arguments), patch_map, top=top) if check else None
        if out is not None:
            bar.update(task, description="writing")
            _write(patch_map, out)
    if as_json:
        common.print_json(_record(patch_map, agreed))
        return
    common.print_line(common.chat_line(chat_format))
    _show(patch_map, agreed, top, show_words)
    if out is not None:
        common.print_line(f"written to {out}")


def _reader(subject: Model | ModelPair) -> Model:
    """The model whose tokenizer and width the options are read with."""
    from interp.models.pair import ModelPair

    return subject.base if isinstance(subject, ModelPair) else subject


def _directions(source: str | None, into: str | None, within: bool) -> list[str] | None:
    ends = ("clean", "corrupted") if within else ("base", "tuned")
    named = [name for name in (source, into) if name is not None]
    wrong = next((name for name in named if name not in ends), None)
    if wrong is not None or (len(named) == 2 and source == into):
        raise UserError(f"--from and --into name {' and '.join(map(common.shown, named))}", f"use {ends[0]} and {ends[1]}")
    if not named:
        return None
    first = source if source is not None else next(name for name in ends if name != into)
    names = ("denoising", "noising") if within else ("base into tuned", "tuned into base")
    return [names[ends.index(first)]]


def _metric(
    model: Model, side: str, sides: workbench.Sides, name: str | None, tokens: tuple[str, str] | None, words: list[str] | None, scorer: str,
    new_tokens: int,
) -> AnyMetric:  # fmt: skip
    from interp.patching.metrics import ContinuationToxicity, LogitDifference, LogProbability, ProbeProjection

    chosen = name or ("logit-difference" if tokens else "log-probability" if words else "probe")
    if chosen not in METRICS:
        raise UserError(f"there is no metric {common.shown(chosen)!r}", f"use one of {', '.join(METRICS)}")
    if (tokens is not None) != (chosen == "logit-difference") or bool(words) != (chosen == "log-probability"):
        raise UserError(
            f"the metric {chosen} and the words that were given do not go together",
            "give --tokens A B for logit-difference, --token WORD for log-probability, and neither for probe and toxicity",
        )
    if tokens is not None:
        return LogitDifference(model.token(tokens[0]), model.token(tokens[1]))
    if words:
        return LogProbability(tuple(model.token(word) for word in words))
    if chosen == "probe":
        return ProbeProjection.of(sides.probe_of(side, model))
    from interp.evaluation.toxicity import load_scorer

    return ContinuationToxicity(load_scorer(scorer), new_tokens)


def _positions(text: str | None) -> Any:
    from interp.patching.cells import PATCH_WORDS

    return text if text is None or text in PATCH_WORDS else _whole(text, "--positions")


def _whole(text: str | None, what: str) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{what} is {common.shown(text)!r}", "write whole numbers from 0 with commas between, such as 0,3")
    return [int(part) for part in parts]


def _units(text: str | None) -> list[Any] | None:
    if text is None or "." not in text:
        return _whole(text, "--units")
    pairs = [_whole(part.strip().replace(".", ","), "--units") for part in text.split(",")]
    wrong = next((pair for pair in pairs if pair is None or len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"--units is {common.shown(text)!r}", "write indices such as 0,3, or layer.index such as 5.770,4.12")
    return [tuple(pair) for pair in pairs if pair is not None]


def _record(patch_map: PatchMap | PathMap, agreed: Agreement | None) -> dict[str, Any]:
    ends = [
        {"direction": name, "target": float(target.mean()), "source": float(source.mean())}
        for name, target, source in zip(patch_map.directions, patch_map.target, patch_map.source, strict=True)
    ]
    record = {
        "metric": patch_map.metric,
        "settings": dict(patch_map.settings),
        "directions": ends,
        "cells": patch_map.to_frame().to_dict("records"),
    }
    return record if agreed is None else {**record, "agreement": agreed.to_frame().to_dict("records")}


def _show(patch_map: PatchMap | PathMap, agreed: Agreement | None, top: int, show_words: bool) -> None:
    from interp.patching.maps import PatchMap, position_labels

    for direction in patch_map.directions:
        frame = patch_map.top(top, direction).drop(columns=["direction"])
        if isinstance(patch_map, PatchMap):
            labels = position_labels(patch_map.tokens, not show_words)
            frame["token"] = ["all" if at == "all" else labels[at] for at in frame["position"]]
            frame = frame.drop(columns=["position", "value"]).rename(columns={"token": "position and token", "null_most": "null, most"})
        title = f"{direction}: effect on {patch_map.metric}"
        common.print_table(list(frame.columns), frame.astype(object).to_numpy().tolist(), title=title, show_words=show_words)
        figure = patch_map.figure(direction, masked=not show_words) if isinstance(patch_map, PatchMap) else patch_map.figure(direction)
        common.print_line(figure.caption)
    if agreed is not None:
        table = agreed.to_frame()
        common.print_table(list(table.columns), table.to_numpy().tolist(), title="the estimate against the measurement")


def _write(patch_map: PatchMap | PathMap, out: Path) -> None:
    from interp.files import write_together
    from interp.results import figures

    patch_map.save(out)
    drawings = [patch_map.figure(direction) for direction in patch_map.directions]
    write_together({"index.html": figures.page(f"bypass patch: {patch_map.metric}", drawings)}, out)
