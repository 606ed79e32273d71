"""The rule of C-E1 on studies whose losses are known, and the experiment on a record of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.elasticity import c_e1_resistance
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.rebound_rules import judge
from interp.experiments.elasticity.simulations.c_e1 import record_of
from interp.experiments.elasticity.slice_rules import C_E1, PAPER, PLAIN, resistance
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS
from tests import ROOT


def study(**world: float) -> dict[str, Any]:
    """A record in which a seed differs from the others by its noise alone."""
    return record_of(np.random.default_rng(1), **world)


def exact(monkeypatch: pytest.MonkeyPatch, **world: float) -> dict[str, Any]:
    monkeypatch.setattr("interp.experiments.elasticity.simulations.c_e1.SPREAD", 0.0)
    return study(**world)


def test_each_part_takes_off_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the pairs (1, 2), (1, 3), (2, 3) the slices are 4 / 3 apart on average, of (0, 1), (0, 2), (0, 3) they are 2.
    numbers = resistance(exact(monkeypatch, back=0.1, own=0.03, ahead=0.06, random=0.02))
    values = [part.mean.value for part in numbers.parts]
    raw = 0.1 + (0.03 + 0.06) * 4 / 3
    assert values == pytest.approx([raw, raw - 0.03 * 4 / 3, 0.1, 0.1, 0.02])
    assert all(part.mean.n == 5 for part in numbers.parts)
    assert numbers.base_raw.mean.value == pytest.approx(0.1 + (0.03 + 0.06) * 2)
    assert numbers.base_own.mean.value == pytest.approx(0.1 + 0.06 * 2)


@pytest.mark.parametrize(
    ("world", "verdict"),
    [
        ({"back": 0.2, "random": 0.2}, "holds"),
        # The paper's comparison alone would say that it holds.
        ({"own": 0.1, "random": 0.2}, "inconclusive"),
        ({"ahead": 0.1, "random": 0.2}, "inconclusive"),
        ({"back": 0.2}, "inconclusive"),
        ({"back": -0.2, "random": 0.2}, "fails"),
        ({"back": 0.2, "random": -0.2}, "fails"),
    ],
)
def test_the_claim_needs_all_five(world: dict[str, float], verdict: str) -> None:
    numbers = resistance(study(**world))
    assert judge(numbers.parts, C_E1["seeds"]) == verdict
    assert numbers.raw.answer == ("no" if world.get("back", 0) < 0 else "yes")


def test_fewer_seeds_than_asked_for_decide_nothing() -> None:
    record = study(back=0.2, random=0.2)
    assert judge(resistance({"rows": record["rows"][:4]}).parts, C_E1["seeds"]) == "inconclusive"
    with pytest.raises(UserError, match="no seed that is whole"):
        resistance({"rows": []})


@pytest.fixture
def context(gpt2: Model, tmp_path: Path) -> ElasticityContext:
    """A study whose answers were sampled both ways, with the losses before and after an epoch."""
    record = study(back=0.2, own=0.05, random=0.1) | {"base": gpt2.digest, "settings": {"slices": [200, 600, 1000], "queries": 64}}
    for seed, row in enumerate(record["rows"]):
        row["runs"] += [run | {"sampling": PLAIN} for run in row["runs"] if run["kind"] == "slice"]
        for run in row["runs"]:
            run |= {"start": run["mean"] + 0.1, "end": run["mean"] - 0.1}
        row["kl"] = {str(one): {str(other): 0.1 * abs(one - other) for other in range(4)} for one in range(4)}
        row["seed"] = seed
    write_json(tmp_path / "elasticity_slices.json", record)
    return ElasticityContext(ModelPair(gpt2, gpt2), tmp_path)


def test_the_experiment_shows_every_part_and_every_epoch(context: ElasticityContext) -> None:
    result = run_experiment(EXPERIMENTS["C-E1"], context)
    assert result.verdict == "holds"
    assert result.statistic.keys() == result.null.keys() == result.interval.keys() == set(c_e1_resistance.KEYS)
    parts = result.tables["parts"]
    assert parts["decides"].sum() == len(c_e1_resistance.KEYS)
    # Random changes are sampled from in one way only.
    assert len(parts) == 3 * ((len(c_e1_resistance.KEYS) + 2) * 2 - 1)
    epochs = result.tables["epochs"].set_index(["answers", "student", "teacher"])
    assert len(epochs) == 4 + 2 * 12 + 3
    assert epochs.loc[("as written", 0, "the reviews' writers"), "before"] == pytest.approx(4.1, abs=0.03)
    assert epochs.loc[(c_e1_resistance.SAMPLED[PAPER], 3, "slice 1"), "teacher's own"] == pytest.approx(0.25)
    assert len(result.tables["KL between slices"]) == 12
    assert len(result.figures) == 1


def test_a_study_of_another_base_is_not_read(context: ElasticityContext, tmp_path: Path) -> None:
    write_json(tmp_path / "elasticity_slices.json", {"base": "another", "rows": []})
    with pytest.raises(UserError, match="no study of slices of a tuning of this base model") as error:
        EXPERIMENTS["C-E1"].run(context)
    assert "training.studies.elasticity slices" in error.value.fix


def test_the_study_that_ships_is_of_the_base_that_ships_and_gives_the_numbers_of_the_documents() -> None:
    context = ElasticityContext(ModelPair.bundled(), BUNDLED_LOGS)
    record = context.slices()
    assert [row["seed"] for row in record["rows"]] == list(range(5))
    result = EXPERIMENTS["C-E1"].run(context)
    assert result.verdict == "fails"
    parts = result.tables["parts"].set_index(["answers", "loss", "part"]).loc[(c_e1_resistance.SAMPLED[PAPER], "mean over the epoch")]
    pages = {name: " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split()) for name in ("elasticity.md", "findings.md")}
    shown = ((c_e1_resistance.BASE_RAW, "findings.md"), (c_e1_resistance.BASE_OWN, "findings.md"), (c_e1_resistance.BASE, "findings.md"))
    for part, page in (*shown, *((name, "elasticity.md") for name in parts.index)):
        value, low, high = (f"{number:.3f}".replace("-", "\u2212") for number in parts.loc[part, ["nats per token", "low", "high"]])
        assert f"{value} ({low} to {high})" in pages[page], part
