"""The rules of A-E3, A-E4, A-E7, A-E9 and W-E1: the null that a version left out decides in the next one.

Each case is one in which version 1 says what the review objected to, on numbers planted for it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interp.experiments.toxicity import a_e3_subtraction, a_e4_continuations, a_e7_lens, a_e9_activations, w_e1_detoxify
from interp.experiments.toxicity.a_e4_continuations import Places
from interp.stats.intervals import Interval

N = 80


def first(share: float) -> np.ndarray:
    """1 on this share of the prompts, spread evenly, and 0 on the others."""
    at = np.arange(N)
    return (np.floor((at + 1) * share) > np.floor(at * share)).astype(float)


@pytest.mark.parametrize(("control", "verdicts"), [(0.02, ("holds", "holds")), (0.3, ("holds", "inconclusive")), (0.5, ("holds", "fails"))])
def test_controls_at_the_same_perplexity_decide_whether_subtraction_detoxifies(control: float, verdicts: tuple[str, str]) -> None:
    start = np.ones(240)
    drops = [a_e3_subtraction.removed(start, np.arange(240) % 10 >= 4) for _ in range(3)]
    assert [drop.value for drop in drops] == pytest.approx([0.4] * 3)
    # Random directions of equal norm do nothing; those of equal perplexity remove `control`.
    nulls = [0.0, control, 0.0]
    assert (a_e3_subtraction.judge_1([0.4] * 3, nulls[0]), a_e3_subtraction.judge(drops, nulls)) == verdicts


def test_a_drop_whose_interval_reaches_the_controls_does_not_hold() -> None:
    wide = Interval(0.3, 0.01, 0.6, 20)
    assert a_e3_subtraction.judge([wide] * 3, [0.05]) == "inconclusive"
    assert a_e3_subtraction.judge([replace(wide, low=0.2)] * 3, [0.05]) == "holds"


PLACES = Places(
    tuned=first(0.7), tuned_harmless=first(0.2), noise=np.full(N, 0.2), reach=first(0.85), subtraction=first(0.65),
    subtraction_harmless=first(0.2), random=np.full(N, 0.15),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ("holds", "holds")),
        # The shipped pair: the subtraction takes the first place as often from harmless words, so the claim about it does not hold.
        ({"subtraction": first(0.22), "subtraction_harmless": first(0.2), "random": np.full(N, 0.14)}, ("holds", "inconclusive")),
        ({"subtraction": first(0.2), "subtraction_harmless": first(0.25)}, ("holds", "fails")),
        ({"random": np.full(N, 0.7)}, ("holds", "fails")),
        # Reliable and rare is not what is claimed.
        ({"subtraction": first(0.4), "subtraction_harmless": first(0.0), "random": np.zeros(N)}, ("holds", "inconclusive")),
        # Random changes that change predictions as much take the first place as often as tuning.
        ({"noise": np.full(N, 0.72)}, ("holds", "fails")),
        ({"tuned_harmless": None, "subtraction_harmless": None}, ("inconclusive", "inconclusive")),
        ({"reach": first(0.2)}, ("fails", "fails")),
    ],
)  # fmt: skip
def test_the_subtraction_has_to_take_the_first_place_beyond_its_own_nulls(changes: dict, verdicts: tuple[str, str]) -> None:
    places = replace(PLACES, **changes)
    assert (a_e4_continuations.judge_1(places), a_e4_continuations.judge(places)) == verdicts


def test_a_word_that_random_changes_of_equal_kl_lower_as_far_was_not_lowered_by_tuning_in_particular() -> None:
    base = np.linspace(0.05, 0.5, N)
    share = Interval(0.8, 0.7, 0.9, N)
    weak, strong = [base * 0.999] * 5, [base * 0.3] * 5
    assert a_e7_lens.judge(base, base * 0.35, weak, share) == "holds"
    assert a_e7_lens.judge(base, base * 0.35, strong, share) == "fails"
    assert a_e7_lens.judge(base, base * 0.35, weak, replace(share, low=0.4)) == "inconclusive"
    assert a_e7_lens.judge(base, base * 0.6, weak, share) == "inconclusive"


def test_toxic_neurons_have_to_fall_further_than_equally_active_ones() -> None:
    falls = 0.1 + 0.01 * np.random.default_rng(0).standard_normal((N, 5))
    idle, active = np.linspace(-0.01, 0.01, 200).tolist(), np.linspace(0.05, 0.15, 200).tolist()
    assert a_e9_activations.judge(falls, idle, 0.01) == "holds"
    assert a_e9_activations.judge(falls, active, 0.01) == "inconclusive"
    assert a_e9_activations.judge(-falls, idle, 0.01) == "fails"


def test_dpo_has_to_beat_noise_of_its_kl_and_one_way_of_many_refutes_it_only_beyond_chance() -> None:
    rng = np.random.default_rng(1)
    tuned, start = first(0.2), np.ones(N)
    ways = {str(at): first(0.6) for at in range(6)}
    assert w_e1_detoxify.judge(tuned, ways, start) == "holds"
    assert w_e1_detoxify.judge(tuned, ways, tuned) == "inconclusive"
    assert w_e1_detoxify.judge(start, ways, start) == "fails"
    assert w_e1_detoxify.judge(tuned, {}, start) == "inconclusive"
    # One way is better by 2.2 standard errors: enough for one comparison, not for six.
    near = 0.5 + rng.standard_normal(N) * 0.1
    way = near - 0.1 * 2.2 / np.sqrt(N) - (lambda noise: (noise - noise.mean()) / noise.std() * 0.1)(rng.standard_normal(N))
    versions = w_e1_detoxify.judge_1(near, {"way": way}, {"way": True}), w_e1_detoxify.judge(near, {"way": way, **ways}, start)
    assert versions == ("fails", "inconclusive")
    assert w_e1_detoxify.judge_1(near, {"way": way}, {"way": False}) == "inconclusive"
