"""The sweep over strengths: the numbers of `evaluate`, a planted direction beside random ones, and bad input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from interp import Edit, Model, UserError
from interp.data.texts import Passage
from interp.evaluation.metrics import evaluate
from interp.models.tokens import token_rows
from interp.neurons.firing import firing_rates
from interp.stats.divergence import kl_to
from interp.stats.intervals import bootstrap_mean
from interp.stats.nulls import random_directions
from interp.steering.sweep import at_strength, frequency_controls, random_controls, sweep
from tests.conftest import Planted

PROMPTS = ["the quick wintle sings", "blorp and snarg", "a quonk", "river and stone"]


class Counting:
    """A scorer that says what share of a text's words is one word, and counts how often it was asked."""

    name, classes = "counting", ("toxicity",)

    def __init__(self, word: str = "snarg") -> None:
        self.word, self.asked = word, 0

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        self.asked += 1
        return pd.DataFrame({"toxicity": [float(np.mean([word == self.word for word in text.split()] or [0.0])) for text in texts]})


@pytest.fixture
def texts() -> list[Passage]:
    """The passages that ship are longer than the tiny models read."""
    return [Passage("the quick wintle", " sings under a river and", "post"), Passage("blorp and", " snarg of drith walks", "post")]


def test_every_point_is_what_evaluate_says_of_the_edit_at_that_strength(gpt2: Model, texts: list[Passage]) -> None:
    edits = [Edit.subtract("resid_post.1", torch.ones(gpt2.d_model), 0.5), Edit.scale_keys([(0, 3)], 10.0)]
    found = sweep(gpt2, edits, [0, 2], PROMPTS, Counting(), passages=texts, max_new_tokens=3, kl_tokens=20, seed=7)
    frame = found.to_frame()
    assert frame["strength"].tolist() == [0.0, 2.0]
    assert frame["draw"].isna().all()
    assert found.edits == tuple(edits)
    for row, strength in zip(frame.to_dict("records"), (0.0, 2.0), strict=True):
        applied = [Edit.subtract("resid_post.1", torch.ones(gpt2.d_model), 0.5 * strength), Edit.scale_keys([(0, 3)], strength)]
        expected = evaluate(gpt2, PROMPTS, Counting(), edits=applied, passages=texts, max_new_tokens=3)
        kl = bootstrap_mean(kl_to(gpt2, gpt2, [text.text for text in texts], edits=applied, max_tokens=20), seed=7)
        toxicity, price = bootstrap_mean(expected.toxicity, seed=7), expected.perplexity.interval
        assert (row["toxicity"], row["toxicity_low"], row["toxicity_high"]) == (toxicity.value, toxicity.low, toxicity.high)
        assert (row["perplexity"], row["perplexity_low"], row["perplexity_high"]) == (price.value, price.low, price.high)
        assert (row["kl"], row["kl_low"], row["kl_high"]) == (kl.value, kl.low, kl.high)
        assert row["f1"] == pytest.approx(expected.f1.mean())
        assert row["distinct_2"] == pytest.approx(expected.distinct_2, nan_ok=True)
        assert row["share_above_half"] == (expected.toxicity > 0.5).mean()


def test_a_planted_direction_brings_its_word_and_random_ones_of_its_norm_do_not(planted: Planted, texts: list[Passage]) -> None:
    model = planted.model
    edits = [Edit.add("resid_post.2", model.unembedding[planted.word_id], 1.0)]
    controls = random_controls(model, edits, PROMPTS, draws=3)
    scorer = Counting(planted.word.strip())
    found = sweep(model, edits, [0, 20], PROMPTS, scorer, controls=controls, unedited_at=0, passages=texts, max_new_tokens=4)
    frame = found.to_frame()
    own, null = frame[frame["draw"].isna()].set_index("strength"), frame[~frame["draw"].isna()].set_index("strength")
    assert own["toxicity"].tolist() == [own.loc[0.0, "toxicity"], 1.0]
    assert own.loc[20.0, "share_above_half"] == 1.0
    assert null.loc[20.0, "toxicity"].max() < 0.5
    assert null.loc[20.0, "draw"].tolist() == [0.0, 1.0, 2.0]
    # Without an edit they are all one model, which is measured once.
    assert set(null.loc[0.0, "toxicity"]) == {own.loc[0.0, "toxicity"]}
    assert scorer.asked == 1 + 4


def test_random_directions_keep_all_of_the_edit_but_the_direction(gpt2: Model) -> None:
    edit = Edit.add("resid_mid.1", torch.arange(gpt2.d_model).float(), -2.5, "prompt")
    controls = random_controls(gpt2, [edit], PROMPTS, draws=4)
    assert len(controls) == 4
    vectors = []
    for (control,) in controls:
        assert (control.op, control.site, control.strength, control.positions) == (edit.op, edit.site, edit.strength, edit.positions)
        assert float(control.values.norm()) == pytest.approx(float(edit.values.norm()), rel=1e-5)  # type: ignore[union-attr]
        vectors.append(control.values)
    cosines = torch.cosine_similarity(torch.stack(vectors), edit.values[None], dim=1)  # type: ignore[index, arg-type]
    assert cosines.abs().max() < 0.8
    assert not torch.equal(vectors[0], vectors[1])


def test_control_neurons_are_others_of_the_layer_that_fire_about_as_often(gpt2: Model) -> None:
    neurons, spared = [(0, 3), (2, 70), (0, 9)], [(0, index) for index in range(10, 30)]
    rows = token_rows(gpt2, PROMPTS)
    rates = firing_rates(gpt2, rows, [[len(row) - 1] for row in rows], [0, 2])
    draws = frequency_controls(gpt2, neurons, PROMPTS, draws=5, exclude=spared)
    assert len(set(draws)) > 1
    for drawn in draws:
        assert [layer for layer, _ in drawn] == [0, 2, 0]
        assert not set(drawn) & {*neurons, *spared}
        assert len(set(drawn)) == 3
        for (layer, index), (_, other) in zip(neurons, drawn, strict=True):
            gaps = (rates[layer] - rates[layer][index]).abs()
            # Among the 32 nearest that may be drawn; besides the chosen and the spared, no more than 23 and the drawn are nearer.
            assert float(gaps[other]) <= float(gaps.sort().values[32 + len(neurons) + len(spared)])
    (control, *_) = random_controls(gpt2, [Edit.scale_keys(neurons, 5.0)], PROMPTS, draws=2, exclude=spared)
    assert control == [Edit.scale_keys(list(draws[0]), 5.0)]


def test_the_controls_of_several_edits_are_drawn_independently(gpt2: Model) -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, gpt2.d_model, generator=generator)
    neurons, others = [(0, 3), (0, 9)], [(0, 4), (0, 11)]
    edits = [
        Edit.add("resid_mid.0", first, 2.0), Edit.add("resid_mid.1", second, 2.0),
        Edit.scale_keys(neurons, 5.0), Edit.scale_keys(others, 3.0),
    ]  # fmt: skip
    controls = random_controls(gpt2, edits, PROMPTS, draws=3)
    directions = torch.stack([edit.values for control in controls for edit in control[:2]])  # type: ignore[misc]
    cosines = torch.nn.functional.cosine_similarity(directions[:, None], directions[None], dim=-1) - torch.eye(6)
    assert cosines.abs().max() < 0.8
    for control in controls:
        for edit in control[2:]:
            assert not {*neurons, *others} & set(edit.neurons)  # type: ignore[arg-type]
    same = random_controls(gpt2, [edits[2], edits[2]], PROMPTS, draws=3)
    assert len({edit.neurons for control in same for edit in control}) == 6
    # One edit alone has the numbers that it had before, and every number is set by the seed.
    assert [control[0] for control in controls] == [control for (control,) in random_controls(gpt2, edits[:1], PROMPTS, draws=3)]
    (alone,) = random_controls(gpt2, edits[:1], PROMPTS, draws=1)
    assert torch.equal(alone[0].values, random_directions(first, 1, seed=0)[0])  # type: ignore[arg-type]
    assert random_controls(gpt2, edits, PROMPTS, draws=3, seed=0) == controls
    assert all(new != old for new, old in zip(random_controls(gpt2, edits, PROMPTS, draws=3, seed=100), controls, strict=True))


def test_a_strength_is_the_factor_of_keys_and_multiplies_what_is_added(gpt2: Model) -> None:
    vector = [1.0] * gpt2.d_model
    edits = [Edit.add("resid_post.0", vector, 3.0), Edit.scale("mlp_post.1", 7.0, [2]), Edit.set("mlp_post.1", 2.0, [4])]
    assert [edit.strength for edit in at_strength(edits, 0.5)] == [1.5, 0.5, 1.0]
    with pytest.raises(UserError, match="no strength"):
        at_strength([Edit.project_out("resid_post.0", vector)], 1.0)


def test_steps_are_counted_and_named_and_can_stop_the_sweep(gpt2: Model, texts: list[Passage]) -> None:
    seen: list[tuple[str, int, int]] = []
    edits = [Edit.scale_keys([(0, 3)], 1.0)]
    controls = [[Edit.scale_keys([(0, 4)], 1.0)]]

    def stop(what: str, done: int, total: int) -> None:
        seen.append((what, done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(
            gpt2, edits, [1.0, 4.0], PROMPTS, Counting(), controls=controls, unedited_at=1, passages=texts, max_new_tokens=2,
            show=lambda value: f"{value / 2:g} of 2", step=stop,
        )  # fmt: skip
    assert seen == [("without the edit", 0, 3), ("strength 2 of 2", 1, 3), ("strength 2 of 2, random control 1", 2, 3)]


def test_a_sweep_of_nothing_or_of_what_has_no_strength_or_control_is_refused(gpt2: Model, texts: list[Passage]) -> None:
    scorer, edits = Counting(), [Edit.scale_keys([(0, 3)], 2.0)]
    with pytest.raises(UserError, match="0 strengths"):
        sweep(gpt2, edits, [], PROMPTS, scorer, passages=texts)
    with pytest.raises(UserError, match="0 edits"):
        sweep(gpt2, [], [1.0], PROMPTS, scorer, passages=texts)
    with pytest.raises(UserError, match="no strength"):
        sweep(gpt2, [*edits, Edit.project_out("resid_post.0", [1.0] * gpt2.d_model)], [1.0], PROMPTS, scorer, passages=texts)
    assert scorer.asked == 0
    with pytest.raises(UserError, match="no random control"):
        random_controls(gpt2, [Edit.set("mlp_post.1", 0.0, [2])], PROMPTS, draws=2)
