"""Pairs from the model's own samples: the least and the most toxic of several continuations of one prompt.

Both sides are samples of the same model from the same prompt, so they are equally fluent and DPO can only learn what the
scorer sees. The probe has no part in it, so that finding the probe's direction in what DPO changed is not circular (the
criticism of making the toxic side with the probe).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from interp.forward.generate import Sampling, generate_tokens
from training.generators.task import Block, Draft, Generator, Task, check_range


def make(task: Task) -> Iterator[Block]:
    """The best and the worst of `samples` continuations of each prompt under the scorer, all in one block."""
    samples, new = task.settings["samples"], task.settings["new_tokens"]
    check_range("pairs.samples", samples, 2)
    repeated = [row for row in task.prompts for _ in range(samples)]
    sampling = Sampling(temperature=task.settings["temperature"], top_k=task.settings["top_k"], seed=task.seed)
    drawn = generate_tokens(task.base, repeated, max_new_tokens=new, sampling=sampling, batch_size=256, stop_at_end=False)
    texts = [task.base.tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
    toxicity = task.scorer.score(texts)["toxicity"].to_numpy().reshape(len(task.prompts), samples)
    best, worst = toxicity.argmin(axis=1), toxicity.argmax(axis=1)
    drafts = [
        Draft(row, drawn[number * samples + int(best[number])], drawn[number * samples + int(worst[number])])
        for number, row in enumerate(task.prompts)
    ]
    yield Block(list(range(len(drafts))), drafts)


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's settings, from `[pairs]` itself; the thresholds are required, since without them many pairs would hardly differ."""
    return {name: settings[name] for name in ("samples", "temperature", "top_k", "chosen_at_most", "rejected_at_least")}


GENERATOR = Generator("best-worst", make, options_of, uses_probe=False)
