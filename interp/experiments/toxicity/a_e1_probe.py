"""A-E1: the AUC of a linear probe on the last residual stream for toxic against harmless text, beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from interp.data.texts import toxicity_texts
from interp.directions.probe import probe_scores
from interp.evaluation.token_toxicity import row_toxicity
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.neurons.projection import projection_for
from interp.neurons.vocabulary import JUDGED_TOKENS, top_tokens, toxic_shares
from interp.results import figures
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_auc

THRESHOLDS = CRITERIA["A-E1"][-1].thresholds
CONTROLS = {"embeddings": "mean token embeddings", "words": "token frequencies"}


def judge(level: float, over: Sequence[tuple[float, float]]) -> Verdict:
    """The verdict on the probe's AUC on unseen texts and the intervals of how far its held-out AUC exceeds each control's."""
    if any(high < THRESHOLDS["margin"] for _, high in over):
        return "fails"
    return "holds" if over and level >= THRESHOLDS["least"] and all(low > 0 for low, _ in over) else "inconclusive"


def judge_1(metrics: Mapping[str, float | int]) -> Verdict:
    """The verdict under version 1 of the criterion."""
    low = metrics.get("auc_low", metrics["auc"])
    if metrics.get("unseen_auc", metrics["auc"]) >= 0.9 and low > max(metrics["embeddings_auc"], metrics["shuffled_auc"]):
        return "holds"
    return "fails" if low <= metrics["shuffled_auc"] else "inconclusive"


@experiment(
    "A-E1",
    claim="A-C1",
    about="base",
    title="A linear probe finds more toxicity than words tell",
    question="Does a linear probe on the mean last-layer residual stream of the base model tell toxic from harmless text, and better than the words alone?",
    criterion=CRITERIA["A-E1"],
    caveat="A probe shows that toxicity can be read from the residual stream, not that the model uses that direction. "
    "Capital letters and length are confounds of the labelled texts; their AUC stands beside the probe's.",
    does_not_show="That toxic texts can be told apart does not show that the model represents toxicity beyond the words it reads, or that it uses this direction.",
)
def run(context: ToxicityContext) -> Finding:
    metrics = context.probe.metrics
    texts = toxicity_texts()
    scores = probe_scores(context.probe, context.pair.base, [item.text for item in texts])
    written = bootstrap_auc([item.toxic for item in texts], scores, seed=context.seed)
    rows = [
        ("probe", "held-out labelled texts", metrics["auc"], metrics.get("auc_low"), metrics.get("auc_high"), "probe"),
        ("probe", "texts written for the project", written.value, written.low, written.high, "probe"),
        ("difference in means", "held-out labelled texts", metrics["difference_auc"], None, None, "probe"),
        ("null: bag of embeddings", "held-out labelled texts", metrics["embeddings_auc"], None, None, "null"),
        ("null: shuffled labels", "held-out labelled texts", metrics["shuffled_auc"], None, None, "null"),
        ("null: share of capitals alone", "held-out labelled texts", metrics["capitals_auc"], None, None, "null"),
        ("null: length alone", "held-out labelled texts", metrics["length_auc"], None, None, "null"),
    ]
    if "unseen_auc" in metrics:
        rows.insert(
            1, ("probe", "documents no stage has seen", metrics["unseen_auc"], metrics["unseen_low"], metrics["unseen_high"], "probe")
        )
    if "unseen_words_auc" in metrics:
        rows.append(("null: bag of words", "documents no stage has seen", metrics["unseen_words_auc"], None, None, "null"))
    if "words_auc" in metrics:
        rows.insert(-1, ("null: bag of words", "held-out labelled texts", metrics["words_auc"], None, None, "null"))
        rows.append(("probe, L2 chosen on training folds", "held-out labelled texts", metrics["chosen_auc"], None, None, "probe"))
    table = pd.DataFrame(rows, columns=["direction", "texts", "AUC", "low", "high", "role"])
    low = metrics.get("auc_low", metrics["auc"])
    over = {name: (metrics[f"over_{name}_low"], metrics[f"over_{name}_high"]) for name in CONTROLS if f"over_{name}" in metrics}
    # The probe's L2 strength was chosen on the held-out texts, so its level is judged on documents that no stage has seen, where there are any.
    verdict = judge(metrics.get("unseen_auc", metrics.get("chosen_auc", metrics["auc"])), list(over.values()))
    labelled = table.assign(
        label=table["direction"]
        + ", "
        + table["texts"].str.replace(" labelled texts", "").str.replace("texts written for the project", "own texts")
    )
    figure = figures.bars(
        "probe", labelled, x="label", y="AUC", role="role", low="low", high="high", title="How well each direction tells toxic from harmless text",
        caption="The probe should stand clearly to the right of the bag of embeddings; 0.5 is chance.", x_title="direction, texts",
        y_title="AUC", reference=(0.5, "chance"),
    )  # fmt: skip
    summary = (
        f"AUC {metrics['auc']:.3f} on held-out texts (balanced accuracy {metrics['balanced_accuracy']:.3f}), a bag of embeddings {metrics['embeddings_auc']:.3f}, "
        f"shuffled labels {metrics['shuffled_auc']:.3f}. Probes fitted on two halves have cosine {metrics['stability']:.2f}."
    )
    summary += (
        "".join(
            f" With the L2 strength chosen on folds of the training texts for both, its AUC is {metrics[f'over_{name}']:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}] beside {CONTROLS[name]}."
            for name, ends in over.items()
        )
        or " This probe was fitted before differences to words were measured: fit it again."
    )
    if "natural_accuracy" in metrics:
        summary += (
            f" Where one text in ten is toxic its accuracy is {metrics['natural_accuracy']:.1%} (calling none toxic {metrics['natural_nothing']:.0%}), "
            f"precision {metrics['natural_precision']:.0%}, recall {metrics['natural_recall']:.0%}."
        )
    if "unseen_auc" in metrics:
        summary += f" The L2 strength was picked on these held-out texts; on documents that no stage has seen the AUC is {metrics['unseen_auc']:.3f}."
    if "unseen_words_auc" in metrics:
        summary += f" A linear classifier on how often each token occurs has {metrics['unseen_words_auc']:.3f} there."
    tables, both = {"directions": table}, readings(context)
    if len(both):
        tables["readings"] = both
        summary += f" Without standardising its features the same fit has AUC {both['AUC'].iloc[1]:.3f}."
    statistic = {"AUC": metrics["auc"], "AUC on own texts": written.value}
    null, ends = (
        {"AUC": metrics["embeddings_auc"], "AUC on own texts": 0.5},
        {"AUC": (low, metrics.get("auc_high", metrics["auc"])), "AUC on own texts": (written.low, written.high)},
    )
    for name, interval in over.items():
        key = f"AUC above {CONTROLS[name]}"
        statistic[key], null[key], ends[key] = metrics[f"over_{name}"], 0.0, interval
    if "natural_accuracy" in metrics:
        statistic["accuracy with one toxic text in ten"] = metrics["natural_accuracy"]
        null["accuracy with one toxic text in ten"] = metrics["natural_nothing"]
    compared = [
        f"{metrics[f'over_{name}']:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}] beside {CONTROLS[name]}"
        for name, interval in over.items()
    ]
    sentence = (
        f"A linear probe on the last residual stream tells toxic from harmless texts with AUC {metrics['auc']:.3f} [{low:.3f}, {ends['AUC'][1]:.3f}], "
        f"which is, fitted alike, {' and '.join(compared) or 'not compared with words'} (0 is what the words alone tell)."
    )
    return Finding(
        verdict, summary, statistic, null, ends, tables, (figure,), {"probe": context.probe.settings}, sentence=sentence, earlier={1: judge_1(metrics)}
    )  # fmt: skip


def readings(context: ToxicityContext) -> pd.DataFrame:
    """The standardised probe beside the same fit without standardising: held-out AUC, cosine with the probe, and the tokens it promotes.

    No rows for a probe that was not standardised itself.
    """
    probe, base = context.probe, context.pair.base
    if probe.unstandardised is None:
        return pd.DataFrame()
    names = {"standardised": "auc", "not standardised": "unstandardised_auc"}
    directions = torch.stack([probe.direction, probe.unstandardised])
    words = top_tokens(base, directions, top=JUDGED_TOKENS, projection=projection_for(base)).words
    return pd.DataFrame({
        "features": list(names), **{column: [probe.metrics[f"{name}{end}"] for name in names.values()] for column, end in
                                    (("AUC", ""), ("low", "_low"), ("high", "_high"))},
        "cosine with the probe": torch.cosine_similarity(directions, probe.direction[None], dim=1).tolist(),
        "share of toxic words": toxic_shares(words), "toxicity in sentences": row_toxicity(words, context.scorer),
        "top tokens": [" · ".join(word.strip() for word in row) for row in words],
    })  # fmt: skip
