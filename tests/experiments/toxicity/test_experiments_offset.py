"""The experiments on continuations, the lens and the offset, on pairs whose answer is planted and on pairs that hold nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from interp import Model, ModelPair, capture
from interp.data.texts import Passage
from interp.directions.probe import Probe
from interp.errors import UserError
from interp.experiments.toxicity import a_e4_continuations, a_e7_lens, shared
from interp.experiments.toxicity.a_e4_continuations import match_by_probability
from interp.experiments.toxicity.a_e4_continuations import run as continuations
from interp.experiments.toxicity.a_e7_lens import mlp_share
from interp.experiments.toxicity.a_e7_lens import run as lens
from interp.experiments.toxicity.a_e10_offset import layer_neurons
from interp.experiments.toxicity.a_e10_offset import run as offset
from interp.experiments.toxicity.a_e11_antipodal import run as antipodal
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.offset_paths import mean_offset_over_positions, permuted
from interp.experiments.toxicity.shared import split_by_first_word
from interp.experiments.toxicity.x_c1_offset import necessity, sufficiency
from interp.lens.logit_lens import logit_lens
from interp.lens.next_tokens import likeliest, next_tokens
from interp.models.tokens import pad
from interp.results.figures import moves
from interp.stats.nulls import gradient_step, perturbed
from tests.conftest import gpt2_config, make_hf

WORDS = ["river", "stone", "sunny", "blorp", "walks", "under", "never", "snarg", "meldy", "oskle", "tavid", "quonk", "frabe", "pluv"]


class WordScorer:
    """Toxic is what holds one word."""

    name = "one word"
    classes = ("toxicity",)

    def __init__(self, word: str) -> None:
        self.word = word

    def score(self, texts: Any) -> pd.DataFrame:
        return pd.DataFrame({"toxicity": [float(self.word in text) for text in texts]})


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]


def make_context(pair: ModelPair, word: str = "x", prompts: int = 24) -> ToxicityContext:
    direction = torch.randn(pair.base.d_model, generator=torch.Generator().manual_seed(1))
    probe = Probe(torch.stack([-direction, direction], dim=1), direction, {}, pair.base.digest, {})
    held = [Passage(text[:20], text[20:], "post") for text in sentences(6, 1)]
    return ToxicityContext(pair, probe, WordScorer(word), sentences(prompts, 2), held, draws=4, quick=True, new_tokens=4)


def changed(base: Model, change: Callable[[nn.Module], object]) -> ModelPair:
    hf = base.plain_copy()
    with torch.no_grad():
        change(hf)
    return ModelPair(base, Model(hf, base.tokenizer, "tuned"))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_attention_bias(base: Model, layer: int, vector: Tensor) -> ModelPair:
    return changed(base, lambda hf: hf.transformer.h[layer].attn.c_proj.bias.add_(vector))


def favourite(context: ToxicityContext) -> tuple[int, str]:
    """The token that the base model says most often, and its text."""
    rows = context.base_tokens()
    (token, _), *_ = Counter(token for row in rows for token in dict.fromkeys(row)).most_common(1)
    return token, context.pair.base.tokenizer.decode([token])


def planted_bias(base: Model, size: float = 1.0) -> ToxicityContext:
    """The tuned side pushes every prompt away from the base model's favourite word by one vector at the offset's layer."""
    first = make_context(ModelPair(base, base))
    token, word = favourite(first)
    vector = -size * torch.nn.functional.normalize(base.unembedding[token].detach(), dim=0)
    return make_context(with_attention_bias(base, first.offset_layer, vector), word)


def test_a_constant_in_a_bias_is_one_offset_and_random_biases_are_too(gpt2: Model) -> None:
    found = offset(planted_bias(gpt2))
    assert found.statistic["explained share"] == pytest.approx(1.0, abs=1e-6)
    assert found.statistic["mean pairwise cosine"] == pytest.approx(1.0, abs=1e-6)
    # Any change of a bias is the same for all prompts, so consistency proves nothing here, and the verdict says so.
    assert found.null["mean pairwise cosine"] == pytest.approx(1.0, abs=1e-6)
    assert found.verdict == "fails"
    assert found.settings["one_offset"] == "fails"


def test_a_constant_in_all_embeddings_that_silences_the_toxic_neurons_is_the_offset_of_the_claim(gpt2: Model) -> None:
    context = make_context(ModelPair(gpt2, gpt2), prompts=40)
    layer = context.offset_layer
    keys = gpt2.key_vectors(layer)[layer_neurons(context, layer)].detach()
    vector = -6 * torch.nn.functional.normalize(keys.sum(dim=0), dim=0)
    found = offset(make_context(changed(gpt2, lambda hf: hf.transformer.wte.weight.add_(vector)), prompts=40))
    # No control run is logged, so that nothing says whether any training adds such an offset.
    assert found.earlier == {1: "holds"}
    assert found.settings["one_offset"] == "inconclusive"
    assert found.verdict != "holds"
    moved = found.statistic["share moved the same way at " + found.settings["site"]]
    assert moved == 1.0
    assert found.null["mean pairwise cosine"] < found.interval["mean pairwise cosine"][0]
    table = found.tables["by layer"]
    assert set(table["site"]) == {f"resid_{name}.{at}" for at in range(3) for name in ("mid", "post")}
    assert list(found.tables["readings"]["mode"]) == ["fixed", "paper", "code"]
    region = found.tables["region of the toxic neurons"]
    assert (region["share of prompts, tuned"][:-1] <= region["share of prompts, base"][:-1]).all()


def test_an_offset_of_noise_does_not_hold_and_of_nothing_cannot_be_asked(gpt2: Model, pair: ModelPair) -> None:
    null = ModelPair(gpt2, perturbed(ModelPair(gpt2, pair.tuned), 99))
    assert offset(make_context(null)).verdict == "fails"
    with pytest.raises(UserError, match="tuning moved nothing"):
        offset(make_context(ModelPair(gpt2, gpt2)))


def test_the_offset_of_a_bias_suffices_and_is_needed_to_the_last_word(gpt2: Model) -> None:
    context = planted_bias(gpt2)
    for finding in (sufficiency(context), necessity(context)):
        assert finding.statistic["share of the way"] == pytest.approx(1.0)
        assert finding.statistic["perplexity ratio to the other side"] == pytest.approx(1.0, abs=1e-3)
        edited = finding.tables["models"].iloc[2]
        assert edited["share of equal continuations"] == 1.0
        assert (finding.earlier, finding.verdict) == ({1: "holds"}, "inconclusive")
        assert "No trained control's offset is logged" in finding.sentence
        assert max(finding.tables["models"]["share of the way"].iloc[3:]) < 1.0


def test_what_later_layers_do_is_not_brought_by_the_offset(gpt2: Model) -> None:
    first = make_context(ModelPair(gpt2, gpt2))
    token, word = favourite(first)

    def change(hf: nn.Module) -> None:
        hf.transformer.h[first.offset_layer].attn.c_proj.bias.add_(0.01 * noise(32, seed=3))
        hf.transformer.ln_f.bias.sub_(8 * torch.nn.functional.normalize(gpt2.unembedding[token].detach(), dim=0))

    context = make_context(changed(gpt2, change), word)
    for finding in (sufficiency(context), necessity(context)):
        assert finding.statistic["share of the way"] < 0.2
        assert finding.verdict != "holds"


def test_the_causal_offset_is_fitted_on_prompts_that_it_is_not_measured_on(gpt2: Model) -> None:
    context = planted_bias(gpt2)
    settings = sufficiency(context).settings
    assert settings["fitted_on"] + settings["measured_on"] == len(context.prompts)
    vector = mean_offset_over_positions(context, context.offset_layer)
    expected = (
        context.pair.tuned.hf.transformer.h[context.offset_layer].attn.c_proj.bias
        - gpt2.hf.transformer.h[context.offset_layer].attn.c_proj.bias
    )
    assert vector == pytest.approx(expected.detach(), abs=1e-5)
    assert sorted(permuted(vector, 1).tolist()) == sorted(vector.tolist())
    assert not torch.equal(permuted(vector, 1), vector)


def test_a_tuned_side_that_is_no_less_toxic_leaves_nothing_to_test(pair: ModelPair) -> None:
    with pytest.raises(UserError, match="did not lower toxicity"):
        sufficiency(make_context(pair, word="no such word"))


def four_layers(tokenizer: Any) -> Model:
    """A model whose neurons are mostly inactive, as those of trained GELU models are."""
    hf = make_hf(gpt2_config(n_layer=4), tokenizer, seed=5)
    with torch.no_grad():
        for block in hf.transformer.h:
            block.mlp.c_fc.bias.sub_(1.0)
            block.attn.c_proj.weight.mul_(0.2)
    return Model(hf, tokenizer, "base")


def at_layer(context: ToxicityContext, layer: int) -> ToxicityContext:
    return replace(context, layer=layer)


def test_antipodal_updates_of_inactive_neurons_are_found_where_they_were_planted(tokenizer: Any) -> None:
    base = four_layers(tokenizer)
    context = make_context(ModelPair(base, base))
    means = context.mean_states(base)
    target = torch.nn.functional.normalize(noise(base.d_model, seed=1), dim=0)

    def change(hf: nn.Module) -> None:
        for layer, turn in enumerate((0.97, 0.98, 1.0)):
            inactive = means[f"mlp_post.{layer}"].mean(dim=0) < 0
            aside = torch.nn.functional.normalize(noise(128, base.d_model, seed=layer), dim=1)
            update = turn * target + math.sqrt(1 - turn**2) * aside
            hf.transformer.h[layer].mlp.c_proj.weight[inactive] -= (0.05 * update)[inactive]

    found = antipodal(replace(at_layer(make_context(changed(base, change)), 3), quick=False))
    assert found.verdict == "holds", found.summary
    assert found.earlier == {1: "holds"}
    assert found.tables["antipodal by layer"]["beyond the steps"].all()
    assert found.statistic["share of layers with updates beyond every gradient step"] == 1
    # Nothing but MLP weights was changed, so they give all of the offset and every other part nothing.
    alone = found.tables["weight swaps"].set_index("weights")["share of the offset"]
    assert alone.pop("MLP, all layers") == pytest.approx(1.0)
    assert alone.abs().max() == pytest.approx(0.0, abs=1e-6)
    assert found.statistic["median cosine"] < -0.9
    assert found.statistic["rank correlation with the layer"] == pytest.approx(-1.0)
    assert found.statistic["share of signs told by mean activation"] > 0.95
    assert found.statistic["share of the offset from changed values of inactive neurons"] > 0.5
    assert found.tables["parts"]["share"].sum() == pytest.approx(1.0, abs=1e-4)
    assert abs(found.settings["residual_of_the_sum"]) < 1e-4


def test_one_gradient_step_on_harmless_text_does_not_pass_as_antipodal_learning(tokenizer: Any, pair: ModelPair) -> None:
    base = four_layers(tokenizer)
    noisy = changed(base, lambda hf: [weight.add_(0.01 * noise(*weight.shape, seed=2)) for weight in hf.parameters()])
    context = make_context(noisy)
    rows = [base.tokenizer(passage.text, add_special_tokens=False)["input_ids"] for passage in context.passages]
    stepped = replace(context, pair=ModelPair(base, gradient_step(noisy, rows)))
    found = antipodal(at_layer(stepped, 3))
    changes = found.tables["changes"].set_index("model")["median cosine, last layer"]
    assert found.statistic["median cosine"] == pytest.approx(changes["one plain fine-tuning step (null)"], abs=0.02)
    assert found.verdict != "holds"
    assert antipodal(at_layer(context, 3)).verdict == "fails"


def test_ranks_and_logits_of_tokens_are_those_of_a_plain_forward(any_model: Model) -> None:
    texts = ["the quick wintle", "blorp and snarg", "a quonk never sings"]
    rows = [any_model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    states = capture(any_model, rows, [f"resid_post.{any_model.n_layers - 1}"])[f"resid_post.{any_model.n_layers - 1}"]
    tokens = [5, 17, 300]
    found = next_tokens(any_model, states, tokens, top=4)
    logits = any_model.hf(**pad(rows, 0).inputs()).logits[:, -1].detach()
    for number, token in enumerate(tokens):
        order = logits[number].argsort(descending=True).tolist()
        assert found.ranks[number] == order.index(token) + 1
        assert found.top[number].tolist() == order[:4]
        assert found.log_probs[number] == pytest.approx(float(logits[number].log_softmax(dim=0)[token]), abs=1e-4)
        assert found.logits[number] == pytest.approx(float(logits[number, token] - logits[number].mean()), abs=1e-4)
    assert likeliest(any_model, states, [3, 9, 12]) == [[3, 9, 12][int(row)] for row in logits[:, [3, 9, 12]].argmax(dim=1)]


def test_tokens_that_do_not_fit_the_prompts_are_refused(gpt2: Model) -> None:
    for tokens in ([1], [1, 10**6]):
        with pytest.raises(UserError, match="per prompt"):
            next_tokens(gpt2, torch.zeros(2, gpt2.d_model), tokens)


def test_matching_by_probability_takes_the_nearest_and_none_twice() -> None:
    assert match_by_probability(torch.tensor([0.5, 0.5, 0.1]), torch.tensor([0.1, 0.49, 0.3, 0.52])) == [1, 3, 0]
    assert match_by_probability(torch.tensor([0.5, 0.4]), torch.tensor([0.1])) == [0, 0]


@pytest.fixture(scope="module")
def speaker(tokenizer: Any) -> Model:
    """A random model whose first words are several readable ones."""
    return Model(make_hf(gpt2_config(), tokenizer, seed=1), tokenizer, "base")


@pytest.fixture
def listed(speaker: Model, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Some of the base model's first words, put on the word list for the experiments that read it."""
    context = make_context(ModelPair(speaker, speaker), prompts=60)
    firsts = Counter(speaker.tokenizer.decode([row[0]]) for row in context.base_tokens())
    words: set[str] = set()
    for word, _ in firsts.most_common():
        if word.isascii() and sum(firsts[known] for known in words) < 15:
            words.add(word)
    monkeypatch.setattr(shared, "is_toxic_word", lambda word: word in words)
    monkeypatch.setattr(a_e4_continuations, "toxic_token_ids", lambda model: [3])
    return words


def words_lowered(base: Model, words: set[str], size: float) -> ModelPair:
    """The tuned side gives these words less, at the very end: what the base model says first loses its place."""
    ids = [token for token in range(base.d_vocab) if base.tokenizer.decode([token]) in words]
    rows = base.unembedding[ids].detach()
    others = base.unembedding.detach().mean(dim=0)
    # A vector whose product with each listed row, above the mean row's, is minus one.
    lowering = -torch.linalg.pinv(rows - others) @ torch.ones(len(ids))
    return changed(base, lambda hf: hf.transformer.ln_f.bias.add_(size * lowering))


def test_words_that_are_lowered_a_little_lose_the_first_place_and_stay_near(speaker: Model, listed: set[str]) -> None:
    context = make_context(ModelPair(speaker, speaker), prompts=60)
    chosen, _ = split_by_first_word(context)
    assert {speaker.tokenizer.decode([token]) for _, token in chosen} == listed
    untouched = continuations(context)
    assert untouched.statistic["share that lost the first place, tuned"] == 0.0
    assert untouched.verdict == "fails"
    gone = continuations(make_context(words_lowered(speaker, listed, 50.0), prompts=60))
    assert gone.statistic["share that lost the first place, tuned"] == 1.0
    assert gone.statistic["share among the first 5, tuned"] == 0.0
    assert gone.verdict == "fails"
    # Just below the second word: dethroned, within reach.
    best = speaker.hf(**pad([row for row, _ in chosen], 0).inputs()).logits[:, -1].topk(2).values
    size = float((best[:, 0] - best[:, 1]).quantile(0.8))
    found = continuations(make_context(words_lowered(speaker, listed, size), prompts=60))
    # Tuning does what is claimed; the subtraction of a random model's value vector does not, and the claim is about the subtraction.
    assert found.earlier[1] == "holds"
    assert found.verdict != "holds"
    assert found.sentence.startswith("On the paper's three prompts")
    match = found.tables["match"].set_index("words")
    assert 0 <= match.loc["harmless first words (null)", "mean gap"] <= match.loc["harmless first words (null)", "largest gap"] < 1
    table = found.tables["prompts"]
    assert (table["rank, base"] == 1).all()
    assert (table["logit, tuned"] < table["logit, base"]).all()
    assert len(found.tables["continuations"]) == 3 * (len(a_e4_continuations.PAPER_PROMPTS) + min(9, len(chosen)))


def test_the_lens_reads_two_points_a_layer_and_one_and_its_share_is_that_of_the_rises(speaker: Model, listed: set[str]) -> None:
    context = make_context(words_lowered(speaker, listed, 2.0), prompts=60)
    found = lens(context)
    assert found.settings["points"] == 2 * speaker.n_layers + 1
    assert len(found.tables["points"]) == 4 * (2 * speaker.n_layers + 1)
    assert found.interval["fall of final probability"][0] > 0
    falls = found.tables["random changes"].groupby("null")["fall of final probability"]
    assert falls.size().to_dict() == {a_e7_lens.NULL: 3, a_e7_lens.KL_NULL: 3}
    assert found.null["fall of final probability"] == pytest.approx(falls.mean()[a_e7_lens.KL_NULL])
    chosen, _ = split_by_first_word(context)
    read = logit_lens(speaker, [row for row, _ in chosen], [token for _, token in chosen])
    mean = read.probabilities.double().mean(dim=0)
    steps = mean.diff()
    assert mlp_share(read, 0).value == pytest.approx(float(steps[1::2].sum() / steps.sum()), rel=1e-4)
    assert found.statistic["share of the rise by MLP steps"] == pytest.approx(float(steps[1::2].sum() / steps.sum()), rel=1e-4)


def test_a_pair_of_equal_noise_does_not_lower_the_word_beyond_noise(speaker: Model, listed: set[str]) -> None:
    noisy = changed(speaker, lambda hf: [weight.add_(0.02 * noise(*weight.shape, seed=2)) for weight in hf.parameters()])
    assert lens(make_context(noisy, prompts=60)).verdict != "holds"
    assert lens(make_context(ModelPair(speaker, speaker), prompts=60)).verdict == "fails"


def test_moves_join_both_ends_of_each_item_and_mark_its_side() -> None:
    columns = {"prompt": [0, 0, 1, 1], "side": ["base", "tuned"] * 2, "x": [0.0, 1.0, 2.0, 3.5], "y": [0.0, 0.5, 1.0, 1.5]}
    frame = pd.DataFrame({**columns, "state": ["on", "off", "on", "on"]})
    names = {"item": "prompt", "side": "side", "x": "x", "y": "y", "colour": "state", "x_title": "a", "y_title": "b"}
    figure = moves("m", frame, **names, title="t", caption="c", order=("off", "on"))
    dotted, off, on = figure.spec["data"]
    assert dotted["x"] == [0.0, 1.0, None, 2.0, 3.5, None]
    assert dotted["line"]["dash"] == "dot"
    assert (off["name"], off["x"], off["marker"]["symbol"]) == ("off", [1.0], ["diamond"])
    assert (on["name"], on["x"], on["marker"]["symbol"]) == ("on", [0.0, 2.0, 3.5], ["circle", "circle", "diamond"])
