"""The page Displacement: what it draws is what the audit and the studies hold, a link restores it, and a file of one's own is data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from streamlit.testing.v1 import AppTest

from app import settings, show
from app.answers import displacement, displacement_measures, displacement_studies
from app.answers.displacement_measures import MEASURES
from app.settings import parse_pair
from interp import ModelPair, UserError
from interp.bundled import BUNDLED
from interp.data.lexicon import mask
from interp.preferences.audit import Audit, Settings, audit
from interp.preferences.files import read_pair_file
from interp.preferences.formats import read_pairs
from interp.preferences.similarity import similarity
from tests.app.app_pages import html_of, open_page

ROWS = [
    {"prompt": "blorp wintle", "chosen": " sings the stone", "rejected": " sings the shit"},
    {"prompt": "the stone", "chosen": " sings", "rejected": " quonk"},
    {"prompt": "a stone sings", "chosen": " the blorp wintle sings a stone", "rejected": " no"},
    {"prompt": "quonk", "chosen": " <b>the</b> stone", "rejected": " **the** $x$ stone"},
]


@pytest.fixture(autouse=True)
def _forget() -> None:
    displacement._audits.clear()


@pytest.fixture
def asked(served: Path) -> displacement.Asked:
    """A small file under the tiny pair's base."""
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    return displacement.uploaded(parse_pair(os.environ["BYPASS_PAIR"]), "../../etc/mine.JSONL", content)


@pytest.fixture
def result(asked: displacement.Asked) -> Audit:
    return displacement.audited(asked)


@pytest.fixture
def small(asked: displacement.Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows the small file in place of the pairs that ship."""
    monkeypatch.setattr(displacement, "shipped", lambda source: asked)


def charts(at: AppTest) -> list[dict[str, Any]]:
    return [json.loads(element.proto.spec) for element in at.get("plotly_chart")]


def test_the_page_shows_the_first_of_the_260_pairs_that_ship_and_each_gives_a_gradient(pair: ModelPair) -> None:
    data = read_pairs(read_pair_file(displacement.SHIPPED))
    shown = [row["kind"] for row in data.file.rows[: displacement.SHOWN]]
    assert (len(data.pairs), data.layout) == (260, "standard explicit")
    assert [shown.count(kind) for kind in dict.fromkeys(shown)] == [16] * 4
    assert all(pair.chosen != pair.rejected for pair in data.pairs)


def test_an_audit_is_that_of_interp_and_is_computed_once(asked: displacement.Asked, pair: ModelPair, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(asked.content)
    expected = audit(read_pairs(read_pair_file(file)), pair.base, Settings())
    steps: list[str] = []
    result = displacement.audited(asked, lambda phrase, done, total: steps.append(phrase))
    for measure in MEASURES.values():
        assert np.allclose(result.frame[measure.column].astype(float), expected.frame[measure.column].astype(float), equal_nan=True)
    assert "forward" in steps
    assert displacement.known(asked) is result


def test_a_file_in_another_layout_is_another_question(asked: displacement.Asked) -> None:
    other = displacement.uploaded(asked.source, "pairs.csv", asked.content)
    assert other.key != asked.key
    assert other.key[0] == asked.key[0]


def test_the_ranking_is_by_the_measure_highest_first_and_leaves_out_where_it_is_not_defined(result: Audit) -> None:
    values = displacement.values_of(result, "CHES")
    assert values.is_monotonic_decreasing
    # Two answers of one token are read off the same states.
    assert 1 not in values.index or len(result.tokens[1].chosen) > 1
    table = displacement.ranking(result, "alpha-CHES", False)
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    expected = result.frame.sort_values("alpha_ches", ascending=False)
    assert table["row"].tolist() == (expected["row"] + 1).tolist()
    assert table["alpha-CHES"].tolist() == expected["alpha_ches"].tolist()
    with pytest.raises(UserError, match="no measure"):
        displacement.values_of(result, "<b>")


@pytest.mark.parametrize("parts", ["alpha-CHES", "CHES", "log-probability"])
def test_shares_of_tokens_are_of_the_whole_and_add_up_to_the_term(result: Audit, pair: ModelPair, parts: Any) -> None:
    ids = result.tokens[0].token_pair()
    values = displacement_measures.divided(pair.base, ids, parts)
    assert values is not None
    assert [len(side) for side in values] == [len(ids.chosen), len(ids.rejected)]
    sides = displacement_measures.sides(pair.base, ids, parts)
    for side in sides:
        assert side.shares is not None
        assert sum(map(abs, side.shares)) == pytest.approx(100)
    if parts == "log-probability":
        assert -values[0].sum() == pytest.approx(float(result.frame["logp_chosen"].iloc[0]), abs=1e-5)
    else:
        assert values[0].sum() == pytest.approx(values[1].sum(), rel=1e-6)
    if parts == "CHES":
        # CHES is this term less the square of the chosen answer's summed states.
        assert values[0].sum() > similarity(pair.base, [ids]).ches[0]


def test_a_pair_whose_answers_are_the_same_states_has_no_shares_of_ches(pair: ModelPair) -> None:
    from interp.preferences.pairs import TokenPair

    ids = TokenPair((1, 2), (3,), (4,))
    assert displacement_measures.divided(pair.base, ids, "CHES") is None
    assert displacement_measures.side(pair.base, ids.chosen, None).shares is None


def test_the_sentence_of_a_pair_says_its_number_its_place_its_meaning_and_its_limit(result: Audit) -> None:
    values = displacement.values_of(result, "difference of lengths")
    text = displacement.sentence(result, "difference of lengths", values.index[-1])
    assert f"of {len(values)} from the highest" in text
    assert "the rejected answer is not longer." in text
    assert MEASURES["difference of lengths"].not_shown in text
    assert MEASURES["margin"].says(0.5) == MEASURES["margin"].above
    assert MEASURES["margin"].says(-0.5) == MEASURES["margin"].below


def test_a_histogram_has_its_units_its_reference_and_what_it_does_not_show(result: Audit) -> None:
    figure = displacement.histogram(result, "margin")
    layout = figure.spec["layout"]
    assert "nats" in layout["xaxis"]["title"]["text"]
    assert sum(figure.spec["data"][0]["y"]) == len(displacement.values_of(result, "margin"))
    assert layout["shapes"][0]["x0"] == 0
    assert MEASURES["margin"].not_shown in figure.caption


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.exe", b"x", "kind of file"),
        ("/etc/passwd", b"x", "kind of file"),
        ("pairs.jsonl", b"{", "your file.jsonl"),
        ("pairs.json", b"[]", "your file.json"),
        ("pairs.csv", b"a,b\n1,2\n", "your file.csv"),
        ("pairs.jsonl", b"\xff\xfe\x00", "your file.jsonl"),
        ("pairs.jsonl", b'{"chosen": "a", "rejected": 3}\n', "your file.jsonl"),
        ("pairs.jsonl", b"x" * 3_000_000, "bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_without_a_path_of_this_machine(
    served: Path, name: str, content: bytes, said: str
) -> None:  # fmt: skip
    with pytest.raises(UserError) as raised:
        displacement.read(displacement.uploaded(None, name, content))
    text = str(raised.value)
    assert said in text
    assert raised.value.fix
    assert "/tmp" not in text
    assert "etc" not in text


def test_visitors_upload_less_and_fewer_pairs_of_it_are_read(asked: displacement.Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEMO, "1")
    with pytest.raises(UserError, match="200,000"):
        displacement.uploaded(None, "pairs.jsonl", b"x" * 200_001)
    rows = "".join(json.dumps(ROWS[0] | {"prompt": f"the {'stone ' * (1 + number % 9)}"}) + "\n" for number in range(70)).encode()
    assert len(displacement.audited(displacement.uploaded(asked.source, "pairs.jsonl", rows)).frame) == 64


def test_the_page_draws_the_measure_the_ranking_and_the_tokens_of_a_pair(small: None, asked: displacement.Asked) -> None:
    at = open_page("displacement", measure="margin", row="3")
    assert not at.exception
    assert not at.error
    result = displacement.known(asked)
    assert result is not None
    assert charts(at)[0]["layout"]["title"]["text"] == "margin of 4 preference pairs"
    assert at.dataframe[0].value["margin"].tolist() == displacement.values_of(result, "margin").tolist()
    body = html_of(at)
    assert show.escaped(displacement.sentence(result, "margin", 2)) in body
    assert body.count('class="strip"') == 2
    assert (at.selectbox(key="measure").value, at.selectbox(key="row").value) == ("margin", "3")


def test_another_pair_or_measure_audits_nothing_anew(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    at = open_page("displacement")
    monkeypatch.setattr(displacement, "audit", lambda *a, **k: pytest.fail("audited anew"))
    at.selectbox(key="measure").set_value("CHES").run()
    at.selectbox(key="row").set_value("2").run()
    assert not at.exception
    assert not at.error


def test_words_are_masked_until_they_are_asked_for_and_texts_are_no_markup(small: None) -> None:
    at = open_page("displacement", row="1")
    texts = at.dataframe[0].value.to_csv() + html_of(at)
    assert "shit" not in texts
    assert mask("shit") in at.dataframe[0].value.to_csv()
    at.toggle(key="show_words").set_value(True).run()
    assert "shit" in at.dataframe[0].value.to_csv()
    at.selectbox(key="row").set_value("4").run()
    assert "<b>the</b>" not in html_of(at)
    assert not at.exception


def test_a_larger_model_audits_by_a_job(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displacement, "QUICK_BYTES", 0)
    at = open_page("displacement")
    assert not at.exception
    assert [button.label for button in at.button if button.label == "Audit these pairs"]


def test_a_link_with_nonsense_opens_the_page_all_the_same(small: None) -> None:
    at = open_page("displacement", measure="<b>", row="-7", pairs="?", preferred="../..", dispreferred="<i>", kind="x")
    assert not at.exception
    assert charts(at)


def test_without_studies_of_this_base_the_page_says_by_which_commands_they_are_made(small: None) -> None:
    at = open_page("displacement")
    said = [error.value for error in at.error] + [info.value for info in at.info]
    assert not at.exception
    for study in ("single", "pairs"):
        assert any("python" in text and study in text for text in said), said


def test_the_masses_are_those_of_the_file_and_the_verdict_is_that_of_the_experiment() -> None:
    masses = displacement_studies.mass(None)
    record = json.loads((BUNDLED / "log" / "single_token.json").read_text("utf-8"))
    assert displacement_studies.answers(masses) == {"No": ["Never", "Maybe"], "Yes": ["No"]}
    answer = displacement_studies.role_of(masses, "No", "Maybe")
    kind = displacement_studies.kinds(masses, answer["role"])[0]
    figure = displacement_studies.curves(masses, answer, kind)
    runs = [run for run in record["runs"] if run["role"] == "control" and run["falls"]]
    for name, title in displacement_studies.sets_of(answer).items():
        line = next(one for one in figure.spec["data"] if one.get("mode") == "lines+markers" and one["name"].replace("<br>", " ") == title)
        assert np.allclose(line["y"], np.mean([run["mass"][name] for run in runs], axis=0), atol=1e-6)
        assert line["x"] == runs[0]["steps"]
    moved = displacement_studies.moved(masses, answer, kind)
    assert moved["change of log-probability"] == pytest.approx(np.mean([run["log_change"] for run in runs]))
    assert set(displacement_studies.gaining(masses, answer, kind)["step"]) <= {5, 25, 100}
    assert masses.finding.sentence
    with pytest.raises(UserError, match="no runs"):
        displacement_studies.role_of(masses, "Never", "No")
