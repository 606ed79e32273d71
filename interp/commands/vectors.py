"""`bypass vectors`: rank value vectors by a direction, search them for a word, or explain one neuron, across the pair."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.commands import common
from interp.errors import UserError
from interp.files import cache_folder

if TYPE_CHECKING:
    import pandas as pd

    from interp.directions.probe import Probe
    from interp.models.model import Model, Neuron
    from interp.neurons.example_results import Examples
    from interp.neurons.projection import Projection

WORDS = 8
# At least so many random value vectors stand beside the ranked ones.
NULLS = 16


def vectors(
    model: Annotated[str | None, typer.Option("--model", help=f"{common.MODEL_HELP} [default: both sides, ranked on the base]")] = None,
    like: Annotated[
        str | None, typer.Option(help="probe (the default), difference, value:5.770, or a JSON list of numbers in a file")
    ] = None,
    search: Annotated[str | None, typer.Option(metavar="WORD", help="which neurons write this word?")] = None,
    neuron: Annotated[str | None, typer.Option(metavar="L.I", help="what does this neuron write, and did tuning change it?")] = None,
    examples: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="with --neuron: where in these texts does it fire most? A file, or bundled for those that ship"),
    ] = None,
    top: Annotated[int, typer.Option(help="how many")] = 16,
    projection: Annotated[
        str,
        typer.Option(
            help="dot: dot products with all tokens; cosine: with the centred unembedding; common: that over common tokens; "
            "auto: common for a vocabulary above 16,384 tokens, else dot"
        ),
    ] = "auto",
    scorer: common.ScorerName = "bundled",
    pair: common.Pair = None,
    device: common.Device = None,
    bos: common.Bos = None,
    probe: common.ProbeFolder = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """Rank, search and explain value vectors."""
    if sum(option is not None for option in (like, search, neuron)) > 1:
        raise UserError("--like, --search and --neuron ask different questions", "give one of them")
    if top < 1:
        raise UserError(f"the top {top} were asked for", "ask for at least 1")
    if examples is not None and neuron is None:
        raise UserError("--examples asks where a neuron fires, but no neuron is named", "name one with --neuron L.I")
    masked = not (show_words or as_json)
    windows: Examples | None = None
    null = ""
    from interp.neurons.projection import NAMES, projection_for

    if projection not in NAMES:
        raise UserError(f"{projection!r} is no projection", f"use one of {', '.join(NAMES)}")
    with common.progress(None, "loading") as (bar, task):
        sides = common.sides(pair, probe, device, bos)
        models = sides.named(model or ("both" if model is None else model))
        ways = {name: projection_for(side, projection) for name, side in models.items()}
        bar.update(task, description="reading value vectors")
        if neuron is not None:
            frame = _explain(models, neuron, masked, next(iter(ways.values())))
            if examples is not None:
                bar.update(task, description="reading texts")
                windows = _examples(models, neuron, examples, top, lambda read: bar.update(task, description=f"{read} texts read"))
        elif search is not None:
            frame = _search(models, search, top, masked, ways)
        else:
            side = "base" if model in (None, "both") else model
            first = next(iter(models.values()))
            frame, null = _rank(models, like or "probe", top, masked, lambda: sides.probe_of(side, first), ways[first.name], scorer)
    if as_json and windows is not None:
        common.print_json({"neuron": frame.to_dict(orient="records"), **windows.to_json()})
    elif as_json:
        common.print_json(frame.to_dict(orient="records"))
    elif frame.empty:
        common.print_line(f"no value vector has {common.shown(str(search), show_words)!r} among its top tokens")
    else:
        title = neuron or (f"value vectors that write {search!r}" if search else f"value vectors nearest to {like or 'probe'}")
        common.print_table(
            [str(c).replace("_", " ") for c in frame.columns],
            frame.itertuples(index=False),
            title=common.shown(title, show_words),
            show_words=show_words,
        )
        common.print_line(f"tokens by {next(iter(ways.values()))}{null}")
        if windows is not None:
            _print_examples(windows, show_words)


def _rank(
    models: dict[str, Model], like: str, top: int, masked: bool, probe: Callable[[], Probe], projection: Projection, scorer: str
) -> tuple[pd.DataFrame, str]:
    """The value vectors of the first model nearest to a direction, and how toxic what random ones write is.

    With a pair, also how far tuning turned each.
    """
    import torch

    from interp.data.lexicon import is_toxic_word, mask
    from interp.neurons.ranking import rank_values, values_at
    from interp.neurons.vocabulary import top_tokens
    from interp.steering.edit_text import parse_vector

    first = next(iter(models.values()))
    direction = torch.tensor(parse_vector(like, first, probe))
    ranking = rank_values(first, direction, top=top)
    values = values_at(first, ranking.neurons)
    frame = ranking.to_frame()
    if len(models) > 1:
        tuned = values_at(models["tuned"], ranking.neurons)
        frame["cosine_with_tuned"] = torch.nn.functional.cosine_similarity(values.double(), tuned.double(), dim=1).tolist()
    words = top_tokens(first, values, top=WORDS, projection=projection).words
    frame["listed"] = [sum(map(is_toxic_word, row)) for row in words]
    null = ""
    if scorer != "bundled" or find_spec("detoxify") is not None:
        frame["in_sentences"], null = _toxicity(first, ranking.neurons, words, projection, scorer)
    frame["tokens"] = [" | ".join(mask(word.strip()) if masked else word.strip() for word in row) for row in words]
    return frame, null


def _toxicity(model: Model, neurons: list[Neuron], words: list[list[str]], projection: Projection, name: str) -> tuple[list[float], str]:
    """The toxicity that each row of tokens gives to carrier sentences, and in words that of random value vectors of the same layers."""
    from interp.evaluation.token_toxicity import row_toxicity, written_toxicity
    from interp.evaluation.toxicity import load_scorer
    from interp.stats.nulls import random_neurons

    scorer = load_scorer(name)
    rounds = -(-NULLS // len(neurons))
    drawn = [neuron for seed in range(rounds) for neuron in random_neurons(model, neurons[:NULLS], seed=seed)]
    null = written_toxicity(model, drawn, scorer, top=WORDS, projection=projection)
    return row_toxicity(words, scorer).tolist(), (
        f"\nlisted: of its {WORDS} tokens on the word list; in sentences: how much more toxic than everyday words {scorer.name} finds them "
        f"(random value vectors of the same layers: mean {null.mean():+.3f}, at most {null.max():+.3f} of {len(null)})"
    )


def _search(models: dict[str, Model], word: str, top: int, masked: bool, ways: dict[str, Projection]) -> pd.DataFrame:
    """Neurons of each side that have the word among their top tokens."""
    import pandas as pd

    from interp.neurons.vocabulary import build_index, search

    frames = []
    for name, loaded in models.items():
        frame = search(build_index(loaded, projection=ways[name], cache=cache_folder()), word, limit=top, masked=masked)
        frame.insert(0, "side", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _explain(models: dict[str, Model], neuron: str, masked: bool, projection: Projection) -> pd.DataFrame:
    from interp.neurons.ranking import explain_neuron
    from interp.steering.edit_text import parse_neuron

    layer, index = parse_neuron(neuron)
    return explain_neuron(_subject(models), layer, index, projection=projection, masked=masked)


def _subject(models: dict[str, Model]) -> Any:
    from interp.models.pair import ModelPair

    return ModelPair(models["base"], models["tuned"]) if len(models) > 1 else next(iter(models.values()))


def _examples(models: dict[str, Model], neuron: str, source: str, top: int, progress: Callable[[int], None]) -> Examples:
    """Where the neuron fires most, in each side."""
    from interp.neurons.examples import max_activating
    from interp.steering.edit_text import parse_neuron

    subject = _subject(models)
    return max_activating(subject, [parse_neuron(neuron)], None if source == "bundled" else Path(source), top=top, progress=progress)


def _print_examples(examples: Examples, show_words: bool) -> None:
    spread = examples.spread.drop(columns=["layer", "neuron"])
    tokens, texts = examples.settings["tokens"], examples.settings["texts"]
    title = f"activations over {tokens:,} tokens of {texts:,} texts (active: the share above {examples.settings['above']:g})"
    common.print_table([str(c) for c in spread.columns], spread.itertuples(index=False), title=title)
    frame = examples.to_frame(masked=not show_words)
    for side in examples.settings["sides"]:
        part = frame[frame["side"] == side].drop(columns=["side", "layer", "neuron", "peak", "position", "token"])
        if part.empty:
            common.print_line(f"it is never active in {side}")
            continue
        columns = [str(c).replace("_", " ") for c in part.columns]
        title = f"where it fires most in {side}"
        common.print_table(columns, part.itertuples(index=False), title=title, show_words=show_words)
