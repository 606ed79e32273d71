"""The rules of C-E2, C-E3 and C-E7 on runs whose verdict is known, in both directions and at their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.elasticity.c_e3_return import BEST, GROWS
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.courses import course_of, ratio_values
from interp.experiments.elasticity.rebound_rules import C_E2, C_E3, back, judge, judge_rebound, rebound
from interp.experiments.elasticity.rebound_words import FASTER, RETURNED, TEXT, finding_of
from interp.experiments.elasticity.tables import doses_table, return_table
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS
from tests import ROOT

DOSES, GROWTH = (48, 104, 200, 400), (0.4, 0.6, 0.8, 1.0)
# By how much four seeds differ, and openings and texts within a seed.
NOISE, WITHIN = (-0.03, -0.01, 0.01, 0.03), (-0.2, 0.0, 0.2)
BASE, GAPS, KLS = 0.5, {200: 1.0, 1000: 1.5}, {200: 0.1, 1000: 0.17}
BITS = dict.fromkeys(("positive", "negative", "neutral", "pretraining"), 2.0)


def row(seed: int, first: str, n: int, arm: str, dose: int, moved: float, kl: float) -> dict[str, Any]:
    sign = 1 if first == "positive" else -1
    return {
        "seed": seed, "first": first, "n": n, "arm": arm, "dose": dose, "score": [BASE + sign * moved + within for within in WITHIN],
        "kl_base": [kl * (1 + within) for within in WITHIN], "kl_base_neutral": kl,
        "kl_tuned": None if arm == "tuning" else kl / 2, "bits": BITS,
    }  # fmt: skip


def review_record(
    opposite: tuple[float, float] = (0.6, 1.0), neutral: tuple[float, float] = (0.3, 0.3), returned: tuple[float, float] = (0.5, 0.8), *,
    gaps: dict[int, float] = GAPS, kls: dict[int, float] = KLS, noise: tuple[float, ...] = NOISE, base: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Runs that undo these shares at the last dose (after few and many reviews), and take these shares of the KL back, both ways round."""
    rows = []
    for first in ("positive", "negative"):
        for seed, own in enumerate(noise):
            for place, (n, gap) in enumerate(gaps.items()):
                kl = kls[n] * (1 + own)
                rows.append(row(seed, first, 0, "tuning", n, gap + own, kl))
                for arm, shares in (("opposite", opposite), ("neutral", neutral)):
                    for dose, growth in zip(DOSES, GROWTH, strict=True):
                        moved = gap + own - (gap + own / 2) * shares[place] * growth
                        rows.append(row(seed, first, n, arm, dose, moved, kl * (1 - returned[place] * growth * (1 + own))))
    base_row = {"score": [BASE + within for within in WITHIN]}
    return {"base": base, "settings": {"doses": list(DOSES)}, "base_row": base_row, "rows": rows}


@pytest.mark.parametrize("first", ["positive", "negative"])
@pytest.mark.parametrize(
    ("known", "verdict", "answers"),
    [
        ({}, "holds", ("yes", "yes", "yes")),
        # A new objective: the behaviour comes back and the KL rises.
        ({"returned": (-0.4, -0.2)}, "fails", ("yes", "yes", "no")),
        # Any training does it.
        ({"neutral": (0.7, 1.1)}, "fails", ("yes", "no", "yes")),
        # The more reviews, the slower.
        ({"opposite": (1.0, 0.8)}, "fails", ("no", "yes", "yes")),
        ({"opposite": (0.8, 0.8)}, "inconclusive", ("open", "yes", "yes")),
        ({"returned": (0.0, 0.0)}, "inconclusive", ("yes", "yes", "open")),
    ],
)
def test_a_rebound_is_judged_by_speed_by_the_text_and_by_the_distribution(
    first: str, known: dict[str, Any], verdict: str, answers: tuple[str, ...]
) -> None:
    numbers = rebound(review_record(**known), first)
    assert judge_rebound(numbers, C_E2["seeds"]) == verdict
    assert tuple(part.answer for part in numbers.parts) == answers


def test_the_numbers_are_the_shares_that_were_planted() -> None:
    record = review_record(noise=(0.0, 0.0, 0.0, 0.0))
    numbers = rebound(record, "positive")
    assert numbers.faster.mean.value == pytest.approx((1.0 - 0.6) * np.mean(GROWTH))
    assert numbers.text.mean.value == pytest.approx((0.3 + 0.7) / 2)
    assert numbers.returned.mean.value == pytest.approx((0.5 + 0.8) / 2)
    assert numbers.gaps[1000].value == pytest.approx(1.5)
    measured = back(record)
    assert measured.grows.mean.value == pytest.approx(0.07)
    assert measured.best.mean.value == pytest.approx(0.65)
    assert measured.sooner.mean.value == pytest.approx(0.3 * np.mean(GROWTH))
    course = course_of(record, "negative", 200, "neutral")
    assert course is not None
    assert course.decline[0] == pytest.approx([0.3 * growth for growth in GROWTH])


@pytest.mark.parametrize(
    ("known", "verdict", "answers"),
    [
        ({}, "holds", ("yes", "yes", "yes")),
        # A dip by a fifth is no return, and no dose that was measured is one.
        ({"returned": (0.1, 0.2)}, "fails", ("yes", "no", "yes")),
        ({"returned": (0.9, 0.7)}, "fails", ("yes", "yes", "no")),
        ({"kls": {200: 0.17, 1000: 0.1}}, "fails", ("no", "yes", "yes")),
        ({"returned": (0.8, 0.8)}, "inconclusive", ("yes", "yes", "open")),
    ],
)
def test_a_return_is_judged_by_the_kl_alone(known: dict[str, Any], verdict: str, answers: tuple[str, ...]) -> None:
    numbers = back(review_record(**known))
    assert tuple(part.answer for part in numbers.parts) == answers
    assert judge(numbers.parts, C_E3["seeds"]) == verdict


def test_the_best_dose_is_the_one_at_which_the_kl_is_lowest() -> None:
    record = review_record(returned=(0.6, 0.6), noise=(0.0, 0.0, 0.0))
    for item in record["rows"]:
        if item["arm"] == "opposite" and item["dose"] == 400:
            item["kl_base"] = [1.0, 1.0, 1.0]
    assert back(record).best.mean.value == pytest.approx(0.6 * 0.8)


def test_a_behaviour_that_is_not_there_decides_nothing() -> None:
    numbers = rebound(review_record(gaps={200: 0.02, 1000: 1.5}), "positive")
    assert not numbers.has_behaviour
    assert judge_rebound(numbers, C_E2["seeds"]) == "inconclusive"


def test_no_share_is_shown_of_a_behaviour_that_is_not_there() -> None:
    record = review_record(gaps={200: 0.02, 1000: 1.5})
    shares = doses_table(record, "positive").groupby("tuned on")["share undone"]
    assert shares.apply(lambda values: values.isna().all()).to_dict() == {"200 positive": True, "1000 positive": False}
    undone = return_table(record, "positive").query("until.str.contains('behaviour')")
    assert set(undone["tuned on"]) == {"1000 positive"}
    finding = finding_of(record, "positive", C_E2["seeds"])
    assert "no share of it is defined" in finding.summary
    assert np.isnan([finding.statistic[FASTER], finding.statistic[TEXT], *finding.interval[TEXT]]).all()
    assert np.isfinite(finding.statistic[RETURNED])


def test_too_few_seeds_are_inconclusive_and_runs_that_are_missing_are_asked_for() -> None:
    two = review_record(noise=NOISE[:2])
    assert judge_rebound(rebound(two, "positive"), C_E2["seeds"]) == "inconclusive"
    assert judge(back(two).parts, C_E3["seeds"]) == "inconclusive"
    record = review_record()
    # A seed that lacks a dose of one arm is left out of all.
    record["rows"] = [item for item in record["rows"] if (item["seed"], item["arm"], item["dose"]) != (0, "neutral", 400)]
    assert rebound(record, "positive").faster.mean.n == 3
    record["rows"] = [item for item in record["rows"] if item["arm"] != "neutral"]
    with pytest.raises(UserError, match="no seed with all runs that began with negative reviews"):
        rebound(record, "negative")


def test_linearised_values_have_the_ratio_as_their_mean_and_do_not_spread_where_the_ratio_does_not() -> None:
    gap = np.array([0.8, 1.0, 1.3])
    assert ratio_values(0.4 * gap, gap) == pytest.approx([0.4, 0.4, 0.4])
    values = ratio_values(np.array([0.3, 0.5, 0.6]), gap)
    assert values.mean() == pytest.approx(1.4 / 3.1)


@pytest.fixture
def context(gpt2: Model, tmp_path: Path) -> ElasticityContext:
    write_json(tmp_path / "elasticity.json", review_record(base=gpt2.digest, returned=(-0.4, -0.2)))
    return ElasticityContext(ModelPair(gpt2, gpt2), tmp_path)


@pytest.mark.parametrize("id", ["C-E2", "C-E3", "C-E7"])
def test_an_experiment_gives_its_verdict_with_a_null_and_an_interval_for_each_number(context: ElasticityContext, id: str) -> None:
    result = run_experiment(EXPERIMENTS[id], context)
    assert result.verdict == "fails"
    assert result.statistic.keys() == result.null.keys() == result.interval.keys()
    assert all(low <= result.statistic[name] <= high for name, (low, high) in result.interval.items())
    assert result.figures
    assert not any(table.empty for table in result.tables.values())


def test_a_new_objective_is_told_from_a_return(context: ElasticityContext) -> None:
    result = run_experiment(EXPERIMENTS["C-E2"], context)
    assert "the KL to the base rises" in result.sentence
    assert result.statistic[RETURNED] == pytest.approx(-0.3, abs=0.02)
    assert result.statistic[TEXT] > 0
    assert result.statistic[FASTER] > 0
    table = result.tables["by dose"].set_index(["tuned on", "then", "texts"])
    assert table.loc[("1000 positive", "opposite reviews", 400), "share undone"] == pytest.approx(1, abs=0.02)
    assert table.loc[("200 positive", "encyclopedic text", 400), "taken back of KL"] == pytest.approx(-0.4, abs=0.02)


def test_return_doses_are_censored_where_they_are_not_reached(context: ElasticityContext, gpt2: Model, tmp_path: Path) -> None:
    result = run_experiment(EXPERIMENTS["C-E3"], context)
    assert result.statistic[BEST] < 0
    assert result.statistic[GROWS] == pytest.approx(0.07, abs=0.01)
    doses = result.tables["texts to return"].set_index(["tuned on", "then", "until"])["texts"]
    assert doses[("200 positive", "opposite reviews", "KL to the base below 0.01")] == "> 400"
    assert doses[("1000 positive", "opposite reviews", "50% of the behaviour undone")] not in ("> 400", "≤ 48")
    assert doses[("200 positive", "encyclopedic text", "50% of the behaviour undone")] == "> 400"
    assert "KL below 0.01 takes > 400 and > 400 of them" in result.sentence
    returned = review_record(base=gpt2.digest, returned=(0.98, 0.98))
    write_json(tmp_path / "elasticity.json", returned)
    doses = run_experiment(EXPERIMENTS["C-E3"], context).tables["texts to return"].set_index(["tuned on", "then", "until"])["texts"]
    assert doses[("200 positive", "opposite reviews", "KL to the base below 0.01")] != "> 400"


def test_a_study_of_another_base_is_not_read(context: ElasticityContext, tmp_path: Path) -> None:
    write_json(tmp_path / "elasticity.json", review_record(base="another"))
    with pytest.raises(UserError, match="no study of tuning on reviews of this base model") as error:
        EXPERIMENTS["C-E2"].run(context)
    assert "training.studies.elasticity reviews" in error.value.fix


def test_the_runs_that_ship_give_the_verdicts_and_the_numbers_of_the_documents() -> None:
    context = ElasticityContext(ModelPair.bundled(), BUNDLED_LOGS)
    every = " ".join((ROOT / "docs/elasticity.md").read_text(encoding="utf-8").split())
    first = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    for name, numbers in {
        "C-E2": ((RETURNED, 2, first), (TEXT, 2, ""), (FASTER, 2, "")),
        "C-E3": ((BEST, 2, first), (GROWS, 3, "")),
    }.items():
        result = EXPERIMENTS[name].run(context)
        assert result.verdict == "fails"
        assert f"({name}) | fails" in first
        for number, digits, page in numbers:
            value, low, high = (f"{end:.{digits}f}".replace("-", "\u2212") for end in (result.statistic[number], *result.interval[number]))
            assert f"{value} ({low} to {high})" in every
            assert f"{value} ({low} to {high})" in (page or every)


def test_the_swapped_runs_that_ship_decide_nothing_and_posts_as_in_pretraining_take_kl_back() -> None:
    context = ElasticityContext(ModelPair.bundled(), BUNDLED_LOGS)
    page = " ".join((ROOT / "docs/elasticity.md").read_text(encoding="utf-8").split())
    swapped = EXPERIMENTS["C-E7"].run(context)
    assert swapped.verdict == "inconclusive"
    assert "(C-E7) | inconclusive" in " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    table = EXPERIMENTS["C-E2"].run(context).tables["by dose"]
    posts = table[(table["then"] == "posts, as in pretraining") & (table["texts"] == 400)]
    assert posts["seeds"].tolist() == [3, 3]
    for value, low, high in posts[["taken back of KL", "back low", "back high"]].to_numpy():
        assert low > 0
        assert f"{value:.2f} ({low:.2f} to {high:.2f})" in page
