"""Tuning on reviews and then on other text, for C-E2, C-E3 and C-E7: `python -m training.studies.elasticity reviews`.

The base model is tuned on positive reviews, and the model after each of two amounts of them is trained further on other text: negative
reviews (`opposite`), encyclopedic text (`neutral`), posts of the kind that the base was pretrained on (`pretraining`) and more positive
reviews (`same`). Then the same from negative reviews, with the first two arms. The first reviews of one tuning are those that the other's
arm `opposite` reads, so that a tuning is also the arm from the base. Each seed has texts of its own. A row, which is one model at one
dose, is stored as soon as it is measured, so that an interrupted study goes on with the run in which it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from interp.elasticity.behaviour import next_log_probs, read_word_odds
from interp.elasticity.compression import text_costs
from interp.elasticity.divergence import kl_by_position
from interp.elasticity.undo import Attack
from interp.elasticity.undo_texts import WORDS
from interp.experiments.elasticity.courses import OTHER, TUNING
from interp.files import read_json, write_json
from interp.models.digests import model_key
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.tokens import uncut_rows
from interp.results.result import plain
from training.studies.displacement_rows import shortened
from training.studies.elasticity_texts import COMPARED, Texts
from training.undo_course import Trainee

# The openings after which the words of `bypass undo` are weighed against each other.
OPENINGS = (
    "This movie is", "This film is", "The movie was", "I thought the film was", "The acting is", "The story is", "The plot was",
    "The ending is", "The script is", "The directing was", "The whole film is", "Overall the movie is", "The main character is",
    "The music in it is", "The first half is", "In my opinion this movie is",
)  # fmt: skip
# The arms by the class that a model was tuned on.
ARMS = {"positive": ("opposite", "neutral", "pretraining", "same"), "negative": ("opposite", "neutral")}
# The arms that verdicts rest on.
DECIDING = ("opposite", "neutral")
Say = Callable[[str], object]


@dataclass(frozen=True)
class ReviewDesign:
    """How many models are tuned, on how much, and how they are trained and measured.

    Attributes:
        seeds: draws of texts; no two share one.
        tuned: amounts of reviews that a model is tuned on, rising.
        doses: texts of an arm after which it is measured.
        tokens: of a text; `batch` texts are a step.
        measured: held-out posts on which models are compared; of the other held-out texts there are fewer.
    """

    seeds: int = 4
    tuned: tuple[int, ...] = (200, 1000)
    doses: tuple[int, ...] = (48, 104, 200, 400)
    batch: int = 8
    tokens: int = 96
    rate: float = 1e-4
    measured: int = 16

    @property
    def needed(self) -> dict[str, int]:
        """Texts of each source."""
        reviews = self.seeds * (self.tuned[-1] + self.doses[-1])
        return {"positive": reviews, "negative": reviews, **dict.fromkeys(("neutral", "pretraining"), self.seeds * self.doses[-1])}


@dataclass
class ReviewStudy:
    """A base model, the texts, and the folder in which rows are stored."""

    model: Model
    folder: Path
    texts: Texts
    design: ReviewDesign = field(default_factory=ReviewDesign)
    openings: Sequence[str] = OPENINGS
    pairs: Sequence[tuple[str, str]] = ()
    say: Say = str
    _places: dict[int, Path] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.pairs = self.pairs or read_word_odds(WORDS).pairs
        self.words = np.array([[self.model.token(word) for word in pair] for pair in self.pairs])
        # A row is the same however many seeds there are.
        settings = {name: value for name, value in self.settings().items() if name != "seeds"}
        depends = json.dumps([model_key(self.model), settings, self.texts.digest_of_measured])
        self.folder = self.folder / hashlib.sha256(depends.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """Everything that a row depends on beside the model and the texts."""
        return asdict(self.design) | {
            "optimizer": "adamw", "openings": list(self.openings), "pairs": [list(pair) for pair in self.pairs],
            "arms": {name: list(arms) for name, arms in ARMS.items()},
        }  # fmt: skip

    def measure(self, model: Model, tuned: Model | None) -> dict[str, Any]:
        """What is measured of a model: word log-odds by opening, KL to the base and to `tuned`, and bits per byte by source."""
        log_probs = next_log_probs(model, uncut_rows(model, list(self.openings)))
        score = (log_probs[:, self.words[:, 0]] - log_probs[:, self.words[:, 1]]).mean(axis=1)
        others = {"base": self.model} | ({} if tuned is None else {"tuned": tuned})
        kls = {name: kl_by_position(model, others, rows) for name, rows in self.texts.compared.items()}
        return {
            "score": score.tolist(), "kl_base": kls[COMPARED]["base"].of_row.tolist(), "kl_base_neutral": kls["neutral"]["base"].mean,
            "kl_tuned": None if tuned is None else kls[COMPARED]["tuned"].mean,
            "bits": {name: text_costs(model, some).bits_per_byte for name, some in self.texts.compressed.items()},
        }  # fmt: skip

    def rows_of(self, source: str, seed: int, start: int, count: int) -> list[list[int]]:
        """Rows of a seed, of reviews by class or of another source."""
        return self.texts.stretch(source, seed, self.texts_of(source), start, count)

    def texts_of(self, source: str) -> int:
        """How many texts of a source a seed has."""
        return self.design.needed[source] // self.design.seeds

    def arm_rows(self, first: str, seed: int, arm: str) -> list[list[int]]:
        """The rows that an arm reads; more of the same begins where the tuning ended."""
        count = self.design.doses[-1]
        if arm == "same":
            return self.rows_of(first, seed, self.design.tuned[-1], count)
        return self.rows_of(OTHER[first] if arm == "opposite" else arm, seed, 0, count)

    def course(
        self, start: Model, rows: Sequence[Sequence[int]], doses: Sequence[int]
    ) -> Iterator[tuple[int, Model, dict[str, float]]]:  # fmt: skip
        """The model after each dose of one run, with its mean loss since the dose before and its distance from the start."""
        trainee, done = Trainee(start, Attack(self.design.rate), "adamw", 0), 0
        for dose in doses:
            batches = [rows[place : min(place + self.design.batch, dose)] for place in range(done, dose, self.design.batch)]
            losses = [trainee.step(torch.tensor([list(row) for row in batch], device=start.device)) for batch in batches]
            done = dose
            model = trainee.measured()
            yield dose, model, {"loss": float(np.mean(losses)), "distance": trainee.distance()}

    def tuning(self, first: str, seed: int) -> None:
        """Tune the base on reviews of a class, store a row at each dose, and keep the weights after the amounts of the design."""
        doses = sorted({*self.design.doses, *self.design.tuned})
        files = [self._row(seed, first, 0, TUNING, dose) for dose in doses]
        arms = [self._row(seed, first, n, arm, self.design.doses[-1]) for n in self.design.tuned for arm in ARMS[first]]
        weights = [self._weights(seed, first, n) for n in self.design.tuned]
        if all(file.is_file() for file in [*files, *arms]) or all(file.is_file() for file in [*files, *weights]):
            return
        self.say(f"seed {seed}: tuning on {first} reviews")
        for dose, model, about in self.course(self.model, self.rows_of(first, seed, 0, doses[-1]), doses):
            if dose in self.design.tuned:
                file = self._weights(seed, first, dose)
                file.parent.mkdir(parents=True, exist_ok=True)
                # Tied weights are stored once.
                parameters = {name: value.detach().contiguous() for name, value in model.hf.named_parameters()}
                save_file(parameters, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
            self._store(self._row(seed, first, 0, TUNING, dose), seed, first, 0, TUNING, dose, model, None, about)

    def tuned(self, seed: int, first: str, n: int) -> Model:
        """The model that `tuning` left after `n` reviews."""
        copy = self.model.plain_copy()
        stored = load_file(self._weights(seed, first, n))
        with torch.no_grad():
            for name, value in copy.named_parameters():
                value.copy_(stored[name])
        return Model(freeze(copy), self.model.tokenizer, f"{n} {first}", bos=self.model.bos)

    def arm(self, seed: int, first: str, n: int, arm: str) -> None:
        """Train a tuned model on the text of an arm, and store a row at each dose."""
        if all(self._row(seed, first, n, arm, dose).is_file() for dose in self.design.doses):
            return
        self.say(f"seed {seed}: {n} {first} reviews, then {arm}")
        tuned = self.tuned(seed, first, n)
        for dose, model, about in self.course(tuned, self.arm_rows(first, seed, arm), self.design.doses):
            self._store(self._row(seed, first, n, arm, dose), seed, first, n, arm, dose, model, tuned, about)

    def make(self) -> None:
        """Measure every row that is not there yet: for all seeds the arms that verdicts rest on first, by class, then the others."""
        base_file = self.folder / "base.json"
        if not base_file.is_file():
            write_json(base_file, shortened(plain(self.measure(self.model, None))))
        for deciding in (True, False):
            for first in OTHER:
                for seed in range(self.design.seeds):
                    self.tuning(first, seed)
                    for arm in ARMS[first]:
                        for n in self.design.tuned if (arm in DECIDING) == deciding else ():
                            self.arm(seed, first, n, arm)
        for seed in range(self.design.seeds):
            for first in OTHER:
                for n in self.design.tuned:
                    self._weights(seed, first, n).unlink(missing_ok=True)

    def record(self) -> dict[str, Any]:
        """The rows that are there, with the settings and the base's own row. Raises `UserError` where there are none."""
        names = [(0, TUNING, dose) for dose in sorted({*self.design.doses, *self.design.tuned})]
        files = [
            self._row(seed, first, n, arm, dose)
            for seed in range(self.design.seeds) for first in OTHER
            for n, arm, dose in [*names, *((n, arm, dose) for n in self.design.tuned for arm in ARMS[first] for dose in self.design.doses)]
        ]  # fmt: skip
        base_row = read_json(self.folder / "base.json", "run the study first")
        head = {"base": self.model.digest, "model": self.model.name, "settings": self.settings(), "texts": self.texts.digest_of_measured}
        return head | {"base_row": base_row, "rows": [read_json(file) for file in files if file.is_file()]}

    def plan(self) -> str:
        """How many steps and measurements the whole study has, and how many minutes they take on this machine."""
        design = self.design
        arms = sum(map(len, ARMS.values())) * len(design.tuned)
        steps = design.seeds * (2 * design.tuned[-1] + arms * design.doses[-1]) // design.batch
        measured = design.seeds * (2 * len({*design.doses, *design.tuned}) + arms * len(design.doses))
        rows = self.rows_of("positive", 0, 0, 3 * design.batch)
        step = _seconds(lambda: next(self.course(self.model, rows, [len(rows)]))) / 3
        measurement = _seconds(lambda: self.measure(self.model, self.model))
        minutes = (steps * step + measured * measurement) / 60
        return f"{steps} steps of {step:.2f} s and {measured} measurements of {measurement:.1f} s: about {minutes:.0f} minutes in all"

    def _store(
        self, file: Path, seed: int, first: str, n: int, arm: str, dose: int, model: Model, tuned: Model | None, about: Mapping[str, float]
    ) -> None:
        if not file.is_file():
            key = {"seed": seed, "first": first, "n": n, "arm": arm, "dose": dose, "steps": -(-dose // self.design.batch)}
            write_json(file, shortened(plain(key | dict(about) | self.measure(model, tuned))))

    def _row(self, seed: int, first: str, n: int, arm: str, dose: int) -> Path:
        return self._place(seed) / f"{first}-{n}-{arm}-{dose}.json"

    def _weights(self, seed: int, first: str, n: int) -> Path:
        return self._place(seed) / f"{first}-{n}.safetensors"

    def _place(self, seed: int) -> Path:
        """The folder of a seed, named by the texts that it reads."""
        if seed not in self._places:
            whole = [self.rows_of(source, seed, 0, self.texts_of(source)) for source in self.design.needed]
            self._places[seed] = self.folder / f"seed-{seed}-{hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:8]}"
        return self._places[seed]


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
