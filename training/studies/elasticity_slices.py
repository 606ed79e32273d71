"""Slices of one tuning that learn one another's answers, for C-E1: `python -m training.studies.elasticity slices`.

The base (slice 0) is tuned on positive reviews, and its weights after three amounts of them are slices 1 to 3. Each slice continues the
same openings of reviews that no slice has read, and every slice is trained for one epoch on the answers of every other: *inverse* where
the teacher is an earlier slice than the student, *forward* where it is a later one. Beside that stand the student's loss before and
after, the teacher's own loss on its answers, an epoch of each slice on what the writers of the reviews wrote, and an epoch of the last
slice on the answers of random changes of itself that are as far from it in KL as each earlier slice. A seed has reviews of its own, and
its row is stored when it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.elasticity.divergence import kl_by_position
from interp.elasticity.undo import Attack
from interp.experiments.elasticity.slice_rules import PAPER, PLAIN
from interp.files import read_json, write_json
from interp.forward.generate import Sampling, generate_tokens
from interp.models.digests import model_key
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.pair import ModelPair
from interp.results.result import plain
from interp.stats.nulls import perturbed_to_kl
from training.studies.displacement_rows import shortened
from training.studies.elasticity_texts import COMPARED, Texts
from training.undo_course import Trainee

# The paper's way of sampling answers, and plain sampling, under which a student's loss less the teacher's own is a KL.
SAMPLINGS: dict[str, dict[str, Any]] = {PAPER: {"temperature": 0.05, "top_p": 0.95}, PLAIN: {"temperature": 1.0}}
# Labels of this value are not predicted (transformers).
IGNORED = -100
Rows = Sequence[Sequence[int]]
Say = Callable[[str], object]


@dataclass(frozen=True)
class SliceDesign:
    """How many slices there are, and what they are asked.

    Attributes:
        seeds: draws of reviews; no two share one.
        slices: reviews after which a slice is taken, rising.
        queries: openings that each slice continues, of `query` tokens with the start token; `answer` tokens follow.
        tokens: of a review that is tuned on; `batch` of them, or of answers, are a step.
        measured: held-out posts on which the KL between slices is measured.
    """

    seeds: int = 5
    slices: tuple[int, ...] = (200, 600, 1000)
    queries: int = 64
    query: int = 17
    answer: int = 48
    batch: int = 8
    tokens: int = 96
    rate: float = 1e-4
    measured: int = 16

    @property
    def needed(self) -> dict[str, int]:
        """Texts of each source: reviews to tune on and to ask, and of the others what the reader asks for at least."""
        return {"positive": self.seeds * (self.slices[-1] + self.queries), "negative": 1, "neutral": 1, "pretraining": 1}


@dataclass
class SliceStudy:
    """A base model, the texts, and the folder in which rows are stored."""

    model: Model
    folder: Path
    texts: Texts
    design: SliceDesign = field(default_factory=SliceDesign)
    say: Say = str

    def __post_init__(self) -> None:
        # A row is the same however many seeds there are.
        settings = {name: value for name, value in self.settings().items() if name != "seeds"}
        depends = json.dumps([model_key(self.model), settings, self.texts.digest_of_measured])
        self.folder = self.folder / hashlib.sha256(depends.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """Everything that a row depends on beside the model and the texts."""
        return asdict(self.design) | {"optimizer": "adamw", "samplings": SAMPLINGS}

    def reviews(self, seed: int, start: int, count: int) -> list[list[int]]:
        """Rows of reviews that belong to a seed."""
        return self.texts.stretch("positive", seed, self.design.slices[-1] + self.design.queries, start, count)

    def slices(self, seed: int) -> list[Model]:
        """The base and its slices."""
        trainee, models, done = Trainee(self.model, Attack(self.design.rate), "adamw", 0), [self.model], 0
        rows = self.reviews(seed, 0, self.design.slices[-1])
        for end in self.design.slices:
            for place in range(done, end, self.design.batch):
                trainee.step(self._ids(rows[place : min(place + self.design.batch, end)]))
            copy = freeze(trainee.measured().plain_copy())
            models.append(Model(copy, self.model.tokenizer, f"slice {len(models)}", bos=self.model.bos))
            done = end
        return models

    def answers(self, model: Model, queries: Rows, sampling: str, seed: int) -> list[list[int]]:
        """The queries with a model's answers, all of the same length: an answer goes on after an end token, as documents do."""
        settings = Sampling(**SAMPLINGS[sampling], seed=seed)
        new = generate_tokens(model, queries, max_new_tokens=self.design.answer, sampling=settings, stop_at_end=False)
        return [[*query, *answer] for query, answer in zip(queries, new, strict=True)]

    @torch.no_grad()
    def loss(self, model: Model, rows: Rows) -> float:
        """The mean loss of a model on the answers in these rows, in nats a token."""
        total = sum(float(model.hf(input_ids=ids, labels=labels, use_cache=False).loss) * len(ids) for ids, labels in self._batches(rows))
        return total / len(rows)

    def epoch(self, student: Model, rows: Rows) -> dict[str, float]:
        """Train a copy of a student on the answers in these rows; its loss at the start, as a mean over the steps, and at the end."""
        trainee, losses = Trainee(student, Attack(self.design.rate), "adamw", 0), []
        for ids, labels in self._batches(rows):
            losses.append(trainee.step(ids, labels))
        return {"start": self.loss(student, rows), "mean": float(np.mean(losses)), "end": self.loss(trainee.measured(), rows)}

    def row(self, seed: int) -> dict[str, Any]:
        """Everything that is measured of a seed: a list of epochs, and the KL between slices on held-out posts."""
        models = self.slices(seed)
        human = self.reviews(seed, self.design.slices[-1], self.design.queries)
        queries = [row[: self.design.query] for row in human]
        written = [row[: self.design.query + self.design.answer] for row in human]
        about: dict[str, Any] = {"kind": "third", "sampling": "", "teacher": None, "own": None}
        runs = [about | {"student": place} | self.epoch(model, written) for place, model in enumerate(models)]
        for sampling in SAMPLINGS:
            for place, teacher in enumerate(models):
                rows = self.answers(teacher, queries, sampling, seed)
                about = {"kind": "slice", "sampling": sampling, "teacher": place, "own": self.loss(teacher, rows)}
                runs += [about | {"student": other} | self.epoch(student, rows) for other, student in enumerate(models) if other != place]
        runs += list(self._random(models, queries, seed))
        named = {str(place): model for place, model in enumerate(models)}
        posts = self.texts.compared[COMPARED]
        kls = {one: {other: kl.mean for other, kl in kl_by_position(model, named, posts).items()} for one, model in named.items()}
        return {"seed": seed, "runs": runs, "kl": kls}

    def _random(self, models: Sequence[Model], queries: Rows, seed: int) -> Iterator[dict[str, Any]]:
        """The last slice on the answers of random changes of itself, each as far from it in KL as an earlier slice."""
        last, posts = models[-1], self.texts.compared[COMPARED]
        for place, earlier in enumerate(models[:-1]):
            target = perturbed_to_kl(ModelPair(last, earlier), 100 * seed + place, posts)
            rows = self.answers(target, queries, PAPER, seed)
            kl = kl_by_position(target, {"last": last}, posts)["last"].mean
            about = {"kind": "random", "sampling": PAPER, "student": len(models) - 1, "teacher": place, "own": self.loss(target, rows)}
            yield about | {"kl": kl} | self.epoch(last, rows)

    def make(self) -> None:
        """Measure every seed that is not there yet."""
        for seed in range(self.design.seeds):
            if not self._row(seed).is_file():
                self.say(f"seed {seed}")
                write_json(self._row(seed), shortened(plain(self.row(seed))))

    def record(self) -> dict[str, Any]:
        """The rows that are there, with the settings."""
        files = [self._row(seed) for seed in range(self.design.seeds)]
        head = {"base": self.model.digest, "model": self.model.name, "settings": self.settings(), "texts": self.texts.digest_of_measured}
        return head | {"rows": [read_json(file) for file in files if file.is_file()]}

    def plan(self) -> str:
        """How many steps the study has."""
        design, slices = self.design, len(self.design.slices) + 1
        epochs = slices + len(SAMPLINGS) * slices * (slices - 1) + slices - 1
        steps = design.seeds * (-(-design.slices[-1] // design.batch) + epochs * -(-design.queries // design.batch))
        return f"{steps} steps in {design.seeds} seeds"

    def _row(self, seed: int) -> Path:
        whole = json.dumps(self.reviews(seed, 0, self.design.slices[-1] + self.design.queries))
        return self.folder / f"seed-{seed}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}.json"

    def _ids(self, rows: Rows) -> Tensor:
        return torch.tensor([list(row) for row in rows], device=self.model.device)

    def _batches(self, rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids with labels, which are the answers alone."""
        for place in range(0, len(rows), self.design.batch):
            ids = self._ids(rows[place : place + self.design.batch])
            labels = ids.clone()
            labels[:, : self.design.query] = IGNORED
            yield ids, labels
