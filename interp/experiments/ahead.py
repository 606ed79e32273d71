"""Experiments of a report in several processes at once, ahead of the report, which then finds their results in its folder.

A small model's products of matrices are too small to share among threads, so that two processes of one thread each finish a report
in little more than half of the time of one process with two threads. Each process loads the models by itself.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from interp.errors import UserError
from interp.experiments.registry import EXPERIMENTS, Experiment
from interp.experiments.run import result_of
from interp.experiments.study import Studies
from interp.experiments.user_files import read_experiments
from interp.models.model import Model

# More processes than these, or larger models, cost more memory than a desktop computer has.
MOST_JOBS, MOST_PARAMETERS = 4, 5e8
# (seed, experiment's id)
Task = tuple[int, str]
# Seconds between two looks at whether the processes are still alive.
WATCH = 0.5


def usual_jobs(model: Model) -> int:
    """How many processes a report takes unless told: as many as torch has threads, at most 4; one on a GPU and for a large model."""
    if model.device.type != "cpu" or sum(parameter.numel() for parameter in model.hf.parameters()) > MOST_PARAMETERS:
        return 1
    return min(MOST_JOBS, torch.get_num_threads())


def run_ahead(
    make: Callable[[], Studies], files: Sequence[Path], tasks: Sequence[Task], folder: Path, jobs: int,
    done: Callable[[Task], object] = lambda task: None,
) -> None:  # fmt: skip
    """Run experiments in so many processes; their results are kept in `folder`, in the place where `result_of` looks for them.

    An experiment that raises leaves no result: the report, which runs what has none, says why. The same holds for the rest of the
    tasks where a process dies, such as for want of memory.

    Args:
        make: makes the report's studies; a function of a module, or a `functools.partial` of one, because it is sent to the processes.
        files: files with experiments of the user's own, which each process reads.
        done: called with each task as soon as its result is there.
    """
    context = multiprocessing.get_context("spawn")
    waiting, answers = context.Queue(), context.Queue()
    for task in [*tasks, *[None] * jobs]:
        waiting.put(task)
    threads = max(1, torch.get_num_threads() // jobs)
    processes = [
        context.Process(target=_work, args=(make, tuple(files), folder, threads, waiting, answers), daemon=True) for _ in range(jobs)
    ]
    for process in processes:
        process.start()
    try:
        missing = len(tasks)
        while missing:
            try:
                task, there = answers.get(timeout=WATCH)
            except queue.Empty:
                if any(process.exitcode not in (None, 0) for process in processes):
                    return
                continue
            missing -= 1
            if there:
                done(task)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(
    make: Callable[[], Studies], files: Sequence[Path], folder: Path, threads: int,
    waiting: multiprocessing.Queue[Task | None], answers: multiprocessing.Queue[tuple[Task, bool]],
) -> None:  # fmt: skip
    """One process: run what waits until nothing does. Ctrl-C is the business of the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    for file in files:
        read_experiments(file)
    studies = make()
    while (task := waiting.get()) is not None:
        seed, name = task
        item: Experiment = EXPERIMENTS[name]
        try:
            result_of(item, studies.find(item.study, seed), folder)
        except UserError:
            answers.put((task, False))
        else:
            answers.put((task, True))
