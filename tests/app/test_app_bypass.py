"""The page *Bypass* on the tiny pair: its numbers are those of `interp`, and nothing that is typed or linked breaks it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from streamlit.testing.v1 import AppTest

from app import settings, state
from app.answers import bypass, bypass_drop, bypass_lens, bypass_sources
from interp import ModelPair, UserError
from interp.data.lexicon import mask
from interp.data.texts import challenge_prompts
from interp.diffing.offset_sources import decompose, pooled, value_update_cosines
from interp.diffing.offsets import coordinates, held_out_cosines, key_products, shifts
from interp.experiments.toxicity.context import ToxicityContext
from interp.lens.logit_lens import logit_lens
from interp.neurons.activations import forced_neurons
from tests.app.app_pages import html_of, open_page

VIEWS = ("The shift", "Activation drop", "Where it comes from", "Logit lens")
HOSTILE = ("<script>alert(1)</script>", "**b** $x$ :red[y] {{7*7}}", "../../etc/passwd", "🙂 café", "‮abc", "a\x00b")


@pytest.fixture
def source(served: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Source:
    """The tiny pair as the app names it, with few prompts and few draws."""
    few = settings.Sizes(prompts=(6, 12), visitors_prompts=(6,), usual_prompts=6, shift_draws=20, matched_draws=4)
    monkeypatch.setattr(settings, "sizes", lambda: few)
    return next(iter(settings.offered().values()))


def context_of(pair: ModelPair, source: settings.Source) -> ToxicityContext:
    every = challenge_prompts()
    chosen = [every[int(place)] for place in np.linspace(0, len(every) - 1, 6).round()]
    return ToxicityContext(pair, state.probe(source), state.scorer(), chosen, [])


def plots(at: AppTest) -> int:
    return len(at.get("plotly_chart"))


def test_the_page_opens_on_the_shift_with_its_nulls(source: settings.Source) -> None:
    at = open_page("bypass")
    assert not at.exception
    assert not at.error
    assert at.slider(key="layer").value == bypass.study(source, 6).offset_layer
    assert plots(at) == 3
    body = html_of(at)
    assert "under a random shift" in body
    assert "signs flipped at random after tuning (0 by arithmetic)" in body


@pytest.mark.parametrize("view", VIEWS[1:])
def test_every_view_can_be_linked_to(source: settings.Source, view: str) -> None:
    at = open_page("bypass", view=view)
    assert not at.exception
    assert not at.error
    assert plots(at) >= 1


def test_prompts_that_leave_are_counted_as_interp_counts_them(source: settings.Source, pair: ModelPair) -> None:
    base, tuned = (context_of(pair, source).last_states(model)["resid_mid.1"] for model in pair.sides.values())
    for index in bypass.layer_neurons(source, 1)[:4]:
        before, after = (
            key_products(model, 1, [index], held)[:, 0] > 0 for model, held in zip(pair.sides.values(), (base, tuned), strict=True)
        )
        region = bypass.moved(source, 6, 1, index, "read").region
        assert region.fires.tolist() == before.tolist()
        assert (region.after > 0).tolist() == after.tolist()
        assert region.leaves.tolist() == (before & ~after).tolist()
        assert region.enters.tolist() == (~before & after).tolist()


def test_a_line_joins_each_prompts_two_places_in_the_colour_of_what_it_did(source: settings.Source, pair: ModelPair) -> None:
    index = bypass.layer_neurons(source, 1)[0]
    base, tuned = (context_of(pair, source).last_states(model)["resid_mid.1"] for model in pair.sides.values())
    placed, spec = coordinates(base, tuned), bypass.moved(source, 6, 1, index, "component").plane.spec
    lines = [trace for trace in spec["data"] if trace["mode"] == "lines"]
    marks = {trace["marker"]["color"]: trace["name"] for trace in spec["data"] if trace["mode"] == "markers"}
    drawn = {}
    for trace in lines:
        for start in range(0, len(trace["x"]), 3):
            drawn[round(trace["x"][start], 4)] = (trace["x"][start + 1], trace["y"][start], marks[trace["line"]["color"]])
    assert len(drawn) == 6
    reads = key_products(pair.base, 1, [index], base)[:, 0]
    for number in range(6):
        end, height, told = drawn[round(float(placed.base[number, 0]), 4)]
        assert end == pytest.approx(float(placed.tuned[number, 0]), abs=1e-4)
        assert height == pytest.approx(float(placed.base[number, 1]), abs=1e-4)
        assert (told == "silent") == bool(reads[number] <= 0)


def test_the_profile_is_the_held_out_cosine_of_every_layer(source: settings.Source, pair: ModelPair) -> None:
    base, tuned = (context_of(pair, source).last_states(model) for model in pair.sides.values())
    frame = bypass.profile(source, 6, True).query("model == 'tuned'")
    expected = [
        float(held_out_cosines(shifts(base[f"resid_mid.{n}"], tuned[f"resid_mid.{n}"]), 0).mean()) for n in range(pair.base.n_layers)
    ]
    assert frame["cosine"].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_fall_of_activations_is_that_of_the_experiment(source: settings.Source, pair: ModelPair) -> None:
    context = context_of(pair, source)
    neurons = context.ranking.neurons[:4]
    rows, tokens = context.prompt_rows(), context.greedy_tokens(pair.base)
    base, tuned = (forced_neurons(model, rows, tokens, neurons).step_means.numpy() for model in pair.sides.values())
    found = bypass_drop.drop(source, 6, 4)
    assert found.mean.value == pytest.approx(float((base - tuned).mean()), abs=1e-5)
    assert found.levels.spec["data"][1]["x"][:4] == pytest.approx(base.mean(axis=0).tolist(), abs=1e-5)
    assert found.levels.spec["data"][2]["x"][:4] == pytest.approx(tuned.mean(axis=0).tolist(), abs=1e-5)
    assert found.levels.spec["data"][1]["y"][-1].startswith("equally active")


def test_the_parts_of_the_shift_are_those_of_interp_and_add_up(source: settings.Source, pair: ModelPair) -> None:
    context = context_of(pair, source)
    base, tuned = (context.mean_states(model) for model in pair.sides.values())
    weights = torch.tensor([len(row) for row in context.prompt_rows()]).double()
    expected = decompose(pair, 2, base, tuned, weights)
    found = bypass_sources.written(source, 6, 2)
    assert found.shares["attention"] == pytest.approx(expected.share("attention"), abs=1e-6)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-4)
    assert found.length == pytest.approx(expected.length, rel=1e-6)
    offset = pooled(tuned["resid_mid.2"].double() - base["resid_mid.2"].double(), weights)
    last = float(value_update_cosines(pair, offset, 1).median())
    assert bypass_sources.against(source, 6, 2).last == pytest.approx(last, abs=1e-5)


def test_the_null_of_antipodality_is_the_experiment_at_the_chosen_layer(source: settings.Source) -> None:
    said: list[tuple[str, int, int]] = []
    finding = bypass_sources.controls(source, 6, 1)(lambda text, done, total: said.append((text, done, total)))
    figure, last, lowest = bypass_sources.drawn(finding)
    assert finding.settings["site"] == "resid_mid.1"
    assert last == pytest.approx(bypass_sources.against(source, 6, 1).last, abs=1e-6)
    assert -1 <= lowest <= 1
    assert len(figure.spec["data"]) > 2
    assert [done for _, done, _ in said] == list(range(len(said)))
    assert all(done < total for _, done, total in said)


def test_below_the_first_layer_there_are_no_updates_to_compare(source: settings.Source) -> None:
    at = open_page("bypass", view="Where it comes from", layer="0")
    assert not at.exception
    assert not at.error
    assert any("No MLP writes before layer 0" in element.value for element in at.info)


def test_the_lens_shows_what_interp_reads(source: settings.Source, pair: ModelPair) -> None:
    prompt = "the quick wintle sings"
    at = open_page("bypass", view="Logit lens", prompt=prompt)
    assert not at.exception
    first = bypass_lens.candidates(source, prompt)[0]
    expected = {name: logit_lens(model, [prompt], [first.token]) for name, model in pair.sides.items()}
    assert int(expected["base"].ranks[0, -1]) == 1
    assert first.base == pytest.approx(float(expected["base"].probabilities[0, -1]), abs=1e-6)
    assert first.tuned == pytest.approx(float(expected["tuned"].probabilities[0, -1]), abs=1e-6)
    drawn = bypass_lens.curve(source, prompt, first.token).figure.spec["data"]
    for name, lens in expected.items():
        trace = next(trace for trace in drawn if trace["name"] == name)
        assert trace["y"] == pytest.approx(lens.probabilities[0].tolist(), abs=1e-6)
    assert at.selectbox(key="token").value == first.token
    assert f"{first.base:.1%}" in html_of(at)


def test_the_likeliest_tokens_stand_beside_the_half_layer_after_which_they_are_read(source: settings.Source, pair: ModelPair) -> None:
    frame = bypass_lens.likeliest(source, "the quick wintle sings")
    halves = [f"{kind} {layer}" for layer in range(pair.base.n_layers) for kind in ("attention", "MLP")]
    assert frame["after"].tolist() == ["the embedding", *halves]
    assert {"base", "tuned"} == {*frame.columns} - {"after"}


def test_a_typed_word_is_looked_up_as_one_token_or_refused(source: settings.Source, pair: ModelPair) -> None:
    expected = pair.base.tokenizer(" snarg", add_special_tokens=False)["input_ids"]
    assert [bypass_lens.one_token(pair.base, "snarg")] == expected
    with pytest.raises(UserError, match="tokens for this model"):
        bypass_lens.one_token(pair.base, "unheard of")
    at = open_page("bypass", view="Logit lens", prompt="a quonk", word="unheard of")
    assert not at.exception
    assert len(at.error) == 1
    assert plots(at) == 1


def test_an_example_and_a_token_are_kept_in_the_link(source: settings.Source) -> None:
    at = open_page("bypass", view="Logit lens", prompt="a quonk")
    second = bypass_lens.candidates(source, "a quonk")[1].token
    at.selectbox(key="token").set_value(second).run()
    assert at.query_params["token"] in (str(second), [str(second)])
    again = open_page("bypass", view="Logit lens", prompt="a quonk", token=str(second))
    assert again.selectbox(key="token").value == second


def test_hostile_text_is_shown_as_text_or_refused(source: settings.Source) -> None:
    at = open_page("bypass", view="Logit lens")
    for text in HOSTILE:
        at.text_input(key="prompt").set_value(text)
        at.text_input(key="word").set_value(text[:40])
        at.run()
        assert not at.exception
        assert "<script" not in html_of(at)
        assert len(at.error) <= 1
        assert at.error or plots(at) == 1


def test_a_prompt_beyond_the_context_is_one_message(source: settings.Source) -> None:
    at = open_page("bypass", view="Logit lens")
    at.text_input(key="prompt").set_value("blorp " * 300).run()
    assert not at.exception
    assert len(at.error) == 1


@pytest.mark.parametrize(
    "query",
    [
        {"layer": "99", "neuron": "a.b", "prompts": "7", "up": "down", "view": "nowhere"}, {"layer": "x", "neuron": "0.999999"},
        {"neuron": "99.3"}, {"view": "Activation drop", "top": "-4"}, {"view": "Logit lens", "example": "²", "token": "9" * 5000},
        {"view": "Logit lens", "prompt": "x" * 5000},
    ],
)  # fmt: skip
def test_a_link_that_holds_nonsense_still_opens(source: settings.Source, query: dict[str, str]) -> None:
    at = open_page("bypass", **query)
    assert not at.exception
    assert len(at.error) <= 1


def test_a_link_that_names_a_neuron_alone_opens_on_its_layer(source: settings.Source) -> None:
    index = bypass.layer_neurons(source, 0)[2]
    at = open_page("bypass", neuron=f"0.{index}")
    assert at.slider(key="layer").value == 0
    assert at.selectbox(key="neuron").value == f"0.{index}"


def test_another_layer_offers_its_own_neurons(source: settings.Source) -> None:
    at = open_page("bypass")
    at.slider(key="layer").set_value(0).run()
    assert not at.exception
    assert at.selectbox(key="neuron").options == [f"0.{index}" for index in bypass.layer_neurons(source, 0)]
    assert at.selectbox(key="neuron").value in at.selectbox(key="neuron").options


def test_the_first_neuron_shown_is_the_most_toxic_that_fires_often(source: settings.Source, pair: ModelPair) -> None:
    base = context_of(pair, source).last_states(pair.base)
    for layer in range(pair.base.n_layers):
        names = bypass.layer_neurons(source, layer)
        often = (key_products(pair.base, layer, names, base[f"resid_mid.{layer}"]) > 0).double().mean(dim=0) >= 0.1
        expected = next((place for place, fires in enumerate(often.tolist()) if fires), 0)
        assert bypass.first_firing(source, 6, layer) == expected


def test_a_layer_without_toxic_neurons_says_so(source: settings.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass, "layer_neurons", lambda source, layer: [])
    at = open_page("bypass")
    assert not at.exception
    assert any("Move the slider" in element.value for element in at.info)


def test_profanity_is_masked_in_prompts_and_figures(source: settings.Source) -> None:
    word = "fucking"
    at = open_page("bypass", view="Logit lens", prompt=f"the {word} quonk")
    body = html_of(at)
    assert word not in body
    assert mask(word) in body
    at.toggle(key="show_words").set_value(True).run()
    assert word in html_of(at)


def test_visitors_read_fewer_prompts(source: settings.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEMO, "1")
    assert bypass.counts() == settings.sizes().visitors_prompts == (6,)
    assert max(settings.Sizes().visitors_prompts) <= 80


def test_a_large_pair_is_read_as_a_job(source: settings.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    few = settings.sizes()
    monkeypatch.setattr(settings, "sizes", lambda: replace(few, light=0.0))
    at = open_page("bypass")
    assert not at.exception
    assert plots(at) == 0
    assert [button.label for button in at.button if button.key and button.key.startswith("start-")] == ["Read 6 prompts"]


def test_what_is_cached_can_be_pickled(source: settings.Source) -> None:
    index = bypass.layer_neurons(source, 1)[0]
    for found in (bypass.moved(source, 6, 1, index, "read"), bypass_drop.drop(source, 6, 3), bypass_sources.written(source, 6, 1)):
        assert type(pickle.loads(pickle.dumps(found))) is type(found)
