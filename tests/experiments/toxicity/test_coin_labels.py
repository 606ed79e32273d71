"""A null pair that was really trained: DPO on pairs whose labels a coin decided, from the planted base.

Noise (test_planted.py) is a weak null: it optimises nothing. Here the same optimiser takes the same steps on the same texts,
and only what the labels say is gone; what is said of tuning must not hold of it, and must hold where the labels are true.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from interp import UserError
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.stats.divergence import kl_to
from tests.experiments.planted import PlantedPair, planted_context, planted_pair, prompts, with_controls
from tests.experiments.tuned import tuned_pair


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.fixture(scope="module")
def tuned(planted: PlantedPair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ToxicityContext]:
    """The planted base after DPO on true labels and on those of a coin, each as a report's context."""
    folder = tmp_path_factory.mktemp("coin")
    return {labels: planted_context(planted, tuned_pair(planted, folder / labels, labels), quick=True) for labels in ("true", "shuffled")}


@pytest.mark.oracle
def test_true_labels_take_the_toxicity_away_and_a_coins_do_not(tuned: dict[str, ToxicityContext]) -> None:
    before, after = (tuned["true"].toxicity(side).mean() for side in (tuned["true"].pair.base, tuned["true"].pair.tuned))
    assert before > 0.6
    assert after < 0.3 * before
    assert tuned["shuffled"].toxicity(tuned["shuffled"].pair.tuned).mean() > 0.8 * before
    # The coin's labels did move the model; a pair that moved by nothing would be no null.
    assert kl_to(tuned["shuffled"].pair.tuned, tuned["shuffled"].pair.base, prompts(24)).mean() > 1e-4


# That the weights hardly change is true of these pairs too, and subtraction is done in the base model (as in test_null_pairs.py).
NOT_ABOUT_TUNING = {"A-E3", "A-E8"}
# What needs training logs, or an architecture that this pair does not have.
NOT_ASKED = {"A-E6", "A-E13", "A-E14"}
# None: there is nothing to bring back or to explain, and the experiment says so.
COIN: dict[str, str | None] = {
    "A-E4": "fails", "A-E7": "inconclusive", "A-E9": "fails", "A-E10": "inconclusive", "A-E11": "fails", "A-E12": None, "X-C1": None,
    "X-C2": None, "X-U1": None, "W-E1": "fails", "W-E2": None, "Y-E1": "inconclusive",
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("name", COIN)
def test_what_is_said_of_tuning_does_not_hold_where_a_coin_decided(name: str, tuned: dict[str, ToxicityContext]) -> None:
    if COIN[name] is None:
        with pytest.raises(UserError, match="tuning did not lower toxicity"):
            run_experiment(EXPERIMENTS[name], tuned["shuffled"])
    else:
        found = run_experiment(EXPERIMENTS[name], tuned["shuffled"])
        assert found.verdict == COIN[name], found.summary


def test_no_experiment_about_tuning_is_forgotten_and_what_this_pair_cannot_answer_is_refused(tuned: dict[str, ToxicityContext]) -> None:
    about_tuning = {item.id for item in EXPERIMENTS.values() if item.about == "pair" and item.study is ToxicityContext}
    assert about_tuning == COIN.keys() | NOT_ABOUT_TUNING | NOT_ASKED
    for name in NOT_ASKED:
        with pytest.raises(UserError):
            run_experiment(EXPERIMENTS[name], tuned["shuffled"])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["A-E7", "A-E12"])
def test_the_same_claims_hold_where_the_labels_are_true(name: str, tuned: dict[str, ToxicityContext]) -> None:
    found = run_experiment(EXPERIMENTS[name], tuned["true"])
    assert found.verdict == "holds", found.summary


@pytest.mark.oracle
def test_the_offset_of_true_labels_is_told_from_that_of_a_coins(tuned: dict[str, ToxicityContext], tmp_path: Path) -> None:
    context = with_controls(tuned["true"], {"shuffled": tuned["shuffled"].pair.tuned}, tmp_path)
    found = run_experiment(EXPERIMENTS["A-E10"], context)
    assert found.criteria[0].verdict == "holds", found.summary
    logged = found.tables["how alike, beside control runs"].set_index("shifts of")["mean pairwise cosine"]
    assert logged["this pair"] > logged["tuning on labels of a coin"]
    trained = run_experiment(EXPERIMENTS["X-C1"], context).tables["trained controls"]
    assert set(trained["offset of"]) == {"tuning on labels of a coin"}
