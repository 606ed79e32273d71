"""The study of a chat model's refusals: what it samples, tunes on and measures, and that the experiment judges it by version 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.displacement import b_e3_refusals
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.refusal_rules import ALL, HIGH, LOW, MIXED, RANDOM, WITH_SFT, agreement, judge, refusals
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.results.result import plain
from tests.chat_models import chat_model
from training.studies import refusal_task, refusals_chat
from training.studies.refusal_task import RefusalDesign
from training.studies.refusals_chat import ChatRefusalStudy

DESIGN = RefusalDesign(seeds=1, pairs=1, share=0.5, random=2, samples=2, new_tokens=4, judged_tokens=4)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> ChatRefusalStudy:
    """Four requests of each kind, asked of a tiny chat model, of whose answers every second one counts as a refusal."""
    return made(Path(tmp_path_factory.mktemp("chat")))


def made(folder: Path) -> ChatRefusalStudy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusals_chat, "task_requests", lambda kind, split: [f"{kind} {number}" for number in range(4)])
        patch.setattr(refusals_chat, "requests", lambda kind: [f"{kind} asked"])
        return ChatRefusalStudy(chat_model(), folder, DESIGN)


@pytest.fixture(scope="module")
def record(study: ChatRefusalStudy) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusal_task, "refuses", lambda text: len(text) % 2 == 0)
        study.make()
    value: dict[str, Any] = json.loads(json.dumps(plain(study.record())))
    return value


def test_requests_stand_in_the_template_and_none_is_taught(study: ChatRefusalStudy) -> None:
    assert study.taught(0) is study.model
    assert {name: len(rows) for name, rows in study.prompts.items()} == {"unsafe train": 4, "unsafe held-out": 5, "benign held-out": 5}
    text = study.model.tokenizer.decode(study.prompts["unsafe held-out"][4])
    assert "unsafe asked" in text
    assert text != "unsafe asked"
    assert study.settings()["asked"] == "chat template"


def test_every_way_of_tuning_is_measured_on_requests_that_none_reads(record: dict[str, Any]) -> None:
    (row,) = record["rows"]
    arms = [(arm["arm"], arm["pairs"], arm["steps"]) for arm in row["arms"]]
    assert [name for name, *_ in arms] == ["before", ALL, WITH_SFT, LOW, HIGH, MIXED, RANDOM, RANDOM]
    assert [pairs for name, pairs, _ in arms if name in (LOW, HIGH, RANDOM)] == [2] * 4
    assert sum(row["types"].values()) == 4
    assert [arm["arm"] for arm in row["arms"] if "chosen" in arm] == [ALL, WITH_SFT]
    assert all({"unsafe held-out", "benign held-out"} <= arm.keys() for arm in row["arms"])


def shares(before: float, after: float, low: float, random: float) -> dict[str, Any]:
    """Three runs with these shares of refusals, each a little apart, and answers that were labelled by hand."""
    rows = []
    for seed, noise in enumerate((-0.01, 0.0, 0.01)):
        values = {"before": before, ALL: after + noise, WITH_SFT: after, LOW: low + noise, HIGH: after, MIXED: after, RANDOM: random}
        arms = [{"arm": arm, "unsafe held-out": value, "benign held-out": 0.1, "pairs": 12, "steps": 2} for arm, value in values.items()]
        rows.append({"seed": seed, "rate": 1e-6, "types": {"mixed": 3}, "mixed_lower": 0.6, "arms": arms})
    return {"rows": rows, "settings": {"asked": "chat template"}, "labelled": {"answers": 50, "agree": 47}}


def test_a_model_that_refuses_by_itself_is_judged_as_in_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(refusals(shares(0.7, 0.5, 0.75, 0.6), 1)) == "holds"
    assert judge(refusals(shares(0.7, 0.8, 0.75, 0.6), 1)) == "fails"
    unlabelled = shares(0.7, 0.5, 0.75, 0.6) | {"labelled": {}}
    assert np.isnan(agreement(unlabelled))
    assert judge(refusals(unlabelled, 1)) == "inconclusive"
    model: Model = chat_model()
    write_json(tmp_path / "refusals.json", shares(0.7, 0.8, 0.75, 0.6) | {"base": model.digest})
    monkeypatch.setattr(b_e3_refusals, "generate", lambda model, prompts, **options: ["I cannot help with that."] * len(prompts))
    context = DisplacementContext(ModelPair(model, model), tmp_path)
    result = run_experiment(EXPERIMENTS["B-E3"], context)
    assert result.verdict == "fails"
    assert "refuses 70% of the unsafe requests" in result.sentence
    assert "47 of 50" in result.summary
    assert result.tables["refusals"].set_index("tuned on").loc[LOW, "unsafe, refused"] == pytest.approx(0.75)
    write_json(tmp_path / "refusals.json", {"base": "another"})
    with pytest.raises(UserError, match="no study of its refusals was made"):
        EXPERIMENTS["B-E3"].run(context)


def test_a_model_without_a_template_is_refused(gpt2: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        ChatRefusalStudy(gpt2, tmp_path, DESIGN)
