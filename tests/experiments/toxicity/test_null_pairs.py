"""Two pairs that were not tuned against toxicity: over all experiments no claim about what tuning did may hold on them.

The second side is the planted base plus noise that changes its predictions as much as the planted tuning does, or the base after a
little more pretraining on its own language. Claims about the base model alone are left out. A third pair, tuned by DPO on the labels
of a coin, has a file of its own (test_coin_labels.py), which says of each experiment what its verdict is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Model, ModelPair, generate
from interp.edits.weights import interpolated
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_report
from interp.forward.generate import Sampling
from interp.models.modes import freeze
from interp.models.tokens import next_token_losses, pad
from interp.stats.nulls import perturbed
from tests.experiments.planted import PlantedPair, passages, planted_context, planted_pair, prompts

NOISE, MORE = "noise of equal KL", "more pretraining"
PAIRS = (NOISE, MORE)
# That the weights hardly change is true of these pairs too, and says nothing about toxicity. Subtraction (A-E3) is done in the base
# model; the tuned side gives no more than the price at which it is done.
NOT_ABOUT_TUNING = {"A-E3", "A-E8"}
ABOUT_TUNING = sorted(item.id for item in EXPERIMENTS.values() if item.about == "pair")
STEPS, LEARNING_RATE = 12, 3e-4


def rows_of(model: Model, texts: list[str]) -> list[list[int]]:
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@torch.no_grad()
def kl(model: Model, base: Model, rows: list[list[int]]) -> float:
    """KL(model || base) of the next token, averaged over the tokens of these rows."""
    tokens = pad(rows, 0, "right")
    mine, theirs = (side.hf(**tokens.inputs()).logits.float().log_softmax(dim=-1) for side in (model, base))
    each: Tensor = (mine.exp() * (mine - theirs)).sum(dim=-1)
    return float(each[tokens.mask.bool()].mean())


def noise_of_equal_kl(planted: PlantedPair, rows: list[list[int]], seed: int = 5) -> Model:
    """The base plus noise in a random direction, as far from it in KL as the planted tuning is; by bisection."""
    base, moved = planted.pair.base, perturbed(planted.pair, seed)
    goal = kl(planted.pair.tuned, base, rows)
    low, high = 0.0, 1.0
    while kl(interpolated(base, moved, high), base, rows) < goal:
        low, high = high, 2 * high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(interpolated(base, moved, middle), base, rows) < goal else (low, middle)
    return interpolated(base, moved, high)


def more_pretraining(planted: PlantedPair) -> Model:
    """The base after a few more steps on texts of its own language, insults as it says them itself included."""
    base = planted.pair.base
    starts = prompts(48, seed=21)
    spoken = generate(base, starts, max_new_tokens=4, sampling=Sampling(temperature=1.0, seed=3))
    texts = [f"{start} {more}" for start, more in zip(starts, spoken, strict=True)]
    texts += [passage.text for passage in passages(48, 22)]
    hf = base.plain_copy().requires_grad_(True)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rng = np.random.default_rng(4)
    for _ in range(STEPS):
        tokens = pad(rows_of(base, [texts[i] for i in rng.choice(len(texts), 16, replace=False)]), 0, "right")
        losses = next_token_losses(hf(**tokens.inputs(), use_cache=False).logits, tokens.ids)
        optimizer.zero_grad()
        (losses * tokens.mask[:, 1:]).sum().div(tokens.mask[:, 1:].sum()).backward()
        optimizer.step()
    return Model(freeze(hf), base.tokenizer, "more pretraining")


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.fixture(scope="module")
def pairs(planted: PlantedPair) -> dict[str, ModelPair]:
    base = planted.pair.base
    rows = rows_of(base, prompts(24))
    return {
        NOISE: ModelPair(base, noise_of_equal_kl(planted, rows), NOISE),
        MORE: ModelPair(base, more_pretraining(planted), MORE),
    }


@pytest.mark.oracle
def test_the_null_pairs_are_what_they_say(planted: PlantedPair, pairs: dict[str, ModelPair]) -> None:
    base, rows = planted.pair.base, rows_of(planted.pair.base, prompts(24))
    divergences = {name: kl(pair.tuned, base, rows) for name, pair in pairs.items()}
    assert divergences[NOISE] == pytest.approx(kl(planted.pair.tuned, base, rows), rel=0.05)
    # Each pair did move; a pair that moved by nothing would be no null.
    assert min(divergences.values()) > 1e-4
    context = planted_context(planted, pairs[MORE], count=24, quick=True)
    before, after = (context.toxicity(side).mean() for side in (base, pairs[MORE].tuned))
    assert after > 0.7 * before > 0.3


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", PAIRS)
def test_no_claim_about_what_tuning_did_holds(name: str, planted: PlantedPair, pairs: dict[str, ModelPair], tmp_path: Path) -> None:
    context = planted_context(planted, pairs[name], count=24, quick=True)
    ran = run_report(context, tmp_path / "report", only=ABOUT_TUNING)
    judged = {result.id for result in ran.results}
    assert judged | set(ran.skipped) == set(ABOUT_TUNING)
    # Activations and the offset can be judged on every pair, so that not everything is left out.
    assert {"A-E9", "A-E10"} <= judged
    wrong = {result.id: result.summary for result in ran.results if result.verdict == "holds" and result.id not in NOT_ABOUT_TUNING}
    assert not wrong
