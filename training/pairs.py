"""Stage `pairs`: on-policy preference pairs, the least and the most toxic of several samples of the base model itself.

Both sides of a pair are samples of the same model from the same prompt, so they are equally fluent and DPO can only
learn what the scorer sees. The probe has no part in it, so that finding the probe's direction in what DPO changed is
not circular (the criticism of making the toxic side by steering with the probe).
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.generate import Sampling, generate_tokens
from interp.lexicon import profanity_pattern
from interp.metrics import perplexity
from interp.models import Model, load_model
from interp.toxicity import load_scorer
from training.recipe import Recipe
from training.tokenizer import corpus_texts


def challenge_prefixes(corpus: Path, count: int, seed: int, *, words: tuple[int, int] = (4, 18)) -> list[str]:
    """Beginnings of sentences that break off where their author swore, at most one per document, in random order."""
    pattern = profanity_pattern()
    found: list[str] = []
    for text in corpus_texts(corpus):
        for match in pattern.finditer(text):
            start = max(text.rfind(mark, 0, match.start()) for mark in (". ", "! ", "? ", "\n")) + 1
            prefix = text[start : match.start()].strip()
            if words[0] <= len(prefix.split()) <= words[1] and prefix.isascii():
                found.append(prefix)
                break
    random.Random(seed).shuffle(found)
    if not found:
        raise UserError(f"no document of {corpus} breaks off before a profane word", "use a corpus with profane documents")
    return found[:count]


def make_pairs(recipe: Recipe) -> Path:
    """Write `pairs/pairs.jsonl` (prompt, chosen, rejected as token ids and text, with scores) and a manifest; return it."""
    settings = recipe.stage("pairs")
    base = load_model(recipe.run / "pretrain" / "model", name="base")
    scorer = load_scorer(settings.get("scorer", "bundled"))
    prompts = challenge_prefixes(recipe.run / "corpus" / "train.jsonl", settings["prompts"], recipe.seed)
    room = min(settings["max_prompt_tokens"], base.context - settings["new_tokens"])
    rows = [row for row in base.tokenizer(prompts, add_special_tokens=False)["input_ids"] if 0 < len(row) <= room]
    if not rows:
        raise UserError(f"none of {len(prompts)} prompts has at most {room} tokens", "raise max_prompt_tokens, or lower new_tokens")
    samples = settings["samples"]
    repeated = [row for row in rows for _ in range(samples)]
    sampling = Sampling(temperature=settings["temperature"], top_k=settings["top_k"], seed=recipe.seed)
    drawn = generate_tokens(base, repeated, max_new_tokens=settings["new_tokens"], sampling=sampling, batch_size=256, stop_at_end=False)
    texts = [base.tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
    toxicity = scorer.score(texts)["toxicity"].to_numpy().reshape(len(rows), samples)
    records = []
    for number, row in enumerate(rows):
        best, worst = int(toxicity[number].argmin()), int(toxicity[number].argmax())
        if toxicity[number, best] > settings["chosen_at_most"] or toxicity[number, worst] < settings["rejected_at_least"]:
            continue
        pick = {"chosen": number * samples + best, "rejected": number * samples + worst}
        records.append(
            {"prompt": base.tokenizer.decode(row), "prompt_ids": row}
            | {side: texts[at] for side, at in pick.items()}
            | {f"{side}_ids": drawn[at] for side, at in pick.items()}
            | {"chosen_toxicity": float(toxicity[number, best]), "rejected_toxicity": float(toxicity[number, worst])}
        )
    if not records:
        raise UserError("no prompt gave both a clean and a toxic sample", "raise samples, or lower rejected_at_least in the recipe")
    folder = recipe.run / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "pairs.tmp"
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(temporary, folder / "pairs.jsonl")
    (folder / "manifest.json").write_text(
        json.dumps(describe_pairs(records, base) | {"prompts": len(rows), "settings": settings}, indent=1)
    )
    return folder / "pairs.jsonl"


def describe_pairs(records: list[dict[str, Any]], base: Model) -> dict[str, Any]:
    """Toxicity, length and perplexity under the base model of both sides, from which a reader can judge what DPO saw."""
    summary: dict[str, Any] = {"pairs": len(records), "base": base.digest}
    for side in ("chosen", "rejected"):
        some = records[:400]
        summary[side] = {
            "toxicity": float(np.mean([record[f"{side}_toxicity"] for record in records])),
            "tokens": float(np.mean([len(record[f"{side}_ids"]) for record in records])),
            "perplexity": perplexity(base, [record["prompt"] + record[side] for record in some]).value,
        }
    return summary
