"""What a run is said to have done, on logs whose answer is planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from interp.bundled import BUNDLED
from interp.errors import UserError
from interp.preferences.watch import watch


def log(chosen: float, rejected: float, noise: float = 0.5, n: int = 60) -> list[dict[str, Any]]:
    """A run in which both sides move by so many nats."""
    rng = np.random.default_rng(0)
    return [
        {"step": step, "logp_chosen": -50 + chosen * step / n + noise * rng.normal(),
         "logp_rejected": -60 + rejected * step / n + noise * rng.normal(), "margin": 0.1 * (chosen - rejected) * step / n}
        for step in range(1, n + 1)
    ]  # fmt: skip


def write(records: list[dict[str, Any]], folder: Path) -> Path:
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (-12, -40, "both sides fell"),
        (8, -30, "chosen rose and rejected fell"),
        (0, -30, "chosen did not move beyond the noise"),
        (-9, 9, "as if the labels were exchanged"),
        (9, 5, "both sides rose"),
    ],
)
def test_the_sentence_says_what_moved(chosen: float, rejected: float, words: str, tmp_path: Path) -> None:
    watched = watch(write(log(chosen, rejected), tmp_path))
    assert words in watched.sentence
    assert watched.sentence.startswith("From step 1 to 60 log π(chosen) went from −")
    assert watched.both_fall == (chosen == -12)


def test_a_move_is_the_last_tenth_less_the_first_with_an_interval(tmp_path: Path) -> None:
    records = log(-12, -40)
    move = watch(write(records, tmp_path)).moves["logp_chosen"]
    values = np.array([record["logp_chosen"] for record in records])
    assert move.change == pytest.approx(values[-6:].mean() - values[:6].mean())
    referee = stats.ttest_ind(values[-6:], values[:6], equal_var=False).confidence_interval()
    assert (move.low, move.high) == pytest.approx((referee.low, referee.high))


@pytest.mark.parametrize(("n", "ends"), [(30, 5), (8, 4), (4, 2)])
def test_the_ends_of_a_short_run_hold_several_values(n: int, ends: int, tmp_path: Path) -> None:
    records = log(-12, -40, n=n)
    values = np.array([record["logp_chosen"] for record in records])
    move = watch(write(records, tmp_path)).moves["logp_chosen"]
    assert (move.start, move.end) == pytest.approx((values[:ends].mean(), values[-ends:].mean()))
    assert move.low == pytest.approx(stats.ttest_ind(values[-ends:], values[:ends], equal_var=False).confidence_interval().low)


def test_of_two_logged_values_nothing_is_concluded(tmp_path: Path) -> None:
    watched = watch(write(log(-12, -40, n=2), tmp_path))
    assert not watched.both_fall
    assert watched.sentence.endswith("too few values are logged to tell a move from the noise of batches.")


def test_a_state_of_trl_is_read_with_its_rewards(tmp_path: Path) -> None:
    names = {"logp_chosen": "logps/chosen", "logp_rejected": "logps/rejected", "margin": "rewards/margins", "step": "step"}
    history = [{names[name]: value for name, value in record.items()} | {"rewards/chosen": -0.01 * record["step"], "loss": 0.6}
               for record in log(-12, -40)]  # fmt: skip
    for step in (20, 60):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"log_history": [*history[:step], {"step": step, "eval_loss": 0.5}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    watched = watch(tmp_path)
    assert watched.steps == (1, 60)
    assert watched.both_fall
    assert watched.moves["reward_chosen"].direction == "fell"
    assert watch(tmp_path / "checkpoint-20" / "trainer_state.json").steps == (1, 20)


def test_the_log_that_ships_is_read() -> None:
    watched = watch(BUNDLED / "log" / "dpo.jsonl")
    assert watched.moves["margin"].direction == "rose"
    assert json.loads(json.dumps(watched.to_json()))["sentence"] == watched.sentence


def test_a_run_without_the_columns_is_refused_with_what_to_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer than two values of logp_chosen, logp_rejected, margin; it logs nothing.*logging_steps"):
        watch(write([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}], tmp_path))
    with pytest.raises(UserError, match="there is no training log"):
        watch(tmp_path / "absent")
    (tmp_path / "trainer_state.json").write_text('{"log_history": 3}')
    with pytest.raises(UserError, match="has no log_history"):
        watch(tmp_path / "trainer_state.json")
