"""Reading libraries and the pair before anybody asks, without getting into the way of the page that is being drawn.

Importing torch and transformers takes seconds in which Python's lock is mostly held: the server would answer, and a page would be
drawn, at half their speed. So the thread that imports them waits between its pieces while the first page is drawn.
"""

from __future__ import annotations

import logging
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Source

NAME = "warm"
# In this order, so that between two of them there is a moment in which to look whether somebody waits.
PIECES = ("torch", "transformers", "transformers.modeling_utils", "transformers.models.gpt2.modeling_gpt2", "interp.models.model")
# How long a visitor who comes at once needs until the first page is drawn; nobody is waited for longer than this.
FIRST, LONGEST = 3.0, 4.0
AFTER = 6.0
_until = 0.0
_read = threading.Event()
_read.set()


def start() -> None:
    """Begin to read, in a thread of its own."""
    _read.clear()
    hold(FIRST)
    threading.Thread(target=_warm, name=NAME, daemon=True).start()


def hold(seconds: float = LONGEST) -> None:
    """Let a page be drawn first, for so long at most."""
    global _until
    _until = time.monotonic() + seconds


def wait() -> None:
    """Wait until the libraries have been read. Two threads that import what imports each other can find half of it."""
    hold(0.0)
    _read.wait()


def _warm() -> None:
    """Read what every first page needs. What goes wrong here goes wrong again, with a message, on the page."""
    # Streamlit notes that no visitor asked; nobody needs to read that.
    asker = logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context")
    asker.addFilter(lambda record: threading.current_thread().name != NAME)
    try:
        _import()
        from app import settings, state
        from app.answers import left_in_place, start, steer

        source = next(iter(settings.offered().values()))
        state.load_pair(source)
        left_in_place.left_in_place(source)
        state.scorer().score(["warm"])
        # The first visitor's page has the processor to itself now; what other pages need can wait until it is drawn.
        time.sleep(AFTER)
        start.unaligned(source)
        steer.candidates(source, "tuned", "selective")
        steer.lengths(source, "tuned")
        _ahead(source)
    except Exception as error:
        logging.getLogger(__name__).warning("warming up failed: %s", error)


def _import() -> None:
    try:
        # What the first page is drawn with is not held back.
        import_module("streamlit.elements.plotly_chart")
        import_module("app.answers.argument")
        for name in PIECES:
            while time.monotonic() < _until:
                time.sleep(0.01)
            import_module(name)
        for name in ("left_in_place", "start", "steer"):
            import_module(f"app.answers.{name}")
    finally:
        _read.set()


def _ahead(source: Source) -> None:
    """What the other pages show before anything is chosen, where a pass over the prompts is short."""
    from app import state
    from app.answers import bypass, bypass_drop, bypass_lens, bypass_sources, vectors, vectors_firing

    # Of a large pair nothing is computed that nobody asked for: projecting its value vectors alone takes tens of seconds.
    if not bypass.light(state.load_pair(source)):
        return
    near, count = state.toxic_neurons(source), bypass.USUAL
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
    bypass_lens.curve(source, prompt, bypass_lens.candidates(source, prompt)[0].token)
    # Last, because there may be a layer before which tuning moved nothing, which ends this.
    for layer in {layer for layer, _ in near}:
        index = bypass.layer_neurons(source, layer)[bypass.telling(source, count, layer)]
        bypass.moved(source, count, layer, index, bypass.PLANES[bypass.FIRST])
