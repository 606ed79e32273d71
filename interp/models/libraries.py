"""What libraries print while a model is built: silenced, or passed on as a `Notice` where it is about weights or tokens."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as hf_logging

from interp.errors import Notice

# While transformers builds a model to load weights into, it replaces torch's initialisation functions for the whole process. Where
# two threads overlap, the second takes the replacements for the originals and leaves them in place, and whatever this process
# initialises afterwards is uninitialised memory. So models are built by one thread at a time.
BUILDING = threading.RLock()
# What may change a number; a deprecated argument or a flag of generation does not.
MATTERS = re.compile(
    r"\b(weights?|tied|untied|tie_word_embeddings|embeddings?|adapters?|lora\w*|rope\w*|initiali[sz]ed|tokeni[sz]\w*|softcap\w*|bos|eos)\b",
    re.IGNORECASE,
)
# Transformers' table of missing and unexpected tensors, which `read_weights` turns into errors.
CHECKED = ("LOAD REPORT",)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and the log of transformers inside the block; progress is shown by this project itself.

    Not for reading weights or a tokenizer, where a warning may mean another number: `listening` is.
    """
    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()


@contextmanager
def listening(source: str, *, checked: tuple[str, ...] = CHECKED) -> Iterator[None]:
    """Build a model or a tokenizer inside the block, one thread at a time, without the output of libraries.

    Each warning of theirs that is about weights or tokens becomes one `Notice` with the name of the source.

    Args:
        checked: pieces of warnings that the caller turns into errors itself.
    """
    log = logging.getLogger("transformers")
    record = _Record()
    with BUILDING:
        handlers, level, propagate, bar = list(log.handlers), log.level, log.propagate, hf_logging.is_progress_bar_enabled()
        log.handlers, log.propagate = [record], False
        log.setLevel(logging.WARNING)
        hf_logging.disable_progress_bar()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
            if bar:
                hf_logging.enable_progress_bar()
    said = [*record.texts, *(str(item.message) for item in caught if not issubclass(item.category, FutureWarning | DeprecationWarning))]
    for text in dict.fromkeys(" ".join(line.split()) for line in said):
        if MATTERS.search(text) and not any(piece in text for piece in checked):
            warnings.warn(f"{source}: {text}", Notice, stacklevel=3)


class _Record(logging.Handler):
    """The texts of the records that a logger gave out."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        self.texts.append(record.getMessage())
