"""Results come back as they went, files are all or nothing, and numbers read as a person expects."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.errors import UserError
from interp.results.result import Figure, Result, csv_files, load_result, save_result, show_number


@pytest.fixture
def result() -> Result:
    table = pd.DataFrame({
        "neuron": ["L4.770", "L5.12"], "count": [3, 4], "share": [0.25, math.nan], "worst": [math.inf, 2.5], "kept": [True, False],
        "tokens": [["a", "b"], ["c"]], "none": [math.nan, math.nan],
    })  # fmt: skip
    return Result(
        id="A-E12", claim="A-C9", title="t", question="q", criterion="c", verdict="holds", summary="s",
        statistic={"toxicity": 0.1 + 0.2, "gap": math.inf}, null={"toxicity": math.nan}, interval={"toxicity": (-0.5, math.nan)},
        tables={"conditions": table}, figures=(Figure("f", "look", {"data": [], "layout": {"title": {"text": "x"}}}),),
        refuted_by="r", caveat="v", settings={"seed": 3, "keys": [[4, 770]], "mode": "fixed"}, seconds=1.5,
    )  # fmt: skip


def test_a_result_survives_json_with_nan_infinity_and_full_precision(result: Result) -> None:
    text = json.dumps(result.to_json(), allow_nan=False)
    back = Result.from_json(json.loads(text))
    assert back.to_json() == result.to_json()
    assert back.statistic == {"toxicity": 0.30000000000000004, "gap": math.inf}
    assert math.isnan(back.null["toxicity"])
    assert back.interval["toxicity"][0] == -0.5
    assert math.isnan(back.interval["toxicity"][1])
    pd.testing.assert_frame_equal(back.tables["conditions"], result.tables["conditions"])
    assert (back.figures, back.settings, back.seconds) == (result.figures, result.settings, 1.5)


def test_nan_is_null_and_a_frame_is_columns_and_rows(result: Result) -> None:
    record = result.to_json()
    assert record["null"] == {"toxicity": None}
    assert record["tables"]["conditions"]["columns"] == ["neuron", "count", "share", "worst", "kept", "tokens", "none"]
    assert record["tables"]["conditions"]["rows"][1] == ["L5.12", 4, None, 2.5, False, ["c"], None]


def test_numpy_numbers_and_tuples_in_settings_become_json(result: Result) -> None:
    odd = dataclasses.replace(
        result, settings={"seed": np.int64(3), "rate": np.float32(0.5), "keys": ((1, 2),), "at": Path("a"), "x": np.arange(2)}
    )
    assert odd.to_json()["settings"] == {"seed": 3, "rate": 0.5, "keys": [[1, 2]], "at": "a", "x": [0, 1]}
    json.dumps(odd.to_json(), allow_nan=False)


def test_an_index_of_names_is_kept_and_a_counter_is_dropped(result: Result) -> None:
    frame = pd.DataFrame({"toxicity": [0.4, 0.2]}, index=pd.Index(["base", "tuned"], name="side"))
    kept = dataclasses.replace(result, tables={"a": frame, "b": frame.reset_index(drop=True)[1:]}).to_json()["tables"]
    assert kept["a"] == {"columns": ["side", "toxicity"], "rows": [["base", 0.4], ["tuned", 0.2]]}
    assert kept["b"] == {"columns": ["toxicity"], "rows": [[0.2]]}


@pytest.mark.parametrize("change", [{"id": "../x"}, {"null": {"other": 1.0}}, {"interval": {"other": (0.0, 1.0)}}])
def test_a_result_that_contradicts_itself_is_refused(result: Result, change: dict) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each message names its own field
        dataclasses.replace(result, **change)


def test_a_verdict_that_is_none_of_the_three_is_not_read(result: Result) -> None:
    with pytest.raises(UserError, match="maybe"):
        Result.from_json(result.to_json() | {"verdict": "maybe"})


def test_saved_files_are_the_json_and_one_csv_per_table(result: Result, tmp_path: Path) -> None:
    path = save_result(result, tmp_path / "new")
    assert sorted(file.name for file in path.parent.iterdir()) == ["A-E12-conditions.csv", "A-E12.json"]
    assert load_result(path).to_json() == result.to_json()
    frame = pd.read_csv(path.parent / "A-E12-conditions.csv")
    numeric = ["neuron", "count", "share", "worst", "kept"]
    pd.testing.assert_frame_equal(frame[numeric], result.tables["conditions"][numeric])


def test_a_failing_write_leaves_the_old_files_and_no_others(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_result(result, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write = Path.write_text

    def full(self: Path, data: str, *args: object, **kwargs: object) -> int:
        if self.suffix == ".json":
            write(self, data[:10], encoding="utf-8")
            raise OSError("no space left")
        return write(self, data, encoding="utf-8")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        save_result(dataclasses.replace(result, summary="new", tables={"conditions": result.tables["conditions"] * 1}), tmp_path)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load_result(path).summary == "s"


def test_files_can_be_read_by_others(result: Result, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert save_result(result, tmp_path).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_two_tables_for_one_file_are_refused(result: Result) -> None:
    frame = result.tables["conditions"]
    with pytest.raises(ValueError, match="two tables"):
        csv_files(dataclasses.replace(result, tables={"a b": frame, "a/b": frame}))


@pytest.mark.parametrize("text", ["", "[1]", '{"id": "A-E1"}', "\x00"])
def test_a_damaged_file_is_a_user_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError):
        load_result(tmp_path / "x.json")
    with pytest.raises(UserError):
        load_result(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("value", "column", "shown"),
    [
        (0.44721, "toxicity", "0.447"), (23.38, "perplexity", "23.4"), (0.0, "x", "0"),
        (-0.0, "x", "0"), (1.0, "x", "1"), (0.99996, "x", "1"),
        (0.0004321, "p", "0.000432"), (3.2e-5, "p", "3.2e-5"), (-1.5e-12, "x", "−1.5e-12"), (1234.4, "x", "1,234"), (999.7, "x", "1,000"),
        (12345678.0, "x", "1.23e7"), (770, "index", "770"), (12000, "n", "12,000"), (-3, "n", "−3"), (math.nan, "x", "–"), (None, "x", "–"),
        (math.inf, "x", "∞"), (-math.inf, "x", "−∞"), (True, "x", "yes"), (np.bool_(False), "x", "no"), (np.float32(0.5), "x", "0.5"),
        (0.4123, "share of words", "41.2 %"), (1, "share", "100 %"), (-0.05, "final_probability", "−5 %"), (412.0, "share", "412"),
        (0.5, "shared", "0.5"),
    ],
)  # fmt: skip
def test_a_number_is_shown_as_a_person_reads_it(value: object, column: str, shown: str) -> None:
    assert show_number(value, column) == shown
