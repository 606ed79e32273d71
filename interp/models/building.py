"""What every place that builds a Hugging Face model shares: the lock around building, and the silence of transformers' own output."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as hf_logging

# While transformers builds a model to load weights into, it replaces torch's initialisation functions for the whole process. Where
# two threads overlap, the second takes the replacements for the originals and leaves them in place, and whatever this process
# initialises afterwards is uninitialised memory. So models are built by one thread at a time.
BUILDING = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers inside the block; progress is shown by this project itself."""
    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()
