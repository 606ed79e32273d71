"""Experiments in processes of their own: what they keep, and what is left to the report where one fails or a process dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.experiments import ahead
from interp.experiments.ahead import Task, run_ahead, usual_jobs
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import KEPT, not_kept, result_of
from interp.experiments.study import Studies, Study
from interp.experiments.user_files import read_experiments
from interp.models.pair import ModelPair

ABOUT: dict[str, Any] = {
    "title": "a title", "question": "so?", "criterion": "Holds if so, fails if not.", "refuted_by": "another", "caveat": "none",
}  # fmt: skip
SOURCE = """
import os
from interp.errors import UserError
from interp.experiments import Finding, experiment
from tests.experiments.test_ahead import ABOUT, Words

@experiment("V-E1", claim="V-C1", **ABOUT)
def counts(study: Words) -> Finding:
    return Finding("holds", "said", {"process": os.getpid(), "seed": study.seed}, {}, {}, {}, ())

@experiment("V-E2", claim="V-C1", **ABOUT)
def refuses(study: Words) -> Finding:
    raise UserError("there are no words", "give some")

@experiment("V-E3", claim="V-C1", **ABOUT)
def dies(study: Words) -> Finding:
    os._exit(3)
"""


@dataclass(eq=False)
class Words(Study):
    """A study of no pair."""

    def manifest(self) -> dict[str, Any]:
        return {"name": "words"}


def studies_of_words() -> Studies:
    """The studies of a report on words, made in each process."""
    return Studies({Words: Words})


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    before = dict(EXPERIMENTS)
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    read_experiments(file)
    yield file
    EXPERIMENTS.clear()
    EXPERIMENTS.update(before)


def test_results_are_kept_until_a_process_dies_and_the_rest_is_left_to_the_report(source: Path, tmp_path: Path) -> None:
    tasks: list[Task] = [(0, "V-E1"), (0, "V-E2"), (1, "V-E1"), (0, "V-E3"), (2, "V-E1")]
    done: list[Task] = []
    studies, folder = studies_of_words(), tmp_path / "r"
    chosen = [EXPERIMENTS[name] for name in ("V-E1", "V-E2", "V-E3")]
    assert len(not_kept(studies, folder, chosen, 3)) == 9
    run_ahead(studies_of_words, [source], tasks, folder / KEPT, 1, done.append)
    assert done == [(0, "V-E1"), (1, "V-E1")]
    assert not_kept(studies, folder, chosen, 2) == [(0, "V-E2"), (0, "V-E3"), (1, "V-E2"), (1, "V-E3")]
    for seed in (0, 1):
        result = result_of(chosen[0], studies.find(Words, seed), folder / KEPT)
        assert result.statistic["seed"] == seed
        assert result.statistic["process"] != os.getpid()


def test_as_many_processes_as_threads_but_one_on_a_gpu_and_for_a_large_model(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, jobs in ((1, 1), (2, 2), (16, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert usual_jobs(pair.base) == jobs
    monkeypatch.setattr(ahead, "MOST_PARAMETERS", 10.0)
    assert usual_jobs(pair.base) == 1
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(type(pair.base), "device", torch.device("cuda"))
    assert usual_jobs(pair.base) == 1
