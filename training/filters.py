"""What a filter of preference pairs does when a model is trained on what it keeps: the check that no score can replace.

One epoch of DPO, from a copy of the model each, on all pairs, on those that a filter keeps, and on as many drawn at random, measured on
a tenth of the pairs that none of them saw. The filter is computed without that tenth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.models.model import Model
from interp.preferences.audit import Audit, Settings, audit
from interp.preferences.influence import trainable_copy
from interp.preferences.keep import scorable
from interp.preferences.logprobs import LogProbs, log_probs
from interp.preferences.pairs import TokenPair
from interp.stats.intervals import bootstrap_difference, bootstrap_mean
from training.optimizers import PREFERENCE, preference_optimizer
from training.pair_batches import backward
from training.pair_losses import LOSSES, pair_loss

BATCH, HELD_OUT = 8, 0.1
FEWEST = 4


@dataclass(frozen=True)
class Training:
    """How the models are trained: at a constant rate, in batches of 8 pairs, by a loss of `training.pair_losses`."""

    learning_rate: float = 5e-6
    optimizer: str = "rmsprop"
    seed: int = 0
    loss: str = "dpo"

    def __post_init__(self) -> None:
        if self.optimizer not in PREFERENCE:
            raise UserError(f"there is no optimizer {self.optimizer!r}", f"use one of {', '.join(PREFERENCE)}")
        if self.loss not in LOSSES:
            raise UserError(f"there is no loss {self.loss!r}", f"use one of {', '.join(LOSSES)}")
        if not self.learning_rate > 0:
            raise UserError(f"the learning rate is {self.learning_rate}", "give a positive number")


def verify(
    result: Audit, model: Model, training: Training, *, folder: Path | None = None,
    tell: Callable[[str, int, int], None] = lambda phrase, done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """The effect of the filter of an audit on held-out pairs, as a JSON object.

    `arms` has for each set of training pairs its steps, and on held-out pairs the mean change of log π(chosen) and log π(rejected) in
    nats and of the margin, with 95 % intervals over pairs, and the share of pairs with a positive change of margin (DPO's accuracy).
    `kept_minus_random` is the difference of the changes of log π(chosen). Raises `UserError` without a filter, and for too few pairs.
    """
    if result.selection is None or result.settings.keep is None:
        raise UserError("there is no filter to verify", "name the share to keep with --keep")
    # A pair without a prompt is trained on by TRL, and has no log-probability of its first token.
    scored = result.frame.index[result.frame["rank"].notna() & scorable(result.frame)].to_numpy()
    count = round(HELD_OUT * len(scored))
    if count < FEWEST:
        raise UserError(f"a tenth of {len(scored)} scored pairs is too few to measure on", f"give at least {round(FEWEST / HELD_OUT)}")
    held_out = sorted(int(index) for index in np.random.default_rng([training.seed, 3]).choice(scored, count, replace=False))
    rest = tuple(result.pairs[index] for index in scored if index not in set(held_out))
    settings: Settings = dataclasses.replace(result.settings, limit=None)
    inner = audit(dataclasses.replace(result.data, pairs=rest), model, settings, folder=folder, tell=tell)
    assert inner.selection is not None
    sets = {
        "all": inner.frame.index[inner.frame["rank"].notna()].tolist(),
        "kept": list(inner.selection.kept), "random": list(inner.selection.random),
    }  # fmt: skip
    test = [result.tokens[index].token_pair() for index in held_out]
    before = log_probs(model, test)
    arms, changes = [], {}
    for name, positions in sets.items():
        pairs = [inner.tokens[index].token_pair() for index in positions]
        trained = train(model, pairs, training, tell=lambda done, total, name=name: tell(f"training on {name}", done, total))  # type: ignore[misc]
        after = log_probs(Model(trained, model.tokenizer, f"trained on {name}"), test)
        changes[name] = after.chosen - before.chosen
        arms.append({"trained_on": name, "pairs": len(pairs), "steps": -(-len(pairs) // BATCH), **measured(before, after)})
    return {
        "held_out": [int(result.frame["row"][index]) for index in held_out], "training": dataclasses.asdict(training), "arms": arms,
        "kept_minus_random": bootstrap_difference(changes["kept"], changes["random"], seed=training.seed).to_json(),
    }  # fmt: skip


def measured(before: LogProbs, after: LogProbs) -> dict[str, Any]:
    """The mean changes from before to after, with intervals over pairs, and the share of pairs whose margin grew."""
    margin = after.margin - before.margin
    parts = {"chosen": after.chosen - before.chosen, "rejected": after.rejected - before.rejected, "margin": margin}
    return {f"change_{name}": bootstrap_mean(values).to_json() for name, values in parts.items()} | {"accuracy": float((margin > 0).mean())}


def train(
    model: Model, pairs: Sequence[TokenPair], training: Training, *, tell: Callable[[int, int], None] = lambda done, total: None,
    after_step: Callable[[int, PreTrainedModel, float], object] = lambda step, policy, loss: None, batch: int = BATCH,
    reference: LogProbs | None = None,
) -> PreTrainedModel:  # fmt: skip
    """A copy of the model after one epoch of preference tuning on the pairs, in an order drawn by the seed; the model is the reference.

    Args:
        after_step: called after each step with its number from 1, the policy, and the mean loss of the step's pairs before it.
        batch: pairs of a step.
        reference: the pairs' log-probabilities under the model, where they are known.
    """
    hf = trainable_copy(model)
    reference = reference or log_probs(model, pairs)
    optimizer = preference_optimizer(training.optimizer, hf.parameters(), training.learning_rate)
    order = np.random.default_rng([training.seed, 4]).permutation(len(pairs))
    for start in range(0, len(order), batch):
        places = [int(index) for index in order[start : start + batch]]
        known = [(float(reference.chosen[index]), float(reference.rejected[index])) for index in places]

        def loss_of(place: int, chosen: Tensor, rejected: Tensor, known: list[tuple[float, float]] = known) -> Tensor:
            return pair_loss(training.loss, chosen, rejected, known[place])

        optimizer.zero_grad()
        mean = backward(hf, [pairs[index] for index in places], loss_of)
        optimizer.step()
        after_step(start // batch + 1, hf, mean)
        tell(min(start + batch, len(order)), len(order))
    return hf.requires_grad_(False)
