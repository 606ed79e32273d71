"""Repeats the experiments that depend on prompts on paper A's own material, and keeps statistics only.

Prompts are cut to their last 32 tokens and perplexity is read over WikiText in joined windows, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from interp.data.paper import PaperTexts
from interp.errors import UserError
from interp.experiments.registry import find_experiments
from interp.experiments.run import KEPT, result_of
from interp.experiments.toxicity.context import ToxicityContext
from interp.report.prompt_sets import PromptSet, check_no_text, without_texts

PROMPT_TOKENS = 32
# Of longer sets every n-th prompt is taken.
MOST_PROMPTS, QUICK_PROMPTS = 400, 100
CHALLENGE, LENS, TOXIC = "the paper's challenge prompts", "the paper's logit-lens prompts", "toxic RealToxicityPrompts"
EXPERIMENTS_ON = {
    CHALLENGE: ("A-E6", "A-E9", "A-E10", "A-E11", "A-E12", "X-C1", "X-C2", "X-U1"),
    LENS: ("A-E4", "A-E7"),
    TOXIC: ("A-E9", "A-E12"),
}
MakeContext = Callable[..., ToxicityContext]


def run_on_paper(
    texts: PaperTexts, make: MakeContext, folder: Path, *, only: Sequence[str] | None = None, papers: Sequence[str] | None = None,
    quick: bool = False, say: Callable[[str], None] = lambda phrase: None,
) -> tuple[PromptSet, ...]:  # fmt: skip
    """The verdicts and statistics of the experiments on each set of the paper's prompts; results are kept in `folder/results`.

    Args:
        make: the context on `prompts` and `passages`, read with `prompt_tokens` and `joined`.
        only, papers: as of `find_experiments`; of the experiments that are run here, the others are left out.

    Raises `ValueError` where a result would hold a text of the material.
    """
    chosen = find_experiments(only, papers)
    sets = []
    for name, prompts in {CHALLENGE: texts.challenge, LENS: texts.logit_lens, TOXIC: texts.toxic}.items():
        experiments = [item for item in chosen if item.id in EXPERIMENTS_ON[name]]
        if not experiments:
            continue
        some = spread(prompts, QUICK_PROMPTS if quick else MOST_PROMPTS)
        context = make(prompts=some, passages=texts.passages, prompt_tokens=PROMPT_TOKENS, joined=True)
        results, left_out = [], {}
        for item in experiments:
            say(f"{item.title}, on {name}")
            try:
                results.append(without_texts(result_of(item, context, folder / KEPT)))
            except UserError as error:
                left_out[item.id] = str(error)
        sets.append(PromptSet(name, len(context.prompts), tuple(results), left_out))
    check_no_text(sets, [*texts.challenge, *texts.logit_lens, *texts.toxic, *(passage.text for passage in texts.passages)])
    return tuple(sets)


def spread(prompts: Sequence[str], most: int) -> list[str]:
    """At most `most` of the prompts, evenly spread, in order."""
    count = min(most, len(prompts))
    return [prompts[place * len(prompts) // count] for place in range(count)]
