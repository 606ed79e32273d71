"""Stage `pairs`: makes preference pairs with the recipe's generator, scores and filters them, and writes them with a manifest.

Generators (`training/generators`) only draft; what is the same for all is done here: choosing prompts, saving blocks of
drafts as they are made, scoring, leaving out pairs that teach nothing, and the manifest. The manifest has toxicity, fluency and
length of both sides, because DPO learns whichever of these differs most, and whether the probe was used.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interp.data.lexicon import profanity_pattern
from interp.directions.probe import Probe, load_probe
from interp.errors import UserError
from interp.evaluation.metrics import distinct_n
from interp.evaluation.toxicity import LexiconScorer, Scorer, load_scorer, scorer_digest
from interp.files import write_text
from interp.models.digests import model_key
from interp.models.loading import load_model
from interp.models.model import Model
from interp.models.tokens import batches, next_token_losses, pad, predicted
from training.generators import generator_named
from training.generators.task import Draft, Generator, Task
from training.recipe import Recipe, base_folder
from training.sections import PairsSettings, SourceSettings
from training.sources import source_rows
from training.tokenizer import corpus_texts

DESCRIBED = 400
SIDES = ("chosen", "rejected")


def challenge_prefixes(corpus: Path, count: int, seed: int, *, words: tuple[int, int] = (4, 18)) -> list[str]:
    """Beginnings of sentences that break off where their author swore, at most one per document, in random order."""
    pattern = profanity_pattern()
    prefixes: list[str] = []
    for text in corpus_texts(corpus):
        for match in pattern.finditer(text):
            start = max(text.rfind(mark, 0, match.start()) for mark in (". ", "! ", "? ", "\n")) + 1
            prefix = text[start : match.start()].strip()
            if words[0] <= len(prefix.split()) <= words[1] and prefix.isascii():
                prefixes.append(prefix)
                break
    random.Random(seed).shuffle(prefixes)
    if not prefixes:
        raise UserError(f"no document of {corpus} breaks off before a profane word", "use a corpus with profane documents")
    return prefixes[:count]


def prompt_rows(recipe: Recipe, base: Model) -> list[list[int]]:
    """Token ids of the prompts that pairs are made from.

    They are challenge prefixes of the run's corpus, or, with `prompt_source` (a source as in [corpus]), its prompts or the
    beginnings (`max_prompt_tokens` tokens) of its texts with at least `min_prompt_words` words (default 8), as paper A takes
    them from Wikitext. Raises `UserError` where none fits.
    """
    settings = recipe.stage("pairs")
    count, most = settings["prompts"], settings["max_prompt_tokens"]
    room = min(most, base.context - settings["new_tokens"])
    if "prompt_source" in settings:
        source = {"name": "prompts", **settings["prompt_source"]}
        texts = list(dict.fromkeys(_prompt_texts(source, settings.get("min_prompt_words", PairsSettings.min_prompt_words))))
        random.Random(recipe.seed).shuffle(texts)
        # Cut by characters first: a token is seldom longer than ten, and a whole article need not be tokenised.
        texts = [text[: 20 * most] for text in texts[:count]]
        rows = [row[:room] for row in base.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts and room > 0 else []
    else:
        texts = challenge_prefixes(recipe.folder("corpus") / "train.jsonl", count, recipe.seed)
        rows = [row for row in base.tokenizer(texts, add_special_tokens=False)["input_ids"] if 0 < len(row) <= room]
    if not any(rows):
        raise UserError(f"none of {len(texts)} prompts has at most {room} tokens", "raise max_prompt_tokens, or lower new_tokens")
    return rows


def _prompt_texts(source: Mapping[str, Any], words: int) -> Iterator[str]:
    """The records' prompts where they have them (a string, or an object with `text`), otherwise their texts of at least `words` words."""
    for _, row in source_rows(dict(source)):
        prompt = row.get("prompt")
        prompt = prompt.get("text") if isinstance(prompt, dict) else prompt
        text = str(prompt or row.get(source.get("field", SourceSettings.field)) or "").strip()
        if text and (prompt or len(text.split()) >= words):
            yield text


def task_of(recipe: Recipe, generator: Generator, base: Model, scorer: Scorer, prompts: list[list[int]] | None = None) -> Task:
    """The task of a generator, with the recipe's prompts or those of `prompts`."""
    if prompts is None:
        prompts = [] if generator.own_prompts else prompt_rows(recipe, base)

    @cache
    def probe() -> Probe:
        loaded = load_probe(recipe.folder("probe"))
        if not loaded.matches(base):
            raise UserError("the run's probe was fitted on another model than its base", "run the stage probe again")
        return loaded

    return Task(base, prompts, recipe.stage("pairs"), recipe.seed, scorer, probe)


def load_base(recipe: Recipe) -> Model:
    """The run's base model, on a GPU where there is one."""
    return load_model(base_folder(recipe), name="base", device="cuda" if torch.cuda.is_available() else "cpu")


def make_pairs(recipe: Recipe) -> Path:
    """Write `pairs/pairs.jsonl` (both sides of each prompt as token ids and text, with scores) and a manifest; return it.

    A killed run continues after the last block of drafts. Raises `UserError` for an unknown generator or setting, a probe of
    another model, and where no pair is left.
    """
    settings = recipe.stage("pairs")
    generator = generator_named(settings.get("generator", PairsSettings.generator))
    options = generator.options(settings)
    base, scorer = load_base(recipe), load_scorer(settings.get("scorer", PairsSettings.scorer))
    task = task_of(recipe, generator, base, scorer)
    folder = recipe.run / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    drafts_file = folder / "drafts.jsonl"
    drafts, seconds = draft_all(generator, task, None if generator.own_prompts else drafts_file)
    scored = records_of(drafts, base, scorer)
    records = usable(scored, settings)
    if not records:
        raise UserError("no prompt gave both a clean and a toxic sample", "raise samples, or lower rejected_at_least in the recipe")
    manifest = describe_pairs(records, base, None if isinstance(scorer, LexiconScorer) else LexiconScorer()) | {
        "generator": generator.name, "uses_probe": generator.uses_probe, "options": options, "scorer": scorer.name,
        "prompts": len(drafts), "alike": sum(draft.chosen == draft.rejected for draft in drafts), "seconds": seconds,
        "pairs_a_minute": None if generator.own_prompts else 60 * len(records) / seconds, "device": str(base.device),
        "threads": torch.get_num_threads(), "settings": dict(settings),
    }  # fmt: skip
    write_text(folder / "pairs.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    drafts_file.unlink(missing_ok=True)
    return folder / "pairs.jsonl"


def draft_all(generator: Generator, task: Task, file: Path | None = None) -> tuple[list[Draft], float]:
    """All drafts of a task in the order of its rows, and the seconds spent on them, those before a kill included.

    Each block is appended to `file` when it is made. Blocks that a run of the same task left there are read; an incomplete last
    line, and a file of another task, are discarded.
    """
    key = json.dumps({"generator": generator.name, "task": digest_of(generator, task)})
    by_row, seconds = _read_drafts(file, key) if file is not None else ({}, 0.0)
    if file is not None and not by_row:
        write_text(file, key + "\n")
    if not by_row or len(by_row) < len(task.prompts):
        blocks = generator.make(replace(task, done=frozenset(by_row)))
        with _progress(len(task.prompts), len(by_row)) as advance:
            while True:
                started = time.perf_counter()
                block = next(blocks, None)
                if block is None:
                    break
                spent = time.perf_counter() - started
                seconds += spent
                by_row |= dict(zip(block.rows, block.drafts, strict=True))
                advance(len(block.rows))
                if file is not None:
                    with file.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({**asdict(block), "seconds": spent}) + "\n")
    return [by_row[row] for row in sorted(by_row)], seconds


def digest_of(generator: Generator, task: Task) -> str:
    """A hash of everything that a generator's drafts depend on, except its code."""
    parts: dict[str, Any] = {"base": model_key(task.base), "seed": task.seed, "scorer": scorer_digest(task.scorer), "prompts": task.prompts}
    parts |= {"new_tokens": task.settings["new_tokens"], "options": generator.options(task.settings)}
    if generator.uses_probe:
        parts["probe"] = [task.probe().weights.tolist(), task.probe().bias.tolist()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_drafts(path: Path, key: str) -> tuple[dict[int, Draft], float]:
    if not path.is_file():
        return {}, 0.0
    first, *lines = path.read_text(encoding="utf-8").split("\n")
    if first != key:
        return {}, 0.0
    whole = lines[:-1]  # what follows the last line end was cut off by a kill
    if lines and lines[-1]:
        write_text(path, "\n".join([first, *whole]) + "\n")
    by_row: dict[int, Draft] = {}
    blocks = [json.loads(line) for line in whole]
    for block in blocks:
        by_row |= {row: Draft(**draft) for row, draft in zip(block["rows"], block["drafts"], strict=True)}
    return by_row, sum(block["seconds"] for block in blocks)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal or not total) as progress:
        bar = progress.add_task("", total=total, completed=done)
        yield lambda count: progress.advance(bar, count)


def records_of(drafts: Sequence[Draft], base: Model, scorer: Scorer) -> list[dict[str, Any]]:
    """The records of `pairs.jsonl`: ids and texts of each prompt and both sides, and the toxicity of each side without its prompt."""
    decode = base.tokenizer.decode
    records = [
        {"prompt": decode(draft.prompt), "prompt_ids": draft.prompt}
        | {side: decode(getattr(draft, side), skip_special_tokens=True) for side in SIDES}
        | {f"{side}_ids": getattr(draft, side) for side in SIDES}
        for draft in drafts
    ]
    for side in SIDES:
        scores = scorer.score([record[side] for record in records])["toxicity"]
        for record, score in zip(records, scores, strict=True):
            record[f"{side}_toxicity"] = float(score)
    return records


def usable(records: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs within the recipe's thresholds (`chosen_at_most`, `rejected_at_least`; none by default) whose sides differ."""
    most = settings.get("chosen_at_most", PairsSettings.chosen_at_most)
    least = settings.get("rejected_at_least", PairsSettings.rejected_at_least)
    return [
        record
        for record in records
        if record["chosen_toxicity"] <= most and record["rejected_toxicity"] >= least and record["chosen_ids"] != record["rejected_ids"]
    ]


def describe_pairs(records: Sequence[dict[str, Any]], base: Model, second: Scorer | None = None) -> dict[str, Any]:
    """The mean toxicity, length and fluency of both sides, and their mean toxicity by a second scorer, which did not filter the pairs.

    `tokens_quantiles` are least, quarter, half, three quarters and most; `perplexity` is of a side's tokens given the prompt,
    under the base, over the first 400 pairs; `distinct_2` is the share of different word pairs.
    """
    summary: dict[str, Any] = {"pairs": len(records), "base": base.digest}
    some = records[:DESCRIBED]
    for side in SIDES:
        toxicity = np.array([record[f"{side}_toxicity"] for record in records])
        lengths = [len(record[f"{side}_ids"]) for record in records]
        summary[side] = {
            "toxicity": float(toxicity.mean()),
            "share_above_half": float((toxicity > 0.5).mean()),
            "tokens": float(np.mean(lengths)),
            "tokens_quantiles": [float(value) for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])],
            "perplexity": side_perplexity(base, [(record["prompt_ids"], record[f"{side}_ids"]) for record in some]),
            "distinct_2": distinct_n([record[side] for record in some]),
        }
        if second is not None:
            summary[side]["second_toxicity"] = float(second.score([record[side] for record in records])["toxicity"].mean())
    return summary | ({} if second is None else {"second_scorer": second.name})


@torch.no_grad()
def side_perplexity(base: Model, pairs: Sequence[tuple[list[int], list[int]]]) -> float:
    """Perplexity of these continuations given their prompts: `exp` of the mean loss per token of a continuation."""
    total, count = 0.0, 0
    for group in batches([len(prompt) + len(rest) for prompt, rest in pairs], batch_size=64, batch_tokens=2048):
        tokens = pad([pairs[i][0] + pairs[i][1] for i in group], base.tokenizer.pad_token_id or 0, "right").to(base.device)
        losses = next_token_losses(base.hf(**tokens.inputs(), use_cache=False).logits, tokens.ids)
        scored = predicted(tokens, [len(pairs[i][0]) for i in group])
        total += float(losses.double()[scored].sum())
        count += int(scored.sum())
    return float(np.exp(total / count))
