"""The rule of C-E8 on powers of k whose verdict is known, and the experiment on a record of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.elasticity import c_e8_theory
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.theory_rules import ALIGNMENT, PRETRAINING, judge_law, law_of, slope_of
from interp.experiments.fingerprint import fingerprint
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS
from tests import ROOT

KS = (1, 3, 10, 30, 100)
# By how much the powers of four seeds differ.
NOISE = (-0.03, -0.01, 0.01, 0.03)


def ratios(value: float) -> dict[str, Any]:
    return {"like P": value, "like A": value, "third": value, "random": [value, value]}


def theory_rows(pretraining: float, alignment: float, *, joint: float = 1.0, residual: float = 1e-6) -> list[dict[str, Any]]:
    """Four seeds in which |dγ_A/dγ_P| grows with these powers of k."""
    rows: list[dict[str, Any]] = []
    for seed, noise in enumerate(NOISE):
        cells = [
            {"varied": varied, "k": k, "steps": [20 * k, 20], "residual": 0.9, "ratios": ratios(-0.5 * k ** (power + noise))}
            for varied, power in ((PRETRAINING, pretraining), (ALIGNMENT, alignment))
            for k in KS
        ]
        at_optimum = [
            {"k": k, "residual": residual, "ratios": ratios(-float(k**joint)), "retrained": ratios(-float(k)), "radius": 0.1 / k}
            for k in KS
        ]
        separate = [{"k": k, "gradients": 1e-8, "ratio": 1.4} for k in KS[1:]]
        rows.append({"seed": seed, "joint": at_optimum, "sequential": cells, "reversed": cells[:5], "separate": separate})
    return rows


@pytest.mark.parametrize(
    ("pretraining", "alignment", "verdict"),
    [
        (1.0, 1.0, "holds"),
        (0.8, 1.2, "holds"),
        (0.0, 1.0, "fails"),
        (1.0, 0.0, "fails"),
        # A steeper law is another law.
        (1.0, 2.0, "fails"),
        # The interval holds the bound.
        (0.75, 1.0, "inconclusive"),
    ],
)
def test_the_law_is_judged_by_the_power_of_k_both_ways(pretraining: float, alignment: float, verdict: str) -> None:
    law = law_of(theory_rows(pretraining, alignment))
    assert law.pretraining.value == pytest.approx(pretraining)
    assert law.alignment.value == pytest.approx(alignment)
    assert judge_law(law) == verdict


@pytest.mark.parametrize("broken", [{"joint": 0.8}, {"residual": 0.01}])
def test_a_measurement_that_misses_the_identity_decides_nothing(broken: dict[str, float]) -> None:
    assert judge_law(law_of(theory_rows(0.0, 0.0, **broken))) == "inconclusive"
    assert judge_law(law_of(theory_rows(0.0, 0.0))) == "fails"


def test_too_few_seeds_and_a_ratio_that_does_not_exist_are_inconclusive() -> None:
    assert judge_law(law_of(theory_rows(0.0, 0.0)[:2])) == "inconclusive"
    assert judge_law(law_of([])) == "inconclusive"
    rows = theory_rows(0.0, 0.0)
    for row in rows:
        for cell in row["sequential"]:
            cell["ratios"]["like P"] = None
    assert judge_law(law_of(rows)) == "inconclusive"


def test_the_sign_of_a_ratio_does_not_count() -> None:
    cells = [{"k": k, "ratios": {"like P": sign * k**0.5}} for k, sign in zip(KS, (1, -1, 1, -1, 1), strict=True)]
    assert slope_of(cells, "like P") == pytest.approx(0.5)


@pytest.fixture
def context(gpt2: Model, tmp_path: Path) -> ElasticityContext:
    record = {"settings": {"k": list(KS)}, "rows": theory_rows(0.0, 1.0)}
    write_json(tmp_path / "elasticity_theory.json", record)
    return ElasticityContext(ModelPair(gpt2, gpt2), tmp_path)


def test_the_experiment_separates_the_identity_from_what_tuning_does(context: ElasticityContext) -> None:
    result = run_experiment(EXPERIMENTS["C-E8"], context)
    assert result.verdict == "fails"
    assert result.statistic.keys() == result.null.keys() == result.interval.keys()
    assert "which is an identity" in result.sentence
    table = result.tables["ratios"].set_index(["regime", "k grows by", "k", "further data"])
    assert table.loc[("joint optimum", "sizes", 100, "third"), "ratio"] == -100
    # The median of four seeds is the mean of the two in the middle.
    assert table.loc[("P, then A", PRETRAINING, 100, "like P"), "ratio"] == pytest.approx(-0.5 * np.cosh(0.01 * np.log(100)))
    radius = result.tables["radius"].set_index("k")
    assert radius.loc[30, "radius times k"] == pytest.approx(0.1)
    assert result.tables["contexts of their own"]["ratio of a move of 0.1"].tolist() == [1.4] * 4
    assert len(result.figures) == 1


def test_the_ideal_mixture_has_the_law_for_data_like_either_set_and_not_for_a_third() -> None:
    table = c_e8_theory.mixture_table(KS).set_index(["k", "further data"])
    for k in KS:
        assert table.loc[(k, "like P"), "ratio at once"] == pytest.approx(-k, rel=1e-9)
        assert table.loc[(k, "like A"), "ratio at 0.01"] == pytest.approx(-k, rel=0.05)
        assert table.loc[(k, "third"), "ratio at once"] == pytest.approx(1)
    # Data like A in an amount that is no longer small.
    assert table.loc[(30, "like A"), "ratio at 0.3"] == pytest.approx(-26.2, abs=0.05)


def test_the_theory_that_ships_is_read_for_any_pair_and_another_record_makes_another_result(
    context: ElasticityContext, gpt2: Model, tmp_path: Path
) -> None:
    before = fingerprint(EXPERIMENTS["C-E8"], context)
    write_json(tmp_path / "elasticity_theory.json", {"settings": {"k": list(KS)}, "rows": theory_rows(1.0, 1.0)})
    assert fingerprint(EXPERIMENTS["C-E8"], context) != before
    (tmp_path / "empty").mkdir()
    assert ElasticityContext(ModelPair(gpt2, gpt2), tmp_path / "empty").theory()["settings"]["k"] == list(KS)
    with pytest.raises(UserError, match="no study of tuning on reviews of this base model"):
        context.courses()


def test_the_theory_that_ships_shows_the_identity_and_gives_the_verdict_of_the_documents() -> None:
    context = ElasticityContext(ModelPair.bundled(), BUNDLED_LOGS)
    rows = context.theory()["rows"]
    assert [row["seed"] for row in rows] == list(range(6))
    law = law_of(rows)
    assert law.is_measured
    result = EXPERIMENTS["C-E8"].run(context)
    assert result.verdict == "fails"
    for page in ("docs/findings.md", "docs/elasticity.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        for name, digits in ((c_e8_theory.MORE, 2), (c_e8_theory.SHORTER, 1)):
            value, low, high = (
                f"{number:.{digits}f}".replace("-", "\u2212") for number in (result.statistic[name], *result.interval[name])
            )
            assert f"{value} ({low} to {high})" in text
    radii = [np.median([row["joint"][place]["radius"] for row in rows]) for place in range(len(KS))]
    assert radii == sorted(radii, reverse=True)
