"""A report under several seeds shows each verdict under every one, and keeps every result."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from interp.errors import UserError
from interp.experiments.registry import EXPERIMENTS, Finding, experiment, find_experiments
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.run import run_report
from interp.models.pair import ModelPair
from interp.report.terminal import print_seeds
from interp.data.texts import Passage
from interp.evaluation.toxicity import load_scorer
from tests.probes import shared_probe

RUNS: list[int] = []
ABOUT = {"title": "a title", "question": "so?", "criterion": "Holds if so, fails if not.", "refuted_by": "another", "caveat": "none"}


def finding(holds: bool, value: float) -> Finding:
    return Finding("holds" if holds else "fails", "said", {"share": value}, {"share": 0.0}, {}, {"t": pd.DataFrame({"a": [1]})}, ())


@pytest.fixture(autouse=True)
def _three_experiments() -> Iterator[None]:
    before = dict(EXPERIMENTS)
    RUNS.clear()

    @experiment("T-E1", claim="T-C1", **ABOUT)
    def steady(context: ToxicityContext) -> Finding:
        RUNS.append(context.seed)
        return finding(True, 0.5)

    @experiment("T-E2", claim="T-C2", **ABOUT)
    def by_the_draw(context: ToxicityContext) -> Finding:
        return finding(context.seed % 2 == 0, 0.1 * context.seed)

    @experiment("T-E3", claim="T-C1", **ABOUT)
    def sometimes(context: ToxicityContext) -> Finding:
        if context.seed == 4:
            raise UserError("not under this seed", "none")
        return finding(True, float("nan"))

    yield
    EXPERIMENTS.clear()
    EXPERIMENTS.update(before)


@pytest.fixture
def context(pair: ModelPair) -> ToxicityContext:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["river", "stone", "green", "light"], 6)) for _ in range(30)]
    probe = shared_probe(pair.base, texts, [int("river" in text.split()[:2]) for text in texts])
    return ToxicityContext(
        pair, probe, load_scorer("lexicon"), texts[:3], [Passage("river stone", " green light", "post")], seed=3, new_tokens=2
    )


def test_a_claim_that_several_experiments_test_names_all_of_them() -> None:
    assert [item.id for item in find_experiments(["t-c1"])] == ["T-E1", "T-E3"]
    assert [item.id for item in find_experiments(["T-C1", "T-E2"])] == ["T-E1", "T-E2", "T-E3"]


def test_every_verdict_is_shown_under_every_seed_and_kept(context: ToxicityContext, tmp_path: Path) -> None:
    ran = run_report(context, tmp_path, only=["T-C1", "T-C2"], seeds=3)
    assert RUNS == [3, 4, 5]
    record = json.loads((tmp_path / "report.json").read_text())["seeds"]
    assert record["seeds"] == [3, 4, 5]
    rows = {row["id"]: row for row in record["experiments"]}
    assert {name: row["same"] for name, row in rows.items()} == {"T-E1": True, "T-E2": False, "T-E3": False}
    assert rows["T-E2"]["verdicts"] == {"3": "fails", "4": "holds", "5": "fails"}
    assert rows["T-E2"]["statistic"] == pytest.approx([0.3, 0.5])
    assert rows["T-E3"]["verdicts"]["4"] == "left out"
    assert rows["T-E3"]["statistic"] is None
    assert [(result.id, result.settings["seed"]) for result in ran.results] == [("T-E1", 3), ("T-E2", 3), ("T-E3", 3)]
    page = (tmp_path / "index.html").read_text()
    assert "under the seeds 3, 4, 5: 1 of 3 verdicts are the same under all" in page
    assert pd.read_csv(tmp_path / "seeds.csv")["seed 4"].tolist() == ["holds", "holds", "left out"]
    run_report(context, tmp_path, only=["T-C1", "T-C2"], seeds=3)
    run_report(context, tmp_path, only=["T-E1"], seeds=2)
    assert RUNS == [3, 4, 5], "what was kept is read"


def test_one_seed_is_a_report_as_ever(context: ToxicityContext, tmp_path: Path) -> None:
    ran = run_report(context, tmp_path, only=["T-E1"])
    assert ran.seeds is None
    assert "seeds" not in json.loads((tmp_path / "report.json").read_text())
    assert 'id="seeds"' not in (tmp_path / "index.html").read_text()
    with pytest.raises(UserError, match="0 seeds were asked for"):
        run_report(context, tmp_path, only=["T-E1"], seeds=0)


def test_another_seed_keeps_what_was_measured_of_the_pair_and_nothing_that_was_drawn(context: ToxicityContext) -> None:
    scores = context.toxicity(context.pair.base)
    context.measured("control", lambda: "drawn with the first seed", seeded=True)
    other = context.with_seed(9)
    assert other.seed == 9
    assert other.toxicity(context.pair.base) is scores
    assert other.measured("control", lambda: "drawn anew", seeded=True) == "drawn anew"
    assert context.measured("control", lambda: "not asked", seeded=True) == "drawn with the first seed"


def test_the_terminal_names_the_verdicts_that_change(context: ToxicityContext, tmp_path: Path) -> None:
    ran = run_report(context, tmp_path, only=["T-C1", "T-C2"], seeds=2)
    assert ran.seeds is not None
    out = io.StringIO()
    print_seeds(ran.seeds, Console(file=out, width=100))
    assert out.getvalue().splitlines() == [
        "seeds 3, 4: 1 of 3 verdicts are the same under all",
        "  T-E2 changes with the seed (3: fails, 4: holds)",
        "  T-E3 changes with the seed (3: holds, 4: left out)",
    ]
