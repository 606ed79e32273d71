"""A visitor's own run of `bypass undo`: the question, its folder, the plan, and the training, as jobs.

The command runs as a process of its own, because the app trains nothing itself: a run is ended by ending its process, and goes on from
its folder as the command does. The folder is temporary, and is found by a word that nobody can guess.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from app import settings, state
from app.jobs import Runner, Step
from app.launch import environment
from app.settings import Source
from interp.data.texts import read_texts
from interp.elasticity.behaviour import ScorerColumn
from interp.elasticity.undo import Attack, UndoRecord
from interp.elasticity.undo_folder import Plan, folder_of, read_plan, read_record
from interp.elasticity.undo_verdict import judge
from interp.errors import UserError
from interp.models.named import NAMED

UPLOADED = ("txt", "csv", "tsv", "json", "jsonl")
# What is chosen among: the arms beside the texts in question, doses in steps, learning rates, and challenge prompts.
BESIDE = ("neutral", "same", "benign", "from_base")
STEPS, RATES, PROMPTS, BATCH = (1, 5, 10, 25, 50), (1e-6, 1e-5, 1e-4, 1e-3), (50, 100, 200), 8
# How many runs are kept, the oldest going first, and how many may wait; how much longer than planned a run may take.
KEPT, WAITING, SLACK = 16, 4, 1.5
# Minutes more, for importing the libraries and for a machine that others use too.
MORE = 10
EVERY = 0.3
# How much lower than the server's the priority of a run is.
LOWER = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked: a file of texts as bytes (`name` ends as its kind of file does), and how a pair is trained on them."""

    source: Source
    name: str
    content: bytes
    arms: tuple[str, ...]
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    prompts: int


@dataclass(frozen=True, eq=False)
class OwnRun:
    """A visitor's run: the word by which it is found, its folder, its question, and how many texts it has."""

    token: str
    folder: Path
    question: Question
    texts: int

    @property
    def out(self) -> Path:
        """The folder of results of the command."""
        return self.folder / "out"

    @property
    def points(self) -> int:
        """How many doses it measures as a whole."""
        return len(self.question.arms) * len(self.question.rates) * len(self.question.steps)


# A line of their own: a run takes minutes, for which other pages' jobs are not to wait.
line = Runner(waiting=WAITING)
_runs: OrderedDict[str, OwnRun] = OrderedDict()
_processes: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_root: list[TemporaryDirectory[str]] = []


@atexit.register
def _end() -> None:
    for process in list(_processes):
        process.kill()
        process.wait()


def uploaded(name: str, content: bytes) -> tuple[str, bytes]:
    """A file of a visitor's, of whose name only the ending is used. Raises `UserError` for another kind of file."""
    kind = Path(name).suffix.lower().removeprefix(".")
    if kind not in UPLOADED:
        raise UserError("this kind of file is not read here", f"save the texts as one of {', '.join(UPLOADED)}")
    return f"your texts.{kind}", content


def typed(text: str) -> tuple[str, bytes]:
    """Texts that were typed, one a line, as a file."""
    return "your texts.txt", text.encode("utf-8", "replace")


def begin(question: Question) -> OwnRun:
    """A run of this question with a folder of its own, in which nothing is measured yet.

    Raises:
        UserError: the texts cannot be read, are too many, or nothing to train on is chosen.
    """
    most = settings.limits().uploaded_bytes
    if len(question.content) > most:
        fix = "give a part of them, or run `bypass undo --texts FILE` yourself"
        raise UserError(f"the texts have {len(question.content):,} bytes, and up to {most:,} are read here", fix)
    if not (question.steps and question.rates and question.arms):
        raise UserError("no dose or no learning rate is chosen", "choose at least one of each")
    if set(question.arms) - {"opposite", *BESIDE} or set(question.steps) - set(STEPS) or set(question.rates) - set(RATES):
        raise UserError("a choice is not among those that are offered", "choose among them")
    with _lock:
        if not _root:
            _root.append(TemporaryDirectory(prefix="bypass-undo-", ignore_cleanup_errors=True))
        token = secrets.token_urlsafe(16)
        folder = Path(_root[0].name) / token
    folder.mkdir()
    try:
        (folder / question.name).write_bytes(question.content)
        texts = read_texts(folder / question.name)
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(_named(error.problem, folder), _named(error.fix, folder)) from error
    run = OwnRun(token, folder, question, len(set(texts)))
    with _lock:
        _runs[token] = run
        old = [other for other in _runs.values() if not _busy(other)][: max(0, len(_runs) - KEPT)]
    for other in old:
        forget(other)
    return run


def find(token: str) -> OwnRun | None:
    """The run of this word; None where there is none, or it was forgotten."""
    with _lock:
        return _runs.get(token)


def forget(run: OwnRun) -> None:
    """End a run and remove its folder."""
    for key in (plan_key(run), train_key(run)):
        line.cancel(key)
    with _lock:
        _runs.pop(run.token, None)
    shutil.rmtree(run.folder, ignore_errors=True)


def plan_key(run: OwnRun) -> str:
    """The key of the job that makes a run's plan."""
    return f"undo-plan-{run.token}"


def train_key(run: OwnRun) -> str:
    """The key of the job that trains and measures."""
    return f"undo-{run.token}"


def _busy(run: OwnRun) -> bool:
    jobs = [line.find(key) for key in (plan_key(run), train_key(run))]
    return any(job is not None and not job.over for job in jobs)


def record_of(run: OwnRun) -> UndoRecord | None:
    """What has been measured by now; None until both sides have been."""
    folder = folder_of(run.out)
    return None if folder is None else read_record(folder)


def plan_of(run: OwnRun) -> Plan | None:
    """The plan; None where it is not made yet, or there is nothing to undo."""
    folder = folder_of(run.out)
    return None if folder is None else read_plan(folder)


def measured(run: OwnRun) -> int:
    """How many doses have been measured by now."""
    record = record_of(run)
    return 0 if record is None else sum(len(one.points) for one in record.runs)


def behaviour() -> str:
    """The name of the behaviour, as the command has it."""
    return ScorerColumn(state.scorer(), "toxicity").name


def attacks(run: OwnRun) -> list[str]:
    """The names of its ways of training, in the order of the question."""
    return [Attack(rate).name for rate in run.question.rates]


def gap(run: OwnRun) -> str:
    """What there is to undo, in sentences. Raises `UserError` where the two models have not been measured."""
    record = record_of(run)
    if record is None:
        raise UserError("the two models have not been measured", "make the plan again")
    verdict = judge(record, run.question.name, behaviour())
    return " ".join(verdict.sentences[:1] if verdict.has_behaviour else verdict.sentences)


def command(run: OwnRun, options: Sequence[str] = ()) -> list[str]:
    """The command line of `bypass undo` for a run."""
    question = run.question
    scorer = ["bundled", "--second-scorer", "lexicon"] if state.scorer().name != "lexicon" else ["lexicon", "--second-scorer", "none"]
    sides: tuple[str, ...] = question.source or ()
    # The command doubles the name of a pair itself.
    sides = sides[:1] if sides and sides[0] in NAMED else sides
    return [
        sys.executable, "-m", "interp.cli", "undo", *(("--pair", *sides) if sides else ()),
        "--texts", str(run.folder / question.name),
        "--arms", ",".join(question.arms), "--doses", ",".join(str(BATCH * step) for step in question.steps), "--steps-first", "",
        "--batch", str(BATCH), "--lr", ",".join(f"{rate:g}" for rate in question.rates), "--limit", str(question.prompts),
        "--seeds", "1", "--scorer", *scorer, "--out", str(run.out), *options,
    ]  # fmt: skip


def make_plan(run: OwnRun, step: Step) -> bool:
    """Measure the two models and one step, by the command; True once there is a plan or nothing to undo. Raises `UserError` as it does."""

    def tell() -> None:
        folder = folder_of(run.out)
        done = [] if folder is None else [name for name in ("base.json", "tuned.json", "step.json") if (folder / name).is_file()]
        phrases = ("loading the pair and measuring its base", "measuring the tuned model", "timing a step of training", "writing the plan")
        step(phrases[len(done)], len(done), len(phrases))

    _call(run, ["--plan"], tell)
    return True


def train(run: OwnRun, step: Step) -> bool:
    """Train and measure what has not been measured yet, by the command; True at its end. Raises `UserError` as it does."""
    before, plan = measured(run), plan_of(run)
    until = time.monotonic() + 60 * (SLACK * (plan.minutes if plan is not None else settings.limits().undo_minutes) + MORE)

    def tell() -> None:
        done = measured(run)
        phrase = "loading the pair" if done == before else f"{done} of {run.points} doses are measured"
        step(phrase, done - before, run.points - before)
        if time.monotonic() > until:
            raise UserError("this took much longer than planned and was stopped", "go on with it: what was measured is kept")

    _call(run, [], tell)
    return True


def _call(run: OwnRun, options: Sequence[str], tell: Callable[[], None]) -> None:
    """Run the command to its end, calling `tell` all the while; what `tell` raises ends the process."""
    log_file = run.folder / "log.txt"
    with log_file.open("wb") as stream:
        process = subprocess.Popen(
            command(run, options), env=environment(settings.demo()), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )  # fmt: skip
    _processes.add(process)
    try:
        if hasattr(os, "setpriority"):
            # Pages are drawn first.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + LOWER))
        while process.poll() is None:
            tell()
            time.sleep(EVERY)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        _processes.discard(process)
        if find(run.token) is None:
            # It was forgotten while it ran.
            shutil.rmtree(run.folder, ignore_errors=True)
    if process.returncode:
        raise _problem(run, log_file.read_text("utf-8", "replace"))


def _problem(run: OwnRun, output: str) -> UserError:
    """The error that the command ended with, without a path of this machine."""
    last = next((text for text in reversed(output.splitlines()) if text.startswith("bypass: ")), "")
    problem, _, fix = _named(last.removeprefix("bypass: "), run.folder).partition(". Fix: ")
    if not fix:
        log.error("bypass undo failed: %s", output)
        return UserError("the run ended by a fault", "go on with it; the log of the app says more")
    return UserError(problem, fix.rstrip("."))


def _named(text: str, folder: Path) -> str:
    return text.replace(f"{folder}{os.sep}", "")
