"""DPO for refusals on a model's own answers, for B-E3: `python -m training.studies.refusals`.

A model without a chat template is taught a toy task first (`refusal_task`); one with a template answers as it is (`refusals_chat`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from interp.errors import UserError
from interp.files import write_json
from interp.runs.logs import FILES
from interp.runs.trajectory import RUNS_SETTING
from training.studies.displacement import model_named
from training.studies.refusal_task import RefusalDesign, RefusalStudy
from training.studies.refusals_chat import CHAT, ChatRefusalStudy


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("python -m training.studies.refusals", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--model", default="bundled", metavar="NAME", help="a folder, a hub id or a named model [default: bundled]")
    parser.add_argument("--seeds", type=int, help="[default: 5, and 3 for a chat model]")
    parser.add_argument(
        "--labelled",
        type=int,
        nargs=2,
        metavar="N",
        help="of a chat model: answers labelled by hand, and on how many of them the rule agrees",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[default: refusals.json in the study's folder of runs]")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = Path(os.environ.get(RUNS_SETTING, "runs")) / "displacement" / "refusals"
    try:
        model = model_named(options.model, options.device)
        chat = bool(model.tokenizer.chat_template)
        design = CHAT if chat else RefusalDesign()
        design = replace(design, seeds=options.seeds or design.seeds)
        study = (ChatRefusalStudy if chat else RefusalStudy)(model, folder, design, lambda line: sys.stderr.write(f"{line}\n"))
        study.make()
        file = options.out or folder / FILES["refusals"][0]
        labelled = dict(zip(("answers", "agree"), options.labelled, strict=True)) if options.labelled else {}
        write_json(file, study.record() | ({"labelled": labelled} if labelled else {}))
    except UserError as error:
        sys.stderr.write(f"refusals: {error}\n")
        return 2
    sys.stdout.write(f"{len(study.record()['rows'])} seeds in {file}\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
