"""The data of a preference run: labels of the pairs, the held-out pairs, the order in which the others are read, and the steps.

All of it is a function of the pairs, the settings and the seed, computed before training starts. So a control differs from
the run that it controls in exactly one thing, and a resumed run continues with the pair at which it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from interp.errors import UserError
from interp.runs.telemetry import read_telemetry
from training.recipe import Recipe
from training.sections import DpoSettings
from training.settings import choices

LABELS = choices(DpoSettings, "labels")
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
Pair = dict[str, list[int]]


def read_pairs(file: Path) -> list[Pair]:
    """The token ids of every pair of a pairs file.

    Raises `UserError` where the file is missing, a line is damaged or a side of a pair is empty.
    """
    if not file.is_file():
        raise UserError(f"no pairs at {file}", "run the stage pairs first")
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            pair = {name: [int(token) for token in record[name]] for name in COLUMNS}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"line {number} of {file} is no pair of token ids ({error!r})", "run the stage pairs again") from error
        if not all(pair.values()):
            raise UserError(f"line {number} of {file} has an empty prompt or side", "run the stage pairs again")
        pairs.append(pair)
    return pairs


def relabel(pairs: Sequence[Pair], labels: str, seed: int) -> list[Pair]:
    """The pairs with their sides as labelled (`true`), exchanged at random for each pair (`shuffled`), or all exchanged (`reversed`).

    Raises `UserError` for another name.
    """
    if labels not in LABELS:
        raise UserError(f"there are no labels {labels!r}", f"set labels to one of {', '.join(LABELS)}")
    coins = np.random.default_rng([seed, 1]).random(len(pairs)) < 0.5
    swapped = {"true": np.zeros(len(pairs), bool), "shuffled": coins, "reversed": np.ones(len(pairs), bool)}[labels]
    return [
        {"prompt_ids": pair["prompt_ids"], "chosen_ids": pair["rejected_ids"], "rejected_ids": pair["chosen_ids"]} if swap else pair
        for pair, swap in zip(pairs, swapped, strict=True)
    ]


def split_pairs(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and about `share` of them held out to validate on.

    The split is by the hash of the prompt, so that it does not depend on the seed or the labels, and no prompt is in both parts.
    Raises `UserError` when a part that is needed is empty.
    """
    if not 0 <= share < 1:
        raise UserError(f"validation_share is {share}", "give the share of pairs to hold out, from 0 to below 1")
    train: list[Pair] = []
    held_out: list[Pair] = []
    for pair in pairs:
        place = int.from_bytes(hashlib.sha256(json.dumps(pair["prompt_ids"]).encode()).digest()[:8], "big") / 2**64
        (held_out if place < share else train).append(pair)
    if not train or (share and not held_out):
        raise UserError(f"of {len(pairs)} pairs {len(held_out)} are held out and {len(train)} are left", "make more pairs")
    return train, held_out


def reading_order(count: int, batch: int, start: int, stop: int, seed: int) -> list[int]:
    """The numbers of the pairs that the steps from `start` to before `stop` read, in order.

    Every epoch reads each pair at most once, in an order drawn from the seed and the epoch; pairs that do not fill a batch are
    left out of that epoch. Raises `UserError` when there is not one batch.
    """
    each = count // batch
    if not each:
        raise UserError(f"{count} pairs make no batch of {batch}", "make more pairs, or lower batch")
    numbers: list[int] = []
    epoch, order = -1, np.arange(0)
    for step in range(start, stop):
        if step // each != epoch:
            epoch = step // each
            order = np.random.default_rng([seed, 0, epoch]).permutation(count)
        numbers += order[step % each * batch : (step % each + 1) * batch].tolist()
    return numbers


def steps_to_take(recipe: Recipe, settings: DpoSettings) -> int:
    """`max_steps` of the recipe or, with `equal_steps`, the number of steps of the model that its parent's run kept.

    Raises `UserError` when there is no such run.
    """
    if not settings.equal_steps:
        return settings.max_steps
    if recipe.parent is None:
        raise UserError(f"recipe {recipe.name!r} asks for equal_steps but extends no recipe", "set `extends`, or max_steps instead")
    owner = recipe.parent.owner("dpo")
    folder = owner.run / "dpo"
    if not (folder / "model").is_dir():
        raise UserError(
            f"the run of {owner.name!r} has no tuned model yet, so its steps are unknown", f"run `bypass train dpo {owner.name}`"
        )
    if (folder / "summary.json").is_file():
        return int(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["kept_step"])
    return max(record["step"] for record in read_telemetry(folder).records)
