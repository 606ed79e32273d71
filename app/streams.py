"""Continuations of one prompt by several models at once, piece by piece, with fair turns at the models.

What has been said once is kept by what was asked, so that a click elsewhere on the page does not generate anew.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.turns import turns
from interp import Edit, Model, Sampling, stream

KEPT = 500
OnText = Callable[[int, str, bool], None]


@dataclass(frozen=True, eq=False)
class Voice:
    """One column: a model, and the edits under which it speaks."""

    model: Model
    edits: tuple[Edit, ...] = ()

    def key(self, prompt: str, new_tokens: int, sampling: Sampling) -> str:
        edits = [edit.to_json() for edit in self.edits]
        return json.dumps([self.model.digest, edits, prompt, new_tokens, vars(sampling)], sort_keys=True)


_said: OrderedDict[str, str] = OrderedDict()
_lock = threading.Lock()


def said(voice: Voice, prompt: str, new_tokens: int, sampling: Sampling) -> str | None:
    """What this voice said to this prompt, where it has been asked before."""
    with _lock:
        return _said.get(voice.key(prompt, new_tokens, sampling))


def speak(voices: Sequence[Voice], prompt: str, *, new_tokens: int, sampling: Sampling, on_text: OnText) -> list[str]:
    """The continuation by each voice; `on_text(column, text so far, ended)` is called as they grow, in turn.

    Raises:
        UserError: an empty prompt, one that does not fit, an edit that does not fit, or no seat is free.
    """
    texts = [said(voice, prompt, new_tokens, sampling) for voice in voices]
    growing = {place: "" for place, text in enumerate(texts) if text is None}
    for place, text in enumerate(texts):
        if text is not None:
            on_text(place, text, True)
    if not growing:
        return [text or "" for text in texts]
    with turns.seat():
        pieces = {
            place: stream(voices[place].model, prompt, max_new_tokens=new_tokens, edits=voices[place].edits, sampling=sampling)
            for place in growing
        }
        while pieces:
            for place in list(pieces):
                with turns.turn():
                    piece = next(pieces[place], None)
                if piece is None:
                    del pieces[place]
                    _keep(voices[place].key(prompt, new_tokens, sampling), growing[place])
                else:
                    growing[place] += piece
                on_text(place, growing[place], piece is None)
    return [growing[place] if text is None else text for place, text in enumerate(texts)]


def _keep(key: str, text: str) -> None:
    with _lock:
        _said[key] = text
        while len(_said) > KEPT:
            _said.popitem(last=False)
