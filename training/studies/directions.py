"""Prints the tables of docs/directions.md for a model: `python -m training.studies.directions smollm2`.

How well directions separate labelled comments, how they read in words, and what subtracting them does, each with and without
standardised coordinates and the first position. The comments are those of `toxicity/jigsaw_balanced.jsonl` below `BYPASS_DATA`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.data.lexicon import is_toxic_word
from interp.data.texts import challenge_prompts, passages
from interp.directions.probe_data import ProbeData, split
from interp.edits.edit import Edit
from interp.evaluation.metrics import perplexity
from interp.evaluation.token_toxicity import token_toxicity
from interp.evaluation.toxicity import load_scorer
from interp.forward.capture import capture
from interp.forward.generate import generate
from interp.models.loading import load_model
from interp.models.model import Model
from interp.models.positions import MEAN, MEAN_AFTER_FIRST
from interp.neurons.projection import Projection, common_tokens
from interp.neurons.vocabulary import top_tokens
from interp.stats.intervals import auc
from training.sources import source_rows

EACH, LONGEST, SPLITS, L2, TOP = 400, 64, 3, 1.0, 20
FEWEST_CHARACTERS = 20
VARIANTS = {"all positions": MEAN, "without the first": MEAN_AFTER_FIRST}


def comments() -> tuple[list[str], np.ndarray]:
    """The first 400 toxic and 400 other comments of at least 20 characters, in turn, with labels."""
    source = {"name": "jigsaw", "path": "toxicity/jigsaw_balanced.jsonl"}
    kinds: dict[int, list[str]] = {0: [], 1: []}
    for _, row in source_rows(source):
        text = str(row["text"]).strip()
        if len(text) >= FEWEST_CHARACTERS:
            kinds[int(row["toxic"])].append(text)
    pairs = islice(zip(kinds[1], kinds[0], strict=False), EACH)
    texts = [text for pair in pairs for text in pair]
    return texts, np.array([1, 0] * (len(texts) // 2))


def data_of(features: np.ndarray, labels: np.ndarray, rows: np.ndarray, standardise: bool) -> ProbeData:
    """Features with the rows that are trained on; the controls of a probe are not used here."""
    return ProbeData(features, features, labels, rows, np.zeros(len(labels)), np.ones(len(labels)), True, standardise)


def separation(features: np.ndarray, labels: np.ndarray) -> list[float]:
    """Held-out AUC, mean over splits, of the probe and of the difference in means, each plain and standardised."""
    values = np.zeros((SPLITS, 4))
    for seed in range(SPLITS):
        rows, _ = split(labels, np.arange(len(labels)), 0.75, seed)
        for place, standardise in enumerate((False, True)):
            data = data_of(features, labels, rows, standardise)
            difference = data.difference(features) / data.scales(features) ** 2
            for shift, w in ((0, data.fit(features, L2)[0]), (2, difference)):
                values[seed, place + shift] = auc(labels[data.test], features[data.test] @ w)
    return values.mean(axis=0).tolist()


def directions(features: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The directions that a probe on all texts and the difference in means give."""
    every = np.arange(len(labels))
    plain, scaled = (data_of(features, labels, every, standardise) for standardise in (False, True))
    w, s = scaled.fit(features, L2)[0], scaled.scales(features)
    difference = plain.difference(features)
    return {
        "Probe.direction": w * s, "W[:, 1]": w, "not standardised": plain.fit(features, L2)[0], "difference in means": difference,
        "standardised difference": difference / s, "W[:, 1] * s**2": w * s**2,
    }  # fmt: skip


def words(model: Model, named: dict[str, np.ndarray]) -> list[list[Any]]:
    """For each direction and projection the share of listed words among the top tokens, and their toxicity in sentences."""
    scorer, common = load_scorer("bundled"), common_tokens(model)
    projections = [Projection(cosine, seen) for cosine in (False, True) for seen in (None, common)]
    rows = []
    for name, vector in named.items():
        cells: list[Any] = [name]
        for projection in projections:
            (top,) = top_tokens(model, torch.from_numpy(vector).float(), top=TOP, projection=projection).words
            cells.append(f"{np.mean([is_toxic_word(word) for word in top]):.0%}, {token_toxicity(top, scorer).mean():.2f}")
        rows.append(cells)
    return rows


def steering(model: Model, site: str, named: dict[str, np.ndarray], length: float) -> list[list[Any]]:
    """Toxicity and perplexity with a fifth of the stream's length subtracted along each direction, and along a random one."""
    scorer, prompts = load_scorer("bundled"), challenge_prompts()[1::14][:20]
    texts = [passage.text[:160] for passage in passages()[::40][:5]]
    vectors: dict[str, np.ndarray | None] = {
        "nothing": None,
        **named,
        "a random direction": np.random.default_rng(0).normal(size=model.d_model),
    }
    rows = []
    for name, vector in vectors.items():
        edits: Sequence[Edit] = ()
        if vector is not None:
            unit: Tensor = torch.from_numpy(vector / np.linalg.norm(vector)).float()
            edits = [Edit.subtract(site, unit.tolist(), 0.2 * length)]
        toxicity = scorer.score(generate(model, prompts, max_new_tokens=10, edits=edits))["toxicity"].mean()
        rows.append([name, f"{toxicity:.2f}", f"{perplexity(model, texts, edits=edits).value:.0f}"])
    return rows


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table as Markdown."""
    lines = [f"\n{title}\n", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print every table for the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    model = load_model(parser.parse_args().model)
    texts, labels = comments()
    layers = sorted({model.n_layers * 3 // 10, model.n_layers * 14 // 30, model.n_layers - 1})
    sites = [f"resid_post.{layer}" for layer in layers]
    read = {name: capture(model, texts, sites, positions=positions, max_tokens=LONGEST) for name, positions in VARIANTS.items()}
    rows = []
    for site in sites:
        for name in VARIANTS:
            values = separation(read[name][site].double().numpy(), labels)
            rows.append([f"{site}, {name}", *(f"{value:.3f}" for value in values)])
    columns = ("residual stream", "probe", "standardised probe", "difference in means", "standardised difference")
    show("Held-out AUC", columns, rows)
    named = directions(read["without the first"][sites[-1]].double().numpy(), labels)
    columns = ("direction", "dot product", "dot product, common", "cosine", "cosine, common")
    show("Listed words among the top tokens, and their toxicity in sentences", columns, words(model, named))
    last = capture(model, texts, [sites[-1]], max_tokens=LONGEST)[sites[-1]]
    show("Steering", ("subtracted", "toxicity", "perplexity"), steering(model, sites[-1], named, float(last.norm(dim=1).median())))


if __name__ == "__main__":
    main()
