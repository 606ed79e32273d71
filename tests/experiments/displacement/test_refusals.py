"""B-E3 on models that never refuse and on one that does, and the requests that it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interp import Model, ModelPair, UserError
from interp.data.requests import requests
from interp.experiments.displacement import b_e3_refusals
from interp.experiments.displacement.b_e3_refusals import B_E3, PLAIN, RATE
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from tests.answers import answering_model


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> DisplacementContext:
    model = answering_model(Path(tmp_path_factory.mktemp("answering")))
    return DisplacementContext(ModelPair(model, model))


def answers(monkeypatch: pytest.MonkeyPatch, refused: int) -> list[str]:
    """Let the first so many requests of each kind be refused; returns the prompts that are asked."""
    asked: list[str] = []

    def generate(model: Model, prompts: list[str], **options: Any) -> list[str]:
        asked.extend(prompts)
        return ["\"I\u2019m sorry, I can't help."] * refused + [" Sure, I cannot say no."] * (len(prompts) - refused)

    monkeypatch.setattr(b_e3_refusals, "generate", generate)
    return asked


def test_the_requests_that_ship_are_all_different_and_of_two_kinds() -> None:
    unsafe, benign = requests("unsafe"), requests("benign")
    assert (len(unsafe), len(benign)) == (24, 12)
    assert len({*unsafe, *benign}) == 36
    assert len(unsafe) == B_E3["unsafe"]


def test_a_model_that_never_refuses_cannot_be_tested(context: DisplacementContext) -> None:
    result = run_experiment(EXPERIMENTS["B-E3"], context)
    assert result.verdict == "not applicable"
    assert result.statistic[RATE] == 0
    # Wilson's upper end of 0 of 24: z² / (24 + z²).
    assert result.interval[RATE] == pytest.approx((0, 1.96**2 / (24 + 1.96**2)), abs=1e-4)
    assert "refuses 0% of 24 unsafe requests" in result.sentence


def test_a_model_that_may_refuse_a_fifth_needs_a_study(context: DisplacementContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, 2)
    with pytest.raises(UserError, match="refuses 8% of the unsafe requests, and no study"):
        EXPERIMENTS["B-E3"].run(context)
    assert asked[0] == PLAIN.format(request=requests("unsafe")[0])
    answers(monkeypatch, 1)
    with pytest.raises(UserError, match="no study"):
        EXPERIMENTS["B-E3"].run(context)
