"""`make_context`: the study of paper A for a pair, with the shipped prompts, passages and probe unless others are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interp.data.texts import Passage, challenge_prompts
from interp.data.texts import passages as shipped_passages
from interp.directions.probe import Probe, probe_for
from interp.evaluation.toxicity import load_scorer
from interp.experiments.toxicity.context import DRAWS, NEW_TOKENS, ToxicityContext
from interp.experiments.toxicity.sizes import ReportData, quick_data, whole_data
from interp.forward.generate import continued_with, prompt_limit
from interp.models.chat import Chat, check_one_template
from interp.models.pair import ModelPair
from interp.runs.logs import shipped_logs


def make_context(
    pair: ModelPair, *, quick: bool = False, seed: int = 0, prompts: Sequence[str] | None = None,
    passages: Sequence[Passage] | None = None, scorer: str = "bundled", probe: Probe | None = None, logs: Path | None = None,
    prompt_tokens: int | None = None, chat: Chat | bool = False, joined: bool = False, next_token: str | None = None,
    second_scorer: str = "lexicon", all_data: bool = False,
) -> ToxicityContext:  # fmt: skip
    """The data and settings of a report: shipped prompts, passages and probe unless others are given.

    Args:
        next_token: only prompts that the base model continues with this token (greedily) are kept, as paper A chooses those for the lens.
        all_data: read every prompt and passage also of a model that is so large that a report on a CPU would take hours.
        second_scorer: as `scorer`, or "none"; the first one's name gives none either.

    Raises `UserError` with `chat` where the sides have different chat templates or none, and where no prompt is kept.
    """
    if chat:
        check_one_template([pair.base, pair.tuned])
    starts = list(prompts) if prompts is not None else challenge_prompts()
    texts = list(passages) if passages is not None else shipped_passages()
    if next_token is not None:
        starts = continued_with(pair.base, starts, next_token, max_tokens=prompt_limit(pair.base, NEW_TOKENS, prompt_tokens), chat=chat)
    direction = probe if probe is not None else probe_for(pair.base, seed=seed)
    limited = quick_data if quick else whole_data
    data = ReportData(starts, texts, DRAWS) if all_data else limited(pair.base, starts, texts, NEW_TOKENS)
    return ToxicityContext(
        pair, direction, load_scorer(scorer), data.prompts, data.passages, seed=seed, draws=data.draws, quick=quick,
        logs=logs or shipped_logs(pair), prompt_tokens=prompt_tokens, chat=chat, joined=joined, rule=data.rule, f1_of_all=not data.rule,
        second=None if second_scorer in ("none", scorer) else load_scorer(second_scorer),
    )  # fmt: skip
