"""Un-aligning and amplifying told apart: the rule on planted scores, and the experiments on a pair whose keys only amplify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.experiments.toxicity import a_e12_unalign, unaligning, w_e2_retoxify, x_u1_selective
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.unaligning import FREQUENCY, SELECTIVITY, Evidence, amplifies, conclusion, readings, verdict_of
from interp.results.result import Verdict
from interp.stats.differences import Cells
from tests.experiments.planted import amplified_pair, planted_context, planted_pair, prompts

LOST = 0.25
LEAST = a_e12_unalign.THRESHOLDS["amplified"]


def evidence(
    in_base: float, in_tuned: float, *, lost: float = LOST, random: tuple[float, float] = (0.0, 0.0), ratio: float = 1.002,
    kinds: Sequence[str] = (FREQUENCY, SELECTIVITY),
) -> Evidence:  # fmt: skip
    """What an edit that changes both models by exactly so much on average gives; a share of the loss has an interval of about ± 0.28."""
    rng = np.random.default_rng(4)

    def noise(spread: float) -> np.ndarray:
        drawn = rng.normal(size=100)
        return spread * (drawn - drawn.mean()) / drawn.std()

    base = 0.5 + noise(0.1)
    tuned = base - lost
    controls = {
        kind: [Cells(base, tuned, base + random[0] + noise(0.1), tuned + random[1] + noise(0.1)) for _ in range(4)] for kind in kinds
    }
    cells = Cells(base, tuned, base + in_base + noise(0.25), tuned + in_tuned + noise(0.25))
    return Evidence(cells, cells, controls, ratio)


@pytest.mark.oracle
@pytest.mark.parametrize("rule", [a_e12_unalign.judge, x_u1_selective.judge])
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (evidence(0.0, LOST), "holds"),
        (evidence(LOST, LOST), "fails"),  # the base model rises as much
        (evidence(0.0, 0.0), "fails"),  # nothing comes back
        (evidence(0.0, LOST, random=(0.0, 0.27)), "fails"),  # random keys return no less
        (evidence(0.0, LOST, random=(0.0, 0.24)), "inconclusive"),  # or hardly less
        (evidence(0.15, LOST), "inconclusive"),  # 40 % comes back beyond the base, and the interval reaches above half
        (evidence(0.0, LOST, ratio=1.015), "inconclusive"),  # the price of X-U1's keys on the bundled pair
        (evidence(0.0, LOST, ratio=0.98), "inconclusive"),
        (evidence(0.0, 0.17), "inconclusive"),  # less than 80 % comes back
    ],
)
def test_keys_un_align_only_by_what_the_base_model_does_not_rise(rule: unaligning.Judge, case: Evidence, expected: Verdict) -> None:
    assert rule(case) == expected


@pytest.mark.oracle
def test_version_1_held_where_keys_only_amplify() -> None:
    """The referee's first objection: all of the lost toxicity comes back, and the base model rises as much."""
    amplified = evidence(LOST, LOST)
    assert x_u1_selective.judge_1(amplified) == "holds"
    assert a_e12_unalign.judge_1(1.0, 1.01, 1.0, [0.0, 0.1]) == "holds"
    assert x_u1_selective.judge(amplified) == "fails"
    assert amplifies(amplified, LEAST) == "yes"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (evidence(LOST, LOST), "yes"),
        (evidence(LOST, LOST, random=(0.24, 0.0)), "unclear"),  # random keys raise the base model as well
        (evidence(-0.1, LOST), "no"),
        (evidence(0.04, LOST), "unclear"),
    ],
)
def test_amplifying_is_a_rise_of_the_base_model_beyond_random_keys(case: Evidence, expected: str) -> None:
    assert amplifies(case, LEAST) == expected


def test_where_nothing_was_lost_nothing_is_decided() -> None:
    assert x_u1_selective.judge(evidence(0.0, 0.3, lost=0.0)) == "inconclusive"
    assert x_u1_selective.judge(evidence(0.0, 0.3, lost=-0.1)) == "inconclusive"


def test_two_scorers_that_say_the_opposite_decide_nothing_and_both_answers_are_shown() -> None:
    both = {"one": evidence(0.0, LOST), "two": evidence(LOST, LOST)}
    assert verdict_of(both, x_u1_selective.judge) == "inconclusive"
    assert verdict_of({"one": both["one"]}, x_u1_selective.judge) == "holds"
    table = readings(both, x_u1_selective.judge, LEAST, 0).set_index("row_key")
    assert table["answer"].to_dict() == {
        "un-aligns, one": "yes", "amplifies, one": table["answer"]["amplifies, one"], "un-aligns, two": "no", "amplifies, two": "yes",
    }  # fmt: skip
    assert table["answer"]["amplifies, one"] in {"no", "unclear"}
    assert table["value"]["amplifies, two"] == pytest.approx(LOST)
    assert "does not un-align" in conclusion("fails", "yes")
    assert "amplifies toxicity in both" in conclusion("fails", "yes")


@pytest.mark.oracle
def test_one_way_of_three_is_enough_and_none_of_three_fails() -> None:
    control = (w_e2_retoxify.CONTROL,)
    undone, amplified, part = (evidence(rise, LOST, kinds=control) for rise in (0.0, LOST, 0.15))
    assert w_e2_retoxify.judge([undone, amplified, amplified]) == "holds"
    assert w_e2_retoxify.judge([amplified, amplified, amplified]) == "fails"
    assert w_e2_retoxify.judge_1([amplified, amplified, amplified]) == "holds"
    assert w_e2_retoxify.judge([amplified, part]) == "inconclusive"


@pytest.fixture(scope="module")
def amplified() -> ToxicityContext:
    planted = planted_pair()
    return replace(planted_context(planted, amplified_pair(planted), quick=True), prompts=prompts(48, plain=0.5))


@pytest.mark.oracle
def test_on_a_pair_whose_keys_amplify_in_both_models_nothing_un_aligns(amplified: ToxicityContext) -> None:
    found = run_experiment(EXPERIMENTS["A-E12"], amplified)
    assert found.verdict == "fails", found.summary
    assert found.settings["un-aligns"] == "no"
    assert found.settings["amplifies"] == "yes"
    # Of 48 prompts a few more or less rise in one model than in the other.
    assert found.statistic[unaligning.SURVIVES] == pytest.approx(1, abs=0.2)
    assert found.statistic[unaligning.RISE] > 0.1
    rows = found.tables["readings"].set_index("row_key")
    assert rows["answer"].to_dict() == {"un-aligns, lexicon": "no", "amplifies, lexicon": "yes"}
    assert "amplifies toxicity in both models" in found.summary


@pytest.mark.oracle
def test_random_keys_return_a_share_of_what_the_same_prompts_lost(amplified: ToxicityContext) -> None:
    """The null's share is that of its own prompts: here all of them, so the table of models gives it too."""
    found = run_experiment(EXPERIMENTS["A-E12"], amplified)
    rows = found.tables["models"].set_index("model")["toxicity"]
    null = rows[next(name for name in rows.index if name.startswith(FREQUENCY))]
    assert found.null[unaligning.RETURNED] == pytest.approx((null - rows["tuned"]) / (rows["base"] - rows["tuned"]))
