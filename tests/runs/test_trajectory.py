"""A grid's runs as one table: what is in it, and that no run is left out without being named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.runs.trajectory import read_trajectories, runs_of


def write_run(folder: Path, losses: list[float], *, base: str = "abc", end: str | None = "finished") -> str:
    """Write a run's log, summary and stamp; return the hash of the stamp."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"step": 0, "event": "started"}]
    lines += [{"step": step, "loss": loss, "gradient_norm": {"all": 2 * loss}} for step, loss in enumerate(losses, start=1)]
    lines += [{"step": len(losses), "event": end}] if end else []
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"base": base}), encoding="utf-8")
    (folder / "stamp.json").write_text(json.dumps({"output": str(folder)}), encoding="utf-8")
    return hashlib.sha256((folder / "stamp.json").read_bytes()).hexdigest()


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., Path]:
    """`grid(name, changes by run)`: a grid of two objectives and two seeds below `tmp_path`, with rows of its index changed."""

    def make(name: str = "many", changes: dict[str, dict[str, Any]] | None = None) -> Path:
        place, rows = tmp_path / name / "grid", []
        for objective in ("dpo", "ipo"):
            for seed in ("1", "2"):
                run = f"objective={objective},seed={seed}"
                losses = [0.5, 0.25] if objective == "dpo" else [0.75]
                stamp = write_run(place / run / "dpo", losses)
                row = {
                    "name": run,
                    "point": {"objective": objective, "seed": seed},
                    "folder": f"{run}/dpo",
                    "state": "done",
                    "stamp": stamp,
                }
                rows.append(row | (changes or {}).get(run, {}))
        record = {"recipe": name, "command": f"bypass train grid {name}.toml", "stage": "dpo", "runs": rows}
        (place / "index.json").write_text(json.dumps(record), encoding="utf-8")
        return place

    return make


def test_the_table_has_one_row_per_run_and_step(grid: Callable[..., Path]) -> None:
    frame = read_trajectories(grid()).to_frame()
    assert list(frame.columns) == ["run", "objective", "seed", "step", "loss", "gradient_norm.all"]
    assert frame["loss"].tolist() == [0.5, 0.25, 0.5, 0.25, 0.75, 0.75]
    assert frame["step"].tolist() == [1, 2, 1, 2, 1, 1]
    assert frame["gradient_norm.all"].tolist() == [2 * loss for loss in frame["loss"]]
    assert frame.groupby("objective")["loss"].mean().to_dict() == {"dpo": 0.375, "ipo": 0.75}
    assert frame["run"].nunique() == 4


def test_an_axis_with_the_name_of_a_field_stands_beside_it(grid: Callable[..., Path]) -> None:
    place = grid(changes={"objective=dpo,seed=1": {"point": {"loss": "sigmoid"}}})
    frame = read_trajectories(place).to_frame()
    assert frame["axis.loss"].dropna().unique().tolist() == ["sigmoid"]
    assert frame["loss"].tolist()[:2] == [0.5, 0.25]


def test_an_axis_named_run_does_not_take_the_place_of_the_runs_name(grid: Callable[..., Path]) -> None:
    name = "objective=dpo,seed=1"
    frame = read_trajectories(grid(changes={name: {"point": {"run": "first"}}})).to_frame()
    assert frame.loc[frame["axis.run"] == "first", "run"].unique().tolist() == [name]
    assert frame["run"].nunique() == 4


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("summary.json", '{"base": ', r"summary\.json is not readable JSON"),
        ("summary.json", "[1]", r"summary\.json holds a list, not an object"),
        ("log.jsonl", '{"step": 1}\n{"step"\n{"step": 2}\n', r"line 2 of the log .* is damaged"),
    ],
)
def test_a_run_with_a_damaged_file_is_missing_and_the_others_are_read(
    grid: Callable[..., Path], file: str, content: str, reason: str
) -> None:
    place, name = grid(), "objective=ipo,seed=1"
    (place / name / "dpo" / file).write_text(content, encoding="utf-8")
    trajectories = read_trajectories(place)
    assert len(trajectories.runs) == 3
    assert list(trajectories.missing) == [name]
    assert re.search(reason, trajectories.missing[name])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "failed", "error": "the loss is nan."}, "it failed: the loss is nan."),
        ({"state": "pending", "stamp": None}, "it has not run to its end"),
        ({"stamp": "0" * 64}, "it was made again since the index was written"),
        ({"folder": "nowhere/dpo"}, "is gone or not finished"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_with_the_command_that_makes_it(
    grid: Callable[..., Path], changes: dict[str, Any], reason: str
) -> None:
    name = "objective=ipo,seed=2"
    place = grid(changes={name: changes})
    trajectories = read_trajectories(place)
    assert len(trajectories.runs) == 3
    assert list(trajectories.missing) == [name]
    assert reason in trajectories.missing[name]
    assert name not in set(trajectories.to_frame()["run"])
    assert f"{name}: " in trajectories.text
    assert "`bypass train grid many.toml` makes what is missing" in trajectories.text
    with pytest.raises(UserError, match=r"1 of the runs in .* cannot be read \(objective=ipo,seed=2: .*run `bypass train grid many\.toml`"):
        runs_of(place)


def test_a_log_without_an_end_is_no_finished_run(grid: Callable[..., Path], tmp_path: Path) -> None:
    place = grid()
    log = place / "objective=dpo,seed=1" / "dpo" / "log.jsonl"
    log.write_text("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert read_trajectories(place).missing == {"objective=dpo,seed=1": "it has not run to its end"}


def test_runs_from_other_weights_are_named(grid: Callable[..., Path]) -> None:
    place = grid()
    (place / "objective=dpo,seed=2" / "dpo" / "summary.json").write_text('{"base": "other"}', encoding="utf-8")
    assert read_trajectories(place).missing == {}
    assert [run.base for run in read_trajectories(place).runs] == ["abc", "other", "abc", "abc"]
    assert read_trajectories(place, base="abc").missing == {"objective=dpo,seed=2": "it began from other weights (other, where abc belong)"}


def test_the_runs_of_a_grid_are_found_by_its_name_or_the_command_is_said(
    grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYPASS_RUNS", str(tmp_path))
    grid("displacement/single-token")
    assert len(runs_of("displacement/single-token").runs) == 4
    assert runs_of("displacement/single-token").text.startswith("4 of 4 runs in ")
    with pytest.raises(UserError, match=r"the runs of nothing are not there.*run `bypass train grid nothing`"):
        runs_of("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no index of runs in .*empty"):
        runs_of("empty")
    (tmp_path / "empty" / "index.json").write_text("[")
    with pytest.raises(UserError, match=r"index .* cannot be read"):
        runs_of("empty")


def test_a_list_of_run_folders_is_read_without_an_index(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "dpo", [0.5])
    write_run(tmp_path / "b" / "dpo", [0.25], end=None)
    trajectories = read_trajectories([tmp_path / "a" / "dpo", tmp_path / "b" / "dpo", tmp_path / "c" / "dpo"])
    assert trajectories.to_frame()["loss"].tolist() == [0.5]
    assert set(trajectories.missing) == {str(tmp_path / "b" / "dpo"), str(tmp_path / "c" / "dpo")}
    with pytest.raises(UserError, match="no folder of a run was given"):
        read_trajectories([])
