"""Jobs: long work in the background, one at a time, with progress, time left and cancelling.

Streamlit runs a page again at every click and forgets it at every reload, so a job belongs to the process. Pages find it by its
key, a hash of the question (`key_of`), which they compute from what is in the link.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.errors import UserError

WAITING, KEPT = 8, 64
log = logging.getLogger(__name__)
Step = Callable[[str, int, int], None]
State = Literal["waiting", "running", "done", "cancelled", "failed"]


class Cancelled(Exception):
    """Raised inside the work of a job, at its next step, when somebody has cancelled it."""


@dataclass(eq=False)
class Job:
    """One piece of work and its progress."""

    key: str
    title: str
    work: Callable[[Step], Any] = field(repr=False)
    state: State = "waiting"
    phrase: str = ""
    done: int = 0
    total: int = 0
    started: float = 0.0
    seconds: float = 0.0
    result: Any = field(default=None, repr=False)
    problem: UserError | None = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def over(self) -> bool:
        """Whether it is done, cancelled or failed."""
        return self.state in ("done", "cancelled", "failed")

    @property
    def share(self) -> float:
        """The share of its steps that are done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def left(self, now: float) -> float | None:
        """Seconds left at the pace so far, or None while there is none."""
        return (now - self.started) * (self.total - self.done) / self.done if self.state == "running" and self.done > 0 else None

    def step(self, phrase: str, done: int, total: int) -> None:
        """Record the progress; the work calls this between its steps. Raises `Cancelled` where the job was cancelled."""
        if self.stop.is_set():
            raise Cancelled
        self.phrase, self.done, self.total = phrase, done, total


class Runner:
    """Runs jobs in a thread of its own, in the order in which they were started."""

    def __init__(self, waiting: int = WAITING, kept: int = KEPT) -> None:
        self._waiting, self._kept = waiting, kept
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._line: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, key: str, title: str, work: Callable[[Step], Any]) -> Job:
        """The job of this key: the one that waits, runs or is done, or else a new one.

        Raises:
            UserError: too many jobs wait already.
        """
        with self._changed:
            known = self._jobs.get(key)
            if known is not None and known.state not in ("cancelled", "failed"):
                return known
            if len(self._line) >= self._waiting:
                raise UserError(f"{len(self._line)} jobs are waiting already", "try again when one of them is done")
            job = Job(key, title, work)
            self._jobs[key] = job
            self._jobs.move_to_end(key)
            self._line.append(job)
            for old in [name for name, other in self._jobs.items() if other.over][: max(0, len(self._jobs) - self._kept)]:
                del self._jobs[old]
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return job

    def find(self, key: str) -> Job | None:
        """The job of this key in any state; None where there is none, or it is so old that it was dropped."""
        with self._changed:
            return self._jobs.get(key)

    def ahead(self, job: Job) -> int:
        """How many jobs wait or run before this one."""
        with self._changed:
            return self._line.index(job) + 1 if job in self._line else 0

    def cancel(self, key: str) -> None:
        """Stop a job at its next step, or take it out of the line."""
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.over:
                return
            job.stop.set()
            if job in self._line:
                self._line.remove(job)
                job.state = "cancelled"

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._line:
                    self._changed.wait()
                job = self._line.popleft()
                job.state, job.started = "running", time.monotonic()
            _run(job)


def _run(job: Job) -> None:
    try:
        job.result = job.work(job.step)
        state: State = "done"
    except Cancelled:
        state = "cancelled"
    except UserError as error:
        job.problem, state = error, "failed"
    except Exception:
        # A fault of Bypass: the log has the traceback, the visitor sees one line.
        log.exception("the job %r failed", job.title)
        job.problem, state = UserError("this did not work, through a fault in Bypass itself", "the log of the app says more"), "failed"
    job.seconds = time.monotonic() - job.started
    job.state = state


def key_of(name: str, *question: Any) -> str:
    """A short hash of a question, as the key of its job."""
    return f"{name}-{hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


runner = Runner()
