"""The rule of C-E6 on studies whose numbers are known, and the experiment on a record of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.method_rules import METHODS, clean, judge, judged, methods
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS, read_elasticity_methods
from tests import ROOT

# By how much the values of four draws differ.
NOISE = (-0.003, -0.001, 0.001, 0.003)
START, FALL, KL = 0.5, 0.2, 0.02


def record_of(
    *, undone: float = 0.9, neutral: float = 0.3, home: float = 0.4, of_sft: dict[str, float] | None = None,
    missed: tuple[str, ...] = (), draws: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """Draws in which texts undo these shares at the last of two doses, and toxic text takes `home` of the KL back at the first.

    Args:
        of_sft: other values for SFT alone.
        missed: methods that did not reach the goal in the first draw.
    """
    rows = []
    for seed, noise in enumerate(NOISE[:draws]):
        parts = []
        for method in METHODS:
            own = {"undone": undone, "neutral": neutral, "home": home} | (of_sft or {} if method == "sft" else {})
            tuned = START - FALL + noise

            def points(share: float, back: float, tuned: float = tuned, noise: float = noise) -> list[dict[str, float]]:
                return [
                    {"steps": 4, "toxicity": tuned + FALL * share / 2, "kl": KL * (1 - back + noise)},
                    {"steps": 32, "toxicity": tuned + FALL * share - noise, "kl": KL * (1.5 + noise)},
                ]

            arms = {"toxic": points(own["undone"], own["home"]), "neutral": points(own["neutral"], 0.0)}
            if method == "dpo":
                arms["clean"] = points(0.1, 0.25)
            reached = not (method in missed and seed == 0)
            parts.append({"method": method, "steps": 40, "reached": reached, "toxicity": tuned, "kl": KL, "arms": arms})
        rows.append({"seed": seed, "methods": parts, "from_base": [{"steps": 32, "toxicity": 0.6, "kl": 0.03}]})
    return {"rows": rows, "settings": {}, "source": {}, "base_model": {"toxicity": START, "kl": 0.0}}


@pytest.mark.parametrize(
    ("study", "verdict"),
    [
        (record_of(), "holds"),
        (record_of(of_sft={"home": -0.2}), "fails"),
        (record_of(of_sft={"undone": 0.3, "neutral": 0.0}), "fails"),
        (record_of(of_sft={"neutral": 1.2}), "fails"),
        (record_of(of_sft={"home": 0.0}), "inconclusive"),
        (record_of(of_sft={"undone": 0.5}), "inconclusive"),
        (record_of(missed=("sft",)), "holds"),
        (record_of(of_sft={"home": -0.2}, missed=("sft",)), "holds"),
        (record_of(missed=("sft", "kto")), "inconclusive"),
        (record_of(draws=3), "inconclusive"),
    ],
)
def test_every_method_that_reached_the_goal_must_go_back(study: dict[str, Any], verdict: str) -> None:
    assert judge(methods(study)) == verdict


def test_shares_are_of_the_fall_and_the_best_dose_counts_with_a_wider_interval() -> None:
    found = methods(record_of(missed=("kto",)))
    item = found["dpo"]
    assert item.fall.value == pytest.approx(FALL)
    assert item.undone.value == pytest.approx(0.9)
    assert item.beyond.value == pytest.approx(0.6)
    assert item.home.value == pytest.approx(0.4)
    # Student's quantile for three degrees of freedom is 3.18 at 95 % and 4.18 at 97.5 %; the values' spread is 0.0026.
    assert item.home.high - item.home.value == pytest.approx(4.18 * 0.00258 / 2, rel=0.02)
    assert list(judged(found)) == ["sft", "dpo", "simpo"]
    with pytest.raises(UserError, match="no draw that is whole"):
        methods(record_of() | {"rows": []})


def test_the_experiment_says_what_came_back_by_method(gpt2: Model, tmp_path: Path) -> None:
    write_json(tmp_path / "elasticity_methods.json", record_of(missed=("kto",)) | {"base": gpt2.digest})
    context = ElasticityContext(ModelPair(gpt2, gpt2), tmp_path)
    result = run_experiment(EXPERIMENTS["C-E6"], context)
    assert result.verdict == "holds"
    assert "SimPO 90%" in result.sentence
    assert result.null["DPO: share of the fall undone"] == pytest.approx(0.3)
    assert result.sentence.endswith(
        "Left out, because they did not become as clean: KTO, after which 40% (39% to 41%) of the KL came back."
    )
    assert "clean text took 25% (24% to 26%) of it back after DPO, and undid 10% of the fall" in result.sentence
    assert "the goal reached in 3 of 4 draws" in result.summary
    assert result.tables["methods"].set_index("tuned by").loc["KTO", "judged"] == False  # noqa: E712
    doses = result.tables["doses"].set_index(["tuned by", "then", "steps"])
    assert doses.loc[("DPO", "toxic text", 32), "share of the fall undone"] == pytest.approx(0.9)
    assert doses.loc[("DPO", "toxic text", 0), "toxicity"] == pytest.approx(START - FALL)
    assert len(result.figures) == 4
    # The texts that are its controls stand beside toxic text.
    assert {trace["name"] for trace in result.figures[-1].spec["data"] if trace.get("showlegend", True) and trace.get("name")} >= {
        "toxic text",
        "neutral text",
        "the base's own clean text",
    }
    write_json(tmp_path / "elasticity_methods.json", {"base": "another"})
    with pytest.raises(UserError, match="elasticity methods makes it"):
        EXPERIMENTS["C-E6"].run(context)


def test_the_study_that_ships_gives_the_verdict_and_the_numbers_of_the_findings() -> None:
    record = read_elasticity_methods(BUNDLED_LOGS, ModelPair.bundled().base)
    found = methods(record)
    assert judge(found) == "holds"
    assert list(judged(found)) == ["dpo", "kto", "simpo"]
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    for part in (found["dpo"].undone, found["simpo"].undone, found["dpo"].home, found["kto"].home):
        assert f"{100 * part.value:.0f} % ({100 * part.low:.0f} to {100 * part.high:.0f})" in page
    own = clean(record).home
    assert f"{100 * own.value:.0f} % (−{-100 * own.low:.0f} to {100 * own.high:.0f}) of the KL back" in page
