"""The page of toxic vectors on the tiny pair: what it shows is what `interp` says, and nothing typed does more than ask."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from streamlit.testing.v1 import AppTest

from app import jobs, neuron_view, pins, settings, show, state
from app.answers import vectors as answers
from app.answers import vectors_firing as firing
from app.answers.vectors import Ranked
from interp import ModelPair, UserError, max_activating
from interp.data.lexicon import mask
from interp.diffing.weights import neuron_shift
from interp.directions.probe import Probe
from interp.evaluation.token_toxicity import written_toxicity
from interp.evaluation.toxicity import LexiconScorer
from interp.models.digests import model_key
from interp.neurons.example_results import Window
from interp.neurons.ranking import explain_neuron, rank_values, svd_directions, values_at
from interp.neurons.vocabulary import build_index, search, top_tokens
from tests.app.app_pages import html_of, open_page

HOSTILE = "<script>alert(1)</script> **b** $x$ :red[y] 🙂 \u202eabc"


@pytest.fixture(scope="module")
def direction(pair: ModelPair) -> torch.Tensor:
    return torch.randn(pair.base.d_model, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def quick(served: Path, pair: ModelPair, direction: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that need not be fitted, and jobs that no other test has done."""
    probe = Probe(torch.stack([-direction, direction], dim=1), direction, {}, pair.base.digest, {})
    monkeypatch.setattr(state, "probe", lambda source: probe)
    monkeypatch.setattr(jobs, "runner", jobs.Runner())
    monkeypatch.setattr("app.job_view.runner", jobs.runner)
    for cached in (state.toxic_neurons, answers.places):
        cached.clear()


def source() -> settings.Source:
    return next(iter(settings.offered().values()))


def table(at: AppTest) -> pd.DataFrame:
    assert not at.exception
    return at.dataframe[0].value


def test_the_first_view_ranks_by_the_probe_and_opens_the_nearest_neuron(pair: ModelPair, direction: torch.Tensor) -> None:
    at = open_page("vectors")
    ranking = rank_values(pair.base, direction, top=20)
    frame = table(at)
    assert frame["neuron"].tolist() == [f"{layer}.{index}" for layer, index in ranking.neurons]
    assert frame["cosine with the probe"].tolist() == pytest.approx(ranking.cosines.tolist())
    shift = neuron_shift(pair, ranking.neurons)
    assert frame["value moved"].tolist() == pytest.approx((100 * shift["value_shift"]).tolist())
    assert frame["key moved"].tolist() == pytest.approx((100 * shift["key_shift"]).tolist())
    explained = explain_neuron(pair, *ranking.neurons[3]).set_index("side")
    assert frame["value kept"][3] == pytest.approx(explained.loc["tuned", "value_cosine"])
    assert frame["key kept"][3] == pytest.approx(explained.loc["tuned", "key_cosine"])
    assert [header.value for header in at.header] == [
        "Which value vectors", f"Neuron {frame['neuron'][0]}", "Pinned sets", "Directions that they share",
    ]  # fmt: skip
    assert not at.error


def test_the_words_of_a_neuron_are_those_of_each_side(pair: ModelPair) -> None:
    found = answers.written(source(), (1, 5))
    for side, model in pair.sides.items():
        for rows, largest in ((found.promoted, True), (found.suppressed, False)):
            expected = top_tokens(model, values_at(model, [(1, 5)]), top=10, largest=largest)
            assert rows[side] == list(zip(expected.words[0], expected.scores[0].tolist(), strict=True))
    assert 0 < found.same() <= 10
    body = html_of(open_page("vectors", neuron="1.5"))
    assert body.count('<table class="bars"') == 4
    assert show.escaped(show.visible(found.promoted["tuned"][0][0], False)) in body


def test_the_words_are_scored_in_sentences_where_that_is_asked_for(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "scorer", LexiconScorer)
    answers.in_sentences.clear()
    at = open_page("vectors")
    assert "in sentences" not in table(at)
    at.toggle(key="sentences").set_value(True).run()
    frame = table(at)
    neurons = [(int(layer), int(index)) for layer, index in (name.split(".") for name in frame["neuron"])]
    assert frame["in sentences"].tolist() == pytest.approx(written_toxicity(pair.base, neurons, LexiconScorer()).tolist())
    captions = " ".join(caption.value for caption in at.caption)
    assert "random neurons of the same layers have" in captions
    assert "Tokens by dot product with the unembedding." in captions


def test_a_neuron_of_the_link_is_the_one_shown(pair: ModelPair) -> None:
    at = open_page("vectors", neuron="2.7")
    assert at.header[1].value == "Neuron 2.7"
    assert at.text_input(key="neuron").value == "2.7"
    at.text_input(key="neuron").set_value("0.3").run()
    assert at.header[1].value == "Neuron 0.3"


def test_a_neuron_that_does_not_exist_is_one_message_and_the_rest_stays() -> None:
    at = open_page("vectors", neuron="9.0")
    for bad in ("9.0", "0.99999", "x", "../../etc/passwd", "<b>1</b>"):
        at.text_input(key="neuron").set_value(bad).run()
        assert not at.exception
        assert len(at.error) == 1
        assert "<b>" not in html_of(at)
        assert len(table(at)) == 20
        assert [header.value for header in at.header] == ["Which value vectors", "Pinned sets", "Directions that they share"]


@pytest.mark.parametrize(
    "query", [{"by": "nothing", "rows": "x", "top": "7", "text": "\x00"}, {"rows": "9999", "by": "Similarity", "like": "9.9999"}]
)
def test_a_link_with_values_that_cannot_be_does_not_break_the_page(query: dict[str, str]) -> None:
    at = open_page("vectors", **query)
    assert not at.exception
    assert at.header[0].value == "Which value vectors"
    assert len(at.error) == ("like" in query)


def test_ranking_by_a_word_is_the_search_of_interp(pair: ModelPair) -> None:
    at = open_page("vectors", by="Word", word="snarg", rows="10")
    expected = search(build_index(pair.base), "snarg", limit=10)
    frame = table(at)
    assert frame["neuron"].tolist() == [f"{row.layer}.{row.neuron}" for row in expected.itertuples()]
    assert frame["rank"].tolist() == expected["rank"].tolist()
    assert at.header[1].value == f"Neuron {frame['neuron'][0]}"


def test_a_word_that_no_token_begins_with_is_one_message() -> None:
    at = open_page("vectors", by="Word", word="zzqqy")
    assert len(at.error) == 1
    at.text_input(key="word").set_value("").run()
    assert len(at.error) == 1
    at.text_input(key="word").set_value(HOSTILE).run()
    assert not at.exception
    assert len(at.error) == 1
    assert "<script" not in html_of(at)
    assert ":red[y]" not in at.error[0].value


def test_more_like_this_ranks_by_similarity_with_it_first(pair: ModelPair) -> None:
    at = open_page("vectors", neuron="1.5")
    at.button(key="more").click().run()
    frame = table(at)
    expected = rank_values(pair.base, values_at(pair.base, [(1, 5)])[0], top=20)
    assert frame["neuron"].tolist() == [f"{layer}.{index}" for layer, index in expected.neurons]
    assert frame["neuron"][0] == "1.5"
    assert frame["cosine with 1.5"].tolist() == pytest.approx(expected.cosines.tolist())
    assert at.query_params["like"] in ("1.5", ["1.5"])
    again = open_page("vectors", by="Similarity", like="1.5")
    assert table(again)["neuron"].tolist() == frame["neuron"].tolist()


def test_the_values_that_rank_are_shown_in_their_unit_whatever_the_column_is_called() -> None:
    # Importing a page runs it, on the pair that the test has chosen.
    from app.views import vectors as views

    frame = pd.DataFrame({"first": [0.5], "rank": [1]})
    for unit, shown in (("percent", "%.0f %%"), ("cosine", "%.3f")):
        formats = views.config(Ranked(((0, 1),), frame, unit))  # type: ignore[arg-type]
        assert formats["first"]["type_config"]["format"] == shown
        assert formats["rank"] == views.config()["rank"]
    assert "first" not in views.config(Ranked(((0, 1),), frame))


def test_where_it_fires_is_what_both_models_do(pair: ModelPair) -> None:
    text = "never the meldy stone of drith"
    found = firing.fired(source(), (1, 5), text)
    (window,) = max_activating(pair, [(1, 5)], [text], top=1, before=64, after=64, above=-1e9).of(1, 5)
    assert found.window == window
    assert "".join(found.window.tokens) == text
    assert found.whole
    body = html_of(open_page("vectors", neuron="1.5", text=text))
    for side in ("base", "tuned"):
        assert f"{side.capitalize()}: {window.activations[side][window.at]:.2f} at " in body
    assert body.count('class="strip"') == 2


def test_a_text_longer_than_the_model_reads_says_so() -> None:
    at = open_page("vectors", neuron="1.5", text="blorp " * 200)
    assert not at.exception
    assert any("longer than the model reads" in caption.value for caption in at.caption)


def test_what_is_typed_is_shown_as_text_and_never_as_markup() -> None:
    at = open_page("vectors", neuron="1.5", text=HOSTILE)
    assert not at.exception
    body = html_of(at)
    # The tiny vocabulary has a token for every letter.
    assert len(re.findall(r'title="&lt;: [^"]*">&lt;</span>', body)) == 2 * HOSTILE.count("<")
    assert "><</span>" not in body
    assert "\u202e" not in body


def test_profanity_is_masked_until_it_is_asked_for() -> None:
    word = next(w for w in ("shit", "fuck") if mask(w) != w)
    at = open_page("vectors", neuron="1.5", text=f"what {word} is")
    tokens = "".join(re.findall(r'title="[^"]*">([^<]*)</span>', html_of(at)))
    assert word not in tokens
    assert mask(word) in tokens
    at.toggle(key="show_words").set_value(True).run()
    assert word in "".join(re.findall(r'title="[^"]*">([^<]*)</span>', html_of(at)))


def test_the_token_of_the_peak_is_masked_with_its_neighbours() -> None:
    window = Window("base", 0, 0, 1, 2.0, 0, 1, (" sh", "it"), 1, {"base": (1.0, 2.0)})
    assert mask("shit") == "sh*t"
    assert neuron_view.peak(window, False) == "*t"
    assert neuron_view.peak(window, True) == "it"


def test_what_tuning_changed_stands_beside_random_neurons_of_the_layer(pair: ModelPair) -> None:
    found = answers.changed(source(), (2, 9))
    explained = explain_neuron(pair, 2, 9).set_index("side")
    shift = neuron_shift(pair, [(2, 9)]).iloc[0]
    assert found.moved == pytest.approx(shift["value_shift"])
    assert found.cosine == pytest.approx(explained.loc["tuned", "value_cosine"])
    assert found.percentile == pytest.approx(shift["value_percentile"])
    cells = found.table.set_index(found.table["measure"].where(~found.table["measure"].duplicated(), "second"))
    assert cells.loc["norm in base", "key"] == f"{explained.loc['base', 'key_norm']:.4f}"
    assert cells.loc["norm in tuned", "value"] == f"{explained.loc['tuned', 'value_norm']:.4f}"
    assert found.others == min(100, pair.base.d_mlp - 1)
    null, own = sorted(found.figure.spec["data"], key=lambda trace: -len(trace["x"]))
    assert len(null["x"]) == found.others
    assert own["x"] == pytest.approx([100 * shift["key_shift"]])
    assert own["y"] == pytest.approx([100 * shift["value_shift"]])


def test_shared_directions_are_those_of_interp_beside_random_ones(pair: ModelPair, direction: torch.Tensor) -> None:
    near = state.toxic_neurons(source())[:16]
    frame = answers.shared(source(), 16)
    words = top_tokens(pair.base, svd_directions(pair.base, near, towards=direction), top=10).words
    assert frame["promotes"][1] == " · ".join(word.strip() or "␣" for word in words[1])
    assert frame["value vectors"].tolist() == ["nearest to the probe"] * 3 + ["random neurons (null)"] * 3
    assert (frame["cosine with the probe"] >= 0).all()


def test_a_neuron_is_pinned_to_a_set_linked_to_and_unpinned() -> None:
    at = open_page("vectors", neuron="1.5")
    at.text_input(key="set").set_value("mine").run()
    at.button(key="pin").click().run()
    assert at.session_state[pins.PINS] == "mine:1.5"
    assert "mine" in [heading.value for heading in at.subheader]
    at.text_input(key="neuron").set_value("0.3").run()
    at.button(key="pin").click().run()
    assert at.session_state[pins.PINS] == "mine:1.5,0.3"
    # One to the evidence, one to scale this key, one for the set, and the way on.
    assert len(at.get("page_link")) == 4
    at.button(key="unpin-mine-1.5").click().run()
    assert at.session_state[pins.PINS] == "mine:0.3"
    at.button(key="forget-mine").click().run()
    assert at.session_state[pins.PINS] == ""
    assert "mine" not in [heading.value for heading in at.subheader]


def test_a_name_that_cannot_be_one_is_one_message() -> None:
    at = open_page("vectors", neuron="1.5")
    at.text_input(key="set").set_value("<b>x</b>").run()
    at.button(key="pin").click().run()
    assert len(at.error) == 1
    assert at.header[-1].value == "Directions that they share"


def finished(key: str) -> jobs.Job:
    job = jobs.runner.find(key)
    assert job is not None
    jobs.runner._thread.join(0)  # type: ignore[union-attr]
    for _ in range(6000):
        if job.over:
            break
        job.stop.wait(0.01)
    assert job.state == "done", job.problem
    return job


def few(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """A handful of texts in place of the hundreds that ship."""
    provoking, plain = ["the quick wintle", "never the meldy stone", "blorp and"], ["a quonk", "hoddle hoddle zimbra"]
    monkeypatch.setattr(firing, "challenge_prompts", lambda: provoking)
    monkeypatch.setattr(firing, "neutral_prompts", lambda: plain)
    asked = max_activating
    monkeypatch.setattr(
        firing, "max_activating", lambda model, neurons, texts=None, **more: asked(model, neurons, texts or provoking + plain, **more)
    )
    return provoking, plain


def test_reading_the_texts_gives_examples_rates_and_a_ranking(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    provoking, plain = few(pair, monkeypatch)
    key = jobs.key_of("texts", model_key(pair.base), model_key(pair.tuned))
    at = open_page("vectors")
    first = table(at)["neuron"][0]
    at.button(key=f"start-{key}").click().run()
    survey = finished(key).result
    at.run()
    assert not at.exception
    neuron = tuple(map(int, first.split(".")))
    expected = max_activating(pair, state.toxic_neurons(source()), provoking + plain, top=5)
    spread = expected.spread.query("layer == @neuron[0] and neuron == @neuron[1] and side == 'base'")
    assert f"{spread['active'].iloc[0]:.1%}" in html_of(at)
    assert survey.examples.of(*neuron) == expected.of(*neuron)
    figure = firing.firing(survey, neuron)
    rows = pair.base.tokenizer(provoking, add_special_tokens=False)["input_ids"]
    share = sum(float(firing.firing_rates(pair.base, [row], [[len(row) - 1]], [neuron[0]])[neuron[0]][neuron[1]]) for row in rows) / len(
        rows
    )
    base = next(trace for trace in figure.spec["data"] if trace["name"] == "base")
    assert base["y"][0] == pytest.approx(share)
    at = open_page("vectors", by="Selectivity")
    assert table(at)["neuron"].tolist() == [f"{layer}.{index}" for layer, index in survey.selective[:20]]
    assert survey.selective == tuple(firing.selective_first(pair.base, state.toxic_neurons(source()), provoking, plain))


def test_before_the_texts_are_read_selectivity_asks_for_it_and_shows_no_table() -> None:
    at = open_page("vectors", by="Selectivity", neuron="0.1")
    assert not at.exception
    assert at.header[1].value == "Neuron 0.1"
    assert sum(button.label == "Read the texts that ship" for button in at.button) == 1


def test_in_demo_mode_prompts_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEMO, "1")
    at = open_page("vectors", by="Word", word="snarg")
    assert at.text_input(key="text").proto.max_chars == 400
    assert at.text_input(key="word").proto.max_chars == 400
    with pytest.raises(UserError):
        answers.by_word(source(), "", 5)
