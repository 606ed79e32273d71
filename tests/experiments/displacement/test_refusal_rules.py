"""The rule of B-E3 on studies whose shares are known, and the experiment on a record of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.displacement import b_e3_refusals
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.refusal_rules import ARMS, BEFORE, BENIGN, LOW, RANDOM, UNSAFE, judge, refusals
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS, refusals_if_any
from tests import ROOT

# By how much the shares of five runs differ.
NOISE = (-0.02, -0.01, 0.0, 0.01, 0.02)


def record_of(
    lost: float, filtered: float, *, over: float = 0.0, start: float = 0.75, benign: float = 0.1, like_fixed: float = 0.97, runs: int = 5
) -> dict[str, Any]:  # fmt: skip
    """Runs in which DPO takes `lost` of the refusals away, and the filter ends `filtered` above two random subsets."""
    rows = []
    for seed, noise in enumerate(NOISE[:runs]):
        shares = dict.fromkeys(ARMS, start - lost + noise) | {BEFORE: start, LOW: start - lost / 2 + filtered + noise}
        arms = [{"arm": arm, UNSAFE: share, BENIGN: benign + over * (arm == LOW) + noise * (arm == LOW)} for arm, share in shares.items()]
        # The two random subsets differ, and their mean counts.
        arms[-1][UNSAFE] = start - lost / 2 - 0.1
        arms.append({"arm": RANDOM, UNSAFE: start - lost / 2 + 0.1, BENIGN: benign})
        for arm in arms:
            arm |= {
                "unsafe held-out": 0.4,
                "benign held-out": 0.3,
                "like_fixed": like_fixed,
                "pairs": 24,
                "steps": 3,
                "chosen": -1.0,
            }
        types = {"answer/answer": 10, "mixed": 40, "refusal/refusal": 70}
        rows.append({"seed": seed, "rate": 1e-5, "types": types, "mixed_lower": 0.8, "arms": arms})
    return {"rows": rows, "settings": {}}


@pytest.mark.parametrize(
    ("study", "verdict"),
    [
        (record_of(0.3, 0.2), "holds"),
        (record_of(-0.1, 0.2), "fails"),
        (record_of(0.3, -0.2), "fails"),
        (record_of(0.3, 0.01), "inconclusive"),
        (record_of(0.3, 0.2, over=0.3), "inconclusive"),
        (record_of(0.3, 0.2, runs=4), "inconclusive"),
        (record_of(-0.1, 0.2, start=0.97), "inconclusive"),
        (record_of(0.3, 0.2, start=0.4), "inconclusive"),
        (record_of(0.3, 0.2, benign=0.3), "inconclusive"),
        (record_of(0.3, 0.2, like_fixed=0.8), "inconclusive"),
    ],
)
def test_the_claim_needs_a_loss_and_a_filter_that_spares_benign_requests(study: dict[str, Any], verdict: str) -> None:
    assert judge(refusals(study)) == verdict


def test_the_mean_of_the_random_subsets_is_the_null() -> None:
    numbers = refusals(record_of(0.3, 0.2))
    assert numbers.filtered.value == pytest.approx(0.2)
    assert numbers.lost.value == pytest.approx(-0.3)
    # Version 2 decides by held-out requests, of which too few are refused here before tuning.
    assert refusals(record_of(0.3, 0.2), 2).before.value == pytest.approx(0.4)
    assert judge(refusals(record_of(0.3, 0.2), 2)) == "inconclusive"
    with pytest.raises(UserError, match="no run that is whole"):
        refusals({"rows": []})


@pytest.fixture
def context(gpt2: Model, tmp_path: Path) -> DisplacementContext:
    write_json(tmp_path / "refusals.json", record_of(0.3, 0.2) | {"base": gpt2.digest})
    return DisplacementContext(ModelPair(gpt2, gpt2), tmp_path)


def test_the_experiment_judges_the_task_where_the_base_refuses_nothing(
    context: DisplacementContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b_e3_refusals, "generate", lambda model, prompts, **options: [" Sure."] * len(prompts))
    result = run_experiment(EXPERIMENTS["B-E3"], context)
    assert result.verdict == "holds"
    assert result.statistic.keys() == result.null.keys() == result.interval.keys()
    table = result.tables["refusals"].set_index("tuned on")
    assert list(table.index) == list(ARMS)
    assert table.loc[RANDOM, "unsafe, refused"] == pytest.approx(0.6)
    assert [item.verdict for item in result.criteria] == ["not applicable", "inconclusive", "holds"]
    assert result.tables["pairs"]["mixed"].tolist() == [40] * 5
    assert len(result.figures) == 1
    write_json(tmp_path / "refusals.json", record_of(0.3, 0.2) | {"base": "another"})
    assert EXPERIMENTS["B-E3"].run(context).verdict == "not applicable"


def test_the_study_that_ships_gives_the_verdict_and_the_numbers_of_the_findings() -> None:
    pair = ModelPair.bundled()
    record = refusals_if_any(BUNDLED_LOGS, pair.base)
    assert record is not None
    numbers = refusals(record)
    assert judge(numbers) == "fails"
    page = " ".join((ROOT / "docs" / "findings.md").read_text(encoding="utf-8").split())
    assert f"refuse {numbers.before.value:.0%} of".replace("%", " %") in page
    for part, digits in ((numbers.lost, 2), (numbers.filtered, 3)):
        value, low, high = (f"{number:.{digits}f}".replace("-", "\u2212") for number in (part.value, part.low, part.high))
        assert f"{value} ({low} to {high})" in page
