"""The studies of paper C: `python -m training.studies.elasticity reviews` (or `slices`, `methods`, or `theory`).

They are read by C-E2, C-E3 and C-E7 (`reviews`), C-E1 (`slices`), C-E6 (`methods`) and C-E8 (`theory`). What they do stands in
`elasticity_reviews`, `elasticity_slices`, `elasticity_methods` and `elasticity_theory`. All store their rows in the folder of runs, and
go on there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interp.data.paper import SETTING
from interp.errors import UserError
from interp.evaluation.toxicity import load_scorer
from interp.files import read_json, write_json
from interp.results.result import plain
from interp.runs.logs import FILES
from interp.runs.trajectory import RUNS_SETTING
from training.studies import elasticity_theory as theory
from training.studies.displacement import model_named
from training.studies.displacement_rows import shortened
from training.studies.elasticity_methods import MethodDesign, MethodStudy
from training.studies.elasticity_reviews import ReviewDesign, ReviewStudy
from training.studies.elasticity_slices import SliceDesign, SliceStudy
from training.studies.elasticity_texts import read_texts
from training.studies.pair_data import own_pairs

# The log that each study writes.
LOGS = {"reviews": "elasticity", "slices": "elasticity_slices", "methods": "elasticity_methods", "theory": "elasticity_theory"}
Say = Callable[[str], object]


def theory_record(folder: Path, say: Say) -> dict[str, Any]:
    """The study of the theory, with its rows stored in a folder."""
    place = folder / hashlib.sha256(json.dumps(theory.settings()).encode()).hexdigest()[:12]

    def stored(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = place / f"{name}.json"
        if not file.is_file():
            say(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, shortened(plain(make())))
        return read_json(file)

    return {"settings": theory.settings(), "rows": theory.rows(stored)}


def trained_record(
    folder: Path, name: str, device: str, design: ReviewDesign | SliceDesign, say: Say, *, stored: bool = False
) -> dict[str, Any]:  # fmt: skip
    """The study of tuning on reviews, or of its slices, of the model of a name; `stored` measures nothing that is not there yet.

    Raises `UserError` where `BYPASS_DATA` names no folder of texts.
    """
    data = os.environ.get(SETTING)
    if not data:
        raise UserError(f"{SETTING} names no folder", f"set {SETTING} to the folder that holds the reviews, articles and posts")
    model = model_named(name, device)
    texts = read_texts(Path(data), model, design.needed, design.tokens, design.measured)
    study: ReviewStudy | SliceStudy
    if isinstance(design, SliceDesign):
        study = SliceStudy(model, folder, texts, design, say=say)
    else:
        study = ReviewStudy(model, folder, texts, design, say=say)
    if not stored:
        say(study.plan())
        study.make()
    return study.record()


def methods_record(folder: Path, name: str, own: Path, device: str, design: MethodDesign, say: Say) -> dict[str, Any]:
    """The study of methods of the model of a name, on the pairs that it wrote in a run (`own`)."""
    model = model_named(name, device)
    study = MethodStudy(model, own_pairs(own, model), load_scorer(), folder, design, say)
    study.make()
    return study.record()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("python -m training.studies.elasticity", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("study", choices=list(LOGS))
    parser.add_argument(
        "--model", default="bundled", metavar="NAME", help="all but theory: a folder, a hub id or a named model [default: bundled]"
    )
    parser.add_argument("--seeds", type=int, help="all but theory: draws of texts or pairs [default: 4 and 5]")
    parser.add_argument("--own", metavar="RUN", default="shipped", help="methods: the run whose pairs the model wrote [default: shipped]")
    parser.add_argument("--stored", action="store_true", help="reviews and slices: write the rows that are stored, and make none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[default: the study's file in the folder of runs]")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runs = Path(os.environ.get(RUNS_SETTING, "runs"))
    folder = runs / "elasticity" / options.study
    say = lambda line: sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")  # noqa: E731
    try:
        if options.study == "theory":
            record = theory_record(folder, say)
        elif options.study == "methods":
            of_methods = replace(MethodDesign(), seeds=options.seeds or MethodDesign.seeds)
            record = methods_record(folder, options.model, runs / options.own, options.device, of_methods, say)
        else:
            design = ReviewDesign() if options.study == "reviews" else SliceDesign()
            design = replace(design, seeds=options.seeds or design.seeds)
            record = trained_record(folder, options.model, options.device, design, say, stored=options.stored)
        file = options.out or folder / FILES[LOGS[options.study]][0]
        write_json(file, plain(record))
    except UserError as error:
        sys.stderr.write(f"elasticity: {error}\n")
        return 2
    sys.stdout.write(f"{len(record['rows'])} rows in {file}\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
