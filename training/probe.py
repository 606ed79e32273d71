"""Stage `probe`: the linear probe that ships, fitted on the pretrained model with labelled texts.

The language model read part of these texts (without their labels), so beside the metrics of `fit_probe` stands the AUC
on documents that are held out by hash and that neither the model nor the probe has ever seen.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from interp.models import load_model
from interp.probe import fit_probe, probe_scores, save_probe, sweep_l2
from interp.stats import bootstrap_auc
from training.recipe import Recipe, data_file
from training.sources import held_out, rows


def train_probe(recipe: Recipe) -> Path:
    """Fit on the recipe's labelled texts and write `probe/`, with a table of L2 strengths beside it; return the folder."""
    settings = recipe.stage("probe")
    model = load_model(recipe.run / "pretrain" / "model", name="base")
    seen: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    for path in data_file(settings["path"]):
        for row in rows(path):
            text = str(row["text"]).strip()
            if len(text) >= settings["min_characters"]:
                seen[held_out(text)].append((text, int(row["toxic"])))
    texts, labels = map(list, zip(*seen[False][: settings["texts"]], strict=True))
    unseen, truth = map(list, zip(*seen[True], strict=True))
    sweep = sweep_l2(model, texts, labels, settings["sweep"], seed=recipe.seed, masked=False)
    probe = fit_probe(model, texts, labels, l2=settings["l2"], seed=recipe.seed)
    found = bootstrap_auc(truth, probe_scores(probe, model, unseen).numpy(), seed=recipe.seed)
    extra = {"unseen_auc": found.value, "unseen_low": found.low, "unseen_high": found.high, "unseen": len(unseen)}
    folder = save_probe(replace(probe, metrics={**probe.metrics, **extra}), recipe.run / "probe")
    sweep.to_csv(folder / "l2.csv", index=False)
    return folder
