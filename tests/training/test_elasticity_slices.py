"""The study of slices: what is trained on, what is measured, and that a random change is as far away as the slice it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import Model
from interp.experiments.elasticity.slice_rules import PAPER, PLAIN, resistance
from interp.preferences.influence import trainable_copy
from training.optimizers import preference_optimizer
from training.studies.elasticity_slices import SAMPLINGS, SliceDesign, SliceStudy
from training.studies.elasticity_texts import Texts

DESIGN = SliceDesign(seeds=2, slices=(4, 8), queries=4, query=3, answer=4, batch=2, tokens=8, rate=1e-3, measured=2)


@pytest.fixture(scope="module")
def study(gpt2: Model, tmp_path_factory: pytest.TempPathFactory) -> SliceStudy:
    def rows(count: int, seed: int) -> list[list[int]]:
        return np.random.default_rng(seed).integers(1, 200, (count, DESIGN.tokens)).tolist()

    texts = Texts({"positive": rows(DESIGN.needed["positive"], 0)}, {"pretraining": rows(2, 1)}, {})
    return SliceStudy(gpt2, Path(tmp_path_factory.mktemp("runs")), texts, DESIGN)


@pytest.fixture(scope="module")
def record(study: SliceStudy) -> dict[str, Any]:
    study.make()
    return study.record()


def runs_of(record: dict[str, Any], kind: str, sampling: str) -> dict[tuple[int, Any], dict[str, Any]]:
    return {
        (run["student"], run["teacher"]): run for run in record["rows"][0]["runs"] if (run["kind"], run["sampling"]) == (kind, sampling)
    }


def test_every_slice_learns_from_every_other(record: dict[str, Any]) -> None:
    ordered = {(student, teacher) for student in range(3) for teacher in range(3) if student != teacher}
    for sampling in SAMPLINGS:
        assert runs_of(record, "slice", sampling).keys() == ordered
    assert runs_of(record, "third", "").keys() == {(place, None) for place in range(3)}
    assert runs_of(record, "random", PAPER).keys() == {(2, 0), (2, 1)}
    assert runs_of(record, "random", PLAIN) == {}
    assert [row["seed"] for row in record["rows"]] == [0, 1]
    assert resistance(record).raw.mean.n == 2


def test_an_epoch_is_that_of_a_plain_loop_on_the_answers_alone(study: SliceStudy, gpt2: Model) -> None:
    rows = [row[: DESIGN.query + DESIGN.answer] for row in study.reviews(0, DESIGN.slices[-1], DESIGN.queries)]
    hf = trainable_copy(gpt2)
    optimizer = preference_optimizer("adamw", list(hf.parameters()), DESIGN.rate)
    losses = []
    for place in range(0, len(rows), DESIGN.batch):
        ids = torch.tensor(rows[place : place + DESIGN.batch])
        log_probs = hf(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        loss = -log_probs[:, DESIGN.query - 1 :].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    epoch = study.epoch(gpt2, rows)
    assert epoch["mean"] == pytest.approx(np.mean(losses), abs=1e-5)
    with torch.no_grad():
        ids = torch.tensor(rows)
        log_probs = gpt2.hf(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    assert epoch["start"] == pytest.approx(-float(log_probs[:, DESIGN.query - 1 :].mean()), abs=1e-5)
    assert epoch["end"] < epoch["start"]


def test_a_random_change_is_as_far_away_as_its_slice(record: dict[str, Any]) -> None:
    row = record["rows"][0]
    for run in runs_of(record, "random", PAPER).values():
        assert run["kl"] == pytest.approx(row["kl"][str(run["teacher"])]["2"], rel=0.03)


def test_slices_part_from_the_base_step_by_step_and_openings_are_read_by_none(study: SliceStudy, record: dict[str, Any]) -> None:
    kl = record["rows"][0]["kl"]
    assert 0 < kl["1"]["0"] < kl["2"]["0"]
    assert kl["0"]["0"] == pytest.approx(0, abs=1e-9)
    tuned = {tuple(row) for seed in range(2) for row in study.reviews(seed, 0, DESIGN.slices[-1])}
    asked = {tuple(row) for seed in range(2) for row in study.reviews(seed, DESIGN.slices[-1], DESIGN.queries)}
    assert len(asked) == 2 * DESIGN.queries
    assert not tuned & asked


def test_a_study_goes_on_where_it_stopped(study: SliceStudy, record: dict[str, Any]) -> None:
    said: list[str] = []
    study.say = said.append
    study._row(1).unlink()
    study.make()
    assert said == ["seed 1"]
    assert study.record() == record
