"""How vectors are projected on the vocabulary, and which tokens are common enough to be read.

Of a large vocabulary most tokens hardly occur in training. Their rows of the unembedding lie far along a direction that all rows share, so
they win most products whatever the vector means. Subtracting the mean row alone does not help: it shifts the score of every token of one
vector by the same number and leaves their order. What helps is the cosine with the centred row, so that a row does not win by its length,
and leaving out tokens that common text does not have. Measured on SmolLM2-135M-Instruct with probes on its last layer (800 comments,
standardised, L2 1.0): of the 20 top tokens of the direction the word list counts 1 by dot product, 5 by the cosine with the centred row,
and 11 where only common tokens are listed; the final norm's gain changes little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from interp.bundled import BUNDLED
from interp.data.texts import challenge_prompts, neutral_prompts, passages, toxicity_texts
from interp.errors import UserError
from interp.models.tokens import uncut_rows

if TYPE_CHECKING:
    from interp.models.model import Model

REFERENCE_TOKENIZER = BUNDLED / "base" / "tokenizer.json"
# What a result depends on that this module reads: see interp.experiments.fingerprint.
READS = (REFERENCE_TOKENIZER,)
# A vocabulary of at most this size is cut from what the model reads, so each of its tokens is common; that of the bundled pair has 8,192.
SMALL_VOCABULARY = 16_384
NAMES = ("auto", "dot", "cosine", "common")


@dataclass(frozen=True)
class Projection:
    """How a vector is compared with the rows of the unembedding.

    Attributes:
        cosine: score a token by the cosine of the vector with its row minus the mean row, not by their dot product.
        seen: only these tokens are listed; None for all of them.
    """

    cosine: bool = False
    seen: frozenset[int] | None = None

    def __str__(self) -> str:
        score = "cosine with the centred unembedding" if self.cosine else "dot product with the unembedding"
        return score if self.seen is None else f"{score}, {len(self.seen):,} common tokens only"


DOT = Projection()


def seen_tokens(model: Model, texts: Sequence[str]) -> frozenset[int]:
    """The ids of the tokens that occur in these texts. Raises `UserError` where there are no texts."""
    if isinstance(texts, str) or not len(texts):
        raise UserError("no reference texts were given", "give a list of texts, for example passages")
    return frozenset(token for row in uncut_rows(model, texts, bos=False) for token in row)


def common_tokens(model: Model) -> frozenset[int]:
    """The ids of the tokens that occur in the texts that ship, or that are tokens of the bundled pair too.

    The tokenizer of the bundled pair was cut from web text and comments, so its 8,192 tokens are those of common English.
    """
    texts = [item.text for item in toxicity_texts()] + [item.text for item in passages()] + challenge_prompts() + neutral_prompts()
    every = range(min(model.d_vocab, len(model.tokenizer)))
    words = model.tokenizer.batch_decode([[token] for token in every], clean_up_tokenization_spaces=False)
    return seen_tokens(model, texts) | {token for token, word in zip(every, words, strict=True) if word in _bundled_words()}


def projection_for(model: Model, name: str = "auto") -> Projection:
    """The projection of this name for this model.

    `dot` is the dot product over all tokens (paper A's), `cosine` the cosine with the centred unembedding over all tokens, `common` the
    same over `common_tokens`. `auto` is `dot` for a vocabulary of at most `SMALL_VOCABULARY` tokens, such as that of the bundled pair, and
    `common` for a larger one. Raises `UserError` for another name.
    """
    if name not in NAMES:
        raise UserError(f"{name!r} is no projection", f"use one of {', '.join(NAMES)}")
    size = min(model.d_vocab, len(model.tokenizer))
    if name == "dot" or (name == "auto" and size <= SMALL_VOCABULARY):
        return DOT
    return Projection(cosine=True, seen=None if name == "cosine" else _common(model.digest, model))


_COMMON: dict[str, frozenset[int]] = {}


def _common(digest: str, model: Model) -> frozenset[int]:
    """`common_tokens`, kept: decoding a large vocabulary takes about a second."""
    key = f"{digest} {len(model.tokenizer)}"
    if key not in _COMMON:
        _COMMON[key] = common_tokens(model)
    return _COMMON[key]


@lru_cache(maxsize=1)
def _bundled_words() -> frozenset[str]:
    """The texts of all tokens of the bundled pair; none where no pair ships."""
    from tokenizers import Tokenizer

    if not REFERENCE_TOKENIZER.is_file():
        return frozenset()
    tokenizer = Tokenizer.from_file(str(REFERENCE_TOKENIZER))
    words = tokenizer.decode_batch([[token] for token in range(tokenizer.get_vocab_size())], skip_special_tokens=True)
    # A token that is a part of a character decodes to the replacement character, as it does in every other vocabulary.
    return frozenset(word for word in words if word.strip() and word.isprintable() and "\ufffd" not in word)
