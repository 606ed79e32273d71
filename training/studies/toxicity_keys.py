"""Compare choices of keys, counts and factors for un-alignment on development prompts, and measure one choice on the report's.

The paper scales the seven keys nearest to its probe by ten. On a small model these neurons fire everywhere, so that a factor of
ten changes far more than toxicity. This table shows, on prompts and texts held out from training and not used by the report,
what other choices return and cost. One choice is then made by a rule written here, and measured once on the report's prompts:
among all tried, the one that returns most at a perplexity of at most 1.02 times the tuned model's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from interp.data.lexicon import is_toxic_word
from interp.data.texts import challenge_prompts, passages
from interp.directions.probe import Probe, load_probe
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.metrics import perplexity
from interp.evaluation.toxicity import Scorer, load_scorer
from interp.forward.generate import generate
from interp.models.model import Model, Neuron
from interp.models.pair import ModelPair
from interp.models.tokens import token_rows
from interp.neurons.firing import firing_rates, selective_first
from interp.neurons.ranking import TOXIC_COUNT, rank_values, values_at
from interp.neurons.vocabulary import top_tokens
from interp.stats.intervals import bootstrap_ratio
from interp.stats.nulls import frequency_matched
from interp.steering.unalign import FACTOR, KEYS
from training.pairs import challenge_prefixes
from training.recipe import Recipe, base_folder, load_recipe

COUNTS, FACTORS = (3, 7, 16), (2.0, 3.0, 5.0, 10.0)
MOST_KEYS, AT_MOST = 16, 1.02
PROMPT_TOKENS = 40


def rankings(model: Model, probe: Probe, prompts: list[str], texts: list[str]) -> dict[str, list[Neuron]]:
    """Orders of neurons from which the first few are scaled.

    `probe` is the paper's. `selective`: of the 128 nearest to the probe, those first that fire most on prompts relative to plain
    texts. `words`: those whose value vectors promote most hostile words, of the same 128 first. `last layers`: the probe's order
    without the first half of the layers.
    """
    near = rank_values(model, probe.direction, top=TOXIC_COUNT).neurons
    words = top_tokens(model, values_at(model, near), top=10).words
    hostile = {n: sum(map(is_toxic_word, row)) for n, row in zip(near, words, strict=True)}
    return {
        "probe": near,
        "selective": selective_first(model, near, prompts, texts, max_tokens=PROMPT_TOKENS),
        "words": sorted(near, key=lambda n: -hostile[n]),
        "last layers": [n for n in rank_values(model, probe.direction, top=None).neurons if n[0] >= model.n_layers // 2][:TOXIC_COUNT],
    }


def study(
    pair: ModelPair, orders: dict[str, list[Neuron]], scorer: Scorer, prompts: list[str], texts: list[str],
    choices: Sequence[tuple[str, int, float]], *, say: Callable[[str], object] = print,
) -> pd.DataFrame:  # fmt: skip
    """Share of the lost toxicity that comes back, with its interval, and the price in perplexity, for each (order, count, factor)."""

    def toxicity(model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        return scorer.score(generate(model, prompts, edits=edits, batch_size=256))["toxicity"].to_numpy().astype(float)

    before, after = toxicity(pair.base), toxicity(pair.tuned)
    plain = perplexity(pair.tuned, texts).value
    if before.mean() <= after.mean():
        raise UserError("tuning did not lower toxicity on these prompts", "there is nothing to bring back")
    rows = []
    for name, count, factor in choices:
        edits = [Edit.scale_keys(orders[name][:count], factor)]
        back = bootstrap_ratio(toxicity(pair.tuned, edits) - after, before - after)
        cost = perplexity(pair.tuned, texts, edits=edits).value / plain
        rows.append((name, count, factor, back.value, back.low, back.high, cost))
        say(f"{name}, {count} keys x {factor:g}: {back.value:.0%} returned, perplexity x {cost:.3f}")
    return pd.DataFrame(rows, columns=["order", "keys", "factor", "returned", "low", "high", "perplexity ratio"])


def choose(table: pd.DataFrame) -> tuple[str, int, float]:
    """The choice that returns most at the price allowed; raises `UserError` where none is cheap enough."""
    cheap = table[(table["perplexity ratio"] <= AT_MOST) & (table["keys"] <= MOST_KEYS)]
    if cheap.empty:
        raise UserError(f"no choice keeps perplexity within {AT_MOST} times the tuned model's", "try smaller factors")
    best = cheap.sort_values("returned", ascending=False).iloc[0]
    return str(best["order"]), int(best["keys"]), float(best["factor"])


def run(recipe: Recipe, count: int, folder: Path) -> pd.DataFrame:
    """Study on development prompts, choose by the rule, measure the choice and the paper's once on the report's prompts."""
    pair = ModelPair.load(base_folder(recipe), recipe.folder("dpo") / "model")
    probe, scorer = load_probe(recipe.folder("probe")), load_scorer()
    heldout = recipe.folder("corpus") / "heldout.jsonl"
    prompts = [
        text
        for text in challenge_prefixes(heldout, 4 * count, recipe.seed + 1)
        if len(pair.base.tokenizer(text)["input_ids"]) <= PROMPT_TOKENS
    ][:count]
    frame = pd.read_json(heldout, lines=True)
    texts = [text[:600] for text in frame[frame["source"].isin(["wikipedia", "reddit"])]["text"][:80]]
    orders = rankings(pair.tuned, probe, prompts, texts)
    developed = study(pair, orders, scorer, prompts, texts, list(itertools.product(orders, COUNTS, FACTORS)))
    chosen = choose(developed)
    rates = firing_rates(
        pair.tuned, token_rows(pair.tuned, prompts), [[len(row) - 1] for row in token_rows(pair.tuned, prompts)], range(pair.tuned.n_layers)
    )
    for draw in range(5):
        orders[f"random {draw}"] = frequency_matched(orders[chosen[0]][: chosen[1]], rates, seed=draw, exclude=orders["probe"])
    once = [chosen, *((f"random {draw}", *chosen[1:]) for draw in range(5)), ("probe", KEYS, FACTOR), ("probe", 16, FACTOR)]
    on_report = study(pair, orders, scorer, challenge_prompts(), [passage.text for passage in passages()], once)
    table = pd.concat([developed.assign(prompts="development"), on_report.assign(prompts="report's")])
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "unalign_study.csv", index=False)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m training.studies.toxicity_keys RECIPE`: print each line as it is measured, and write the table below the run."""
    parser = argparse.ArgumentParser(prog="python -m training.studies.toxicity_keys", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("recipe")
    parser.add_argument("--prompts", type=int, default=120, help="development prompts (default 120)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the run's dpo folder)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    try:
        recipe = load_recipe(options.recipe)
        run(recipe, options.prompts, options.out or recipe.folder("dpo"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
