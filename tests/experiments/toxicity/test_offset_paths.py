"""The rules of A-E10, X-C1 and X-C2 at their edges, and what is read of the control runs' offsets in the logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interp import ModelPair
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.offset_paths import control_shares, null_runs, trained_effects
from interp.experiments.toxicity.offset_region import both_parts, leaves_region, one_offset
from interp.experiments.toxicity.x_c1_offset import judge, judge_1
from interp.patching.vector_paths import BOTH, DIRECT
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from tests.experiments.toxicity.test_experiments_offset import make_context


def interval(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half, 100)


@pytest.mark.parametrize(
    ("share", "controls", "trained", "guard", "verdict"),
    [
        (interval(0.8), [0.1, 0.3], True, 1.0, "holds"),
        (interval(0.8), [0.1, 0.3], False, 1.0, "inconclusive"),
        (interval(0.8), [0.1, 0.3], True, 1.1, "inconclusive"),
        (interval(0.8), [0.1, 0.78], True, 1.0, "inconclusive"),
        (interval(0.8), [0.1, 0.8], True, 1.0, "fails"),
        # The first version was content with the value itself.
        (interval(0.6, 0.15), [0.1], True, 1.0, "inconclusive"),
        (interval(0.4, 0.15), [0.1], True, 1.0, "inconclusive"),
        (interval(0.4, 0.05), [0.1], True, 1.0, "fails"),
    ],
)
def test_an_offset_suffices_by_its_interval_and_above_every_control(
    share: Interval, controls: Sequence[float], trained: bool, guard: float, verdict: Verdict
) -> None:
    for id in ("X-C1", "X-C2"):
        assert judge(share, controls, trained, guard, CRITERIA[id][-1].thresholds) == verdict


def test_the_first_version_asked_for_half_by_the_value_alone() -> None:
    assert judge_1(interval(0.6, 0.15), [0.1], 1.0) == "holds"
    assert judge_1(interval(0.6, 0.15), [0.5], 1.0) == "inconclusive"
    assert judge_1(interval(0.6, 0.15), [0.6], 1.0) == "fails"


RULE = CRITERIA["A-E10"][-1].thresholds


def test_one_offset_is_judged_against_the_control_run_that_comes_nearest() -> None:
    shipped = Interval(0.826, 0.821, 0.831, 280)
    runs = [Interval(value, value - 0.01, value + 0.01, 280) for value in (0.619, 0.741, 0.779)]
    assert one_offset(shipped, runs, [0.46], RULE) == "fails"
    assert one_offset(shipped, runs[:1], [0.46], RULE) == "holds"
    assert one_offset(shipped, [], [0.46], RULE) == "inconclusive"
    assert one_offset(shipped, [], [0.80], RULE) == "fails"
    assert one_offset(shipped, [interval(0.72, 0.01)], [0.46], RULE) == "inconclusive"
    assert one_offset(interval(0.2, 0.01), runs[:0], [0.0], RULE) == "fails"


def test_leaving_the_region_needs_the_path_through_later_blocks() -> None:
    fall, later = interval(0.3), interval(0.8)
    assert leaves_region(fall, 0.02, later, later.high, [0.1], True, RULE) == "holds"
    assert leaves_region(fall, 0.02, later, later.high, [0.1], False, RULE) == "inconclusive"
    assert leaves_region(fall, 0.28, later, later.high, [0.1], True, RULE) == "inconclusive"
    assert leaves_region(fall, 0.02, later, later.high, [0.78], True, RULE) == "inconclusive"
    assert leaves_region(interval(-0.1), 0.02, later, later.high, [0.1], True, RULE) == "fails"
    # Little through later blocks at the offset's layer refutes it only if no other layer brings more.
    direct = interval(0.2)
    assert leaves_region(fall, 0.02, direct, direct.high, [0.1], True, RULE) == "fails"
    assert leaves_region(fall, 0.02, direct, 0.75, [0.1], True, RULE) == "inconclusive"


def test_both_parts_have_to_hold_and_one_that_fails_is_enough() -> None:
    assert both_parts("holds", "holds") == "holds"
    assert both_parts("holds", "inconclusive") == both_parts("inconclusive", "holds") == "inconclusive"
    assert both_parts("holds", "fails") == both_parts("fails", "inconclusive") == "fails"


def record(side: str, path: str, share: float, scaled: bool = False) -> dict[str, Any]:
    ends = {"share": share, "low": share - 0.1, "high": share + 0.1}
    return {"side": side, "layer": 1, "path": path, "scaled": scaled, "norm": 1.0, "n": 12, **ends}


@pytest.fixture
def logged(pair: ModelPair, tmp_path: Path) -> ToxicityContext:
    context = replace(make_context(pair), logs=tmp_path, layer=1)
    sft = {"run": "a", "method": "sft", "labels": "true", "offset_effects": [record("base", BOTH, 0.4), record("base", BOTH, 0.9, True)]}
    coin: dict[str, Any] = {"run": "b", "method": "dpo", "labels": "shuffled"}
    coin["offset_effects"] = [record("base", BOTH, 0.1), record("base", BOTH, 0.2, True), record("base", DIRECT, 0.3)]
    coin["offset_effects"] += [record("tuned", BOTH, 0.7)]
    again = {"run": "c", "method": "dpo", "labels": "true", "offset_effects": [record("base", BOTH, 1.0)]}
    table = {
        "base": pair.base.digest, "tuned": pair.tuned.digest, "runs": [again, sft, coin],
        "settings": {"offset_layer": 1, "scorer": context.scorer.name},
    }  # fmt: skip
    (tmp_path / "controls.json").write_text(json.dumps(table), encoding="utf-8")
    return context


def test_the_logs_give_the_effects_of_null_runs_on_one_side_and_path(logged: ToxicityContext) -> None:
    trained = trained_effects(logged, "base")
    assert {item.run for item in trained} == {"fine-tuning on the chosen side", "tuning on labels of a coin"}
    assert all(item.effect.second is None for item in trained)
    # Of scaled offsets only the coin's decides: how far the others move is part of what they learned.
    assert control_shares([], trained, 1) == ([0.4, 0.1, 0.2], True)
    assert control_shares([], trained, 1, DIRECT) == ([0.3], True)
    assert control_shares([], trained, 0) == ([], False)
    assert control_shares([], trained, 1, second=True) == ([], False)
    assert control_shares([], trained_effects(logged, "tuned"), 1) == ([0.7], True)


def test_effects_at_another_layer_or_by_another_scorer_are_not_read(logged: ToxicityContext, pair: ModelPair) -> None:
    assert null_runs(replace(logged, layer=2)) == []
    assert trained_effects(replace(logged, layer=2), "base") == []
    assert trained_effects(replace(logged, pair=ModelPair(pair.base, pair.base)), "base") == []
    other = type(logged.scorer)("x")
    other.name = "another"
    assert null_runs(replace(logged, scorer=other)) != []
    assert trained_effects(replace(logged, scorer=other), "base") == []
