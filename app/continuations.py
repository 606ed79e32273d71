"""Continuations of one prompt by several models at once, piece by piece, one model's token at a time.

A finished continuation is cached, so that a click elsewhere on the page does not generate it again.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.model_queue import model_queue
from interp import Edit, Model, Sampling, stream
from interp.models.chat import Chat, chat_settings, template_of
from interp.models.digests import model_key

OnText = Callable[[int, str, bool], None]


@dataclass(frozen=True, eq=False)
class EditedModel:
    """A model, and the edits under which it runs: what one column of a page shows."""

    model: Model
    edits: tuple[Edit, ...] = ()

    def key(self, prompt: str, new_tokens: int, sampling: Sampling, chat: Chat | bool = False) -> str:
        """The cache key of the continuation of a prompt."""
        edits = [edit.to_json() for edit in self.edits]
        read = [chat_settings(chat), template_of(self.model) if chat else ""]
        return json.dumps([model_key(self.model), edits, prompt, new_tokens, vars(sampling), read], sort_keys=True)


class TextCache:
    """The texts that were generated last, at most `size`; it can be shared between threads."""

    def __init__(self, size: int = 500) -> None:
        self.size = size
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        """The text of this key, or None."""
        with self._lock:
            return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Store a text; the oldest goes where there are more than `size`."""
        with self._lock:
            self._texts[key] = text
            while len(self._texts) > self.size:
                self._texts.popitem(last=False)

    def clear(self) -> None:
        """Remove every text."""
        with self._lock:
            self._texts.clear()


continuation_cache = TextCache()


def cached(edited: EditedModel, prompt: str, new_tokens: int, sampling: Sampling, chat: Chat | bool = False) -> str | None:
    """The continuation of this prompt by this model, where it has been generated before."""
    return continuation_cache.get(edited.key(prompt, new_tokens, sampling, chat))


def continue_together(
    models: Sequence[EditedModel], prompt: str, *, new_tokens: int, sampling: Sampling, on_text: OnText, chat: Chat | bool = False
) -> list[str]:
    """The continuation by each model; `on_text(column, text so far, ended)` is called as they grow, in turn.

    With `chat` the prompt is a user turn of each model's chat template, and the continuation its answer.

    Raises:
        UserError: an empty prompt, one that does not fit, an edit that does not fit, or too many people generate.
    """
    texts = [cached(edited, prompt, new_tokens, sampling, chat) for edited in models]
    growing = {place: "" for place, text in enumerate(texts) if text is None}
    for place, text in enumerate(texts):
        if text is not None:
            on_text(place, text, True)
    if not growing:
        return [text or "" for text in texts]
    with model_queue.admit():
        pieces = {
            place: stream(models[place].model, prompt, max_new_tokens=new_tokens, edits=models[place].edits, sampling=sampling, chat=chat)
            for place in growing
        }
        while pieces:
            for place in list(pieces):
                with model_queue.turn():
                    piece = next(pieces[place], None)
                if piece is None:
                    del pieces[place]
                    continuation_cache.put(models[place].key(prompt, new_tokens, sampling, chat), growing[place])
                else:
                    growing[place] += piece
                on_text(place, growing[place], piece is None)
    return [growing[place] if text is None else text for place, text in enumerate(texts)]
