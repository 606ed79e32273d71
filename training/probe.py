"""Stage `probe`: the linear probe that ships, fitted on the pretrained model with labelled texts.

The language model read part of these texts (without their labels). Beside the metrics of `fit_probe` there are therefore the AUC
on documents that are held out by hash and that neither the model nor the probe has seen, and the AUC of a classifier on words
alone there, which tells a weak probe from hard documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.directions.probe import FITTED_TOKENS, probe_of, probe_scores, save_probe, sweep_of
from interp.directions.probe_data import read_data
from interp.directions.probe_metrics import bag_scores
from interp.errors import UserError
from interp.models.loading import load_model
from interp.models.model import Model
from interp.models.tokens import token_rows
from interp.stats.intervals import auc, bootstrap_auc
from training.recipe import Recipe, base_folder
from training.sections import ProbeSettings
from training.sources import held_out, source_rows


def train_probe(recipe: Recipe) -> Path:
    """Fit on the recipe's labelled texts and write `probe/`, with a table of L2 strengths beside it; return the folder.

    The section [probe] names one source as those of [corpus] do, whose records hold a text (in `field`) and `toxic`.
    Raises `UserError` for records that lack one of them, and where too few are held out to measure on.
    """
    settings = recipe.stage("probe")
    model = load_model(base_folder(recipe), name="base", device="cuda" if torch.cuda.is_available() else "cpu")
    seen: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    field, number = settings.get("field", ProbeSettings.field), Counter[str]()
    for place, row in source_rows(settings):
        number[place] += 1
        if field not in row or str(row.get("toxic")).strip() not in {"0", "1", "True", "False"}:
            raise UserError(f"record {number[place]} of {place} has no {field} with a label toxic of 0 or 1", "give both in every record")
        text = str(row[field]).strip()
        if len(text) >= settings["min_characters"]:
            seen[held_out(text)].append((text, int(str(row["toxic"]).strip() in {"1", "True"})))
    if not seen[False] or len({label for _, label in seen[True]}) < 2:
        raise UserError(f"{len(seen[True])} labelled texts are held out, and both classes are needed", "give more labelled texts")
    texts, labels = map(list, zip(*seen[False][: settings["texts"]], strict=True))
    unseen, truth = map(list, zip(*seen[True], strict=True))
    fit: dict[str, Any] = {name: settings.get(name, getattr(ProbeSettings, name)) for name in ("standardise", "skip_first")}
    # Both read the same features, which is what takes the time.
    read = {
        "held_out": settings.get("held_out", ProbeSettings.held_out),
        "seed": recipe.seed,
        "max_tokens": FITTED_TOKENS,
        "skip_first": fit["skip_first"],
    }
    data = read_data(model, texts, labels, batch_size=64, batch_tokens=4096, standardise=fit["standardise"], **read)
    sweep = sweep_of(model, data, settings["sweep"], seed=recipe.seed, masked=False)
    probe = probe_of(model, data, settings["l2"], read)
    interval = bootstrap_auc(truth, probe_scores(probe, model, unseen).numpy(), seed=recipe.seed)
    extra = {"unseen_auc": interval.value, "unseen_low": interval.low, "unseen_high": interval.high, "unseen": len(unseen)}
    scores = word_scores(model, texts, labels, unseen, max_tokens=probe.settings["max_tokens"], seed=recipe.seed)
    extra["unseen_words_auc"] = auc(np.array(truth), scores)
    folder = save_probe(replace(probe, metrics={**probe.metrics, **extra}), recipe.folder("probe"))
    sweep.to_csv(folder / "l2.csv", index=False)
    return folder


def word_scores(
    model: Model, texts: Sequence[str], labels: Sequence[int], others: Sequence[str], *, max_tokens: int | None = None, seed: int = 0
) -> np.ndarray:
    """Toxicity scores of the other texts by a linear classifier on the tokens that a probe would read, fitted on all labelled texts.

    See `interp.directions.probe_metrics.bag_scores`; a probe is fitted on a part of them.
    """
    read, unread = (token_rows(model, list(some), max_tokens=max_tokens) for some in (texts, others))
    return bag_scores(read, list(labels), unread, model.d_vocab, seed)
