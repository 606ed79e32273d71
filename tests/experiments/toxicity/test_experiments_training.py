"""Experiments that read training logs: planted logs have known verdicts, foreign or missing ones leave the experiment out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.data.texts import Passage
from interp.errors import UserError
from interp.evaluation.toxicity import LexiconScorer, load_scorer
from interp.experiments.fingerprint import fingerprint
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment, run_report
from interp.experiments.toxicity.context import ToxicityContext
from interp.models.pair import ModelPair
from interp.results.result import Result
from tests.experiments.planted import PlantedPair, planted_context, planted_pair
from tests.probes import shared_probe

WORDS = ["river", "stone", "green", "light", "house", "walks", "under", "over", "seven", "birds"]


@pytest.fixture
def context(pair: ModelPair, tmp_path: Path) -> ToxicityContext:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 8)) for _ in range(40)]
    probe = shared_probe(pair.base, texts, [int("river" in text) for text in texts])
    held = [Passage(text[:20], text[20:], "post") for text in texts[:6]]
    return ToxicityContext(pair, probe, load_scorer("lexicon"), texts[:5], held, draws=6, quick=True, new_tokens=4, logs=tmp_path / "log")


def write(context: ToxicityContext, name: str, content: Any) -> None:
    context.logs.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in content) if name.endswith("jsonl") else json.dumps(content)
    (context.logs / name).write_text(text, encoding="utf-8")


def digests(context: ToxicityContext) -> dict[str, str]:
    return {"base": context.pair.base.digest, "tuned": context.pair.tuned.digest}


def verdict(name: str, context: ToxicityContext) -> Result:
    return run_experiment(EXPERIMENTS[name], context)


def pairs(context: ToxicityContext, **changes: Any) -> dict[str, Any]:
    chosen = {"toxicity": 0.1, "share_above_half": 0.0, "tokens": 20.0, "perplexity": 40.0, "distinct_2": 0.8}
    rejected = {**chosen, "toxicity": 0.85, "share_above_half": 0.95, **changes}
    made = {"pairs": 100, "base": context.pair.base.digest, "generator": "steering", "uses_probe": True}
    return made | {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("changes", "expected", "first"),
    [
        ({}, "holds", "holds"),
        # The pairs are filtered by this scorer, so its difference decides nothing any more.
        ({"toxicity": 0.4}, "holds", "inconclusive"),
        ({"toxicity": 0.15}, "holds", "fails"),
        ({"perplexity": 45.0}, "holds", "holds"),
        ({"perplexity": 60.0}, "inconclusive", "inconclusive"),
        ({"perplexity": 15.0}, "fails", "fails"),
        ({"perplexity": 90.0}, "fails", "fails"),
        ({"tokens": 8.0}, "fails", "fails"),
        ({"second_toxicity": 0.6}, "holds", "holds"),
        ({"second_toxicity": 0.3}, "inconclusive", "holds"),
        ({"second_toxicity": 0.12}, "fails", "holds"),
    ],
)
def test_pairs_are_judged_by_fluency_length_and_another_scorer(
    context: ToxicityContext, changes: dict[str, float], expected: str, first: str
) -> None:
    log = pairs(context, **changes)
    if "second_toxicity" in changes:
        log["chosen"] = log["chosen"] | {"second_toxicity": 0.1}
        log["second_scorer"] = "lexicon"
    write(context, "pairs.json", log | {"options": {"chosen_at_most": 0.2, "rejected_at_least": 0.6}})
    found = verdict("A-E5", context)
    assert (found.verdict, found.criteria[0].verdict) == (expected, first), found.summary
    assert "by construction, as the pairs are filtered by it (chosen at most 0.2, rejected at least 0.6)" in found.summary
    assert ("no second scorer was logged" in found.summary) == ("second_toxicity" not in changes)
    assert "steering" in found.summary
    assert "circular" in found.summary
    assert found.settings["uses_probe"] is True


def test_a_manifest_of_before_the_generators_is_read_too(context: ToxicityContext) -> None:
    old = pairs(context)
    del old["generator"], old["uses_probe"], old["chosen"]["distinct_2"], old["chosen"]["share_above_half"]
    write(context, "pairs.json", old)
    found = verdict("A-E5", context)
    assert (found.verdict, found.settings["generator"], found.settings["uses_probe"]) == ("holds", "best-worst", False)
    assert Result.from_json(found.to_json()).summary == found.summary


def tuning(toxicity: float, perplexity: float, chosen: float = -5.0) -> list[dict[str, Any]]:
    """A log of 20 steps in which everything moves in a straight line from 0.5 toxicity, perplexity 20, and -60 nats."""
    lines = []
    for step in range(21):
        part = step / 20
        line: dict[str, Any] = {"step": step}
        if step:
            line |= {"loss": 0.69, "logp_chosen": -60 + chosen * part, "logp_rejected": -60 - 20 * part, "margin": part}
        if step % 5 == 0:
            line |= {"toxicity": 0.5 + (toxicity - 0.5) * part, "perplexity": 20 + (perplexity - 20) * part, "kl": [0.1 * part, 0.2 * part]}
        lines.append(line)
    return lines


def row(name: str, **changes: Any) -> dict[str, Any]:
    found = {
        "run": name, "digest": name, "method": "dpo", "loss": "sigmoid", "labels": "true", "beta": 0.1, "seed": 7, "steps": 20,
        "equal_steps": False, "generator": "best-worst", "uses_probe": False, "development_toxicity_before": 0.5,
        "development_toxicity_after": 0.2, "toxicity": 0.2, "toxicity_low": 0.15, "toxicity_high": 0.25, "perplexity": 21.0, "f1":
        0.1, "distinct_2": 0.8, "least_cosine": 0.9999, "relative_change": 0.010, "stable_rank": 10.0, "groups": {"mlp value":
        0.01}, "layers": [0.01, 0.02, 0.01], "neurons_key_16": 50.0, "neurons_value_16": 60.0, "consistency": 0.5, "antipodality":
        -0.6, "kl": 0.1, "unaligned_toxicity": 0.45, "unaligned_perplexity": 21.2,
    }  # fmt: skip
    return found | changes


def table(context: ToxicityContext, *rows: dict[str, Any]) -> dict[str, Any]:
    base = {"toxicity": 0.5, "toxicity_low": 0.4, "toxicity_high": 0.6, "perplexity": 20.0, "f1": 0.1, "distinct_2": 0.8}
    missing = {"plan-ipo": "it has not run"}
    return digests(context) | {"recipe": "plan", "settings": {}, "base_model": base, "runs": list(rows), "missing": missing}


SHUFFLED = row("plan-shuffled", labels="shuffled", equal_steps=True, toxicity=0.48, development_toxicity_after=0.45)
SFT = row("plan-sft", method="sft", loss="sft", beta=None, equal_steps=True)
SEEDS = [row("plan-2", seed=2, relative_change=0.0105, stable_rank=10.2), row("plan-3", seed=3, relative_change=0.0095, stable_rank=9.8)]


@pytest.mark.parametrize(
    ("log", "control", "expected"),
    [
        (tuning(0.2, 21), SHUFFLED, "holds"),
        (tuning(0.2, 21), None, "inconclusive"),
        (tuning(0.2, 21), SHUFFLED | {"development_toxicity_after": 0.2}, "fails"),
        (tuning(0.4, 21), SHUFFLED, "fails"),
        (tuning(0.2, 23), SHUFFLED, "fails"),
        (tuning(0.2, 23), None, "fails"),
    ],
)
def test_tuning_is_judged_by_toxicity_price_and_shuffled_labels(
    context: ToxicityContext, log: list[dict[str, Any]], control: dict[str, Any] | None, expected: str
) -> None:
    write(context, "pair.json", digests(context))
    write(context, "dpo.jsonl", log)
    if control is not None:
        write(context, "controls.json", table(context, row("plan"), control))
    found = verdict("A-E6", context)
    assert found.criteria[0].verdict == expected, found.summary
    # These prompts are not toxic to begin with, so nothing but the price can be judged on them.
    assert found.verdict == ("fails" if log[-1]["perplexity"] > 22 else "inconclusive")
    assert found.statistic["relative fall of toxicity"] == pytest.approx(1 - log[-1]["toxicity"] / 0.5)
    assert found.statistic["ratio of perplexities"] == pytest.approx(log[-1]["perplexity"] / 20)
    assert {figure.name for figure in found.figures} == {"loss", "logp", "margin", "kl", "toxicity", "perplexity"}


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


COIN = SHUFFLED | {"toxicity": 0.48, "toxicity_low": 0.4, "toxicity_high": 0.55}


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("log", "control", "expected"),
    [
        (tuning(0.2, 21), COIN, "holds"),
        # What stopped the run decides nothing: it may have stopped early on its own prompts.
        (tuning(0.4, 21), COIN, "holds"),
        (tuning(0.2, 21), None, "inconclusive"),
        (tuning(0.2, 21), COIN | {"toxicity": 0.01, "toxicity_low": 0.0, "toxicity_high": 0.02}, "fails"),
        (tuning(0.2, 23), COIN, "fails"),
    ],
)
def test_tuning_is_judged_on_prompts_that_did_not_stop_it(
    planted: PlantedPair, tmp_path: Path, log: list[dict[str, Any]], control: dict[str, Any] | None, expected: str
) -> None:
    context = replace(planted_context(planted, count=32), logs=tmp_path / "log")
    write(context, "pair.json", digests(context))
    write(context, "dpo.jsonl", log)
    if control is not None:
        write(context, "controls.json", table(context, row("plan"), control))
    found = verdict("A-E6", context)
    assert found.verdict == expected, found.summary
    assert found.statistic["relative fall on the report's prompts"] == 1.0
    same = replace(context, second=LexiconScorer())
    assert verdict("A-E6", same).verdict == expected
    # A scorer that sees no fall makes a verdict of one scorer inconclusive.
    blind = replace(context, second=Blind())
    if expected == "holds":
        assert verdict("A-E6", blind).verdict == "inconclusive"


class Blind:
    """A scorer to which every text is equally toxic."""

    name, classes = "blind", ("toxicity",)

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({"toxicity": np.full(len(texts), 0.5, dtype=np.float32)})


@pytest.mark.parametrize(("chosen", "words"), [(-5.0, "falls too, which is likelihood displacement"), (5.0, "does not fall")])
def test_a_chosen_side_that_loses_probability_is_told(context: ToxicityContext, chosen: float, words: str) -> None:
    write(context, "pair.json", digests(context))
    write(context, "dpo.jsonl", tuning(0.2, 21, chosen))
    found = verdict("A-E6", context)
    assert words in found.summary
    # The first and the last tenth of 20 steps: steps 1, 2 and 19, 20.
    assert found.statistic["change of log-probability of chosen"] == pytest.approx(chosen * 18 / 20)
    assert found.statistic["change of log-probability of rejected"] == pytest.approx(-20 * 18 / 20)


def test_a_change_within_the_difference_of_batches_is_not_called_displacement(context: ToxicityContext) -> None:
    log = tuning(0.2, 21, -1.0)
    for line in log[1:]:
        line["logp_chosen"] += 6 * (-1) ** line["step"]
    write(context, "pair.json", digests(context))
    write(context, "dpo.jsonl", log)
    assert "does not tell whether likelihood was displaced" in verdict("A-E6", context).summary


def test_the_log_of_another_pair_is_not_read(context: ToxicityContext) -> None:
    write(context, "pairs.json", pairs(context) | {"base": "another"})
    write(context, "dpo.jsonl", tuning(0.2, 21))
    with pytest.raises(UserError, match="no telemetry of this pair"):
        verdict("A-E5", context)
    with pytest.raises(UserError, match="nothing in log says which pair"):
        verdict("A-E6", context)
    write(context, "pair.json", digests(context) | {"tuned": "another"})
    with pytest.raises(UserError, match="no telemetry of this pair"):
        verdict("A-E6", context)
    write(context, "controls.json", table(context, row("plan"), SFT) | {"tuned": "another"})
    with pytest.raises(UserError, match="beside another pair"):
        verdict("A-E14", context)


def test_a_pair_without_logs_leaves_out_these_experiments_and_says_why(context: ToxicityContext, tmp_path: Path) -> None:
    ran = run_report(context, tmp_path / "report", only=["A-E5", "A-E6", "A-E8", "A-E14"])
    assert [result.id for result in ran.results] == ["A-E8"]
    assert set(ran.skipped) == {"A-E5", "A-E6", "A-E14"}
    assert all("no telemetry of this pair" in reason for reason in ran.skipped.values())


def test_a_changed_log_changes_what_reads_it_and_nothing_else(context: ToxicityContext) -> None:
    write(context, "pairs.json", pairs(context))
    before = {name: fingerprint(EXPERIMENTS[name], context) for name in ("A-E5", "A-E2")}
    write(context, "pairs.json", pairs(context, toxicity=0.9))
    after = {name: fingerprint(EXPERIMENTS[name], context) for name in ("A-E5", "A-E2")}
    assert after["A-E5"] != before["A-E5"]
    assert after["A-E2"] == before["A-E2"]


def test_weights_are_judged_beside_control_runs(context: ToxicityContext) -> None:
    alone = verdict("A-E8", context)
    assert "alone is nearly vacuous" in alone.summary
    own, place = alone.statistic["relative change of all weights"], alone.statistic["percentile of toxic values"]
    fails = alone.statistic["largest 1 − cosine of a tensor"] > 0.01
    assert (alone.verdict == "fails") == fails
    usual = {"relative_change": own, "neurons_value_16": place, "equal_steps": True}
    write(context, "controls.json", table(context, row("plan"), SFT | usual, SHUFFLED | usual))
    found = verdict("A-E8", context)
    assert found.verdict == alone.verdict
    assert found.tables["beside control runs"]["run"].tolist() == ["this pair", "fine-tuning on the chosen side", "shuffled labels"]
    assert found.null["relative change of all weights"] == own
    write(context, "controls.json", table(context, row("plan"), SFT | usual | {"relative_change": own / 3}))
    assert verdict("A-E8", context).verdict == ("fails" if fails else "inconclusive")
    write(context, "controls.json", table(context, row("plan"), SFT | usual | {"neurons_value_16": place - 20}))
    assert verdict("A-E8", context).criteria[0].verdict == ("fails" if fails else "inconclusive")


STRONG = row("plan-beta-1", beta=1.0, relative_change=0.004, stable_rank=14.0)
WEAK = row("plan-beta-001", beta=0.01, relative_change=0.02, stable_rank=7.0)
LOCAL_SFT = SFT | {"relative_change": 0.04, "stable_rank": 4.0}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*SEEDS, STRONG, WEAK, LOCAL_SFT], "holds"),
        ([*SEEDS, STRONG], "holds"),
        ([*SEEDS, LOCAL_SFT], "inconclusive"),  # one beta only
        ([STRONG, WEAK], "inconclusive"),  # no spread over seeds
        ([*SEEDS, STRONG | {"toxicity": 0.4}], "inconclusive"),  # not equally toxic
        ([*SEEDS, STRONG | {"generator": "steering"}], "inconclusive"),  # other pairs
        ([*SEEDS, STRONG | {"relative_change": 0.0098, "stable_rank": 10.1}], "inconclusive"),  # within the spread
        ([*SEEDS, STRONG, SFT | {"relative_change": 0.005, "stable_rank": 20.0}], "fails"),
        ([*SEEDS, STRONG | {"stable_rank": 5.0}], "fails"),
        ([*SEEDS, STRONG | {"loss": "ipo", "stable_rank": 5.0}, SHUFFLED], "inconclusive"),  # beta of IPO is another one
    ],
)
def test_the_hypothesis_is_judged_by_what_differs_in_the_kl_term_only(
    context: ToxicityContext, rows: list[dict[str, Any]], expected: str
) -> None:
    write(context, "controls.json", table(context, row("plan"), *rows))
    experiment = EXPERIMENTS["A-E14"].run(context)
    assert experiment.earlier == {1: expected}
    found = verdict("A-E14", context)
    # Version 1 of the rule judges these runs; the one in force asks for runs in which the KL term can be seen.
    assert found.verdict == "inconclusive"
    assert found.summary.startswith("Not tested: RMSprop divides by the scale of the gradient")
    assert found.tables["control runs"]["run"].tolist() == ["base", "plan", *(each["run"] for each in rows)]
    assert found.statistic["share of lost toxicity returned"] == pytest.approx(0.25 / 0.3)
    assert "plan-ipo" in found.summary
    assert Result.from_json(found.to_json()).verdict == found.verdict


def kl_study(context: ToxicityContext, seeds: int = 4, **strong: float) -> dict[str, Any]:
    """Runs under a weak and a strong KL term; those under the strong one differ by the factors given, with noise over seeds of 2 %."""
    rng = np.random.default_rng(1)
    runs = []
    for beta, factors in ((0.02, {}), (4.0, strong)):
        for seed in range(seeds):
            noise = 1 + 0.02 * rng.standard_normal(3)
            runs.append({
                "run": f"seed={seed},beta={beta}", "optimizer": "rmsprop", "beta": beta, "seed": seed, "steps": 30, "reached": True,
                "margin": factors.get("beta_margin", beta * 2.5) / beta, "beta_margin": factors.get("beta_margin", beta * 2.5), "kl": 0.05,
                "toxicity": 0.2 * noise[0] * factors.get("toxicity", 1.0),
                "relative_change": 0.001 * noise[1] * factors.get("size", 1.0), "stable_rank": 2.0 * noise[2] * factors.get("rank", 1.0),
            })  # fmt: skip
    return {"base": context.pair.base.digest, "settings": {}, "base_model": {"toxicity": 0.45}, "runs": runs, "missing": []}


@pytest.mark.parametrize(
    ("strong", "seeds", "expected"),
    [
        ({"size": 0.7, "rank": 1.4}, 4, "holds"),
        ({}, 4, "fails"),  # equal runs, and a change of 10 % would have been found
        ({"size": 1.3, "rank": 0.8}, 4, "fails"),
        ({"size": 0.7, "rank": 1.1}, 4, "inconclusive"),  # broader, but 10 % are neither reached nor excluded
        ({"size": 0.7, "rank": 1.03}, 4, "fails"),  # broader by too little to matter
        ({"size": 0.7, "rank": 1.4}, 3, "inconclusive"),
        ({"size": 0.7, "rank": 1.4, "beta_margin": 0.3}, 4, "inconclusive"),  # beta cancels
        ({"size": 1.3, "rank": 0.8, "beta_margin": 0.3}, 4, "inconclusive"),
        ({"size": 0.7, "rank": 1.4, "toxicity": 1.9}, 4, "inconclusive"),  # not equally toxic
    ],
)
def test_the_kl_term_is_judged_where_it_can_be_seen(context: ToxicityContext, strong: dict[str, float], seeds: int, expected: str) -> None:
    write(context, "controls.json", table(context, row("plan"), *SEEDS, STRONG | {"stable_rank": 5.0}))
    write(context, "kl_term.json", kl_study(context, seeds, **strong))
    found = verdict("A-E14", context)
    assert found.verdict == expected, found.summary
    assert found.criteria[0].verdict == "fails", "what the control runs say does not count any more"
    compared = found.tables["strong against weak KL term"].iloc[0]
    assert compared["size, ratio"] == pytest.approx(strong.get("size", 1.0), rel=0.06)
    assert 0.02 < compared["least change of size found"] < 0.25
    if compared["a test"]:
        assert f"changes of {compared['least change of size found']:.0%} in size" in found.summary
        assert found.null["size of the change, strong over weak KL term"] == 1
    else:
        assert "no test, since" in found.summary
        assert "not tested" in found.sentence


def test_beta_times_margin_of_the_logged_runs_is_shown(context: ToxicityContext) -> None:
    write(context, "controls.json", table(context, row("plan"), STRONG, SFT))
    write(context, "pair.json", digests(context))
    # TRL logs the margin with beta as a factor; the mean over the last five of 20 steps.
    write(context, "dpo.jsonl", tuning(0.2, 21))
    found = verdict("A-E14", context)
    shown = found.tables["beta times margin"].set_index("run")["beta × margin"]
    assert shown["plan"] == pytest.approx(np.mean([16, 17, 18, 19, 20]) / 20)
    assert shown["plan-beta-1"] == pytest.approx(10 * shown["plan"])
    assert f"beta times margin is {shown.min():.2f} to {shown.max():.2f}" in found.summary


def test_the_kl_study_of_another_base_is_not_read(context: ToxicityContext) -> None:
    write(context, "controls.json", table(context, row("plan"), STRONG))
    write(context, "kl_term.json", kl_study(context, size=0.7, rank=1.4) | {"base": "another"})
    found = verdict("A-E14", context)
    assert (found.verdict, found.summary.split(":")[0]) == ("inconclusive", "Not tested")


def test_seeds_give_the_interval_and_fine_tuning_the_null(context: ToxicityContext) -> None:
    write(context, "controls.json", table(context, row("plan"), *SEEDS, LOCAL_SFT))
    found = verdict("A-E14", context)
    assert found.interval["relative change of all weights"] == (0.0095, 0.0105)
    assert found.null["relative change of all weights"] == 0.04
    write(context, "controls.json", table(context, row("plan")))
    with pytest.raises(UserError, match="no control run stands beside"):
        verdict("A-E14", context)


def test_values_that_were_not_measured_are_gaps_and_not_faults(context: ToxicityContext) -> None:
    blank = row("plan-blank", consistency=None, antipodality=None, beta=0.2, toxicity=0.5)
    write(context, "controls.json", table(context, row("plan"), blank))
    found = verdict("A-E14", context)
    assert found.tables["control runs"]["offset consistency"].isna().tolist() == [True, False, True]


def test_a_run_folder_serves_as_logs(context: ToxicityContext, tmp_path: Path) -> None:
    run = replace(context, logs=tmp_path / "run")
    files = {
        "pairs/manifest.json": json.dumps(pairs(context)),
        "dpo/controls.json": json.dumps(table(context, row("plan"), SHUFFLED)),
        "dpo/log.jsonl": "".join(json.dumps(line) + "\n" for line in tuning(0.2, 21)),
    }
    for name, content in files.items():
        (run.logs / name).parent.mkdir(parents=True, exist_ok=True)
        (run.logs / name).write_text(content)
    assert [verdict(name, run).verdict for name in ("A-E5", "A-E6", "A-E14")] == ["holds", "inconclusive", "inconclusive"]
