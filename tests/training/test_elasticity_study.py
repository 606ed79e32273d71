"""The studies of paper C: what the runs on reviews read, store and measure, and what models of the theory show."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import Model, ModelPair, UserError
from interp.elasticity.behaviour import next_log_probs
from interp.elasticity.divergence import kl_by_position
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.courses import course_of
from interp.experiments.elasticity.theory_rules import law_of
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.preferences.influence import trainable_copy
from interp.results.result import plain
from tests.conftest import WORDS
from training.bigrams import fit, gradient, sources, start
from training.sources import held_out
from training.studies import elasticity_reviews, elasticity_theory
from training.studies.elasticity import main
from training.studies.elasticity_reviews import ARMS, ReviewDesign, ReviewStudy
from training.studies.elasticity_texts import Texts, read_texts

DESIGN = ReviewDesign(seeds=2, tuned=(8, 16), doses=(4, 8), batch=4, tokens=8, rate=1e-3, measured=2)
OPENINGS = ("the river", "a stone", "never with")


def invented(count: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, 200, (count, DESIGN.tokens)).tolist()


@pytest.fixture(scope="module")
def texts() -> Texts:
    trained = {name: invented(DESIGN.needed[name], seed) for seed, name in enumerate(("positive", "negative", "neutral", "pretraining"))}
    compressed = {name: [" ".join(WORDS[place : place + 6])] for place, name in enumerate(trained)}
    return Texts(trained, {name: invented(2, 50 + seed) for seed, name in enumerate(("neutral", "pretraining"))}, compressed)


@pytest.fixture(scope="module")
def pairs(gpt2: Model) -> list[tuple[str, str]]:
    whole = [word for word in WORDS if len(gpt2.tokenizer(f" {word}")["input_ids"]) == 1]
    return [(whole[0], whole[1]), (whole[2], whole[3])]


@pytest.fixture(scope="module")
def study(gpt2: Model, texts: Texts, pairs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> ReviewStudy:
    return ReviewStudy(gpt2, Path(tmp_path_factory.mktemp("runs")), texts, DESIGN, OPENINGS, pairs)


@pytest.fixture(scope="module")
def record(study: ReviewStudy) -> dict[str, Any]:
    study.make()
    value: dict[str, Any] = json.loads(json.dumps(plain(study.record())))
    return value


def find(record: dict[str, Any], *key: Any) -> dict[str, Any]:
    return next(row for row in record["rows"] if (row["seed"], row["first"], row["n"], row["arm"], row["dose"]) == key)


def test_every_seed_has_every_tuning_and_arm_at_every_dose(record: dict[str, Any], study: ReviewStudy) -> None:
    arms = sum(map(len, ARMS.values())) * len(DESIGN.tuned) * len(DESIGN.doses)
    assert len(record["rows"]) == DESIGN.seeds * (2 * 3 + arms)
    for first, names in ARMS.items():
        for n in DESIGN.tuned:
            for arm in names:
                course = course_of(record, first, n, arm)
                assert course is not None
                assert (course.seeds, course.doses) == ((0, 1), DESIGN.doses)
    # Weights are there while they are needed only.
    assert not list(study.folder.rglob("*.safetensors"))


def test_no_two_seeds_share_a_text_and_more_of_the_same_was_not_read_before(study: ReviewStudy) -> None:
    read = [tuple(row) for seed in range(2) for source in DESIGN.needed for row in study.rows_of(source, seed, 0, study.texts_of(source))]
    assert len(set(read)) == len(read) == sum(DESIGN.needed.values())
    tuned = study.rows_of("positive", 1, 0, DESIGN.tuned[-1])
    assert not {tuple(row) for row in study.arm_rows("positive", 1, "same")} & {tuple(row) for row in tuned}
    with pytest.raises(UserError, match="seed 2 needs"):
        study.rows_of("positive", 2, 0, 4)


def test_opposite_text_is_what_the_other_tuning_reads_first(study: ReviewStudy) -> None:
    for first, other in (("positive", "negative"), ("negative", "positive")):
        assert study.arm_rows(first, 1, "opposite") == study.rows_of(other, 1, 0, DESIGN.doses[-1])


@pytest.mark.oracle
def test_a_row_is_that_of_a_plain_loop(study: ReviewStudy, record: dict[str, Any], gpt2: Model) -> None:
    hf = trainable_copy(gpt2)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=DESIGN.rate, betas=(0.9, 0.95), weight_decay=0.0)

    def read(rows: list[list[int]]) -> None:
        for place in range(0, len(rows), DESIGN.batch):
            ids = torch.tensor(rows[place : place + DESIGN.batch])
            loss = torch.nn.functional.cross_entropy(hf(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    read(study.rows_of("positive", 1, 0, 8))
    # An arm begins with a new optimizer.
    optimizer = torch.optim.AdamW(hf.parameters(), lr=DESIGN.rate, betas=(0.9, 0.95), weight_decay=0.0)
    read(study.arm_rows("positive", 1, "neutral")[:4])
    model = Model(hf.eval().requires_grad_(False), gpt2.tokenizer, "plain")
    row = find(record, 1, "positive", 8, "neutral", 4)
    logps = next_log_probs(model, [gpt2.tokenizer(text)["input_ids"] for text in OPENINGS])
    expected = (logps[:, study.words[:, 0]] - logps[:, study.words[:, 1]]).mean(axis=1)
    assert row["score"] == pytest.approx(expected.tolist(), abs=2e-4)
    kl = kl_by_position(model, {"base": gpt2}, study.texts.compared["pretraining"])["base"].of_row
    assert row["kl_base"] == pytest.approx(kl.tolist(), rel=1e-3)
    assert (row["steps"], row["distance"] > 0) == (1, True)


def test_kl_to_the_tuned_model_is_to_that_of_the_run_and_tuning_has_none(record: dict[str, Any]) -> None:
    first, last = (find(record, 0, "positive", 16, "neutral", dose) for dose in DESIGN.doses)
    assert 0 < first["kl_tuned"] < last["kl_tuned"]
    assert find(record, 0, "positive", 0, "tuning", 16)["kl_tuned"] is None
    assert np.mean(record["base_row"]["kl_base"]) == pytest.approx(0, abs=1e-6)


def test_an_interrupted_study_goes_on_and_ends_as_one_that_was_not(
    study: ReviewStudy, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ReviewStudy(study.model, tmp_path, study.texts, DESIGN, OPENINGS, study.pairs)
    measure, count = ReviewStudy.measure, [0]

    def stops(self: ReviewStudy, *args: Any) -> dict[str, Any]:
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(ReviewStudy, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        again.make()
    made = len(list(again.folder.rglob("*.json")))
    assert made == 8
    # What is there can be written, beside the base's own row.
    assert len(again.record()["rows"]) == made - 1
    again.make()
    assert json.loads(json.dumps(plain(again.record()))) == record
    # What was there was not measured again.
    assert count[0] == 9 + len(record["rows"]) + 1 - made

    def no_training(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(elasticity_reviews, "Trainee", no_training)
    again.make()
    assert json.loads(json.dumps(plain(again.record()))) == record


def test_rows_of_a_seed_stay_when_there_are_more_seeds(study: ReviewStudy) -> None:
    fewer = ReviewStudy(study.model, study.folder.parent, study.texts, ReviewDesign(**{**vars(DESIGN), "seeds": 1}), OPENINGS, study.pairs)
    assert fewer.folder == study.folder
    assert len(fewer.record()["rows"]) * 2 == len(study.record()["rows"])


def test_the_experiments_read_the_record_and_say_that_it_is_too_small(gpt2: Model, record: dict[str, Any], tmp_path: Path) -> None:
    # The experiments are about other amounts.
    amounts = {0: 0, 8: 200, 16: 1000}
    rows = [row | {"n": amounts[row["n"]]} | ({"dose": amounts[row["dose"]]} if row["dose"] in (8, 16) and row["arm"] == "tuning" else {})
            for row in record["rows"]]  # fmt: skip
    write_json(tmp_path / "elasticity.json", record | {"rows": rows})
    context = ElasticityContext(ModelPair(gpt2, gpt2), tmp_path)
    for name in ("C-E2", "C-E3", "C-E7"):
        assert run_experiment(EXPERIMENTS[name], context).verdict == "inconclusive"


def test_texts_are_read_from_their_files_and_none_that_is_measured_on_is_trained_on(gpt2: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def some(count: int) -> list[str]:
        return [" ".join(rng.choice(WORDS, 120)) for _ in range(count)]

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with lzma.open(tmp_path / name, "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    reviews = {name: some(30) for name in ("pos", "neg")}
    write("sentiment/imdb_train.jsonl.xz", [{"text": text, "label": name} for name, texts in reviews.items() for text in [*texts, "short"]])
    test = [{"text": text, "label": name} for name in reviews for text in some(4)]
    write("sentiment/imdb_test.jsonl.xz", test)
    documents = {name: some(160) for name in ("wikipedia", "reddit")}
    for name, texts in documents.items():
        write(f"pretrain/{name}-00.jsonl.xz", [{"text": text} for text in texts])
    needed = {"positive": 20, "negative": 20, "neutral": 10, "pretraining": 10}
    read = read_texts(tmp_path, gpt2, needed, 12, 4)
    assert {name: len(rows) for name, rows in read.trained.items()} == needed
    assert {len(row) for rows in read.trained.values() for row in rows} == {12}
    beginnings = {tuple(gpt2.tokenizer(text)["input_ids"][:11]) for text in reviews["pos"]}
    assert {tuple(row[1:]) for row in read.trained["positive"]} <= beginnings
    apart = {text for text in documents["reddit"] if held_out(text)}
    assert set(read.compressed["pretraining"]) <= {text[:400] for text in apart}
    kept = {tuple(gpt2.tokenizer(text)["input_ids"][:11]) for text in apart}
    assert not {tuple(row[1:]) for row in read.trained["pretraining"]} & kept
    assert {text[:400] for text in read.compressed["positive"]} <= {row["text"][:400] for row in test if row["label"] == "pos"}
    with pytest.raises(UserError, match="texts of positive that are long enough"):
        read_texts(tmp_path, gpt2, needed | {"positive": 31}, 12, 4)


def test_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("BYPASS_DATA", raising=False)
    assert main(["reviews"]) == 2
    assert "BYPASS_DATA names no folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def theory() -> dict[str, Any]:
    """One seed of the theory, with two values of k and short runs."""
    patch = pytest.MonkeyPatch()
    for name, value in {"KS": (1, 10), "SHORT": 10, "LONG": 100, "DIRECTIONS": 3}.items():
        patch.setattr(elasticity_theory, name, value)
    row = elasticity_theory.row_of(1)
    patch.undo()
    return row


@pytest.mark.oracle
def test_at_the_joint_optimum_every_kind_of_data_has_the_ratio_minus_k(theory: dict[str, Any]) -> None:
    for cell in theory["joint"]:
        assert cell["residual"] < 1e-3
        for value in (cell["ratios"]["like P"], cell["ratios"]["like A"], cell["ratios"]["third"], *cell["ratios"]["random"]):
            assert value == pytest.approx(-cell["k"], rel=0.02)
        # Fitted again with a little data of either kind, the losses move by the same law.
        assert cell["retrained"]["like A"] == pytest.approx(-cell["k"], rel=0.1)


@pytest.mark.oracle
def test_within_the_radius_the_ratio_is_minus_k_to_a_tenth_and_at_the_next_size_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elasticity_theory, "DIRECTIONS", 1)
    large, small = sources(1)
    parameters = start(1)
    fit(parameters, [(3, large), (1, small)])
    radius = elasticity_theory.radius(parameters, large, small, 3, 1)
    (direction,) = elasticity_theory.directions(parameters, 1)
    beyond = elasticity_theory.SIZES[elasticity_theory.SIZES.index(radius) + 1]
    for size, is_near in ((radius, True), (beyond, False)):
        moved = [part.detach() + size * step for part, step in zip(parameters, direction, strict=True)]
        changes = [float((source.loss(moved) - source.loss(parameters)).detach()) for source in (small, large)]
        assert (abs(changes[0] / changes[1] / -3 - 1) <= 0.1) == is_near


@pytest.mark.oracle
def test_sequential_cells_are_those_of_plain_adam(theory: dict[str, Any]) -> None:
    large, small = sources(1)
    parameters = start(1)
    for source, steps in ((large, 100), (small, 10)):
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            source.loss(parameters).backward()
            optimizer.step()
    slopes = [torch.cat([part.flatten() for part in gradient(source, parameters)]) for source in (large, small)]
    expected = float(slopes[1] @ slopes[0] / (slopes[0] @ slopes[0]))
    for varied in ("more pre-training", "shorter alignment"):
        cell = next(cell for cell in theory["sequential"] if (cell["varied"], cell["k"]) == (varied, 10))
        assert cell["steps"] == [100, 10]
        assert cell["ratios"]["like P"] == pytest.approx(expected, rel=1e-6)
    assert [cell["steps"] for cell in theory["sequential"]] == [[10, 10], [100, 10], [100, 10], [100, 100]]
    assert [cell["steps"] for cell in theory["reversed"]] == [[10, 10], [10, 100]]


def test_sources_of_their_own_contexts_leave_no_gradient(theory: dict[str, Any]) -> None:
    assert all(cell["gradients"] < 1e-3 and cell["ratio"] > 0 for cell in theory["separate"])
    parameters = start(0, 8)
    fit(parameters, [(10, sources(0, separate=True)[0])])
    assert max(float(part.abs().max()) for part in gradient(sources(0, separate=True)[0], parameters)) < 1e-5


def test_the_rule_reads_what_the_study_writes(theory: dict[str, Any]) -> None:
    law = law_of([theory, theory, theory])
    assert law.is_measured
    assert law.joint.value == pytest.approx(1, abs=0.02)
