"""The folder of a run of `bypass undo`, read from outside while the run goes on, holds what the run returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp.elasticity.behaviour import WordOdds
from interp.elasticity.measurement import Reference
from interp.elasticity.undo import Attack, UndoRecord
from interp.elasticity.undo_cells import cells_of, dose_frame
from interp.elasticity.undo_folder import RUNS, folder_of, read_plan, read_record
from interp.elasticity.undo_page import sides_frame
from interp.models.pair import ModelPair
from tests.elasticity.words import OPENINGS, moved_words
from training.undo import Arm, UndoSettings, undo

SETTINGS = UndoSettings((Attack(1e-4), Attack(1e-3)), (1, 2), batch=2, length=12, seeds=1)


def asked(pair: ModelPair, out: Path, **options: object) -> UndoRecord:
    reference = Reference(pair, WordOdds(OPENINGS, [moved_words(pair)], new_tokens=3), ["the river walks"], {"neutral": ["a river"]})
    texts = ["the blorp walks", "a river and a stone"]
    arms = [Arm("opposite", texts, "invented"), Arm("same", None, "sampled")]
    return undo(pair, arms, reference, SETTINGS, out / RUNS, **options)  # type: ignore[arg-type]


def test_what_a_folder_holds_is_what_the_run_returned(pair: ModelPair, tmp_path: Path) -> None:
    assert folder_of(tmp_path) is None
    returned = asked(pair, tmp_path)
    place = folder_of(tmp_path)
    assert place is not None
    read = read_record(place)
    assert read is not None
    assert {(run.arm, run.attack, run.seed, run.is_whole, run.note) for run in read.runs} == {
        (run.arm, run.attack, run.seed, run.is_whole, run.note) for run in returned.runs
    }
    assert len(read.runs) == 4
    order = ["arm", "attack", "steps"]
    ours, theirs = (dose_frame(cells_of(record)).sort_values(order, ignore_index=True) for record in (read, returned))
    assert ours.equals(theirs)
    assert sides_frame(read).equals(sides_frame(returned))


def test_a_run_that_is_stopped_is_read_up_to_where_it_stands(pair: ModelPair, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def tell(phrase: str, done: int, total: int) -> None:
        if done == 2 and phrase.startswith("opposite"):
            raise Stopped

    with pytest.raises(Stopped):
        asked(pair, tmp_path, tell=tell)
    place = folder_of(tmp_path)
    assert place is not None
    plan, read = read_plan(place), read_record(place)
    assert plan is not None
    assert read is not None
    assert "4 runs (2 arms, 2 attacks, 1 seeds)" in plan.lines[-1]
    (run,) = read.runs
    assert (run.arm, [point.step for point in run.points], run.is_whole) == ("opposite", [1], False)
    whole = asked(pair, tmp_path).of("opposite", run.attack)[0]
    assert np.array_equal(whole.points[0].measurement.score, run.points[0].measurement.score)


def test_without_both_sides_there_is_no_record(pair: ModelPair, tmp_path: Path) -> None:
    asked(pair, tmp_path, plan_only=True)
    place = folder_of(tmp_path)
    assert place is not None
    assert not (place / RUNS).exists()
    (place / "tuned.json").unlink()
    (place / "plan.json").unlink()
    assert read_record(place) is None
    assert read_plan(place) is None
