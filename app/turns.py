"""Fair turns at the models: one forward pass at a time, in the order of asking.

Everyone who generates takes a seat, of which there are a bounded number, and asks for a turn before every token. Whoever
has had one goes to the end of the line, so eight people each wait for eight steps a token, and nobody for eight texts.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from interp.errors import UserError

SEATS = 24


class Turns:
    """A line in which a place is kept for one step of work."""

    def __init__(self, seats: int = SEATS) -> None:
        self.seats = seats
        self._free = threading.Condition()
        self._line: deque[object] = deque()
        self._seated = 0

    @property
    def seated(self) -> int:
        """How many people generate now."""
        return self._seated

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Hold one of the seats. Raises `UserError` where all are taken: better to say so than to let everyone wait."""
        with self._free:
            if self._seated >= self.seats:
                raise UserError(f"{self._seated} people are generating at this moment", "try again in a few seconds")
            self._seated += 1
        try:
            yield
        finally:
            with self._free:
                self._seated -= 1

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn, and hold the models for as long as the block runs; keep it to one forward pass."""
        ticket = object()
        with self._free:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket:
                    self._free.wait()
            except BaseException:
                self._line.remove(ticket)
                self._free.notify_all()
                raise
        try:
            yield
        finally:
            with self._free:
                self._line.popleft()
                self._free.notify_all()


turns = Turns()
