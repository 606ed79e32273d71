"""Direct attribution sums to the logit; attribution patching is exact where the model is linear, and complete along the path."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, PreTrainedTokenizerFast

from interp import Edit, Model, ModelPair, UserError, capture, editing
from interp.evaluation.toxicity import LexiconScorer
from interp.lens.attribution import attribute, attribute_pair
from interp.models.sites import KINDS, PATCHED
from interp.patching.gradient import agreement, attribution_patch, per_layer
from interp.patching.metrics import ContinuationToxicity, LogitDifference, LogProbability, ProbeProjection
from interp.patching.patch import patch
from tests.conftest import Planted, glu_settings, make_hf
from tests.patching.small_maps import check_cells

pytestmark = pytest.mark.oracle
PROMPTS = ["the quick wintle sings", "never the meldy stone"]
CLEAN, CORRUPTED = "the quick wintle sings", "the bitter snarg walks"
LOGITS = LogitDifference(5, 300)


@pytest.fixture(scope="module")
def gemma2(tokenizer: PreTrainedTokenizerFast) -> Model:
    """Norms after attention and MLP, sliding windows, and capped logits."""
    config = Gemma2Config(**glu_settings(), head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=5.0, sliding_window=3)
    return Model(make_hf(config, tokenizer), tokenizer, "gemma2")


def own_logit(model: Model, text: str, first: int, second: int | None) -> float:
    with torch.no_grad():
        logits = model.hf(torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])).logits[0, -1]
    return float(logits[first] - (logits[second] if second is not None else 0))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "gemma2"])
@pytest.mark.parametrize("against", [None, 300])
def test_the_terms_sum_to_the_models_own_logit(kind: str, against: int | None, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    found = attribute(model, PROMPTS, 5, against)
    for row, text in enumerate(PROMPTS):
        assert float(found.total[row]) == pytest.approx(own_logit(model, text, 5, against), abs=1e-5)
    assert float(found.to_frame()["contribution"].sum()) == pytest.approx(float(found.logit.mean()), abs=1e-5)
    assert found.to_frame("layer")["contribution"].sum() == pytest.approx(float((found.attention + found.mlp).mean(dim=0).sum()))


def test_terms_are_what_each_component_writes_through_the_frozen_norm(gpt2: Model) -> None:
    text = PROMPTS[0]
    names = [f"{name}.{layer}" for layer in range(3) for name in ("attn_out", "mlp_out")]
    held = capture(gpt2, [text], [*names, "resid_post.2", "resid_pre.0"])
    found = attribute(gpt2, text, 5, 300)
    final = held["resid_post.2"][0].double()
    norm, read = gpt2.final_norm, (gpt2.unembedding[5] - gpt2.unembedding[300]).double()

    def through(x: torch.Tensor) -> float:
        x = x.double()
        return float(((x - x.mean()) / (final.var(unbiased=False) + norm.eps).sqrt() * norm.weight.double()) @ read)

    for layer in range(3):
        assert float(found.attention[0, layer]) == pytest.approx(through(held[f"attn_out.{layer}"][0]), abs=1e-5)
        assert float(found.mlp[0, layer]) == pytest.approx(through(held[f"mlp_out.{layer}"][0]), abs=1e-5)
        assert float(found.mlp_bias[0, layer]) == pytest.approx(through(gpt2.value_bias(layer)), abs=1e-6)
    ids = gpt2.tokenizer(text)["input_ids"]
    assert float(found.embedding[0]) == pytest.approx(through(gpt2.hf.transformer.wte.weight[ids[-1]]), abs=1e-5)
    assert float(found.position[0]) == pytest.approx(through(gpt2.hf.transformer.wpe.weight[len(ids) - 1]), abs=1e-5)
    assert float(found.norm_bias[0]) == pytest.approx(float(norm.bias.double() @ read), abs=1e-6)
    neuron = float(capture(gpt2, [text], ["mlp_post.1"], units={"mlp_post.1": [7]})["mlp_post.1"][0, 0])
    assert float(found.neurons[0, 1, 7]) == pytest.approx(through(neuron * gpt2.value_vectors(1)[7]), abs=1e-6)


def test_a_heads_term_is_what_is_missing_when_that_head_of_the_last_layer_is_silent(llama: Model) -> None:
    """Checked in the residual stream, where silencing is exactly linear."""
    site, text = "attn_out.2", PROMPTS[0]
    found = attribute(llama, text, 5)
    with_it = capture(llama, [text], [site, "resid_post.2"])
    silent = capture(llama, [text], [site], edits=[Edit.set("z.2", 0.0, range(8, 16))])
    written = (with_it[site] - silent[site])[0].double()
    scale = (with_it["resid_post.2"][0].double().square().mean() + llama.final_norm.variance_epsilon).rsqrt()
    expected = float((written * scale * llama.final_gain.double()) @ llama.unembedding[5].double())
    assert float(found.heads[0, 2, 1]) == pytest.approx(expected, abs=1e-6)


def test_the_planted_neuron_writes_its_word(planted: Planted) -> None:
    best = attribute(planted.model, "the quick" + planted.trigger, planted.word_id).top(1, "neuron").iloc[0]
    assert (best["layer"], best["neuron"]) == (planted.layer, planted.index)


def test_the_difference_of_a_pair_sums_to_the_difference_of_the_logits(pair: ModelPair, tmp_path) -> None:
    found = attribute_pair(pair, PROMPTS, 5, 300)
    gap = sum(own_logit(pair.tuned, text, 5, 300) - own_logit(pair.base, text, 5, 300) for text in PROMPTS) / 2
    frame = found.to_frame()
    assert frame["difference"].sum() == pytest.approx(gap, abs=2e-5)
    assert (frame["tuned"] - frame["base"]).tolist() == frame["difference"].tolist()
    assert float(found.difference.total.mean()) == pytest.approx(gap, abs=2e-5)
    assert found.top(3, "head")["difference"].abs().is_monotonic_decreasing
    record = json.loads(found.save(tmp_path / "pair").read_text())
    assert set(record["tables"]) == {"term", "layer", "head", "neuron"}
    assert all(figure["caption"] and figure["spec"]["layout"]["title"]["text"] for figure in record["figures"])


def test_figures_name_the_largest_term_and_the_logit(gpt2: Model) -> None:
    from interp.results.result import show_number

    found = attribute(gpt2, PROMPTS[0], 5)
    for level in ("term", "head", "neuron", "layer"):
        assert show_number(float(found.logit.mean())) in found.figure(level).caption
    with pytest.raises(UserError, match="token 99999"):
        attribute(gpt2, PROMPTS[0], 99999)


@pytest.fixture(scope="module")
def linear(gpt2: Model) -> Model:
    """A GPT-2 of which nothing is left but sums and products with constants along the way from the MLPs on.

    Attention is silenced (its softmax and products are not linear), norms give their input back, the MLP has no nonlinearity.
    """

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1

    hf = copy.deepcopy(gpt2.plain_copy())
    with torch.no_grad():
        for block in hf.transformer.h:
            block.ln_1, block.ln_2, block.mlp.act = Same(), Same(), Same()
            block.attn.c_proj.weight.mul_(0)
    hf.transformer.ln_f = Same()
    return Model(hf, gpt2.tokenizer, "linear")


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "mlp_out", "mlp_post"])
@pytest.mark.parametrize("steps", [None, 2])
def test_on_a_linear_model_the_estimate_is_the_measurement(linear: Model, site: str, steps: int | None) -> None:
    settings = {"metric": LOGITS, "site": site, "positions": "each", "units": [3, 9] if site == "mlp_post" else None}
    real = patch(linear, CLEAN, CORRUPTED, **settings)
    guess = attribution_patch(linear, CLEAN, CORRUPTED, steps=steps, **settings)
    torch.testing.assert_close(guess.values, real.values, atol=1e-4, rtol=1e-4)
    agreed = agreement(real, guess, top=2)
    assert min(agreed.correlation) > 0.9999
    assert agreed.overlap == (1.0, 1.0)


@pytest.mark.parametrize("site", PATCHED)
def test_gradients_are_those_of_finite_differences(model: Model, site: str) -> None:
    """A small step of the metric along source minus target, through the model's own hooks; norms of Llama keep to single precision."""
    double = Model(copy.deepcopy(model.plain_copy()).double(), model.tokenizer, "double")
    unit = [1] if KINDS[site].unit else None
    found = attribution_patch(double, CLEAN, CORRUPTED, metric=LOGITS, site=site, positions=[1], layers=[1], units=unit)
    name = f"{site}.1"
    ours, theirs = (capture(double, [text], [name], positions="all")[name][0] for text in (CORRUPTED, CLEAN))
    change = torch.zeros_like(ours)
    place = (1,) if unit is None else (1, 1)
    change[place] = (theirs - ours)[place]
    ids = torch.tensor([double.tokenizer(CORRUPTED, add_special_tokens=False)["input_ids"]])
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad(), editing(double, [Edit.add(name, step * change.flatten(1)[1], positions=[1])]):
            logits = double.hf(ids).logits[0, -1]
        values.append(float(logits[5] - logits[300]))
    assert float(found.effects[0, 0, 0]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-3, abs=5e-5)


@pytest.mark.parametrize("site", ["resid_mid", "z", "mlp_post"])
def test_integrated_gradients_sum_to_the_effect_of_the_whole_layer(model: Model, site: str) -> None:
    metric = LogProbability((5,))
    whole_site = {"z": "attn_out", "mlp_post": "mlp_out"}.get(site, site)
    real = patch(model, CLEAN, CORRUPTED, metric=metric, site=whole_site, positions="all")
    guess = attribution_patch(model, CLEAN, CORRUPTED, metric=metric, site=site, positions="each", steps=64)
    torch.testing.assert_close(per_layer(guess), real.effects.mean(dim=1), atol=2e-3, rtol=1e-2)
    rough = attribution_patch(model, CLEAN, CORRUPTED, metric=metric, site=site, positions="each")
    worse = (per_layer(rough) - real.effects.mean(dim=1)).abs().mean()
    assert worse > 5 * (per_layer(guess) - real.effects.mean(dim=1)).abs().mean()


def test_the_estimate_finds_the_planted_neuron_and_its_agreement_is_measured(planted: Planted) -> None:
    settings = {"metric": LogProbability((planted.word_id,)), "site": "mlp_post", "layers": [planted.layer], "positions": [2]}
    clean, corrupted = "the quick" + planted.trigger, "the quick blorp"
    real = patch(planted.model, clean, corrupted, **settings)
    guess = attribution_patch(planted.model, clean, corrupted, steps=8, **settings)
    assert guess.top(1, "noising").iloc[0]["neuron"] == planted.index
    agreed = agreement(real, guess, top=5)
    frame = agreed.to_frame()
    assert frame["direction"].tolist() == ["denoising", "noising"]
    assert frame["correlation"].iloc[1] > 0.9
    same = agreement(real, real)
    assert same.correlation == pytest.approx((1.0, 1.0))
    assert same.overlap == (1.0, 1.0)
    with pytest.raises(UserError, match="differ in cells"):
        agreement(real, attribution_patch(planted.model, clean, corrupted, **{**settings, "layers": [0]}))


def test_a_metric_that_the_patch_cannot_reach_has_no_slope_and_a_continuation_is_refused(gpt2: Model) -> None:
    below = ProbeProjection(torch.ones(gpt2.d_model), "resid_post.0")
    for steps in (None, 2):
        found = attribution_patch(gpt2, CLEAN, CORRUPTED, metric=below, site="mlp_out", layers=[2], steps=steps)
        assert torch.equal(found.effects, torch.zeros_like(found.effects))
    with pytest.raises(UserError, match="no gradient"):
        attribution_patch(gpt2, CLEAN, CORRUPTED, metric=ContinuationToxicity(LexiconScorer()), site="mlp_out")
    with pytest.raises(UserError, match="0 steps"):
        attribution_patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, steps=0)


def test_sliding_windows_and_norms_behind_components_are_resumed_exactly(gemma2: Model) -> None:
    check_cells(gemma2, "attn_out", "each")
    check_cells(gemma2, "resid_post", "each")
