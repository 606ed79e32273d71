"""Experiments on pairs whose answer is known, and reports that resume, skip and repeat."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.data.texts import Passage
from interp.directions.probe import fit_probe
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.metrics import perplexity
from interp.evaluation.token_toxicity import written_toxicity
from interp.evaluation.toxicity import load_scorer
from interp.experiments.fingerprint import fingerprint
from interp.experiments.registry import EXPERIMENTS, find_experiments
from interp.experiments.run import run_report
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.a_e1_probe import readings
from interp.experiments.toxicity.a_e8_weights import run as weights
from interp.experiments.toxicity.a_e9_activations import _readings, mean_activations
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.shared import matched_strength
from interp.models.pair import ModelPair
from interp.models.tokens import pad
from interp.neurons.projection import projection_for
from interp.neurons.ranking import rank_values, values_at
from interp.neurons.vocabulary import top_tokens
from interp.report.page import read_report
from interp.stats.divergence import kl_to
from interp.stats.nulls import perturbed
from tests.probes import shared_probe

WORDS = ["river", "stone", "green", "light", "house", "walks", "under", "over", "seven", "birds"]


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(count)]


@pytest.fixture
def context(pair: ModelPair) -> ToxicityContext:
    texts = sentences(40, 0)
    probe = shared_probe(pair.base, texts, [int("river" in text) for text in texts])
    held = [Passage(text[:20], text[20:], "post") for text in sentences(6, 1)]
    return ToxicityContext(pair, probe, load_scorer("lexicon"), sentences(5, 2), held, draws=6, quick=True, new_tokens=4)


def test_every_experiment_states_its_criterion_and_what_would_refute_it() -> None:
    for item in EXPERIMENTS.values():
        assert item.criterion.text.startswith(("Holds if", "Not testable where", "Where a model refuses fewer"))
        assert "Holds if" in item.criterion.text
        assert "fails if" in item.criterion.text.lower()
        assert item.question.endswith("?")
        assert item.criterion.refuted_by
        assert item.caveat


def test_experiments_are_found_by_id_or_claim_in_any_case() -> None:
    assert [item.id for item in find_experiments(["a-e12", "A-C5"])] == ["A-E8", "A-E12"]
    with pytest.raises(UserError, match="there is no experiment B-E99"):
        find_experiments(["A-E1", "B-E99"])


@pytest.mark.parametrize("quick", [False, True])
def test_the_matched_strength_reaches_the_perplexity_asked_for(context: ToxicityContext, quick: bool) -> None:
    base = context.pair.base
    direction = context.direction
    strength = matched_strength(replace(context, quick=quick), base, direction, 1.05)
    texts = [passage.text for passage in context.passages]
    edit = Edit.subtract(f"resid_post.{base.n_layers - 1}", direction, strength)
    ratio = perplexity(base, texts, edits=[edit]).value / perplexity(base, texts).value
    assert ratio == pytest.approx(1.05, abs=0.005)


def test_mean_activations_equal_those_of_one_prompt_at_a_time(context: ToxicityContext) -> None:
    base = context.pair.base
    neurons = [(0, 3), (1, 5), (0, 7)]
    found = mean_activations(context, base, neurons, "base")
    for number, (row, more) in enumerate(zip(context.prompt_rows(), context.base_tokens(), strict=True)):
        seen: dict[int, torch.Tensor] = {}
        handles = [
            base.hf.get_submodule(f"{base.architecture.blocks}.{layer}.mlp.c_proj").register_forward_pre_hook(
                lambda module, args, layer=layer, seen=seen: seen.__setitem__(layer, args[0][0])
            )
            for layer in (0, 1)
        ]
        base.hf(**pad([row + more[:-1]], 0).inputs())
        for handle in handles:
            handle.remove()
        for column, (layer, index) in enumerate(neurons):
            assert found[number, column] == pytest.approx(seen[layer][len(row) - 1 :, index].mean().item(), abs=1e-6)


def test_whose_tokens_are_read_changes_activations_only_where_the_tokens_differ(context: ToxicityContext) -> None:
    base, tuned = context.pair.base, context.pair.tuned
    neurons = [(0, 3), (1, 5)]
    on_base = {name: mean_activations(context, model, neurons, "base") for name, model in context.pair.sides.items()}
    rows = _readings(context, neurons, on_base).set_index(["neurons", "tokens of"]).loc["toxic"]
    on_tuned = [mean_activations(context, model, neurons, "tuned")[:, :1].mean() for model in (base, tuned)]
    assert rows.loc["base", ["base", "tuned"]].tolist() == pytest.approx([on_base["base"][:, :1].mean(), on_base["tuned"][:, :1].mean()])
    assert rows.loc["tuned", ["base", "tuned"]].tolist() == pytest.approx(on_tuned)
    # Each model on its own tokens.
    assert rows.loc["own", ["base", "tuned"]].tolist() == pytest.approx([on_base["base"][:, :1].mean(), on_tuned[1]])
    differ = np.array([a != b for a, b in zip(context.greedy_tokens(base), context.greedy_tokens(tuned), strict=True)])
    assert differ.any()
    changed = (
        np.abs(mean_activations(context, base, neurons, "base") - mean_activations(context, base, neurons, "tuned")).max(axis=1) > 1e-7
    )
    # The last token is chosen but not read.
    read = np.array([a[:-1] != b[:-1] for a, b in zip(context.greedy_tokens(base), context.greedy_tokens(tuned), strict=True)])
    np.testing.assert_array_equal(changed, read)


def test_a_random_change_has_the_norm_of_the_tuning_in_every_tensor(pair: ModelPair) -> None:
    moved = dict(perturbed(pair, 3).hf.named_parameters())
    tuned = dict(pair.tuned.hf.named_parameters())
    for name, weight in pair.base.hf.named_parameters():
        length = (tuned[name] - weight).norm().item()
        assert (moved[name] - weight).norm().item() == pytest.approx(length, rel=1e-4)
        if length > 0 and weight.numel() > 100:
            between = torch.cosine_similarity((moved[name] - weight).flatten(), (tuned[name] - weight).flatten(), dim=0)
            assert abs(between.item()) < 0.5


def test_noise_has_the_kl_of_the_tuning_on_the_prompts_and_its_scale_is_searched_once(
    context: ToxicityContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = context.pair.base, context.pair.tuned
    noise = shared.noise_to_kl(context, 1)
    goal = kl_to(tuned, base, context.prompts).mean()
    assert kl_to(noise, base, context.prompts).mean() == pytest.approx(goal, rel=0.02)
    monkeypatch.setattr(shared, "scale_to_kl", None)
    again = dict(shared.noise_to_kl(context, 1).hf.named_parameters())
    assert all(torch.equal(again[name], weight) for name, weight in noise.hf.named_parameters())
    with pytest.raises(TypeError):
        shared.noise_to_kl(context, 2)


def test_the_reading_of_a_probe_stands_beside_that_of_the_same_fit_without_standardising(context: ToxicityContext) -> None:
    table = readings(context)
    assert table["features"].tolist() == ["standardised", "not standardised"]
    assert table["AUC"].tolist() == [context.probe.metrics["auc"], context.probe.metrics["unstandardised_auc"]]
    assert context.probe.unstandardised is not None
    for row, direction in zip(table.itertuples(), (context.direction, context.probe.unstandardised), strict=True):
        words = top_tokens(context.pair.base, direction, top=10).words[0]
        assert row[-1] == " · ".join(word.strip() for word in words)
    assert table["cosine with the probe"].tolist() == pytest.approx(
        [1.0, float(torch.cosine_similarity(context.direction, context.probe.unstandardised, dim=0))]
    )
    # Some of the labelled texts that ship are longer than this model's context.
    short = {**context.probe.settings, "max_tokens": context.pair.base.context}
    ran = EXPERIMENTS["A-E1"].run(replace(context, probe=replace(context.probe, settings=short)))
    assert set(ran.tables) == {"directions", "readings"}
    assert ran.summary.endswith(f"the same fit has AUC {context.probe.metrics['unstandardised_auc']:.3f}.")
    texts = sentences(40, 0)
    labels = [int("river" in text) for text in texts]
    plain = fit_probe(context.pair.base, texts, labels, seed=0, standardise=False, max_tokens=context.pair.base.context)
    assert set(EXPERIMENTS["A-E1"].run(replace(context, probe=plain)).tables) == {"directions"}


def test_what_the_nearest_vectors_write_is_scored_in_sentences_beside_the_word_list(context: ToxicityContext) -> None:
    ran = EXPERIMENTS["A-E2"].run(context)
    neurons = context.ranking.neurons[:10]
    expected = written_toxicity(context.pair.base, neurons, context.scorer)
    values = ran.tables["vectors"].query("role == 'value'")["toxicity in sentences"]
    np.testing.assert_allclose(values, expected)
    assert ran.statistic["toxicity in sentences"] == pytest.approx(expected.mean())
    # With the word list as the scorer both measures count the same words, in the null too.
    np.testing.assert_allclose(values, ran.tables["vectors"].query("role == 'value'")["share of toxic words"])
    assert 0 <= ran.null["toxicity in sentences"] <= 1
    assert ran.settings["projection"] == "dot product with the unembedding"


def test_a_large_vocabulary_is_read_by_the_cosine_with_its_common_tokens(context: ToxicityContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.neurons.projection.SMALL_VOCABULARY", 10)
    ran = EXPERIMENTS["A-E2"].run(context)
    projection = projection_for(context.pair.base)
    words = top_tokens(context.pair.base, values_at(context.pair.base, context.ranking.neurons[:1]), top=10, projection=projection).words[0]
    assert ran.tables["vectors"].query("role == 'value'")["top tokens"].iloc[0] == " · ".join(word.strip() for word in words)
    assert ran.settings["projection"] == str(projection)
    assert f"ranked by the {projection}; by dot product" in ran.summary


def test_a_pair_of_twice_the_same_model_has_moved_no_weight_and_no_neuron(context: ToxicityContext) -> None:
    same = replace(context, pair=ModelPair(context.pair.base, context.pair.base))
    found = weights(same)
    assert found.statistic["largest 1 − cosine of a tensor"] == pytest.approx(0.0, abs=1e-6)
    assert found.statistic["percentile of toxic values"] == pytest.approx(50.0)
    assert found.verdict == "holds"


def test_rewritten_value_vectors_fail_the_claim_that_weights_hardly_change(context: ToxicityContext) -> None:
    hf = context.pair.base.plain_copy()
    with torch.no_grad():
        for layer, index in rank_values(context.pair.base, context.direction, top=8).neurons:
            hf.transformer.h[layer].mlp.c_proj.weight[index] *= -3
    rewritten = replace(context, pair=ModelPair(context.pair.base, type(context.pair.base)(hf, context.pair.base.tokenizer, "tuned")))
    assert weights(rewritten).verdict == "fails"


def test_a_report_resumes_from_kept_results_and_recomputes_when_a_setting_changes(context: ToxicityContext, tmp_path: Path) -> None:
    calls: list[str] = []
    progress = lambda phrase, done, total: calls.append(phrase)  # noqa: E731
    first = run_report(context, tmp_path / "report", only=["A-E8", "A-E2"], progress=progress)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "report" / "results").rglob("*.json")}
    again = run_report(context, tmp_path / "report", only=["A-E8", "A-E2"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "report" / "results").rglob("*.json")} == kept
    assert [result.summary for result in again.results] == [result.summary for result in first.results]
    changed = replace(context, seed=1)
    assert fingerprint(EXPERIMENTS["A-E8"], changed) != fingerprint(EXPERIMENTS["A-E8"], context)
    run_report(changed, tmp_path / "report", only=["A-E8"])
    assert len(list((tmp_path / "report" / "results").rglob("*.json"))) == len(kept) + 1
    assert any("weights" in phrase for phrase in calls)


def test_an_experiment_that_the_prompts_cannot_answer_is_left_out_and_named(context: ToxicityContext, tmp_path: Path) -> None:
    ran = run_report(context, tmp_path / "report", only=["A-E7", "A-E8"])
    assert [result.id for result in ran.results] == ["A-E8"]
    assert "prompts with a word of the list" in ran.skipped["A-E7"]
    written = read_report(tmp_path / "report")
    assert written.environment["skipped"] == ran.skipped
    assert [result.id for result in written.results] == ["A-E8"]


def test_a_report_into_a_file_is_refused_and_the_file_kept(context: ToxicityContext, tmp_path: Path) -> None:
    target = tmp_path / "report"
    target.write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        run_report(context, target, only=["A-E8"])
    assert target.read_text() == "mine"


@pytest.mark.slow
def test_all_experiments_run_on_a_small_random_pair_and_none_claims_a_bypass(context: ToxicityContext, tmp_path: Path) -> None:
    ran = run_report(context, tmp_path / "report")
    verdicts = {result.id: result.verdict for result in ran.results}
    assert set(verdicts) | set(ran.skipped) == {item.id for item in find_experiments(None)}
    assert verdicts.get("A-E12") != "holds"
    assert verdicts.get("A-E3") != "holds"
    for result in ran.results:
        assert result.summary
        assert result.figures
        assert all(math.isfinite(value) or value != value for value in result.statistic.values())


def test_the_report_that_ships_is_of_the_pair_that_ships_and_asks_what_is_asked_now() -> None:
    from app.settings import SHIPPED_REPORT

    report, pair = read_report(SHIPPED_REPORT), ModelPair.bundled()
    assert [report.pair[side]["digest"] for side in ("base", "tuned")] == [pair.base.digest, pair.tuned.digest]
    held = {result.id: result for result in report.results}
    assert held.keys() | report.environment["skipped"].keys() == {item.id for item in find_experiments(None)}
    for name, result in held.items():
        assert (result.question, result.criterion) == (EXPERIMENTS[name].question, EXPERIMENTS[name].criterion.text), name
        assert not result.settings["quick"], name
