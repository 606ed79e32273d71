"""The audit of preference pairs for the page Displacement: those that ship, or a visitor's own, under the base model of the pair.

An audit is cached by the digests of the model and of the file, so that another measure or another pair computes nothing anew.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from app import settings, show, state
from app.answers.displacement_measures import MEASURES, Measure
from app.model_queue import model_queue
from app.settings import Source
from interp.errors import UserError
from interp.models.digests import model_key
from interp.preferences.audit import Audit, Settings, audit
from interp.preferences.files import read_pair_file
from interp.preferences.formats import PairData, read_pairs
from interp.preferences.text_level import plain
from interp.results import figures
from interp.results.result import Figure, show_number

SHIPPED = settings.BUNDLE / "preferences" / "pairs.jsonl"
# So many of the pairs that ship are audited when the page opens: 16 of each kind, for nobody to wait.
SHOWN = 64
# The kinds of file that are taken; packed ones are not, since their size says nothing of what is in them.
UPLOADED = ("jsonl", "json", "csv")
# Bytes of a file that a small model reads at once, without a job.
QUICK_BYTES, KEPT = 32_000, 16
# Characters of an answer in the table, and of a prompt beside its answers.
BEGINNING, PROMPT = 60, 700
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """The file that is audited, as bytes, under the base model of a pair; `name` ends as its kind of file does."""

    source: Source
    name: str
    content: bytes

    @property
    def key(self) -> tuple[str, str]:
        """The digests of model and file."""
        about = f"{Path(self.name).suffix} {settings.limits().audited_pairs} ".encode()
        return model_key(state.load_pair(self.source).base), hashlib.sha256(about + self.content).hexdigest()


_audits: OrderedDict[tuple[str, str], Audit] = OrderedDict()
_lock = threading.Lock()


def shipped(source: Source) -> Asked:
    """The first of the pairs that ship."""
    return Asked(source, SHIPPED.name, b"".join(SHIPPED.read_bytes().splitlines(keepends=True)[:SHOWN]))


def uploaded(source: Source, name: str, content: bytes) -> Asked:
    """A file of a visitor's. Only the ending of its name is used. Raises `UserError` for another kind of file, and for a large one."""
    kind, most = Path(name).suffix.lower().removeprefix("."), settings.limits().uploaded_bytes
    if kind not in UPLOADED:
        raise UserError("this kind of file is not read here", f"save the pairs as one of {', '.join(UPLOADED)}")
    if len(content) > most:
        fix = "upload a part of it, or audit the whole file with `bypass pairs audit FILE --model MODEL`"
        raise UserError(f"the file has {len(content):,} bytes, and up to {most:,} are read here", fix)
    return Asked(source, f"your file.{kind}", content)


def read(asked: Asked) -> PairData:
    """The pairs of a file. Raises `UserError`, without a path of this machine, where they cannot be read."""
    with TemporaryDirectory() as folder:

        def named(text: str) -> str:
            return text.replace(f"{folder}{os.sep}", "")

        file = Path(folder) / asked.name
        file.write_bytes(asked.content)
        try:
            data = read_pairs(read_pair_file(file))
        except UserError as error:
            raise UserError(named(error.problem), named(error.fix)) from error
    places = tuple(map(named, data.file.places))
    pairs = tuple(replace(pair, place=named(pair.place)) for pair in data.pairs)
    return replace(data, file=replace(data.file, source=Path(asked.name), places=places), pairs=pairs, notes=tuple(map(named, data.notes)))


def quick(asked: Asked) -> bool:
    """Whether the audit takes so short that it needs no job."""
    size = sum(weight.numel() for weight in state.load_pair(asked.source).base.hf.parameters())
    return size <= settings.sizes().light and len(asked.content) <= QUICK_BYTES


def known(asked: Asked) -> Audit | None:
    """The audit, where it has been computed before, or None."""
    with _lock:
        if asked.key in _audits:
            _audits.move_to_end(asked.key)
        return _audits.get(asked.key)


def audited(asked: Asked, step: Step = lambda phrase, done, total: None) -> Audit:
    """The audit of a file by forwards of the base model, of at most `audited_pairs` rows. Raises `UserError` as `audit`."""
    model = state.load_pair(asked.source).base
    data = read(asked)
    with ExitStack() as turn:
        turn.enter_context(model_queue.turn())

        def tell(phrase: str, done: int, total: int) -> None:
            # Others have their turn at the models between two blocks of pairs.
            turn.close()
            turn.enter_context(model_queue.turn())
            step(phrase, done, total)

        result = audit(data, model, Settings(limit=settings.limits().audited_pairs), tell=tell)
    with _lock:
        _audits[asked.key] = result
        while len(_audits) > KEPT:
            _audits.popitem(last=False)
    return result


def measured(result: Audit) -> list[str]:
    """The names of the measures that are known of at least one pair."""
    return [name for name, measure in MEASURES.items() if len(values_of(result, name))]


def values_of(result: Audit, name: str) -> pd.Series:
    """The values of a measure by the position of their pair, highest first; pairs of which it is not known are left out.

    Raises `UserError` for a measure that there is not.
    """
    if name not in MEASURES:
        raise UserError(f"there is no measure {name[:40]!r}", f"choose one of {', '.join(MEASURES)}")
    column = MEASURES[name].column
    if column not in result.frame:
        return pd.Series(dtype=float)
    # A pair that the trainer leaves out is no part of the ranking.
    values = result.frame.loc[~result.frame["prompt_fills_context"], column].astype(float).dropna()
    return values.sort_values(ascending=False, kind="stable")


def ranking(result: Audit, name: str, words: bool) -> pd.DataFrame:
    """One row a pair, highest first: its row of the file from 1, the measure, what else is known, and how its texts begin, masked."""
    values = values_of(result, name)
    frame = result.frame.loc[values.index]
    rows = result.data.file.rows
    texts = {part: [plain(getattr(result.pairs[index], part)) for index in values.index] for part in ("prompt", "chosen", "rejected")}
    table = pd.DataFrame({
        "rank": np.arange(1, len(values) + 1), "row": frame["row"].to_numpy() + 1, name: values.to_numpy(),
        **{part: [beginning(text, words) for text in some] for part, some in texts.items()},
    })  # fmt: skip
    others = {"margin": ("margin, nats", "margin"), "difference of lengths": ("rejected − chosen, tokens", "length_difference")}
    for measure, (title, column) in others.items():
        if measure != name:
            table[title] = frame[column].to_numpy()
    kinds = [rows[number].get("kind") for number in frame["row"]]
    if any(isinstance(kind, str) for kind in kinds):
        table["kind"] = [kind if isinstance(kind, str) else "" for kind in kinds]
    return table


def beginning(text: str, words: bool) -> str:
    """How a text begins, masked before it is cut, so that no word is cut in two first."""
    masked = " ".join(show.shown(text, words).split())
    return masked if len(masked) <= BEGINNING else f"{masked[:BEGINNING]}…"


def end_of(text: str, words: bool) -> str:
    """How a long prompt ends, masked before it is cut."""
    masked = show.shown(text, words)
    return masked if len(masked) <= PROMPT else f"… {masked[-PROMPT:]}"


def histogram(result: Audit, name: str) -> Figure:
    """How a measure is spread over the pairs, with its reference."""
    measure, values = MEASURES[name], values_of(result, name)
    left_out = len(result.frame) - len(values)
    without = f" {left_out} pairs of which it is not defined are left out." if left_out else ""
    line = "" if measure.reference is None else f" Right of the line: {measure.above}"
    marks = [] if measure.reference is None else [(measure.reference, measure.reference_name)]
    return figures.histogram(
        "measure", pd.DataFrame({"value": values.to_numpy()}), x="value", bins=24, title=f"{name} of {len(values)} preference pairs",
        x_title=axis(name, measure), y_title="number of pairs", marks=marks,
        caption=f"One value a pair.{line}{without} {measure.not_shown}",
    )  # fmt: skip


def axis(name: str, measure: Measure) -> str:
    """The name of a measure's axis, with its unit."""
    return f"{name} ({measure.unit})" if measure.unit else f"{name} (no unit)"


def sentence(result: Audit, name: str, index: int) -> str:
    """What a measure says of the pair at a position, and what it does not show."""
    measure, values = MEASURES[name], values_of(result, name)
    if index not in values.index:
        return f"{name} is not defined for this pair: {undefined(result, index)}."
    value = float(values[index])
    place = int((values > value).sum()) + 1
    unit = f" {measure.unit}" if measure.unit else ""
    where = f"number {place} of {len(values)} from the highest"
    return f"{name} is {show_number(value)}{unit}, {where}: {measure.says(value)} {measure.not_shown}"


def undefined(result: Audit, index: int) -> str:
    """Why a measure is not defined for the pair at a position."""
    row = result.frame.loc[index]
    if row["prompt_fills_context"]:
        return "its prompt alone fills the context, so that a trainer leaves it out"
    if row["empty_prompt"] or row["empty_side"]:
        return "one of its parts holds no token"
    if row["identical"] or row["identical_after_truncation"]:
        return "both answers are the same tokens"
    return "its answers are read off the same states, as those of one token are"
