"""A gate for slow imports: a thread imports modules one after another and pauses between them while a page is drawn.

Importing torch and transformers takes seconds in which the global interpreter lock is mostly taken: the server would answer,
and a page would be drawn, at half their speed. This module imports nothing else of the app; it gets the names of the modules.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

# How long a page needs at most until it is drawn; imports pause no longer than this.
LONGEST = 4.0


class Gate:
    """Whether the modules of a background import can be used, and until when that import pauses for a page."""

    def __init__(self) -> None:
        self._paused_until = 0.0
        self._imported = threading.Event()
        self._imported.set()

    def hold(self, seconds: float = LONGEST) -> None:
        """Pause the background import for this many seconds, so that a page is drawn first."""
        self._paused_until = time.monotonic() + seconds

    def wait(self) -> None:
        """Wait until the background import is over: two threads that import the same module can each see half of it."""
        self.hold(0.0)
        self._imported.wait()

    def begin(
        self,
        modules: Sequence[str],
        *,
        slow: Collection[str] = (),
        pause: float = 0.0,
        then: Callable[[], object] = lambda: None,
        name: str = "importing",
        import_module: Callable[[str], object] = importlib.import_module,
    ) -> threading.Thread:
        """Import modules in a thread of its own, in order; an error is logged, and ends the wait of all who wait.

        Args:
            slow: those of `modules` before which the import pauses while `hold` is in force.
            pause: seconds of `hold` to begin with.
            then: called in the same thread after the last module.
        """
        self._imported.clear()
        self.hold(pause)

        def work() -> None:
            try:
                self._import(modules, slow, import_module)
                then()
            except Exception as error:
                logging.getLogger(__name__).warning("importing and computing ahead failed: %s", error)

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def _import(self, modules: Sequence[str], slow: Collection[str], import_module: Callable[[str], object]) -> None:
        try:
            for module in modules:
                while module in slow and time.monotonic() < self._paused_until:
                    time.sleep(0.01)
                import_module(module)
        finally:
            self._imported.set()


gate = Gate()
