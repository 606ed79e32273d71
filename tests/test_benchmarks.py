"""The benchmarks: turns alternate, memory is seen, results agree on a tiny model, and the table says what the JSON says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import app, table
from benchmarks.measure import Case, largest_difference, measure, peak_mib
from interp.errors import UserError

RECORD: dict[str, Any] = {
    "shapes": {
        "tiny shape": {
            "weights": "random weights",
            "environment": {
                "machine": {"cores": 2, "torch_threads": 1, "accelerator": None},
                "versions": {"torch": "2.13.0", "transformers": "5.23", "pandas": "3.1"},
            },
            "cases": [
                {
                    "name": "lens", "ours_label": "last", "theirs_label": "all",
                    "ours_seconds": 0.0125, "theirs_seconds": 0.1, "ratio": 8.0,
                    "ratio_low": 7.5, "ratio_high": 9.25, "turns": 3, "ours_mib": 1.26, "theirs_mib": None, "difference": 1.2e-7,
                    "tolerance": 1e-5, "equal": True,
                },
                {
                    "name": "hooks", "ours_label": "with", "theirs_label": "without",
                    "ours_seconds": 2.0, "theirs_seconds": 1.9, "ratio": 0.95,
                    "ratio_low": 0.9, "ratio_high": 1.0, "turns": 3, "ours_mib": None, "theirs_mib": None, "difference": 0.0,
                    "tolerance": 0.0, "equal": False,
                },
            ],
        }
    }
}  # fmt: skip


def test_the_table_holds_every_number_of_the_json() -> None:
    text = table.markdown(RECORD)
    assert "## Tiny shape" in text
    assert "Random weights; 2 cores, 1 torch threads, CPU; torch 2.13.0, transformers 5.23." in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        "| lens | last | all | 12.5 | 100 | 8.00 (7.50 to 9.25) | 1.3 | – | 1.2e-07 | yes |",
        "| hooks | with | without | 2e+03 | 1.9e+03 | 0.95 (0.90 to 1.00) | – | – | 0 | no |",
    ]


def test_what_is_written_is_read_back_and_the_table_is_made_from_it(tmp_path: Path) -> None:
    table.write(RECORD, tmp_path)
    assert table.read(tmp_path) == RECORD
    assert (tmp_path / table.TABLE).read_text(encoding="utf-8") == table.markdown(RECORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == [table.TABLE, table.RESULTS]


def disagreement(folder: Path) -> str | None:
    """What is wrong between the two files of a folder, if anything."""
    files = [folder / table.RESULTS, folder / table.TABLE]
    present = [file.name for file in files if file.is_file()]
    if len(present) == 1:
        return f"only {present[0]} is there"
    if present and files[1].read_text(encoding="utf-8") != table.markdown(json.loads(files[0].read_text(encoding="utf-8"))):
        return "the table is not the one that the results make: run make bench"
    return None


def test_the_committed_table_agrees_with_the_committed_results() -> None:
    assert disagreement(table.FOLDER) is None


def test_a_table_that_was_edited_or_left_behind_is_noticed(tmp_path: Path) -> None:
    assert disagreement(tmp_path) is None
    table.write(RECORD, tmp_path)
    assert disagreement(tmp_path) is None
    (tmp_path / table.TABLE).write_text(table.markdown(RECORD).replace("8.00", "9.00"), encoding="utf-8")
    assert "make bench" in str(disagreement(tmp_path))
    (tmp_path / table.TABLE).unlink()
    assert disagreement(tmp_path) == "only results.json is there"


def test_a_row_measured_anew_takes_its_place_where_the_rest_was_measured_here() -> None:
    here, elsewhere = {"machine": {"cores": 2}, "versions": {"torch": "1"}}, {"machine": {"cores": 4}, "versions": {"torch": "1"}}
    held = [{"name": "a", "ratio": 1}, {"name": "b", "ratio": 2}]
    record = {"shapes": {"small": {"environment": here, "cases": held}}}
    assert table.joined(table.same_place(record, "small", here), [{"name": "c", "ratio": 5}, {"name": "a", "ratio": 4}]) == [
        {"name": "a", "ratio": 4}, held[1], {"name": "c", "ratio": 5},
    ]  # fmt: skip
    for shape, environment in (("small", elsewhere), ("large", here)):
        with pytest.raises(UserError, match="was not measured on this machine"):
            table.same_place(record, shape, environment)


def test_turns_alternate_and_the_ratio_is_that_of_the_medians() -> None:
    order: list[str] = []
    # Each turn reads the clock before and after: ours takes 1, 2, 3 and theirs 10, 40, 60 of its units.
    ticks = itertools.accumulate([0, 1, 0, 10, 0, 2, 0, 40, 0, 3, 0, 60])

    def work(name: str) -> torch.Tensor:
        order.append(name)
        return torch.ones(2) * (1.0 if name == "A" else 1.25)

    case = Case("x", lambda: work("A"), lambda: work("B"), "a", "b", largest_difference, memory=False)
    found = measure(case, 3, clock=lambda: float(next(ticks)))
    assert order == ["A", "B"] * 4
    assert (found.ours_seconds, found.theirs_seconds, found.ratio) == (2.0, 40.0, 20.0)
    assert (found.ratio_low, found.ratio_high) == (10.0, 20.0)
    assert (found.difference, found.equal) == (0.2, False)


def test_a_difference_is_absolute_below_one_and_a_share_above() -> None:
    assert largest_difference(torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.125])) == 0.125
    assert largest_difference(torch.tensor([8.0, 100.0]), torch.tensor([0.0, 100.0])) == 0.08


def test_results_that_cannot_be_compared_are_not_equal() -> None:
    assert largest_difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert largest_difference(torch.zeros(0), torch.zeros(0)) == float("inf")
    assert largest_difference(torch.tensor([float("nan")]), torch.zeros(1)) == float("inf")
    case = Case("x", lambda: torch.zeros(2), lambda: torch.zeros(3), "a", "b", largest_difference, memory=False)
    record = measure(case, 1).to_json()
    assert (record["difference"], record["equal"]) == (None, False)
    json.dumps(record, allow_nan=False)


def test_the_peak_is_seen_where_memory_is_freed_again() -> None:
    def briefly() -> int:
        return int(torch.ones(40 * 2**20 // 4).sum())

    peak = peak_mib(briefly)
    if peak is None:
        pytest.skip("this system cannot fork, or does not tell the resident set")
    assert 39 <= peak <= 60
    assert (peak_mib(lambda: None) or 0.0) < 5


def test_work_that_fails_has_no_peak() -> None:
    assert peak_mib(lambda: 1 / 0) is None


@pytest.mark.oracle
def test_every_case_gives_the_result_of_the_straightforward_way() -> None:
    pytest.importorskip("transformer_lens", reason="needs the extra `lens`")
    pytest.importorskip("detoxify", reason="needs the extra `toxicity`")
    from benchmarks.cases import Shape, capturing, lens, make_model, overhead, searching
    from benchmarks.preferences import ches_case

    shape = Shape("tiny", 3, 32, 4, 300, batch=3, length=9, turns=1)
    model = make_model(shape)
    ids = torch.randint(1, model.d_vocab, (shape.batch, shape.length), generator=torch.Generator().manual_seed(1))
    found = [*capturing(model, ids), *overhead(model, ids), lens(model, ids), searching(model)]
    found.append(ches_case("packed CHES", lambda: model, (7, 4, 6), 5, 1))
    assert len(found) == 7
    for case in found:
        ours = case.ours()
        assert ours.numel() > 0, case.name
        assert case.differ(ours, case.theirs()) <= case.tolerance, case.name


def test_a_control_that_a_page_does_not_have_is_named_without_a_time() -> None:
    record = {
        "machine": {"cores": 2}, "versions": {"streamlit": "1"}, "waits": [],
        "clicks": [{"page": "", "control": "a row", "seconds": 1.234}, {"page": "training", "control": "another stage", "seconds": None}],
    }  # fmt: skip
    page = app.named_part("invented", record)
    assert "| start | a row | 1.23 s |" in page
    assert "| training | another stage | not on the page when it opens |" in page


def test_the_page_on_the_apps_waits_says_what_its_json_says() -> None:
    record = json.loads((app.HERE / "app.json").read_text(encoding="utf-8"))
    assert app.whole_page() == (app.HERE / "APP.md").read_text(encoding="utf-8")
    assert app.whole_page().startswith(app.page_of(record))
    assert {item["name"] for item in record["waits"]} == {
        *(name for name, _ in app.PARTS.values()), app.OWN, "a control that generates nothing", app.UNSEEN, "first token of a continuation",
        "the slowest of 8 people at once, over one alone",
    }  # fmt: skip
