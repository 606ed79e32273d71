"""Continuations under several lists of edits, decoded together ahead of the measurements that read them one after another."""

from __future__ import annotations

from collections.abc import Sequence

from interp.edits.edit import Edit
from interp.experiments.toxicity.context import ToxicityContext
from interp.forward.generate import prompt_limit
from interp.forward.variants import generate_variants
from interp.models.chat import prompt_rows
from interp.models.model import Model
from interp.models.tokens import decoded_rows

# As many prompts as this, or fewer, are continued under several edits together.
FEW = 48


def continue_together(context: ToxicityContext, model: Model, variants: Sequence[Sequence[Edit]]) -> None:
    """Continue the context's prompts under each of these lists of edits, all at once, and keep what comes.

    A step of a large model takes hardly longer for a hundred rows than for ten. Many prompts fill a step by themselves, so then
    nothing is done ahead.
    """
    if len(context.prompts) > FEW or len(variants) < 2:
        return
    room = prompt_limit(context.pair.base, context.new_tokens, context.prompt_tokens)

    def make(prompts: list[str], some: list[Sequence[Edit]]) -> list[list[str]]:
        rows = prompt_rows(model, prompts, context.chat, max_tokens=room, keep="last")
        every = generate_variants(model, rows, some, max_new_tokens=context.new_tokens)
        return [decoded_rows(model, continuations) for continuations in every]

    context.measured_together("continuations", context.prompts, variants, make, of=model)
