"""What the server imports and computes before the first visitor comes: libraries, the pair, and the pages' default views.

Only the server imports this module. What fails here fails again, with a message, on the page that needs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.importing import gate

if TYPE_CHECKING:
    from app.settings import Source
    from interp import ModelPair

THREAD = "precompute"
# What the first page is drawn with, which needs no torch.
FIRST_PAGE = ("streamlit.elements.plotly_chart", "app.answers.argument")
# In this order, so that between two of them there is a moment in which the import can pause.
SLOW = ("torch", "transformers", "transformers.modeling_utils", "transformers.models.gpt2.modeling_gpt2", "interp.models.model")
MODULES = (*FIRST_PAGE, *SLOW, "app.answers.left_in_place", "app.answers.start", "app.answers.steer")
# Seconds that a visitor who comes at once needs until the first page is drawn.
FIRST = 3.0
# Seconds for which the first visitor's page has the processor to itself, before what other pages need is computed.
AFTER = 6.0


def start() -> None:
    """Start importing and computing in a thread of its own."""
    # Streamlit warns of code that runs outside of a visitor's session, as all of this does.
    streamlit = logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context")
    streamlit.addFilter(lambda record: threading.current_thread().name != THREAD)
    gate.begin(MODULES, slow=SLOW, pause=FIRST, then=compute, name=THREAD)


def compute() -> None:
    """Compute the first page's default view of the first pair on offer, then those of the other pages."""
    from app import settings, state
    from app.answers import left_in_place, start, steer

    source = next(iter(settings.offered().values()))
    state.load_pair(source)
    left_in_place.left_in_place(source)
    state.scorer().score(["any text"])
    time.sleep(AFTER)
    start.unaligned(source)
    steer.candidates(source, "tuned", "selective")
    steer.lengths(source, "tuned")
    other_pages(source)


def other_pages(source: Source, light: Callable[[ModelPair], bool] | None = None) -> None:
    """Compute the default views of the pages Vectors and Bypass.

    Args:
        light: whether a pair is so small that its passes over the prompts are short (default: `bypass.light`). Of another pair nothing is
            computed: projecting its value vectors alone takes tens of seconds.
    """
    from app import state
    from app.answers import bypass, bypass_drop, bypass_lens, bypass_sources, vectors, vectors_firing

    if not (light or bypass.light)(state.load_pair(source)):
        return
    near, count = state.toxic_neurons(source), bypass.usual()
    vectors.described(source, vectors.by_probe(source, vectors.USUAL).neurons)
    vectors.hostility(source)
    vectors.shared(source, len(near))
    vectors_firing.fired(source, near[0], "")
    bypass.random_shifts(source, count)
    bypass.profile(source, count, True)
    layer = bypass.study(source, count).offset_layer
    bypass_drop.drop(source, count, bypass_drop.SHOWN)
    bypass_sources.written(source, count, layer)
    if layer > 0:
        bypass_sources.against(source, count, layer)
    prompt = bypass_lens.examples(source, count)[0]
    # With every argument as the page gives it, because what is kept is found by the arguments.
    bypass_lens.curve(source, prompt, bypass_lens.candidates(source, prompt, False)[0].token, False)
    # Last, because it raises for a layer before which tuning moved nothing.
    for layer in {layer for layer, _ in near}:
        index = bypass.layer_neurons(source, layer)[bypass.first_firing(source, count, layer)]
        bypass.moved(source, count, layer, index, bypass.PLANES[bypass.FIRST])
