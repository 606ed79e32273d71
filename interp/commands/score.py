"""`bypass score`: the toxicity of the texts in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import workbench
from interp.commands import common

SHOWN = 40
WIDTH = 60


def score(
    file: Annotated[Path, typer.Argument(help="one text a line, or csv or jsonl with `text`")],
    scorer: common.ScorerName = "bundled",
    csv: Annotated[Path | None, typer.Option("--csv", help="write texts and scores here, unmasked")] = None,
    show_words: common.ShowWords = False,
    as_json: common.AsJson = False,
) -> None:
    """Toxicity of texts, and of which kind: every score is between 0 and 1."""
    common.check_file(csv)
    from interp.data.texts import read_texts

    texts = read_texts(file)
    from interp.evaluation.toxicity import load_scorer
    from interp.files import write_together

    workbench.hush()
    with common.progress(None, f"{len(texts)} texts"):
        frame = load_scorer(scorer).score(texts)
    if csv is not None:
        full = frame.copy()
        full.insert(0, "text", texts)
        write_together({csv.name: full.to_csv(index=False)}, csv.parent)
    records = frame.to_dict(orient="records")
    if as_json:
        common.print_json(records)
        return
    rows = [
        [text if len(text) <= WIDTH else text[: WIDTH - 1] + "…", *record.values()]
        for text, record in zip(texts[:SHOWN], records[:SHOWN], strict=True)
    ]
    rows.append([f"mean of {len(texts)}", *frame.astype("float64").mean().tolist()])
    common.print_table(["text", *(name.replace("_", " ") for name in frame.columns)], rows, show_words=show_words)
    if len(texts) > SHOWN:
        common.print_line(f"{len(texts) - SHOWN} more texts are in the mean; --json or --csv gives them all")
