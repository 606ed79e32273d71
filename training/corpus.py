"""Stage `corpus`: which documents the language model learns from, deduplicated, split by hash, written as two jsonl files.

A recipe lists sources with a budget in megabytes each. A source may be narrowed to documents that contain (or lack) a
word of the profanity lexicon: a small model sees so little text that hostile language must be enriched for toxic value
vectors to form at all. The enrichment is part of the recipe and is stated in the model card.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from interp.lexicon import profanity_pattern
from training.recipe import Recipe, data_file
from training.sources import document_hash, held_out, rows


def build_corpus(recipe: Recipe) -> dict[str, Any]:
    """Write `corpus/train.jsonl` and `corpus/heldout.jsonl` in the run folder; return a summary by source."""
    settings = recipe.stage("corpus")
    folder = recipe.run / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    summary: dict[str, Any] = {}
    train: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    for source in settings["sources"]:
        before = (len(train), len(held))
        size = _take(source, seen, train, held, settings.get("max_characters", 4000))
        summary[source["name"]] = {"train": len(train) - before[0], "heldout": len(held) - before[1], "characters": size}
    random.Random(recipe.seed).shuffle(train)
    for name, documents in (("train", train), ("heldout", held)):
        _write(folder / f"{name}.jsonl", documents)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


def _take(source: dict[str, Any], seen: set[int], train: list, held: list, max_characters: int) -> int:
    pattern = profanity_pattern()
    budget = source.get("megabytes", 1e9) * 1e6
    size = 0
    for path in data_file(source["path"]):
        for row in rows(path):
            text = (row.get(source.get("field", "text")) or "").strip()[:max_characters]
            if len(text) < source.get("min_characters", 40):
                continue
            if "profane" in source and bool(pattern.search(text)) != source["profane"]:
                continue
            key = document_hash(text)
            if key in seen:
                continue
            seen.add(key)
            (held if held_out(text) else train).append((source["name"], text))
            size += len(text)
            if size >= budget:
                return size
    return size


def _write(path: Path, documents: list[tuple[str, str]]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for source, text in documents:
            stream.write(json.dumps({"source": source, "text": text}, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
