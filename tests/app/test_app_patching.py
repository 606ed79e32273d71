"""The page on patching: what it draws is what `interp` measures, a link restores it, and what is typed is data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from streamlit.testing.v1 import AppTest

from app import show, state
from app.answers import patching, patching_cells, patching_figures
from app.settings import parse_pair
from interp import Edit, ModelPair, UserError, generate
from interp.data.lexicon import mask
from interp.directions.probe import probe_for
from interp.forward.capture import capture
from interp.models.sites import PATCHED
from interp.models.unembed import unembed
from interp.patching.maps import Cell, PatchMap
from interp.patching.metrics import LogitDifference, LogProbability, ProbeProjection
from interp.patching.patch import ACROSS, WITHIN, patch
from interp.results.result import show_number
from tests.app.app_pages import html_of, open_page

PROMPT, OTHER = "blorp wintle sings the stone", "blorp quonk sings the stone"
HOSTILE = ["<script>alert(1)</script> <img src=x onerror=y>", "**b** $x$ :red[y] {{7*7}} ../../etc", "\u202eevil\u202c 🙂 a\x00b"]


@pytest.fixture(autouse=True)
def _forget() -> None:
    patching._measured.clear()


@pytest.fixture
def asked(served: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A question about the tiny pair, with anything of it changed."""

    source = parse_pair(os.environ["BYPASS_PAIR"])

    def make(**changes: Any) -> patching.Question:
        return patching.Question(**{"source": source, "prompt": PROMPT, "metric": "probe", **changes})

    return make


def chart(at: AppTest, start: str) -> dict[str, Any]:
    """The first figure whose title starts like this."""
    specs = [json.loads(element.proto.spec) for element in at.get("plotly_chart")]
    return next(spec for spec in specs if spec["layout"]["title"]["text"].startswith(start))


def opened(**query: str) -> AppTest:
    return open_page("patching", **{"patched_prompt": PROMPT, "metric": "probe", **query})


def test_the_map_is_what_interp_measures_in_both_directions(served: Path, pair: ModelPair) -> None:
    expected = patch(pair, PROMPT, metric=ProbeProjection.of(probe_for(pair.base)), site="resid_post", null_draws=patching.DRAWS)
    for place, direction in enumerate(ACROSS):
        at = opened(into=direction)
        assert not at.exception
        assert not at.error
        drawn = torch.tensor(chart(at, "resid_post: ")["data"][0]["z"])
        assert torch.allclose(drawn.flatten(), expected.effects[place, 0], atol=1e-5)
    assert float(expected.effects.abs().max()) > 0.01, "the two sides must differ for this test to mean anything"


def test_switching_the_direction_measures_nothing_anew(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened()
    monkeypatch.setattr(patching, "patch", lambda *a, **k: pytest.fail("measured anew"))
    at.segmented_control(key="into").set_value(ACROSS[1]).run()
    assert not at.exception
    assert chart(at, "resid_post: tuned into base")


def test_within_one_model_a_differing_word_is_found_where_it_stands(served: Path, pair: ModelPair) -> None:
    at = open_page("patching", between="within one model", clean=PROMPT, corrupted=OTHER, side="tuned", metric="probe", noise=WITHIN[1])
    assert not at.exception
    assert not at.error
    expected = patch(pair.tuned, PROMPT, OTHER, metric=ProbeProjection.of(probe_for(pair.base)), directions=[WITHIN[1]])
    drawn = torch.tensor(chart(at, "resid_post: corrupted into clean")["data"][0]["z"])
    assert torch.allclose(drawn.flatten(), expected.effects[0, 0], atol=1e-5)
    differs = [place for place in range(drawn.shape[1]) if float(drawn[:, place].abs().max()) > 1e-4]
    assert differs[0] == 1, "no place before the word that differs may have an effect"


def test_the_sites_to_choose_are_those_that_links_name_in_their_order() -> None:
    assert patching.SITES == ("resid_post", "resid_mid", "attn_out", "mlp_out", "z", "mlp_post")
    assert set(patching.SITES) <= set(PATCHED)


def test_a_link_with_the_earlier_name_of_a_site_opens_that_site(served: Path) -> None:
    at = opened(site="head_out")
    assert not at.exception
    assert at.selectbox(key="site").value == "z"
    assert chart(at, "z: ")


@pytest.mark.parametrize("direction", [*ACROSS, *WITHIN])
@pytest.mark.parametrize("site", ["resid_mid", "z"])
def test_the_next_tokens_of_a_cell_are_those_of_a_run_with_that_edit(asked: Any, pair: ModelPair, site: str, direction: str) -> None:
    question = asked(site=site) if direction in ACROSS else asked(site=site, corrupted=OTHER, side="base")
    cell = Cell(1, None, 2) if site == "z" else Cell(1, 3)
    said = patching_cells.next_tokens(question, direction, cell)
    (own, before), (_, patched), (other, source) = patching_cells.edited_models(question, direction, cell)
    for (text, run), column in zip(((own, before), (own, patched), (other, source)), ("before", "patched", "source"), strict=True):
        # The last residual stream under the very edit that the continuation runs with.
        last = f"resid_post.{run.model.n_layers - 1}"
        held = capture(run.model, [text], [last], edits=run.edits)[last]
        probabilities = unembed(run.model, held)[0].float().softmax(dim=0)
        for frame in (said.likeliest, said.changed):
            assert torch.allclose(probabilities[frame["id"].tolist()], torch.tensor(frame[column].tolist(), dtype=torch.float32), atol=1e-5)
    assert said.changed["change"].abs().is_monotonic_decreasing
    assert isinstance(patched.edits[0], Edit)


def test_the_cards_hold_the_continuations_and_the_patch_acts_on_the_prompt_alone(asked: Any, pair: ModelPair) -> None:
    at = opened(layer="2", token="4 stone")
    cards = [part for part in html_of(at).split("<section ")[1:] if 'class="card"' in part]
    question = asked()
    continued = patching_cells.edited_models(question, ACROSS[0], Cell(2, 4))
    for card, (prompt, edited) in zip(cards, continued, strict=True):
        expected = generate(edited.model, [prompt], max_new_tokens=20, edits=edited.edits)[0]
        assert show.escaped(show.shown(expected, True)) in card


def test_a_link_restores_the_cell_and_its_numbers(asked: Any) -> None:
    at = opened(layer="0", token="1 wintle")
    measured = patching.known(asked())
    assert measured is not None
    place = measured.cells.cells.index(Cell(0, 1))

    assert f"<dd>{show_number(float(measured.cells.effects[0, 0, place]))}<small>" in html_of(at)
    assert (at.selectbox(key="layer").value, at.selectbox(key="token").value) == ("0", "1 wintle")


def test_without_a_choice_the_strongest_cell_is_shown_and_it_is_not_of_the_last_layer(asked: Any) -> None:
    measured = patching.measure(asked())
    cell = patching_cells.strongest(measured.cells, ACROSS[0])
    effects = {other: abs(float(e)) for other, e in zip(measured.cells.cells, measured.cells.effects[0, 0], strict=True) if other.layer < 2}
    assert cell == max(effects, key=lambda other: effects[other])


def test_every_cell_can_be_clicked_where_it_is_drawn(asked: Any) -> None:
    for site in ("resid_post", "z"):
        cells = patching.measure(asked(site=site)).cells
        figure = patching_figures.heat(cells, ACROSS[0]).spec["data"]
        heat, spots = figure[0], figure[1]
        for index, cell in enumerate(cells.cells):
            point = (1, index, spots["x"][index], spots["y"][index])
            assert patching_cells.cell_at(cells, point) == cell
            at = heat["z"][heat["y"].index(point[3])][heat["x"].index(point[2])]
            assert at == pytest.approx(float(cells.effects[0, 0, index]))
    assert patching_cells.cell_at(cells, (2, 0, "", "")) is None
    assert patching_cells.cell_at(cells, (1, 10**6, "", "")) is None


def test_neurons_are_the_most_toxic_ones_and_a_bar_names_its_cell(asked: Any) -> None:

    question = asked(site="mlp_post")
    cells = patching.measure(question).cells
    assert {(cell.layer, cell.unit) for cell in cells.cells} == set(state.toxic_neurons(question.source)[: patching.NEURONS])
    bar = patching_figures.heat(cells, ACROSS[0]).spec["data"][0]
    assert patching_cells.cell_at(cells, (0, 0, bar["x"][0], bar["y"][0])) == patching_cells.strongest(cells, ACROSS[0])


def test_a_cross_marks_the_cells_that_a_random_change_moves_as_much(asked: Any) -> None:
    measured = patching.measure(asked()).cells
    weak = PatchMap(**{**vars(measured), "null": measured.target[None, ..., None] + 2 * measured.effects[None]})
    strong = PatchMap(**{**vars(measured), "null": measured.target[None, ..., None] + 0.5 * measured.effects[None]})
    crosses = [
        next(t for t in patching_figures.heat(m, ACROSS[0]).spec["data"] if t.get("marker", {}).get("symbol") == "x-thin")["x"]
        for m in (weak, strong)
    ]
    still = int((measured.effects[0, 0] == 0).sum())
    assert [len(found) for found in crosses] == [len(measured.cells), still]


def test_metrics_are_those_of_interp(asked: Any, pair: ModelPair) -> None:
    words = asked(metric="logit-difference", words=("wintle", "snarg"))
    found = patching.metric_of(words)
    assert isinstance(found, LogitDifference)
    assert [pair.base.tokenizer.decode([token]).strip() for token in (found.first, found.second)] == ["wintle", "snarg"]
    with pytest.raises(UserError, match="both words"):
        patching.metric_of(asked(metric="logit-difference", words=("snarg", "snarg")))
    toxic = patching.toxic_tokens(words.source)
    if toxic:
        assert patching.metric_of(asked(metric="log-probability")) == LogProbability(toxic)
    else:
        with pytest.raises(UserError, match="no token of this vocabulary"):
            patching.metric_of(asked(metric="log-probability"))


def test_the_estimate_is_said_to_be_one(asked: Any) -> None:
    figure = patching_figures.heat(patching.estimate(asked()), ACROSS[0])
    assert figure.caption.startswith("An estimate")
    assert "estimated" in figure.spec["layout"]["title"]["text"]


def test_a_long_map_is_offered_as_a_job_with_the_estimate_to_look_at(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "QUICK", 0.0)
    at = opened()
    assert not at.exception
    assert [button.label for button in at.button if button.label == "Measure this map"]
    assert "estimated by gradient" in chart(at, "resid_post")["layout"]["title"]["text"]


def test_a_job_reports_how_far_it_is_and_gives_the_same_map(asked: Any) -> None:
    steps: list[tuple[int, int]] = []
    first = patching.measure(asked(), lambda text, done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1] == (1000, 1000)
    assert torch.equal(first.cells.values, patching.measure(asked()).cells.values)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_typed_is_shown_as_text_and_never_as_markup(served: Path, text: str) -> None:
    at = opened(patched_prompt=f"blorp {text}")
    assert not at.exception
    assert "<script" not in html_of(at).replace("&lt;script", "")
    for element in at.get("plotly_chart"):
        assert "<script" not in element.proto.spec


def test_prompts_that_do_not_line_up_are_one_message(served: Path) -> None:
    at = open_page("patching", between="within one model", clean=PROMPT, corrupted="blorp sings", metric="probe")
    assert not at.exception
    assert len(at.error) == 1
    assert "cannot be patched" in at.error[0].value


@pytest.mark.parametrize("prompts", [("", None), ("   ", None), (PROMPT, PROMPT), ("blorp " * 100, None)])
def test_prompts_that_cannot_be_patched_are_refused_with_a_mend(asked: Any, prompts: tuple[str, str | None]) -> None:
    with pytest.raises(UserError) as raised:
        patching.check(asked(prompt=prompts[0], corrupted=prompts[1]))
    assert raised.value.fix


def test_a_link_with_nonsense_opens_the_page_all_the_same(served: Path) -> None:
    at = opened(site="nowhere", metric="probe", into="up", layer="99", token="<b>", head="-1", between="?")
    assert not at.exception
    assert not at.error
    assert chart(at, "resid_post: base into tuned")


def test_visitors_patch_shorter_prompts(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "blorp " * 13
    patching.check(asked(prompt=text))
    monkeypatch.setenv("BYPASS_DEMO", "1")
    with pytest.raises(UserError, match="up to 24"):
        patching.check(asked(prompt="blorp " * 25))


def test_profanity_is_masked_until_it_is_asked_for(served: Path) -> None:
    word = "shit"
    at = opened(patched_prompt=f"blorp what {word} is")
    shown = [element.proto.spec for element in at.get("plotly_chart")] + [html_of(at)]
    assert not any(word in text for text in shown)
    assert mask(word) in html_of(at)
    at.toggle(key="show_words").set_value(True).run()
    assert word in html_of(at)
