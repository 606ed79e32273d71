"""The queue for the models: one forward pass at a time, first come first served, for a limited number of people.

Each generation takes a turn for every token and then goes to the end of the queue, so eight people each wait eight steps for a
token, and nobody waits for eight whole texts.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from interp.errors import UserError

LIMIT = 24


class ModelQueue:
    """A queue of turns, each for one forward pass; at most `limit` people generate at once."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._tickets: deque[object] = deque()
        self._generating = 0

    @property
    def generating(self) -> int:
        """How many people generate now."""
        return self._generating

    @property
    def length(self) -> int:
        """How many turns are taken or waited for."""
        return len(self._tickets)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one more generation while the block runs. Raises `UserError` where `limit` run already."""
        with self._changed:
            if self._generating >= self.limit:
                raise UserError(f"{self._generating} people are generating at this moment", "try again in a few seconds")
            self._generating += 1
        try:
            yield
        finally:
            with self._changed:
                self._generating -= 1

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold the models while the block runs, which should be one forward pass."""
        ticket = object()
        with self._changed:
            self._tickets.append(ticket)
            try:
                while self._tickets[0] is not ticket:
                    self._changed.wait()
            except BaseException:
                self._tickets.remove(ticket)
                self._changed.notify_all()
                raise
        try:
            yield
        finally:
            with self._changed:
                self._tickets.popleft()
                self._changed.notify_all()


model_queue = ModelQueue()
