"""What the runs of `bypass undo` showed and what they did not, in plain sentences.

Two questions are kept apart. Is the tuned behaviour undone by the texts (fragile), and by more than any training undoes? And is there a
return to the base (elastic)? The second needs the distribution: neutral or pretraining text has to lower KL to the base and to undo more
than the tuning's own data does. Where several attacks and arms are tried, the intervals are as much wider (Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from interp.elasticity.return_dose import UndoScores, behaviour_gap, return_dose, share_interval
from interp.elasticity.undo import UndoRecord
from interp.elasticity.undo_cells import DRAWS, Cell, cells_of
from interp.results.result import show_number
from interp.stats.intervals import Interval

Fragility = Literal["fragile", "robust", "undecided", "not tested"]
Shown = Literal["shown", "not shown", "not tested"]
UNDONE = 0.9
SEED = 0


@dataclass(frozen=True)
class UndoVerdict:
    """What was shown.

    Attributes:
        has_behaviour: whether base and tuned differ in the behaviour beyond chance; nothing else is said where they do not.
        fragile: whether nine tenths of the behaviour are undone by the texts in question.
        beyond_neutral: whether the texts undo more than neutral text does, in as many steps.
        elastic: whether neutral or pretraining text returns the model towards its base.
        sentences: the same for readers, with the numbers.
        file, behaviour: the names that the sentences have for the texts in question and for the behaviour.
    """

    has_behaviour: bool
    fragile: Fragility
    beyond_neutral: Shown
    elastic: Shown
    sentences: tuple[str, ...]
    file: str
    behaviour: str


def judge(record: UndoRecord, file: str, behaviour: str) -> UndoVerdict:
    """The verdict on a record; `file` and `behaviour` are names for the sentences."""
    gap = behaviour_gap(UndoScores(record.base.score, record.tuned.score, record.tuned.score[None, None]), draws=DRAWS, seed=SEED)
    apart = (
        f"The mean {behaviour} is {show_number(record.tuned.score.mean())} in the tuned model and {show_number(record.base.score.mean())} "
        f"in the base: a difference of {_span(gap)} over {gap.n} prompts."
    )
    if not gap.excludes(0) or gap.value == 0:
        reason = "That is within chance, so there is no tuned behaviour to undo, and nothing was trained."
        return UndoVerdict(False, "not tested", "not tested", "not tested", (apart, reason), file, behaviour)
    cells = cells_of(record)
    attacks = max(1, len(record.attacks))
    fragile, one = _fragility([cell for cell in cells if cell.arm == "opposite"], file, attacks)
    beyond, two = _beyond_neutral(cells, file, attacks)
    elastic, three = _elastic(cells, attacks)
    sentences = [apart, one, two, _distribution(cells, file, attacks), three, *_further(record, cells)]
    return UndoVerdict(True, fragile, beyond, elastic, tuple(sentence for sentence in sentences if sentence), file, behaviour)


def strongest(cells: list[Cell]) -> Cell | None:
    """The cell whose attack undoes most at its last dose: the best for the attacker."""
    return max(cells, key=lambda cell: float(cell.shares[-1]), default=None)


def difference_at(first: Cell, second: Cell, *, level: float) -> tuple[int, Interval]:
    """The last step that both cells have, and the share undone there by the first less that by the second, on the same draws of prompts."""
    step = max(set(first.steps) & set(second.steps))
    places = first.steps.index(step), second.steps.index(step)
    value = float(first.shares[places[0]] - second.shares[places[1]])
    values = first.resampled(SEED)[:, places[0]] - second.resampled(SEED)[:, places[1]]
    return step, share_interval(values, value, len(first.scores.base), level)


def _fragility(cells: list[Cell], file: str, attacks: int) -> tuple[Fragility, str]:
    best = strongest(cells)
    if best is None:
        return "not tested", f"Training on {file} was not measured while the model still spoke, so nothing is said of it."
    confidence = 1 - 0.05 / attacks
    doses = {cell.attack: return_dose(cell.steps, cell.scores, UNDONE, draws=DRAWS, seed=SEED, confidence=confidence) for cell in cells}
    reached = {attack: dose for attack, dose in doses.items() if math.isfinite(dose.high)}
    last = max(cell.steps[-1] for cell in cells)
    share = best.share_at(len(best.steps) - 1, level=confidence)
    texts = max(row[-1].texts for row in best.points)
    if reached:
        attack, dose = min(reached.items(), key=lambda item: item[1].value)
        return "fragile", (
            f"Fragile: further training on {file} undoes nine tenths of it after {dose} steps ({dose.low:.3g} to {dose.high:.3g}), "
            f"with {attack.name}, the strongest of {attacks} attacks tried."
        )
    tried = (
        f"the strongest of {attacks} attacks tried ({best.attack.name}) undoes {_share(share)} in {best.steps[-1]} steps on {texts} texts"
    )
    if all(math.isinf(dose.low) for dose in doses.values()):
        return "robust", (
            f"Not undone up to {last} steps on {file}: {tried}, which is less than nine tenths. More steps, other rates or other texts may "
            "undo it."
        )
    return "undecided", f"Undecided: {tried}, and the interval does not say whether that is nine tenths."


def _beyond_neutral(cells: list[Cell], file: str, attacks: int) -> tuple[Shown, str]:
    pairs = [
        (cell, null) for cell in cells for null in cells
        if (cell.arm, null.arm) == ("opposite", "neutral") and cell.attack == null.attack and set(cell.steps) & set(null.steps)
    ]  # fmt: skip
    best = strongest([cell for cell, _ in pairs])
    if best is None:
        return "not tested", "No neutral text was trained on for comparison, so what the texts themselves do is not known."
    null = next(null for cell, null in pairs if cell is best)
    step, difference = difference_at(best, null, level=1 - 0.05 / attacks)
    at_null = null.share_at(null.steps.index(step))
    lead = f"Neutral text of as many steps and tokens undoes {_share(at_null)} ({best.attack.name}, {step} steps)"
    if difference.low > 0:
        return "shown", f"{lead}; what {file} undoes beyond that is {_share(difference)}."
    return "not shown", f"{lead}; that {file} undoes more than neutral text was not shown (difference {_share(difference)})."


def _distribution(cells: list[Cell], file: str, attacks: int) -> str:
    best = strongest([cell for cell in cells if cell.arm == "opposite"])
    if best is None:
        return ""
    last = len(best.steps) - 1
    returned = best.returned(last, level=1 - 0.05 / attacks)
    if returned is None:
        return "The tuned model has no KL to the base on held-out text, so there is no distribution to return."
    before, after = show_number(best.kl_before.mean()), show_number(best.kl()[:, last].mean())
    lead = f"Under {file} KL to the base on held-out text goes from {before} to {after} nats a token ({best.attack.name})"
    if returned.high < 0:
        return f"{lead}: it rises, so whatever comes back of the behaviour, the distribution does not return to the base."
    if returned.low > 0:
        return f"{lead}: it falls, by {_share(returned)} of itself."
    return f"{lead}: no change beyond chance."


def _elastic(cells: list[Cell], attacks: int) -> tuple[Shown, str]:
    own = {cell.attack: cell for cell in cells if cell.arm == "same"}
    tried = [cell for cell in cells if cell.arm in ("neutral", "pretraining") and cell.attack in own]
    tried = [cell for cell in tried if set(cell.steps) & set(own[cell.attack].steps)]
    if not tried:
        return "not tested", "Whether there is a return to the base was not tested: that takes neutral text and the tuning's own data."
    level = 1 - 0.05 / (attacks * len({cell.arm for cell in tried}))
    reasons = []
    for cell in sorted(tried, key=lambda cell: -float(cell.shares[-1])):
        step, difference = difference_at(cell, own[cell.attack], level=level)
        returned = cell.returned(cell.steps.index(step), level=level)
        falls = returned is not None and returned.low > 0
        if falls and difference.low > 0 and returned is not None:
            return "shown", (
                f"Elastic: {cell.arm} text alone ({cell.attack.name}, {step} steps) lowers KL to the base by {_share(returned)} of itself "
                f"and undoes {_share(difference)} more of the behaviour than the tuning's own data does: a return to the base in part."
            )
        why = [] if falls else [f"{cell.arm} text does not lower KL to the base" + ("" if returned is None else f" ({_share(returned)})")]
        why += [] if difference.low > 0 else [f"it does not undo more than the tuning's own data ({_share(difference)})"]
        reasons.append(f"with {cell.attack.name} {' and '.join(why)}")
    return "not shown", f"A return to the base was not shown: {'; '.join(reasons)}."


def _further(record: UndoRecord, cells: list[Cell]) -> list[str]:
    """What a reader has to know besides."""
    silent = [f"{cell.arm} with {cell.attack.name} from step {cell.silent_from}" for cell in cells if cell.silent_from is not None]
    seen = {(cell.arm, cell.attack) for cell in cells}
    for arm, attack in ((arm, attack) for arm in record.arms for attack in record.attacks if (arm, attack) not in seen):
        first = [run.points[0].step for run in record.of(arm, attack) if run.points]
        silent += [f"{arm} with {attack.name} from the first dose, step {first[0]}"] if first else []
    further = [f"The model no longer speaks, and these doses do not count: {'; '.join(silent)}."] if silent else []
    if max((len(cell.points) for cell in cells), default=0) == 1:
        further.append("There is one seed, so intervals are over prompts alone and say nothing of another order of the texts.")
    return [*further, *record.left_out]


def _span(interval: Interval) -> str:
    return f"{show_number(interval.value)} ({show_number(interval.low)} to {show_number(interval.high)})"


def _share(interval: Interval) -> str:
    value, low, high = (show_number(number, "share") for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"
