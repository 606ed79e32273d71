"""The preference pairs on which filters and losses are compared: what the recipe's model wrote itself, HH, and ParaDetox.

Of none of them a text is written down; a study stores statistics and a digest.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from interp.errors import UserError
from interp.files import read_json
from interp.models.model import Model
from interp.preferences.files import read_pair_file
from interp.preferences.formats import read_pairs
from interp.preferences.forward_level import packed_tokens
from interp.preferences.pairs import TokenPair
from interp.preferences.tokenise import tokenise
from training.controls import read_pairs as read_own_pairs

HH, PARADETOX = "preferences/hh_harmless.jsonl.gz", "preferences/paradetox.tsv"
OWN = "pairs/pairs.jsonl"
ORDER_SEED = 548
# Tokens of a pair as one packed row; longer ones are left out, so that runs are short.
LONGEST = 128


@dataclass(frozen=True)
class PairSet:
    """Pairs of one source, in an order that is drawn once, and what is known of them without their texts."""

    name: str
    pairs: tuple[TokenPair, ...]
    about: Mapping[str, str | int]


def pair_set(name: str, model: Model, pairs: Sequence[TokenPair], about: str) -> PairSet:
    """The pairs of at most `LONGEST` tokens that fit the model's context whole and whose sides differ, shuffled."""
    usable = [
        pair for pair in pairs if pair.chosen != pair.rejected and packed_tokens([pair]) <= LONGEST
        and len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= model.context
    ]  # fmt: skip
    order = np.random.default_rng(ORDER_SEED).permutation(len(usable))
    shuffled = tuple(usable[int(place)] for place in order)
    digest = hashlib.sha256(repr([(pair.prompt, pair.chosen, pair.rejected) for pair in shuffled]).encode()).hexdigest()
    return PairSet(name, shuffled, {"what": about, "usable": len(usable), "read": len(pairs), "digest": digest})


def own_pairs(run: Path, model: Model) -> PairSet:
    """The pairs of a run's stage `pairs`: two continuations by the base itself of one prompt, the less toxic one chosen.

    Raises `UserError` where there are none, or where another model wrote them.
    """
    file = run / OWN
    pairs = read_own_pairs(file)
    if read_json(file.parent / "manifest.json", "run the stage pairs again").get("base") != model.digest:
        raise UserError(f"another model wrote the pairs of {run.name}", "name the folder of a run of this base with --own")
    rows = [TokenPair(tuple(pair["prompt_ids"]), tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"])) for pair in pairs]
    return pair_set("own", model, rows, "continuations by the model itself, the less toxic one chosen; 20 tokens each")


def hh_pairs(folder: Path, model: Model) -> PairSet:
    """Anthropic's harmless pairs out of a folder of data, tokenised as TRL does."""
    rows = [tokenise(model.tokenizer, pair, max_length=None) for pair in read_pairs(read_pair_file(folder / HH)).pairs]
    whole = [row.token_pair() for row in rows if row.prompt and row.chosen and row.rejected]
    return pair_set("hh", model, whole, "Anthropic's harmless dialogues, the last answer; an end token on both sides")


def paradetox_pairs(folder: Path, model: Model) -> PairSet:
    """ParaDetox out of a folder of data: the first neutral rewrite of a sentence chosen, the toxic sentence rejected, without prompt."""
    file = folder / PARADETOX
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise UserError(f"there is no readable file {file} ({error.strerror})", "name the folder that holds it with BYPASS_DATA") from error
    end = model.tokenizer.eos_token_id
    pairs = []
    for row in rows:
        sides = [str(row.get(name) or "").strip() for name in ("neutral1", "toxic")]
        if all(sides):
            chosen, rejected = ((*model.tokenizer(side, add_special_tokens=False)["input_ids"], end) for side in sides)
            pairs.append(TokenPair((end,), chosen, rejected))
    return pair_set("paradetox", model, pairs, "neutral rewrites over toxic sentences; no prompt, an end token on both sides")


def part(pairs: PairSet, number: int, sizes: Sequence[int]) -> list[list[TokenPair]]:
    """The `number`-th of the disjoint stretches of the pairs, cut into parts of these sizes.

    Raises `UserError` where the pairs do not reach so far.
    """
    size = sum(sizes)
    stretch = pairs.pairs[number * size : (number + 1) * size]
    if len(stretch) < size:
        raise UserError(f"{pairs.name} has {len(pairs.pairs)} pairs, and draw {number} needs {(number + 1) * size}", "ask for fewer seeds")
    return [list(stretch[start:end]) for start, end in pairwise(np.cumsum([0, *sizes]))]
