"""The settings of each measure, which stand in the section [dpo] of a recipe beside those of `training.sections.DpoSettings`."""

from __future__ import annotations

from dataclasses import dataclass

from training.settings import setting


@dataclass(frozen=True, kw_only=True)
class ToxicitySettings:
    """Toxicity of continuations, fluency and KL; its target is `toxicity_share`."""

    scorer: str = setting("what judges continuations: `bundled`, `lexicon` or a folder", default="bundled")
    development_prompts: int = setting("prompts that toxicity is measured on", least=1)
    kl_prompts: int = setting("the first of them, on which KL is measured", default=32, least=1)
    heldout_texts: int = setting("texts of each source that perplexity is measured on", default=4, least=1)
