"""The runs of `bypass undo` on tiny models: steps beside a plain loop, killed runs, budgets, and pairs whose answer is planted."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from interp.elasticity.behaviour import WordOdds
from interp.elasticity.measurement import Measurement, Reference, measure
from interp.elasticity.undo import Attack, UndoRecord
from interp.elasticity.undo_verdict import judge
from interp.errors import UserError
from interp.models.model import Model
from interp.models.pair import ModelPair
from tests.conftest import gpt2_config, make_hf
from tests.elasticity.words import OPENINGS, moved_words
from training import undo_course
from training.undo import Arm, Seconds, UndoSettings, courses_of, cut_to_budget, minutes_of, undo
from training.undo_course import Course, Trainee, merged, run_course
from training.undo_windows import windows_of

TEXTS = ["the blorp walks with the snarg", "a river and a stone", "never under the quick wintle", "the sunny river sings"] * 2
STEPS, BATCH, LENGTH = (1, 3, 4), 2, 12


def reference_of(pair: ModelPair) -> Reference:
    words = moved_words(pair) if pair.base is not pair.tuned else ("blorp", "snarg")
    behaviour = WordOdds(OPENINGS, [words], new_tokens=3)
    return Reference(pair, behaviour, ["the river walks", "a stone sings"], {"neutral": ["a river"]})


def course_of(start: Model, attack: Attack, *, rate_seed: int = 0) -> Course:
    rows = start.tokenizer(TEXTS)["input_ids"]
    windows = windows_of(rows, start.tokenizer.eos_token_id, length=LENGTH, count=STEPS[-1] * BATCH, seed=rate_seed)
    return Course("opposite", attack, rate_seed, start, windows, STEPS, BATCH, "adamw")


def test_windows_hold_the_texts_in_passes_and_more_of_them_change_none() -> None:
    rows = [[1, 2, 3], [4, 5], [6]]
    windows = windows_of(rows, 0, length=4, count=6, seed=3)
    stream = windows.ids.ravel().tolist()
    first_pass = stream[:9]
    assert sorted(first_pass) == sorted([1, 2, 3, 4, 5, 6, 0, 0, 0])
    texts, ends = [], []
    for token in stream:
        ends.append(token)
        if token == 0:
            texts.append(ends[:-1])
            ends = []
    assert all(text in rows for text in texts)
    assert windows_of(rows, 0, length=4, count=3, seed=3).ids.tolist() == windows.ids[:3].tolist()
    assert windows_of(rows, 0, length=4, count=6, seed=4).ids.tolist() != windows.ids.tolist()
    begun = [1 + stream[: 4 * (place + 1) - 1].count(0) for place in range(6)]
    assert windows.texts.tolist() == begun
    with pytest.raises(UserError, match="no texts"):
        windows_of([[]], 0, length=4, count=1, seed=0)


@pytest.mark.oracle
def test_the_curve_is_that_of_a_plain_loop_in_transformers(pair: ModelPair, tuned_folder: Path, tmp_path: Path) -> None:
    course = course_of(pair.tuned, Attack(1e-2))
    run = run_course(course, tmp_path, "key", lambda model: measure(model, reference_of(pair)))
    plain = transformers.AutoModelForCausalLM.from_pretrained(tuned_folder, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    behaviour = reference_of(pair).behaviour
    points = {point.step: point for point in run.points}
    for step in range(1, STEPS[-1] + 1):
        ids = torch.tensor(course.windows.ids[(step - 1) * BATCH : step * BATCH])
        loss = plain(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in points:
            assert points[step].loss == pytest.approx(float(loss.detach()), abs=1e-5)
            copied = Model(copy.deepcopy(plain), pair.tuned.tokenizer, "plain")
            copied.hf.requires_grad_(False)
            assert points[step].measurement.score == pytest.approx(behaviour.read(copied).score, abs=1e-5)
    assert list(points) == list(STEPS)
    assert (points[3].samples, points[3].tokens) == (6, 72)
    assert 0 < points[1].distance <= points[1].path + 1e-9 < points[4].path  # type: ignore[operator]


class Killed(BaseException):
    """What ends a run in the middle, as a kill does: nothing catches it."""


@pytest.mark.parametrize("attack", [Attack(1e-2), Attack(1e-2, rank=2)], ids=["full", "lora"])
def test_a_run_that_is_killed_loses_the_step_in_flight_and_ends_at_the_same_numbers(
    pair: ModelPair, attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo_course, "WRITING", 1e9)
    reference, taken = reference_of(pair), []
    course = course_of(pair.tuned, attack)
    whole = run_course(course, tmp_path / "whole", "key", lambda model: measure(model, reference))

    def kill_after(last: int) -> Callable[[int], None]:
        def tell(step: int) -> None:
            taken.append(step)
            if len(taken) == last:
                raise Killed

        return tell

    # `tell` is called before the state is written: the step that is told and killed is the one in flight.
    for last in (2, 4, 6):
        with pytest.raises(Killed):
            run_course(course, tmp_path / "killed", "key", lambda model: measure(model, reference), tell=kill_after(last))
    again = run_course(course, tmp_path / "killed", "key", lambda model: measure(model, reference), tell=taken.append)
    assert taken == [1, 2, 2, 3, 3, 4, 4]
    for one, other in zip(whole.points, again.points, strict=True):
        assert np.array_equal(one.measurement.score, other.measurement.score)
        assert np.array_equal(one.measurement.kl_base, other.measurement.kl_base)
        assert (one.distance, one.path, one.loss) == (other.distance, other.path, other.loss)
    assert again.is_whole
    taken.clear()
    run_course(course, tmp_path / "killed", "key", lambda model: measure(model, reference), tell=taken.append)
    assert taken == []
    assert not list((tmp_path / "killed").glob("*.state"))


def test_a_run_with_more_doses_goes_on_and_keeps_the_points_that_are_there(pair: ModelPair, tmp_path: Path) -> None:
    reference = reference_of(pair)
    course = course_of(pair.tuned, Attack(1e-2))
    run_course(dataclasses.replace(course, steps=STEPS[:2]), tmp_path, "key", lambda model: measure(model, reference))
    longer = run_course(course, tmp_path, "key", lambda model: measure(model, reference))
    anew = run_course(course, tmp_path / "anew", "key", lambda model: measure(model, reference))
    assert [point.loss for point in longer.points] == [point.loss for point in anew.points]
    assert longer.points[-1].path == anew.points[-1].path
    shorter = run_course(dataclasses.replace(course, steps=STEPS[:1]), tmp_path, "key", lambda model: measure(model, reference))
    assert (len(shorter.points), shorter.is_whole) == (1, True)


def test_an_adapter_is_merged_into_what_is_measured_and_alone_is_trained(pair: ModelPair) -> None:
    trainee = Trainee(pair.tuned, Attack(1e-2, rank=2), "adamw", 0)
    ids = torch.tensor(course_of(pair.tuned, Attack(1e-2)).windows.ids[:BATCH])
    before = {name: value.clone() for name, value in merged(trainee.hf)}
    assert before.keys() == dict(pair.tuned.hf.named_parameters()).keys()
    with torch.no_grad():
        assert torch.allclose(trainee.hf(ids).logits, pair.tuned.hf(ids).logits, atol=1e-5)
    trainee.step(ids)
    changed = {name for name, value in merged(trainee.hf) if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in changed)
    with torch.no_grad():
        assert torch.allclose(trainee.measured().hf(ids).logits, trainee.hf(ids).logits, atol=1e-4)
    assert trainee.distance() > 0


def test_a_loss_that_is_not_finite_ends_the_run_with_a_note(pair: ModelPair, tmp_path: Path) -> None:
    course = course_of(pair.tuned, Attack(1e30))
    run = run_course(course, tmp_path, "key", lambda model: measure(model, reference_of(pair)))
    assert "no longer finite" in run.note
    assert not run.is_whole
    assert run_course(course, tmp_path, "key", lambda model: measure(model, reference_of(pair))).note == run.note


def arms_of(names: str = "opposite,neutral,same") -> list[Arm]:
    return [Arm(name, None if name == "same" else TEXTS, "invented") for name in names.split(",")]


def test_a_plan_is_cut_to_its_budget_by_seeds_first_and_then_by_the_largest_doses() -> None:
    settings, arms, seconds = UndoSettings((Attack(1e-4),), (1, 5, 10), seeds=3), arms_of(), Seconds(1.0, 2.0)
    assert minutes_of(settings, 3, seconds) == pytest.approx(3 * 3 * (10 + 6) / 60)
    assert cut_to_budget(settings, arms, seconds, float("inf")) == (settings, [])
    fewer, said = cut_to_budget(settings, arms, seconds, 60.0)
    assert (fewer.seeds, fewer.steps, said) == (1, (1, 5, 10), ["The budget holds 1 of 3 seeds."])
    shorter, said = cut_to_budget(settings, arms, seconds, 35.0)
    assert (shorter.seeds, shorter.steps) == (1, (1, 5))
    assert said[1] == "The budget holds doses up to 5 of 10 steps."
    with pytest.raises(UserError, match="one seed of 3 arms to step 1"):
        cut_to_budget(settings, arms, seconds, 5.0)


def test_a_budget_that_ends_leaves_whole_runs_first_and_the_same_question_goes_on(
    pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = UndoSettings((Attack(1e-2),), STEPS, BATCH, LENGTH, seeds=2)
    reference = reference_of(pair)
    asked: list[int] = []
    real = undo_course.run_course

    def impatient(course: Course, *args: Any, **named: Any) -> Any:
        def may_go_on(steps: int) -> bool:
            asked.append(steps)
            return len(asked) <= 4

        return real(course, *args, **{**named, "may_go_on": may_go_on})

    monkeypatch.setattr("training.undo.run_course", impatient)
    part = undo(pair, arms_of("opposite,same"), reference, settings, tmp_path)
    assert [run.is_whole for run in part.runs] == [True, False, False, False]
    assert [len(run.points) for run in part.runs] == [3, 1, 0, 0]
    assert part.left_out == ["The budget ended before 3 of 4 runs were whole; the same command goes on with them."]
    monkeypatch.setattr("training.undo.run_course", real)
    whole = undo(pair, arms_of("opposite,same"), reference, settings, tmp_path)
    assert all(run.is_whole for run in whole.runs)
    assert [run.seed for run in whole.runs] == [0, 0, 1, 1]


def test_equal_sides_are_measured_and_nothing_is_trained(gpt2: Model, tmp_path: Path) -> None:
    pair = ModelPair(gpt2, gpt2)
    record = undo(pair, arms_of(), reference_of(pair), UndoSettings((Attack(1e-2),), STEPS, BATCH, LENGTH), tmp_path)
    assert record.runs == ()
    assert not judge(record, "x.txt", "words").has_behaviour
    assert not list(tmp_path.rglob("runs"))


def test_every_arm_reads_as_many_tokens_and_the_base_is_where_one_starts(pair: ModelPair, tmp_path: Path) -> None:
    settings = UndoSettings((Attack(1e-2), Attack(1e-3)), STEPS, BATCH, LENGTH, seeds=2)
    courses = list(courses_of(pair, arms_of("opposite,same,from_base"), settings, tmp_path))
    assert [(course.seed, course.attack.rate, course.arm) for course in courses[:4]] == [
        (0, 1e-2, "opposite"), (0, 1e-2, "same"), (0, 1e-2, "from_base"), (0, 1e-3, "opposite"),
    ]  # fmt: skip
    assert {course.windows.ids.shape for course in courses} == {(STEPS[-1] * BATCH, LENGTH)}
    assert [course.start is pair.base for course in courses[:3]] == [False, False, True]
    assert not np.array_equal(courses[0].windows.ids, courses[6].windows.ids)
    assert np.array_equal(courses[0].windows.ids, courses[2].windows.ids)
    more = list(courses_of(pair, arms_of("same"), dataclasses.replace(settings, steps=(*STEPS, 40)), tmp_path))
    assert np.array_equal(more[0].windows.ids[: STEPS[-1] * BATCH], courses[1].windows.ids)


def test_settings_that_make_no_run_are_refused(pair: ModelPair, tmp_path: Path) -> None:
    for broken in (
        {"steps": (3, 1)}, {"steps": ()}, {"attacks": ()}, {"attacks": (Attack(0.0),)}, {"seeds": 0},
    ):  # fmt: skip
        with pytest.raises(UserError):
            UndoSettings(**{"attacks": (Attack(1e-4),), "steps": (1,), **broken})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="longer than the context"):
        undo(pair, arms_of(), reference_of(pair), UndoSettings((Attack(1e-4),), (1,), length=1000), tmp_path)


# ------------------------------------------------------------------------------------------------------------- planted pairs

OPENING, FIRST, SECOND = "a quonk", " river", " stone"
BALANCED = [f"{OPENING}{word}" for word in (FIRST, SECOND)]
ELSEWHERE = ["a meldy walks", "a meldy sings"]
WINDOW = 12


def trained(hf: Any, tokenizer: Any, texts: list[str], steps: int, rate: float, only: Callable[[str], bool] = lambda name: True) -> Any:
    """The model after steps of Adam on windows of the texts, on the parameters whose names pass."""
    windows = windows_of(tokenizer(texts)["input_ids"], tokenizer.eos_token_id, length=WINDOW, count=8 * steps, seed=0).ids
    optimizer = torch.optim.Adam([parameter for name, parameter in hf.named_parameters() if only(name)], lr=rate)
    for step in range(steps):
        ids = torch.tensor(windows[8 * step : 8 * (step + 1)])
        hf.zero_grad()
        hf(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return hf


@pytest.fixture(scope="module")
def planted_base(tokenizer: Any) -> Any:
    """A base that continues the opening with either word at equal odds, trained on the neutral texts of the elastic pair."""
    config = gpt2_config(n_layer=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False)
    return trained(make_hf(config, tokenizer, seed=2), tokenizer, [*BALANCED, *ELSEWHERE], steps=150, rate=3e-3)


def record_of(base: Any, tuned: Any, tokenizer: Any, neutral: list[str], folder: Path) -> UndoRecord:
    """The record of a pair whose tuned side says the first word more often, under opposite, neutral and its own text."""
    pair = ModelPair(*(Model(hf.eval().requires_grad_(False), tokenizer, name) for name, hf in (("base", base), ("tuned", tuned))))
    before = ["", *(f"{text}<|endoftext|>" for text in [*BALANCED, *ELSEWHERE])]
    contexts = [f"{one}{OPENING}" for one in before] + [f"{before[1]}{one}{OPENING}" for one in before[1:]]
    reference = Reference(pair, WordOdds(contexts, [(FIRST, SECOND)], new_tokens=2), [*neutral, BALANCED[0]], {"neutral": neutral})
    arms = [Arm("opposite", [BALANCED[1]], "invented"), Arm("neutral", neutral, "invented"), Arm("same", None, "sampled")]
    return undo(pair, arms, reference, UndoSettings((Attack(3e-3),), (2, 6, 12), batch=4, length=WINDOW, seeds=2), folder)


@pytest.mark.oracle
def test_a_pair_that_is_elastic_by_construction_is_called_so(planted_base: Any, tokenizer: Any, tmp_path: Path) -> None:
    # Neutral text says both words after the opening, as the base has learned, so that it leads back to the base.
    tuned = trained(copy.deepcopy(planted_base), tokenizer, [BALANCED[0], ELSEWHERE[0], ELSEWHERE[1]], steps=10, rate=3e-3)
    record = record_of(copy.deepcopy(planted_base), tuned, tokenizer, [*BALANCED, *ELSEWHERE], tmp_path)
    verdict = judge(record, "opposite.txt", "word log-odds")
    assert (verdict.has_behaviour, verdict.elastic) == (True, "shown"), verdict.sentences
    assert any("Elastic: neutral text alone" in sentence for sentence in verdict.sentences)


@pytest.mark.oracle
def test_a_pair_whose_behaviour_neutral_text_does_not_touch_is_fragile_alone(planted_base: Any, tokenizer: Any, tmp_path: Path) -> None:
    # Tuning has moved the embedding of a word that neutral text never reads, so that only text with this word undoes it.
    moved = trained(copy.deepcopy(planted_base), tokenizer, [BALANCED[0]], 60, 1e-2, lambda name: name == "transformer.wte.weight")
    tuned, word = copy.deepcopy(planted_base), tokenizer(" quonk")["input_ids"]
    assert len(word) == 1
    with torch.no_grad():
        tuned.transformer.wte.weight[word] = moved.transformer.wte.weight[word]
    record = record_of(copy.deepcopy(planted_base), tuned, tokenizer, ELSEWHERE, tmp_path)
    verdict = judge(record, "opposite.txt", "word log-odds")
    assert (verdict.has_behaviour, verdict.fragile, verdict.beyond_neutral) == (True, "fragile", "shown"), verdict.sentences
    assert verdict.elastic == "not shown", verdict.sentences
    assert any(sentence.startswith("A return to the base was not shown") for sentence in verdict.sentences)


def test_points_are_kept_as_json_in_full_precision(pair: ModelPair, tmp_path: Path) -> None:
    course = course_of(pair.tuned, Attack(1e-2))
    run = run_course(course, tmp_path, "key", lambda model: measure(model, reference_of(pair)))
    record = json.loads((tmp_path / f"{course.name}.json").read_text())
    again = Measurement.from_json(record["points"][-1]["measurement"])
    assert np.array_equal(again.score, run.points[-1].measurement.score)
