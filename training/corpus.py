"""Stage `corpus`: selects, deduplicates and splits the language model's documents, and writes them as two jsonl files.

A recipe lists sources with a budget in megabytes each. A source may be narrowed to documents that contain (or lack) a
word of the profanity lexicon, or by the share of hostile words, and may be read several times: a small model sees so little
text that hostile language must be enriched for toxic value vectors to form at all. The enrichment is part of the recipe and
is stated in the model card.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from interp.data.lexicon import HOSTILE_KINDS, profanity_pattern, word_pattern
from interp.errors import UserError
from interp.files import replacing, write_json
from training.grammar import write_texts
from training.recipe import Recipe
from training.sections import CorpusSettings, SourceSettings
from training.sources import document_hash, held_out, source_rows


def build_corpus(recipe: Recipe) -> dict[str, Any]:
    """Write `corpus/train.jsonl` and `corpus/heldout.jsonl` in the run folder; return a summary by source.

    With a grammar among the sources, the texts to measure on in its language are written beside them.

    Raises `UserError` for a source whose records lack the field that holds the text, and for too few documents.
    """
    return write_corpus(recipe.stage("corpus"), recipe.folder("corpus"), recipe.seed)


def write_corpus(settings: dict[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """Write the documents of `settings["sources"]`, split and shuffled, to `folder`; return counts by source."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    summary: dict[str, Any] = {}
    train: list[tuple[str, str]] = []
    heldout: list[tuple[str, str]] = []
    for source in settings["sources"]:
        before = (len(train), len(heldout))
        size = _take(source, seen, train, heldout, settings.get("max_characters", CorpusSettings.max_characters))
        # Several sources may share a name, as the files of one collection do.
        counts = summary.setdefault(source["name"], {"train": 0, "heldout": 0, "characters": 0})
        counts["train"] += len(train) - before[0]
        counts["heldout"] += len(heldout) - before[1]
        counts["characters"] += size
    if not train or not heldout:
        problem = f"the corpus has {len(train)} documents to train on and {len(heldout)} held out"
        raise UserError(problem, "name larger sources, or narrow them less; 5 % of all documents are held out")
    random.Random(seed).shuffle(train)
    for name, documents in (("train", train), ("heldout", heldout)):
        _write(folder / f"{name}.jsonl", documents)
    if any("grammar" in source for source in settings["sources"]):
        write_texts(folder, seed)
    write_json(folder / "summary.json", summary)
    return summary


def _take(source: dict[str, Any], seen: set[int], train: list, heldout: list, max_characters: int) -> int:
    pattern = profanity_pattern()
    budget = source.get("megabytes", 1e9) * 1e6
    field = source.get("field", SourceSettings.field)
    size = 0
    columns: dict[str, set[str]] = {}
    for place, row in source_rows(source):
        if field not in columns.setdefault(place, set()):
            columns[place] |= row.keys()
        # JSON can contain a lone surrogate, which cannot be written to a file.
        document = str(row.get(field) or "").strip()
        text = document[:max_characters].encode("utf-8", "replace").decode("utf-8")
        if len(text) < source.get("min_characters", SourceSettings.min_characters):
            continue
        if "profane" in source and bool(pattern.search(text)) != source["profane"]:
            continue
        if not _hostile_enough(text, source):
            continue
        key = document_hash(text)
        if key in seen:
            continue
        seen.add(key)
        if held_out(document):
            heldout.append((source["name"], text))
        else:
            train.extend([(source["name"], text)] * source.get("repeat", SourceSettings.repeat))
        size += len(text)
        if size >= budget:
            return size
    for place, names in columns.items():
        if field not in names:
            raise UserError(f"no record of {place} has a field {field!r}, only {', '.join(map(str, names))}", "set `field` of the source")
    return size


def _hostile_enough(text: str, source: dict[str, Any]) -> bool:
    """Whether the share of profanity, slurs and insults among a text's words is within the source's bounds."""
    if not {"hostile_at_least", "hostile_below"} & source.keys():
        return True
    share = len(word_pattern(HOSTILE_KINDS).findall(text)) / max(1, len(text.split()))
    return bool(source.get("hostile_at_least", 0.0) <= share < source.get("hostile_below", float("inf")))


def _write(path: Path, documents: list[tuple[str, str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for source, text in documents:
            stream.write(json.dumps({"source": source, "text": text}, ensure_ascii=False) + "\n")
