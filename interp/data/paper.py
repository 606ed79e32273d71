"""Reads the material that paper A measures on from a folder of the user's: prompts, and text for perplexity and F1.

None of it ships. The folder is the one that `BYPASS_DATA` names; its files are those of `FILES`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from interp.data.records import content_of
from interp.data.texts import Passage, read_prompts
from interp.errors import UserError

SETTING = "BYPASS_DATA"
CHALLENGE, LENS, TOXIC = "prompts/challenge.jsonl", "prompts/logit_lens.jsonl", "prompts/realtoxicityprompts_toxic.jsonl"
WIKITEXT = "wikitext/wiki.valid.tokens"
FILES = (CHALLENGE, LENS, TOXIC, WIKITEXT)
# A passage of WikiText in words: long enough to continue, short enough for a small model's context.
FEWEST_WORDS, MOST_WORDS, PROMPT_WORDS = 30, 80, 15
PASSAGES = 220


@dataclass(frozen=True)
class PaperTexts:
    """Paper A's challenge prompts, its logit-lens prompts, toxic prompts of RealToxicityPrompts, and passages of WikiText."""

    challenge: list[str]
    logit_lens: list[str]
    toxic: list[str]
    passages: list[Passage]


def paper_folder() -> Path | None:
    """The folder that `BYPASS_DATA` names, if it holds all files of the paper's material; None otherwise."""
    named = os.environ.get(SETTING)
    folder = Path(named) if named else None
    return folder if folder is not None and all((folder / name).is_file() for name in FILES) else None


def read_paper(folder: Path) -> PaperTexts:
    """The paper's material in a folder. Raises `UserError` for a file that is missing or cannot be used."""
    prompts = {name: read_prompts(folder / name) for name in (CHALLENGE, LENS, TOXIC)}
    return PaperTexts(prompts[CHALLENGE], prompts[LENS], prompts[TOXIC], wikitext_passages(folder / WIKITEXT))


def wikitext_passages(file: Path) -> list[Passage]:
    """The first passages of a file of WikiText: whole sentences of one paragraph each, in order, without headings.

    Raises `UserError` where it holds none.
    """
    texts = [text for line in content_of(file, "WikiText").split("\n") for text in _of_paragraph(line.strip())][:PASSAGES]
    if not texts:
        raise UserError(f"{file} holds no paragraph of {FEWEST_WORDS} words", "give a file such as wiki.valid.tokens")
    return [_passage(text) for text in texts]


def _of_paragraph(paragraph: str) -> Iterator[str]:
    if paragraph.startswith("="):
        return
    words: list[str] = []
    for sentence in [*re.split(r"(?<= [.!?]) ", paragraph), ""]:
        more = sentence.split()
        if words and (not more or len(words) + len(more) > MOST_WORDS):
            if FEWEST_WORDS <= len(words) <= MOST_WORDS:
                yield " ".join(words)
            words = []
        words += more


def _passage(text: str) -> Passage:
    words = text.split(" ")
    return Passage(" ".join(words[:PROMPT_WORDS]), " " + " ".join(words[PROMPT_WORDS:]), "wikitext")
