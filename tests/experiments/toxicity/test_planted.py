"""Every experiment on a pair whose answer was built in, and on a pair where tuning is noise of the same size.

On the planted pair paper A's account is true by construction, so its claims hold; the rival account, and the claim that DPO beats
what needs no training, do not, since everything toxic runs through ten neurons and one direction. On the null pair nothing that
is said of tuning may hold.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp import Model
from interp.errors import UserError
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.forward.capture import capture
from interp.results.result import Result
from interp.stats.nulls import perturbed
from tests.experiments.planted import (
    INSULTS,
    OPENERS,
    TOXIC_LAYER,
    PlantedPair,
    direct_pair,
    null_pair,
    planted_context,
    planted_pair,
    prompts,
    with_controls,
)

# None: the pair cannot answer, and the experiment has to say so.
KNOWN: dict[str, str | None] = {
    "A-E1": "holds",
    "A-E2": "holds",
    "A-E3": "holds",
    "A-E4": "holds",
    # A pair that was built by hand has no training logs.
    "A-E5": None,
    "A-E6": None,
    "A-E7": "holds",
    "A-E8": "holds",
    "A-E9": "holds",
    "A-E10": "holds",
    # Value updates are antipodal to the offset, as planted; but so are those of any gradient step, for neurons below zero.
    "A-E11": "fails",
    "A-E12": "holds",
    "A-E13": None,
    "A-E14": None,
    "X-C1": "holds",
    "X-C2": "holds",
    # The planted neurons fire on every text, provoking or not, so looking for selective ones leads away from them.
    "X-U1": "inconclusive",
    # Subtracting the planted direction removes all toxicity, as DPO does: a tie.
    "W-E1": "inconclusive",
    "W-E2": "holds",
    # The ten toxic neurons are planted to do everything.
    "Y-E1": "fails",
}
# What is said of the base model alone is as true of the null pair as of the planted one.
ABOUT_THE_BASE = {"A-E1", "A-E2", "A-E3"}
# What cannot hold without control runs among the logs.
NEEDS_CONTROLS = {"A-E10", "X-C1", "X-C2"}
NULL: dict[str, str | None] = {
    "A-E4": "fails", "A-E5": None, "A-E6": None, "A-E7": "fails",
    "A-E9": "fails", "A-E10": "fails", "A-E11": "fails", "A-E12": None, "A-E13": None, "A-E14": None,
    "X-C1": None, "X-C2": None, "X-U1": None, "W-E1": "fails", "W-E2": None, "Y-E1": "inconclusive",
}  # fmt: skip


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.fixture(scope="module")
def context(planted: PlantedPair) -> ToxicityContext:
    return planted_context(planted)


@pytest.fixture(scope="module")
def controls(planted: PlantedPair) -> dict[str, Model]:
    """What stands for control runs of the planted language: weights moved as far, in no direction in particular."""
    return {"shuffled": perturbed(planted.pair, 21), "sft": perturbed(planted.pair, 22)}


@pytest.fixture(scope="module")
def controlled(context: ToxicityContext, controls: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> ToxicityContext:
    return with_controls(context, controls, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def nothing(planted: PlantedPair) -> ToxicityContext:
    return planted_context(planted, null_pair(planted), quick=True)


def outcome(name: str, context: ToxicityContext) -> Result | None:
    try:
        return run_experiment(EXPERIMENTS[name], context)
    except UserError:
        return None


@pytest.mark.oracle
def test_the_planted_pair_is_what_it_says(planted: PlantedPair, context: ToxicityContext) -> None:
    base, tuned = planted.pair.base, planted.pair.tuned
    assert set(context.ranking.neurons[:10]) == set(planted.neurons)
    challenge = [any(opener in prompt for opener in OPENERS) for prompt in context.prompts]
    scores = context.toxicity(base)
    assert ((scores == 1) == torch.tensor(challenge).numpy()).mean() > 0.9, "the base insults after an opener and nowhere else"
    assert context.toxicity(tuned).max() == 0
    assert context.perplexity(tuned).value < 1.05 * context.perplexity(base).value
    site = f"resid_mid.{TOXIC_LAYER}"
    shift = capture(tuned, context.prompts, [site])[site] - capture(base, context.prompts, [site])[site]
    assert torch.nn.functional.cosine_similarity(shift, -planted.feature.expand_as(shift), dim=1).min() > 0.95
    for layer, unit in planted.neurons:
        for part in ("key_vectors", "value_vectors"):
            assert torch.equal(getattr(base, part)(layer)[unit], getattr(tuned, part)(layer)[unit])


def test_toxic_words_of_the_planted_language_are_those_of_the_lexicon() -> None:
    assert (LexiconScorer().score(list(INSULTS))["toxicity"] == 1).all()
    assert (LexiconScorer().score(prompts(20))["toxicity"] == 0).all()


def test_every_experiment_on_paper_a_has_a_known_answer() -> None:
    assert set(KNOWN) == {item.id for item in EXPERIMENTS.values() if item.paper == "A"}


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", KNOWN)
def test_the_verdict_on_the_planted_pair_is_the_known_right_one(name: str, context: ToxicityContext, controlled: ToxicityContext) -> None:
    found = outcome(name, controlled if name in NEEDS_CONTROLS else context)
    assert (found and found.verdict) == KNOWN[name], found and found.summary


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(set(KNOWN) - ABOUT_THE_BASE))
def test_no_claim_about_tuning_holds_where_tuning_is_noise(name: str, nothing: ToxicityContext) -> None:
    found = outcome(name, nothing)
    if name == "A-E8":
        # Noise of this size leaves every weight nearly as it was, which is why this claim alone says little.
        assert found is not None
        assert found.criteria[0].verdict == "holds"
        # Version 2 also asks whether toxic neurons moved more than others; noise of one size moves short vectors by a larger share.
        assert found.verdict in ("holds", "inconclusive")
    elif name in NULL:
        assert (found and found.verdict) == NULL[name], found and found.summary
    else:
        assert found is None or found.verdict != "holds", found.summary


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(NEEDS_CONTROLS))
def test_without_control_runs_in_the_logs_nothing_holds_of_the_offset(name: str, context: ToxicityContext) -> None:
    found = outcome(name, context)
    assert found is not None
    assert [item.verdict for item in found.criteria] == ["holds", "inconclusive"]


@pytest.mark.oracle
def test_an_offset_that_acts_on_the_logits_alone_does_not_leave_the_region(
    planted: PlantedPair, controls: dict[str, Model], tmp_path: Path
) -> None:
    direct = planted_context(planted, direct_pair(planted), quick=True)
    assert direct.toxicity(direct.pair.tuned).max() == 0
    found = outcome("A-E10", with_controls(direct, controls, tmp_path))
    assert found is not None
    # Under the first version one vector for all prompts and toxic neurons that fire less were enough.
    assert [item.verdict for item in found.criteria] == ["holds", "fails"]
    assert (found.settings["one_offset"], found.settings["leaves_the_region"]) == ("holds", "fails")
    paths = found.tables["paths of the offset"].set_index(["vector", "path", "layer"])["share of the fall"]
    assert paths["this pair's offset", "direct", TOXIC_LAYER] > 0.9
    assert paths["this pair's offset", "later blocks", TOXIC_LAYER] < 0.3


@pytest.mark.oracle
def test_an_offset_that_any_training_adds_is_no_finding_about_this_one(
    planted: PlantedPair, context: ToxicityContext, controls: dict[str, Model], tmp_path: Path
) -> None:
    # The same run once more, as if its labels had been a coin's: all that is found of the offset is found of the control's too.
    same = with_controls(context, {**controls, "shuffled": planted.pair.tuned}, tmp_path)
    for name, verdict in (("A-E10", "fails"), ("X-C1", "fails"), ("X-C2", "fails")):
        found = outcome(name, same)
        assert found is not None
        assert [item.verdict for item in found.criteria] == ["holds", verdict], found.summary
