"""The page shows every number, masks every word, escapes every text, loads nothing, and replaces the old one only when whole."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from interp.results import figures
from interp.errors import UserError
from interp.data.lexicon import MASKED_KINDS, word_pattern
from interp.report.page import pair_label, read_report, write_report
from interp.report.prompt_sets import PromptSet, check_no_text, without_texts
from interp.results.judged import Judged
from interp.results.result import Result, show_number
from interp.report.terminal import print_summary

WORD = "sh" + "it"
SHAPE = {"parameters": 5_812_000, "layers": 6}
MANIFEST = {
    "name": "toy pair",
    "base": {"name": "base", "path": "/".join(["", "srv", "deep", "toy-base"]), "digest": "ab12" * 16, **SHAPE},
    "tuned": {"name": "tuned", "path": "toy-tuned", "digest": "cd34" * 16, **SHAPE},
}
ENVIRONMENT = {"python": "3.11.9", "cores": 2, "accelerator": None, "written": "2026-01-02T03:04+00:00"}
EVIL = "<script>alert(1)</script>"


def made(name: str = "A-E12", **changes: object) -> Result:
    frame = pd.DataFrame({"condition": [f"base {WORD}", f"tuned {EVIL}"], "toxicity": [0.4531, math.nan], "share above": [0.412, 0.1]})
    ends = pd.DataFrame({"share": [0.5], "low": [0.25], "high": [0.75], "low point": [0.125]})
    long = pd.DataFrame({"neuron": [f"L1.{i}" for i in range(30)], "words": [f"{WORD}, nice {i}" for i in range(30)]})
    figure = figures.bars("tox", frame, x="condition", y="toxicity", title=f"Title {WORD} {EVIL}", caption=f"Look at {WORD}.")
    fields: dict[str, object] = {
        "id": name, "claim": "A-C9", "title": f"Keys {WORD}", "question": f"Q {EVIL}", "criterion": "Above <all> draws", "verdict": "holds",
        "summary": f"From 0.208 to 0.447 & more {WORD.upper()}.", "statistic": {"toxicity": 0.44721, "gap": -3.21e-7},
        "null": {"toxicity": 0.2123, "gap": math.nan}, "interval": {"toxicity": (0.4211, 0.4719)},
        "tables": {f"{WORD} rates": frame, "long": long, "ends": ends},
        "figures": (figure,), "refuted_by": "random keys", "caveat": "one set of prompts",
        "settings": {"seed": 17, "keys": [[5, 770]]}, "seconds": 12.3,
    }  # fmt: skip
    return Result(**(fields | changes))  # type: ignore[arg-type]


class Page(HTMLParser):
    """What a browser would read: tags, and text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    results = [
        made(),
        made("A-E7", claim="A-C7", verdict="fails"),
        made("B-E1", claim="B-C1", verdict="inconclusive", figures=(), tables={}),
    ]
    write_report(results, MANIFEST, ENVIRONMENT, folder)
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_report_json_has_the_form_that_the_design_promises(folder: Path) -> None:
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert record.keys() == {"pair", "environment", "experiments"}
    promised = {"id", "claim", "question", "verdict", "statistic", "null", "interval", "tables", "figures", "settings", "seconds"}
    assert all(promised <= experiment.keys() for experiment in record["experiments"])
    assert [experiment["id"] for experiment in record["experiments"]] == ["A-E12", "A-E7", "B-E1"]


def test_a_report_is_read_back(folder: Path) -> None:
    report = read_report(folder)
    assert (report.pair, report.environment) == (MANIFEST, ENVIRONMENT)
    assert report.results[0].to_json() == made().to_json()


def test_every_number_of_the_summary_is_on_the_page(page: Page) -> None:
    result = made()
    for key, value in result.statistic.items():
        assert show_number(value, key) in page.text
    assert show_number(result.null["toxicity"]) in page.text
    assert "0.421 to 0.472" in page.text
    for shown in (
        "0.453",
        "41.2 %",
        "25 %",
        "75 %",
        "0.125",
        "17",
        "12.3 s",
        "bypass report --only A-E12",
        "5.81 M parameters",
        "2 January 2026, 03:04 UTC",
    ):
        assert shown in page.text, shown
    assert "nan" not in page.text.lower().split()


def test_every_verdict_is_written_in_words(page: Page) -> None:
    for word in ("Holds", "Fails", "Inconclusive"):
        assert page.words.count(word) == 3  # once with its sentence, once in the summary, once over its section


def test_every_link_inside_the_page_leads_somewhere_and_every_file_exists(page: Page, folder: Path) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        if tag == "a":
            target = attrs["href"] or ""
            assert target[1:] in ids if target.startswith("#") else (folder / target).is_file(), target


def test_the_page_loads_nothing_from_anywhere(page: Page) -> None:
    loading = [(tag, attrs) for tag, attrs in page.tags if tag in {"img", "iframe", "object", "embed", "base", "source"} or "src" in attrs]
    assert loading == []
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert not [attrs for _, attrs in page.tags if re.match(r"(?:https?:)?//", attrs.get("href") or "")]
    styles = " ".join(attrs.get("style") or "" for _, attrs in page.tags)
    assert "url(" not in styles


def test_no_profane_word_is_on_the_page_and_all_are_in_the_files(source: str, page: Page, folder: Path) -> None:
    own = source.replace(max(page.scripts, key=len), "")
    assert len(own) < 300_000  # the rest is plotly itself
    pattern = word_pattern(MASKED_KINDS)
    assert [match.group(0) for match in pattern.finditer(own) if match.group(0).lower() == WORD] == []
    assert "sh*t" in page.text
    assert any("sh*t" in script for script in page.scripts if script.startswith("{"))
    assert WORD in (folder / "report.json").read_text(encoding="utf-8")
    assert WORD in (folder / "A-E12-long.csv").read_text(encoding="utf-8")


def test_words_are_shown_on_request(tmp_path: Path) -> None:
    write_report([made()], MANIFEST, ENVIRONMENT, tmp_path, show_words=True)
    shown = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert f"Keys {WORD}" in shown.text
    assert "sh*t" not in shown.text


def test_markup_in_a_text_is_text(source: str, page: Page) -> None:
    assert len(page.scripts) == 3
    assert EVIL not in source
    assert html.unescape("Q " + EVIL) in page.text
    assert "Above <all> draws" in page.text


def test_figures_are_embedded_with_their_numbers_title_and_caption(page: Page) -> None:
    specs = json.loads(next(script for script in page.scripts if script.startswith("{")))
    boxes = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    assert [box["data-figure"] for box in boxes] == list(specs) == ["A-E12-0", "A-E7-0"]
    assert specs["A-E12-0"]["data"][0]["x"] == [0.4531, None]
    assert "Look at sh*t." in (boxes[0]["aria-label"] or "")
    assert f"Title sh*t {EVIL}" in page.text


def test_csv_files_hold_the_frames_exactly(folder: Path) -> None:
    for table, file in {f"{WORD} rates": "A-E12-sh-t-rates.csv", "long": "A-E12-long.csv"}.items():
        expected = made().tables[table].assign(pair=pair_label(MANIFEST))
        pd.testing.assert_frame_equal(pd.read_csv(folder / file), expected)


def test_every_table_names_its_pair(page: Page, folder: Path) -> None:
    label = pair_label(MANIFEST)
    assert MANIFEST["name"] in label
    assert all(MANIFEST[side]["digest"][:12] in label for side in ("base", "tuned"))
    files = list(folder.glob("*.csv"))
    assert files
    assert all(set(pd.read_csv(file)["pair"]) == {label} for file in files)
    assert page.text.count(f"· {label}") == len(files)
    assert pair_label({"name": "words"}) == "words"
    assert pair_label({}) == ""


def test_the_tables_of_an_earlier_report_in_the_folder_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_report([made(), dataclasses.replace(made(), id="A-E1")], MANIFEST, ENVIRONMENT, tmp_path)
    (tmp_path / "A-E1-mine.csv").write_text("of the user\n")
    (tmp_path / "seeds.csv").write_text("of the user: no report with seeds wrote it\n")
    assert (tmp_path / "A-E1-long.csv").is_file()
    other = dataclasses.replace(made(), tables={"short": pd.DataFrame({"a": [1]})})
    write_report([other], MANIFEST | {"name": "another"}, ENVIRONMENT, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "A-E1-mine.csv", "A-E12-short.csv", "index.html", "report.json", "seeds.csv"
    ]  # fmt: skip
    assert set(pd.read_csv(tmp_path / "A-E12-short.csv")["pair"].str.split(" ").str[0]) == {"another"}


def test_no_file_outside_of_the_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report([made()], MANIFEST, ENVIRONMENT, folder)
    (tmp_path / "mine-long.csv").write_text("of the user\n")
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    record["experiments"][0]["id"] = "../mine"
    (folder / "report.json").write_text(json.dumps(record), encoding="utf-8")
    write_report([made()], MANIFEST, ENVIRONMENT, folder)
    assert (tmp_path / "mine-long.csv").is_file()


def test_notes_stand_above_everything_else_and_what_is_not_applicable_says_why(tmp_path: Path) -> None:
    result = dataclasses.replace(
        made(),
        verdict="not applicable",
        summary="Not applicable: both are the same.",
        statistic={},
        null={},
        interval={},
        tables={},
        figures=(),
    )
    write_report([result], MANIFEST, {**ENVIRONMENT, "notes": ["Both sides have the same weights."]}, tmp_path)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert page.text.index("Both sides have the same weights.") < page.text.index("Summary", page.text.index("Each claim below"))
    assert "Not applicable: both are the same." in page.text
    assert "1 not applicable" in page.text
    assert read_report(tmp_path).results[0].verdict == "not applicable"


def test_long_tables_fold_and_short_ones_do_not(page: Page) -> None:
    assert "22 more rows" in page.text
    assert "L1.29" in page.text
    assert page.text.count("more rows") == 2


def test_the_machine_does_not_show(source: str) -> None:
    assert "/srv" not in source
    assert "ab12" * 16 not in source
    assert "ab12ab12ab12" in source


def test_headings_come_in_order_without_a_gap(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_failing_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report([made()], MANIFEST, ENVIRONMENT, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write = Path.write_text

    def full(self: Path, data: str, *args: object, **kwargs: object) -> int:
        if self.name == "index.html":
            raise OSError("no space left")
        return write(self, data, encoding="utf-8")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_report([made(summary="new")], MANIFEST, ENVIRONMENT, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_empty_report_and_a_result_of_only_words_are_pages_too(tmp_path: Path) -> None:
    write_report([], {}, {}, tmp_path)
    assert "no experiment" in (tmp_path / "index.html").read_text(encoding="utf-8")
    bare = made(statistic={}, null={}, interval={}, tables={"none": pd.DataFrame({"a": []})}, figures=(), settings={})
    write_report([bare], MANIFEST, ENVIRONMENT, tmp_path)
    assert read_report(tmp_path).results[0].statistic == {}


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A-E12"):
        write_report([made(), made()], MANIFEST, ENVIRONMENT, tmp_path)


@pytest.mark.parametrize("text", [None, "", "{}", "[]"])
def test_a_folder_without_a_report_is_a_user_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError):
        read_report(tmp_path)


def test_the_terminal_shows_claim_verdict_effect_and_null_in_a_hundred_columns() -> None:
    console = Console(width=140, record=True, force_terminal=True, file=io.StringIO())
    print_summary(
        [made(), made("A-E7", claim="A-C7", verdict="fails", title="long " * 40), made("B-E1", statistic={}, null={}, interval={})], console
    )
    shown = console.export_text()
    assert all(len(line.rstrip()) <= 100 for line in shown.splitlines())
    assert WORD not in shown
    for part in ("A-E12", "✓ holds", "✗ fails", "0.447", "toxicity", "0.212", "Keys sh*t"):
        assert part in shown


WHY = "Set after the first run."
TWO = (
    Judged(1, "2026-01-02 03:04 UTC", "Holds if at least 80 %.", "less", "", "fails"),
    Judged(2, "2026-02-03", "Holds if at least 50 %.", "less", WHY, "holds"),
)


def test_the_page_begins_with_sentences_and_what_they_do_not_show_in_a_fixed_order_whatever_the_verdict(tmp_path: Path) -> None:
    told = {"sentence": f"It rose by 0.2 ({WORD}).", "does_not_show": "That more rose."}
    results = [
        made("Z-E1", sentence="Last."), made("A-E2", sentence="Few are toxic."), made("A-E9", verdict="not applicable"),
        made("A-E12", verdict="fails", **told), made("A-E6", sentence="It fell."), made("A-E3"), made("A-E4"),
    ]  # fmt: skip
    write_report(results, MANIFEST, ENVIRONMENT, tmp_path)
    text = Page((tmp_path / "index.html").read_text(encoding="utf-8")).text
    short = text[text.index("In short", text.index("base")) : text.index("Summary", text.index("It fell."))]
    places = [short.index(sentence) for sentence in ("It fell.", "It rose by 0.2 (sh*t).", "Few are toxic.", "Last.")]
    assert places == sorted(places)
    assert "Limit : That more rose." in short or "Limit: That more rose." in short
    assert "0.421 to 0.472" in short
    assert short.count("Holds") == 4
    assert short.count("Fails") == 1


def test_an_exploratory_verdict_is_marked_and_every_version_has_its_day_and_verdict(tmp_path: Path) -> None:
    write_report([made(criteria=TWO), made("A-E7", criteria=TWO[:1], verdict="fails")], MANIFEST, ENVIRONMENT, tmp_path)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "1 of 2 verdicts are exploratory" in page.text
    assert page.words.count("exploratory") == 3  # with its sentence, in the summary, over its section
    assert f"Exploratory. {WHY}" in page.text
    assert "version 1: fails" in page.text
    section = page.text[page.text.index("Every version of the criterion") :]
    row = "1 2026-01-02 03:04 UTC ✗ fails Holds if at least 80 %. no 2 2026-02-03 ✓ holds Holds if at least 50 %. " + WHY
    assert row in section
    assert "Criterion , version 2 , recorded 2026-02-03" in re.sub(r"\s*,", " ,", page.text)


def test_two_scorers_stand_side_by_side(tmp_path: Path) -> None:
    table = pd.DataFrame({
        "model": ["base", "base", "tuned"], "scorer": ["judge", "lexicon", "judge"], "toxicity": [0.4375, 0.625, 0.125],
        "low": [0.4] * 3, "high": [0.5] * 3, "correlation with the other scorer": [0.75, 0.75, math.nan],
    })  # fmt: skip
    write_report([made(tables={"second scorer": table})], MANIFEST, ENVIRONMENT, tmp_path)
    rows = pd.read_csv(tmp_path / "second-scorer.csv").drop(columns="pair")
    assert rows.iloc[0].to_dict() == {
        "experiment": "A-E12", "model": "base", "scorer": "judge", "toxicity": 0.4375, "second scorer": "lexicon", "toxicity by it": 0.625,
        "correlation": 0.75,
    }  # fmt: skip
    assert rows["toxicity by it"].isna().tolist() == [False, True]
    assert "Under a second scorer" in Page((tmp_path / "index.html").read_text(encoding="utf-8")).text
    write_report([made()], MANIFEST, ENVIRONMENT, tmp_path)
    assert not (tmp_path / "second-scorer.csv").exists()


def test_results_on_other_prompts_stand_beside_and_hold_no_text(tmp_path: Path) -> None:
    other = without_texts(made(verdict="fails", statistic={"toxicity": 0.0625}, null={}, sentence="It came back."))
    assert (other.tables, other.figures, other.summary) == ({}, (), "It came back.")
    sets = (PromptSet("the challenge prompts", 400, (other,), {"A-E7": "too few prompts"}),)
    write_report([made(), made("A-E7")], MANIFEST, ENVIRONMENT, tmp_path, prompt_sets=sets)
    text = Page((tmp_path / "index.html").read_text(encoding="utf-8")).text
    for part in ("✗ fails", "0.0625", "the challenge prompts, 400 prompts", "On the paper's prompts", "too few prompts", "It came back."):
        assert part in text, part
    assert read_report(tmp_path).prompt_sets == sets
    assert WORD not in (tmp_path / "paper.json").read_text(encoding="utf-8").replace(other.title, "").replace(f"Keys {WORD}", "")
    write_report([made()], MANIFEST, ENVIRONMENT, tmp_path)
    assert not (tmp_path / "paper.json").exists()
    assert read_report(tmp_path).prompt_sets == ()


def test_a_text_of_the_data_in_a_result_on_other_prompts_is_refused() -> None:
    text = 'You "never" listened to a word of it and'
    leaky = PromptSet("s", 1, (without_texts(made(sentence=f"On {text} it fails.")),), {})
    with pytest.raises(ValueError, match="holds a text of the data"):
        check_no_text([leaky], ["short", text])
    check_no_text([PromptSet("s", 1, (without_texts(made()),), {})], ["short", text])


def test_the_terminal_tells_sentences_first_and_marks_exploratory_verdicts() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary([made(criteria=TWO, sentence=f"All {WORD} rose.", does_not_show="More."), made("A-E7")], console)
    shown = console.export_text()
    assert shown.startswith("✓ holds† All sh*t rose. (A-E12)\n  Limit: More.\n")
    assert "† exploratory: its criterion was fixed or changed after a result of this pair was known" in shown
    assert "2 verdicts were given, 2 of them “holds”" in shown
