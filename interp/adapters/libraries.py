"""Imports of the two libraries without their side effects on the process.

TransformerLens silences the warnings of transformers, such as those about missing weights, for the rest of the process. nnsight
gives every object a `save`, after which anyio, and with it Streamlit, can no longer be imported.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from importlib import import_module
from types import ModuleType

from transformers.utils import logging

from interp.errors import UserError

# Building a model patches torch's initialisers for a while, and nnsight is not made for threads: one at a time.
LOCK = threading.RLock()
# Where it is installed (Streamlit's server depends on it), it has to be imported before nnsight.
FIRST = "anyio._backends._asyncio"


def library(name: str) -> ModuleType:
    """The module `transformer_lens` or `nnsight`; raises `UserError` where it is not installed."""
    with LOCK:
        verbosity = logging.get_verbosity()
        with contextlib.suppress(ImportError):
            import_module(FIRST)
        try:
            with warnings.catch_warnings():
                return import_module(name)
        except ImportError as error:
            raise UserError(f"the library {name} cannot be imported ({error})", "pip install 'bypass-workbench[lens]'") from error
        finally:
            logging.set_verbosity(verbosity)
