"""The runs of `bypass undo`: a plan with its minutes, a budget that is kept, and runs that go on from where they were stopped.

Every seed comes before the next one, and within a seed every attack and arm, so that a budget that ends early leaves whole seeds. What
is measured is in `interp.elasticity`; here models are trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.elasticity.behaviour import digest_of
from interp.elasticity.compression import start_token
from interp.elasticity.measurement import Measurement, Reference, measure
from interp.elasticity.return_dose import UndoScores, behaviour_gap
from interp.elasticity.undo import ARMS, Attack, Run, UndoRecord
from interp.elasticity.undo_folder import PLAN, RUNS
from interp.environment import versions
from interp.errors import UserError
from interp.files import read_json, write_json
from interp.forward.generate import Sampling, generate_tokens
from interp.models.digests import model_key
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.tokens import uncut_rows
from interp.results.result import plain
from training.undo_course import Course, Trainee, run_course
from training.undo_windows import Windows, windows_of

Say = Callable[[str], object]
# How much longer than measured the parts of a plan may take before the budget is in danger.
SLACK = 1.15
# Windows of the tuned model's own text that are written together.
BLOCK = 64


@dataclass(frozen=True)
class UndoSettings:
    """How the arms are trained.

    Attributes:
        steps: the doses in steps, rising.
        length: tokens of a window; `batch` windows are a step.
    """

    attacks: tuple[Attack, ...]
    steps: tuple[int, ...]
    batch: int = 8
    length: int = 96
    seeds: int = 3
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if not self.steps or any(b <= a for a, b in zip((0, *self.steps), self.steps, strict=False)):
            raise UserError(f"the doses are {list(self.steps)} steps", "give rising positive numbers")
        if not self.attacks or any(not attack.rate > 0 for attack in self.attacks):
            raise UserError("a learning rate is not positive, or there is none", "give positive learning rates")
        if self.seeds < 1 or self.batch < 1 or self.length < 2:
            raise UserError(f"{self.seeds} seeds, batch {self.batch} and length {self.length} are not usable", "give at least 1, 1 and 2")


@dataclass(frozen=True, eq=False)
class Arm:
    """An arm: its name in `ARMS`, its texts (None where the tuned model's own samples are read), and where they come from."""

    name: str
    texts: Sequence[str] | None
    source: str


@dataclass(frozen=True)
class Seconds:
    """How long one step and one measurement take."""

    step: float
    measurement: float


@dataclass
class Clock:
    """The time left of a budget in seconds; None for no budget."""

    budget: float | None
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds left; infinite without a budget."""
        return float("inf") if self.budget is None else self.budget - (time.monotonic() - self.began)


def undo(
    pair: ModelPair, arms: Sequence[Arm], reference: Reference, settings: UndoSettings, folder: Path, *,
    budget_minutes: float | None = None, say: Say = lambda text: None,
    tell: Callable[[str, int, int], object] = lambda phrase, done, total: None, plan_only: bool = False,
) -> UndoRecord:  # fmt: skip
    """Run every arm under every attack and seed, and return what was measured.

    Nothing is trained where base and tuned do not differ in the behaviour beyond chance, nor with `plan_only`, which ends with the plan.

    Args:
        folder: where states and points are kept; the same question goes on there.
        budget_minutes: the plan is cut to it (seeds first, then the largest doses), and no part that it does not hold is begun.
    """
    clock = Clock(None if budget_minutes is None else 60 * budget_minutes)
    check_length(pair.base, settings)
    made_from = sources_of(pair, arms, reference, settings)
    key = digest_of(made_from)
    place = folder / key
    place.mkdir(parents=True, exist_ok=True)
    tell("measuring the two sides", 0, 1)
    sides = {name: _measured(place / f"{name}.json", model, reference) for name, model in pair.sides.items()}
    about = {**made_from, "key": key, "arms": {arm.name: arm.source for arm in arms}, "seeds": settings.seeds,
             "attacks": [attack.name for attack in settings.attacks]}  # fmt: skip
    (base, seconds), (tuned, _) = sides["base"], sides["tuned"]
    gap = behaviour_gap(UndoScores(base.score, tuned.score, tuned.score[None, None]))
    if gap.value == 0 or not gap.excludes(0):
        return UndoRecord(about, base, tuned, ())
    timed = Seconds(_step_seconds(place / "step.json", pair.tuned, settings), seconds)
    planned, cuts = cut_to_budget(settings, arms, timed, clock.left)
    lines = [*plan_lines(planned, arms, timed), *cuts]
    write_json(place / PLAN, {"lines": lines, "minutes": minutes_of(planned, len(arms), timed)})
    for line in lines:
        say(line)
    if plan_only:
        return UndoRecord(about, base, tuned, (), cuts)
    runs, stopped = [], 0
    courses = list(courses_of(pair, arms, planned, place))
    total, done = len(courses) * planned.steps[-1], 0
    for course in courses:
        run = run_course(
            course, place / RUNS, key, lambda model: measure(model, reference),
            may_go_on=lambda steps: SLACK * (steps * timed.step + timed.measurement) <= clock.left,
            tell=lambda step, course=course, done=done: tell(f"{course.arm}, {course.attack.name}, seed {course.seed}", done + step, total),  # type: ignore[misc]
        )  # fmt: skip
        done += planned.steps[-1]
        runs.append(run)
        stopped += not run.is_whole and not run.note
    return UndoRecord(about, base, tuned, runs, [*cuts, *_stopped(stopped, runs)])


def run_plan(
    pair: ModelPair, arms: Sequence[tuple[str, Sequence[str] | None, str]], reference: Reference, plan: dict[str, Any],
    attacks: Sequence[tuple[float, int | None]], folder: Path, budget_minutes: float | None, say: Say,
    tell: Callable[[str, int, int], object], plan_only: bool = False,
) -> UndoRecord:  # fmt: skip
    """`undo` with everything in plain values, as the command hands it over."""
    settings = UndoSettings(attacks=tuple(Attack(*attack) for attack in attacks), **plan)
    trained_on = [Arm(*arm) for arm in arms]
    record = undo(
        pair, trained_on, reference, settings, folder, budget_minutes=budget_minutes, say=say, tell=tell, plan_only=plan_only
    )  # fmt: skip
    return replace(record, about={"pair": pair.name, **record.about})


def check_length(base: Model, settings: UndoSettings) -> None:
    """Raise `UserError` for windows that the model cannot read."""
    if settings.length > base.context:
        raise UserError(f"windows of {settings.length} tokens are longer than the context of {base.context}", "give a shorter --length")


def sources_of(pair: ModelPair, arms: Sequence[Arm], reference: Reference, settings: UndoSettings) -> dict[str, Any]:
    """Everything that a run depends on, apart from its own arm, attack and seed, as a JSON object.

    Seeds and attacks are left out, so that a plan with more of them goes on with what is there.
    """
    texts = {arm.name: None if arm.texts is None else digest_of(list(arm.texts)) for arm in arms}
    return {
        "base": model_key(pair.base), "tuned": model_key(pair.tuned), "texts": texts, "reference": reference.settings(),
        "steps": list(settings.steps), "batch": settings.batch, "length": settings.length, "optimizer": settings.optimizer,
        "versions": versions(("torch", "transformers", "tokenizers", "numpy")),
    }  # fmt: skip


def courses_of(pair: ModelPair, arms: Sequence[Arm], settings: UndoSettings, folder: Path) -> Iterator[Course]:
    """Every run in order: by seed, then attack, then arm."""
    count = settings.steps[-1] * settings.batch
    for seed in range(settings.seeds):
        read = {arm.name: arm_windows(pair, arm, settings, count, seed, folder) for arm in arms}
        for attack in settings.attacks:
            for arm in arms:
                start = pair.base if arm.name == "from_base" else pair.tuned
                yield Course(arm.name, attack, seed, start, read[arm.name], settings.steps, settings.batch, settings.optimizer)


def arm_windows(pair: ModelPair, arm: Arm, settings: UndoSettings, count: int, seed: int, folder: Path) -> Windows:
    """The windows that an arm reads with a seed."""
    if arm.texts is None:
        ids = np.concatenate([_own_block(pair.tuned, block, settings.length, seed, folder) for block in range(-(-count // BLOCK))])
        return Windows(ids[:count], np.arange(1, count + 1), count)
    rows = [row for row in uncut_rows(pair.base, list(arm.texts), bos=False) if row]
    return windows_of(rows, pair.base.tokenizer.eos_token_id, length=settings.length, count=count, seed=seed)


def _own_block(model: Model, block: int, length: int, seed: int, folder: Path) -> np.ndarray:
    """A block of the windows of `own_samples`, out of the folder or made now; blocks are made whole, so that more of them change none."""
    file = folder / f"own-samples-{seed}-{block}.json"
    if not file.is_file():
        write_json(file, {"ids": own_samples(model, BLOCK, length, seed=1000 * seed + block).tolist()})
    return np.array(read_json(file)["ids"], dtype=np.int64)


def own_samples(model: Model, count: int, length: int, seed: int) -> np.ndarray:
    """Windows that a model writes itself, at temperature 1 after the token that begins a text: the text that changes it least."""
    rows = [[start_token(model)]] * count
    continuations = generate_tokens(
        model, rows, max_new_tokens=length - 1, sampling=Sampling(temperature=1.0, seed=seed), stop_at_end=False
    )
    return np.array([[*row, *new] for row, new in zip(rows, continuations, strict=True)], dtype=np.int64)


def minutes_of(settings: UndoSettings, arms: int, seconds: Seconds) -> float:
    """How many minutes the runs of a plan take."""
    one = settings.steps[-1] * seconds.step + len(settings.steps) * seconds.measurement
    return arms * len(settings.attacks) * settings.seeds * one / 60


def cut_to_budget(settings: UndoSettings, arms: Sequence[Arm], seconds: Seconds, left: float) -> tuple[UndoSettings, list[str]]:
    """The plan that fits into the seconds left, with what was cut in sentences: seeds first, then the largest doses.

    Raises `UserError` where not even one seed with the first dose fits.
    """
    planned = settings
    while SLACK * 60 * minutes_of(planned, len(arms), seconds) > left:
        if planned.seeds > 1:
            planned = replace(planned, seeds=planned.seeds - 1)
        elif len(planned.steps) > 1:
            planned = replace(planned, steps=planned.steps[:-1])
        else:
            needed = SLACK * minutes_of(planned, len(arms), seconds)
            raise UserError(
                f"the budget leaves {max(left, 0) / 60:.1f} minutes, and one seed of {len(arms)} arms to step {planned.steps[0]} takes "
                f"{needed:.1f}", "raise --budget, or name fewer --arms or learning rates",
            )  # fmt: skip
    cuts = []
    if planned.seeds < settings.seeds:
        cuts.append(f"The budget holds {planned.seeds} of {settings.seeds} seeds.")
    if planned.steps != settings.steps:
        cuts.append(f"The budget holds doses up to {planned.steps[-1]} of {settings.steps[-1]} steps.")
    return planned, cuts


def plan_lines(settings: UndoSettings, arms: Sequence[Arm], seconds: Seconds) -> list[str]:
    """The plan in lines: arms, attacks, doses, and how long it takes on this machine."""
    attacks = ", ".join(attack.name for attack in settings.attacks)
    doses = ", ".join(
        f"{step} ({step * settings.batch} samples, {step * settings.batch * settings.length:,} tokens)" for step in settings.steps
    )
    lines = [f"arm {arm.name}: {arm.source}; {ARMS[arm.name]}" for arm in arms]
    count = len(arms) * len(settings.attacks) * settings.seeds
    return [
        *lines, f"attacks: {attacks}, {settings.optimizer}, {settings.batch} windows of {settings.length} tokens a step",
        f"doses in steps: {doses}",
        f"{count} runs ({len(arms)} arms, {len(settings.attacks)} attacks, {settings.seeds} seeds), about "
        f"{minutes_of(settings, len(arms), seconds):.1f} minutes: {seconds.step:.2f} s a step, {seconds.measurement:.1f} s a measurement",
    ]  # fmt: skip


def _measured(file: Path, model: Model, reference: Reference) -> tuple[Measurement, float]:
    """The measurement of a side and the seconds that it took, out of the file or made now."""
    if not file.is_file():
        began = time.monotonic()
        measurement = plain(measure(model, reference).to_json())
        write_json(file, {"measurement": measurement, "seconds": time.monotonic() - began})
    record = read_json(file)
    return Measurement.from_json(record["measurement"]), float(record["seconds"])


def _step_seconds(file: Path, model: Model, settings: UndoSettings) -> float:
    """The seconds of a step of full training on this machine: the second of two steps on a copy."""
    if not file.is_file():
        trainee = Trainee(model, Attack(1e-6), settings.optimizer, 0)
        ids = torch.full((settings.batch, settings.length), start_token(model), device=model.device)
        taken = []
        for _ in range(2):
            began = time.monotonic()
            trainee.step(ids)
            taken.append(time.monotonic() - began)
        write_json(file, {"seconds": min(taken)})
    return float(read_json(file)["seconds"])


def _stopped(stopped: int, runs: Sequence[Run]) -> list[str]:
    """What did not run to its end, in sentences."""
    sentences = (
        [f"The budget ended before {stopped} of {len(runs)} runs were whole; the same command goes on with them."] if stopped else []
    )
    return sentences + [f"The run {run.arm} with {run.attack.name}, seed {run.seed}, ended: {run.note}." for run in runs if run.note]
