"""Tuning on one pair of one-token answers, for experiments B-E1 and B-E1b: `python -m training.studies.displacement single-token`.
`pairs` in its place runs the study of `pair_runs`.

Every run starts from the base model, or from that model after a stage of SFT that teaches it to answer statements, and is tuned on one
pair of answers to one statement. Cells are stage x objective x optimizer; that of the paper comes first and has all three pairs of
answers and most seeds. Learning rates are the largest of a grid under which the loss falls at every step on a neutral statement that
no run is measured on. Every row is kept in the folder of runs as soon as it is measured, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from interp.bundled import BUNDLED
from interp.data.paper import SETTING
from interp.data.statements import Side, Statement, of_side, persona_statements, statements
from interp.errors import UserError
from interp.evaluation.toxicity import load_scorer
from interp.files import read_json, write_json
from interp.models.digests import model_key
from interp.models.loading import load_model
from interp.models.model import Model
from interp.models.named import NAMED, base_file
from interp.preferences.answers import NO_LABELS, YES_LABELS, answer_form, answer_sets, labels_of, question_rows
from interp.preferences.gains import gains_of_step
from interp.preferences.mass import TokenSets
from interp.preferences.unembedding import difference_of
from interp.results.result import plain
from interp.runs.logs import FILES
from interp.runs.trajectory import RUNS_SETTING
from training.pair_losses import LOSSES
from training.single_token import BETA, SFT_WEIGHT, TAU, Answered, Setting, largest_stable_rate, state_of, teach_answers, tune
from training.studies.displacement_cells import CELLS, PAPER, RATES, STAGES, Cell, Design
from training.studies.displacement_rows import row_of
from training.studies.pair_runs import KINDS, PairDesign, PairStudy, sources

PERSONA, OWN = "persona", "written for the project"
# The log that each study writes.
LOGS = {"single-token": "single_token", "pairs": "preference_pairs"}
Say = Callable[[str], object]


@dataclass(frozen=True)
class AnswerPair:
    """A preferred and a dispreferred answer, the role of the pair in the comparison, and on which statements it is used."""

    role: str
    preferred: str
    dispreferred: str
    side: Side
    sets: TokenSets

    @property
    def tokens(self) -> tuple[int, int]:
        """The preferred and the dispreferred token."""
        return self.sets.preferred[0], self.sets.dispreferred[0]


@dataclass
class Study:
    """A model with its answers and statements, and the folder in which rows are kept."""

    model: Model
    folder: Path
    design: Design = field(default_factory=Design)
    texts: Sequence[Statement] = ()
    source: str = OWN
    say: Say = str

    def __post_init__(self) -> None:
        self.form = answer_form(self.model, ("Yes", "No", "Never", "Maybe"))
        self.labels = {"accords": labels_of(self.model, self.form, NO_LABELS), "opposes": labels_of(self.model, self.form, YES_LABELS)}
        self.texts = self.texts or statements()
        self.hf = self.model.plain_copy().requires_grad_(True)
        self.weights = state_of(self.hf)
        self.neutral = next(statement for statement in statements() if statement.side == "neutral")
        # Rows are the same however many there are.
        settings = {name: value for name, value in self.settings().items() if name not in ("seeds", "other_seeds")}
        depends = json.dumps([model_key(self.model), settings, [[statement.text, statement.side] for statement in self.texts]])
        self.folder = self.folder / hashlib.sha256(depends.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """Everything that a row depends on apart from its cell, pair and seed."""
        return asdict(self.design) | {
            "beta": BETA, "tau": TAU, "sft_weight": SFT_WEIGHT, "rates": {name: list(rates) for name, rates in RATES.items()},
            "statements": self.source, "after_question": self.form.after_question, "before_answer": self.form.before_answer,
            "chat": self.form.chat, "labels": {side: list(labels) for side, labels in self.labels.items()},
        }  # fmt: skip

    @cached_property
    def pairs(self) -> dict[str, AnswerPair]:
        """The pairs of answers by role: the paper's two, and the control, which is the label of SFT least similar to "No"."""
        known = self.labels["accords"]
        others = [word for word in known if word not in ("No", "Never")]
        cosines = [difference_of(self.model.unembedding, known["No"], known[word]).cosine for word in others]
        least = others[int(np.argmin(cosines))]
        words = {"similar": ("No", "Never"), "opposite": ("Yes", "No"), "control": ("No", least)}
        return {
            role: AnswerPair(role, *pair, "opposes" if pair[0] == "Yes" else "accords", answer_sets(self.model, self.form, *pair))
            for role, pair in words.items()
        }

    def statement(self, side: Side, seed: int) -> tuple[int, list[int]]:
        """The index of the statement of a seed, another one for each seed, and the token ids of its question."""
        chosen = of_side(self.texts, side)
        order = np.random.default_rng(self.design.statement_seed).permutation(len(chosen))
        index, statement = chosen[int(order[seed % len(chosen)])]
        return index, question_rows(self.model, self.form, [statement.question])[0]

    def stored(self, name: str, make: Callable[[], Any]) -> Any:
        """A value out of the folder, or made now and kept there."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            self.say(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, plain({"value": make()}))
        return read_json(file)["value"]

    def start(self, stage: str, seed: int) -> None:
        """Set the model to the weights that a run starts from, which are made once for a seed."""
        self.hf.load_state_dict(self.weights)
        if stage == "base":
            return
        file = self.folder / f"sft-{seed}.safetensors"
        if not file.is_file():
            rate = self.stored("rates/sft", self._sft_rate)
            self.hf.load_state_dict(self.weights)
            losses = self._teach(rate, seed)
            self.stored(f"sft/{seed}", lambda: {"seed": seed, "rate": rate, "losses": losses})
            # Tied weights are stored once.
            parameters = {name: value.detach().contiguous() for name, value in self.hf.named_parameters()}
            save_file(parameters, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        stored = load_file(file)
        with torch.no_grad():
            for name, value in self.hf.named_parameters():
                value.copy_(stored[name])

    def _teach(self, rate: float, seed: int, *, stop_if_rising: bool = False) -> list[float]:
        examples = [
            Answered(tuple(row), tuple(self.labels[statement.side].values()))
            for statement in self.texts
            if statement.side in self.labels
            for row in question_rows(self.model, self.form, [statement.question])
        ]
        design = self.design
        return teach_answers(
            self.hf, examples, rate=rate, epochs=design.epochs, batch=design.batch, seed=seed, stop_if_rising=stop_if_rising
        )

    def _sft_rate(self) -> float:
        def stable(rate: float) -> bool:
            self.hf.load_state_dict(self.weights)
            return bool(np.all(np.diff(self._teach(rate, 0, stop_if_rising=True)) < 0))

        return largest_stable_rate(RATES["rmsprop"], stable, "SFT")

    def rate(self, cell: Cell) -> float:
        """The learning rate of a cell: the largest under which the similar pair's loss falls at every step on a neutral statement."""
        (prompt,) = question_rows(self.model, self.form, [self.neutral.question])
        pair = self.pairs["similar"]

        def stable(rate: float) -> bool:
            self.start(cell.stage, 0)
            setting = Setting(cell.objective, cell.optimizer, rate, self.design.steps)
            return tune(self.hf, prompt, *pair.tokens, setting, stop_if_rising=True).falls

        return float(self.stored(f"rates/{cell.name}", lambda: largest_stable_rate(RATES[cell.optimizer], stable, cell.name)))

    def run(self, cell: Cell, pair: AnswerPair, seed: int) -> dict[str, Any]:
        """The row of one run."""
        setting = Setting(cell.objective, cell.optimizer, self.rate(cell), self.design.steps)
        index, prompt = self.statement(pair.side, seed)
        self.start(cell.stage, seed)
        points = {0, 5, 25, self.design.steps}
        curve = tune(self.hf, prompt, *pair.tokens, setting, entangled_at=sorted(points))
        if not np.isfinite(curve.losses).all():
            raise UserError("the run diverged: its loss is no longer a number", "tune it at a smaller rate")
        labels = asdict(cell) | {"role": pair.role, "seed": seed, "statement": index, "rate": setting.rate}
        return labels | row_of(curve, pair.sets, self.model.tokenizer)

    def first_step(self, stage: str, pair: AnswerPair, seed: int) -> dict[str, Any]:
        """Which tokens gain at the first step of DPO with SGD."""
        setting = Setting("dpo", "sgd", self.rate(Cell(stage, "dpo", "sgd")), 1)
        _, prompt = self.statement(pair.side, seed)
        self.start(stage, seed)
        unembedding = self.hf.get_output_embeddings().weight.detach().cpu().clone()
        curve = tune(self.hf, prompt, *pair.tokens, setting, entangled_at=(0,))
        before, after = curve.log_probs
        gains = gains_of_step(before, after, unembedding, *pair.tokens, draws=self.design.draws, seed=seed)
        return {"stage": stage, "role": pair.role, "seed": seed, "entanglement": curve.entanglement[0]} | asdict(gains)

    def rows(self) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
        """Every row of the study in the order in which they are made: its list, its name, and the function that measures it."""
        for cell in CELLS:
            paper = cell == PAPER
            for seed in range(self.design.seeds if paper else self.design.other_seeds):
                for role in self.pairs if paper else ("similar", "opposite"):
                    yield "runs", f"{cell.name},{role},{seed}", partial(self.run, cell, self.pairs[role], seed)
            if not paper:
                continue
            for stage in STAGES:
                for seed in range(self.design.seeds):
                    for role in self.pairs:
                        yield "first_steps", f"{stage},{role},{seed}", partial(self.first_step, stage, self.pairs[role], seed)

    def record(self) -> dict[str, Any]:
        """All rows, each made if it is not there, with the settings, answers and learning rates.

        A cell for which no learning rate is stable, and what failed, stands in `missing` with the reason.
        """
        rows: dict[str, list[Any]] = {"runs": [], "first_steps": []}
        missing: dict[str, str] = {}
        for kind, name, make in self.rows():
            try:
                rows[kind].append(self.stored(f"{kind}/{name}", make))
            except UserError as error:
                missing[f"{kind}/{name}"] = error.problem
        text = self.model.tokenizer.decode
        answers = [
            {"role": pair.role, "preferred": pair.preferred, "dispreferred": pair.dispreferred}
            | {"tokens": list(pair.tokens)}
            | {"sets": {name: [text([token]) for token in tokens] for name, tokens in asdict(pair.sets).items()}}
            for pair in self.pairs.values()
        ]
        rates = {file.stem: read_json(file)["value"] for file in sorted((self.folder / "rates").glob("*.json"))}
        taught = [read_json(file)["value"] for file in sorted((self.folder / "sft").glob("*.json"))]
        head = {"base": self.model.digest, "model": self.model.name, "settings": self.settings(), "answers": answers}
        return head | {"learning_rates": rates, "sft": taught, **rows, "missing": missing}


def model_named(name: str, device: str) -> Model:
    """The base that ships (`bundled`), the base of a named pair, or a model by its folder or hub id."""
    source = BUNDLED / "base" if name == "bundled" else base_file(name) if name in NAMED else name
    return load_model(source, device=device)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("python -m training.studies.displacement", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("study", choices=list(LOGS))
    parser.add_argument("--model", default="bundled", metavar="NAME", help="a folder, a hub id, or a name as smollm2 [default: bundled]")
    parser.add_argument("--persona", action="store_true", help=f"single-token: statements of the Persona set below {SETTING}")
    parser.add_argument("--seeds", type=int, help="runs of each pair in the paper's cell, or draws of pairs of each source")
    parser.add_argument("--other-seeds", type=int, default=Design.other_seeds, help="single-token: runs of each pair in the other cells")
    parser.add_argument(
        "--own", metavar="RUN", help="pairs: the run whose stage `pairs` the model wrote [default: shipped]", default="shipped"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="pairs: the rows to measure [default: all]")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES, help="pairs: losses beside DPO [default: all]")
    parser.add_argument("--alone", type=int, default=PairDesign.alone, help="pairs: draws whose pairs are also trained on one by one")
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="pairs: of own, hh and paradetox [default: all]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[default: the study's file in the folder of runs]")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runs = Path(os.environ.get(RUNS_SETTING, "runs"))
    folder = runs / "displacement" / options.study
    say = lambda name: sys.stderr.write(f"{name}\n")  # noqa: E731
    study: Study | PairStudy
    try:
        if options.persona and SETTING not in os.environ:
            raise UserError(
                f"--persona was given, and {SETTING} names no folder", f"set {SETTING} to the folder that holds the Persona set"
            )
        model = model_named(options.model, options.device)
        if options.study == "pairs":
            pair_design = PairDesign(options.seeds or PairDesign.seeds, alone=options.alone, losses=tuple(options.losses))
            study = PairStudy(model, folder, sources(model, runs / options.own, options.sources), load_scorer(), pair_design, say)
        else:
            texts, source = (persona_statements(os.environ[SETTING]), PERSONA) if options.persona else (statements(), OWN)
            design = replace(Design(), seeds=options.seeds or Design.seeds, other_seeds=options.other_seeds)
            study = Study(model, folder, design, texts, source, say)
        record = study.record(options.kinds) if isinstance(study, PairStudy) else study.record()
        file = options.out or study.folder / FILES[LOGS[options.study]][0]
        write_json(file, plain(record))
    except UserError as error:
        sys.stderr.write(f"displacement: {error}\n")
        return 2
    count = sum(len(record[kind]) for kind in ("runs", *KINDS) if kind in record)
    sys.stdout.write(f"{count} runs in {file}; missing: {', '.join(record.get('missing', {})) or 'none'}\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
