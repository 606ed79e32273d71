"""Two ways of doing the same work, timed in turn (A B A B) in one process, with the memory and the agreement of both.

Turns alternate so that a machine that slows down slows both. Memory is the growth of the resident set in a forked child,
because tracemalloc does not see torch; the child starts from a heap whose free pages were handed back, after one run that
touched every library.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

CHILD_SECONDS = 300.0


@dataclass(frozen=True)
class Case:
    """One comparison. `differ` returns the largest difference of the two results; up to `tolerance` they count as equal.

    `memory` is off where both ways hold next to nothing, and a number of pages would only be noise. `turns` is set where a
    turn takes minutes.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    ours_label: str
    theirs_label: str
    differ: Callable[[Any, Any], float]
    tolerance: float = 1e-5
    memory: bool = True
    turns: int | None = None


@dataclass(frozen=True)
class Measured:
    """Medians in seconds, the ratio `theirs / ours` of them with its least and largest value over the turns, MiB at the peak."""

    name: str
    ours_label: str
    theirs_label: str
    ours_seconds: float
    theirs_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    turns: int
    ours_mib: float | None
    theirs_mib: float | None
    difference: float
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether the results agree within the tolerance."""
        return self.difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON, with `equal`; a difference that is not finite is None."""
        # JSON has no infinity: results that cannot be compared have no difference.
        return asdict(self) | {"difference": self.difference if math.isfinite(self.difference) else None, "equal": self.equal}


def measure(case: Case, turns: int = 5, *, clock: Callable[[], float] = time.perf_counter) -> Measured:
    """Run each way once to warm up and to compare results, then `turns` times in turn, then once each for memory."""
    if turns < 1:
        raise ValueError(f"{turns} turns were asked for: take at least one")
    turns = min(turns, case.turns or turns)
    difference = float(case.differ(case.ours(), case.theirs()))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(turns):
        for name, work in (("ours", case.ours), ("theirs", case.theirs)):
            start = clock()
            work()
            seconds[name].append(clock() - start)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "theirs"))
    peaks = [peak_mib(work) if case.memory else None for work in (case.ours, case.theirs)]
    return Measured(
        case.name, case.ours_label, case.theirs_label, ours, theirs, theirs / ours, min(ratios), max(ratios), turns, peaks[0], peaks[1],
        difference, case.tolerance,
    )  # fmt: skip


def peak_mib(work: Callable[[], Any]) -> float | None:
    """The largest growth of the resident set while `work` runs, in MiB; None where it cannot be measured."""
    if not (hasattr(os, "fork") and os.access("/proc/self/clear_refs", os.W_OK)):
        return None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # The threads of the parent's pool do not exist in the child, which would wait for them for ever.
            torch.set_num_threads(1)
            # Pages of libraries are not the child's until it touches them: the first run touches them all.
            work()
            _forget_peak()
            before = _status("VmRSS")
            result = work()
            os.write(writer, struct.pack("d", max(0, _status("VmHWM") - before) / 2**10))
            del result
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    answer = b""
    try:
        if select.select([reader], [], [], CHILD_SECONDS)[0]:
            answer = os.read(reader, 8)
    finally:
        os.close(reader)
        if not answer:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return struct.unpack("d", answer)[0] if len(answer) == 8 else None


def _forget_peak() -> None:
    """Hand free pages back to the system, and let the peak start from what is resident now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _status(name: str) -> int:
    """A line of this process's `/proc/self/status`, in KiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of two tensors, as a share of the second's largest magnitude where that is above 1.

    Single precision has seven digits: a residual stream in the hundreds cannot agree to 1e-5, a probability can. Infinite
    where the shapes differ or anything is not finite.
    """
    if first.shape != second.shape or not first.numel():
        return float("inf")
    gap = (first.double() - second.double()).abs().max() / second.double().abs().max().clamp(min=1)
    return float(gap) if bool(torch.isfinite(gap)) else float("inf")
