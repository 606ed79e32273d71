"""The probe against the objective it documents, on planted words and planted confounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from interp.errors import UserError
from tests.directions.sentences import FILLERS, corpus

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def probe(planted):
    """Fitted on texts with and without the planted model's trigger."""
    from interp.directions.probe import fit_probe

    return fit_probe(planted.model, *corpus(word=planted.trigger.strip()))


@pytest.mark.parametrize(("bias", "standardise"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_weights_minimise_the_objective_that_is_documented(model, l2: float, bias: bool, standardise: bool) -> None:
    from interp import capture
    from interp.directions.probe import fit_probe
    from interp.directions.probe_data import split

    texts, labels = corpus()
    texts, labels = texts[:100] + texts[101::4], labels[:100] + labels[101::4]
    probe = fit_probe(model, texts, labels, l2=l2, held_out=0.25, seed=4, bias=bias, standardise=standardise)
    truth = np.array(labels)
    train, _ = split(truth, np.arange(len(texts)), 0.75, 4)
    x = capture(model, [texts[i] for i in train], ["resid_post.2"], positions="mean")["resid_post.2"].double()
    y = torch.from_numpy(truth[train])
    assert truth[train].mean() > 0.5
    scale = x.std(dim=0, correction=0)
    if not standardise:
        scale = torch.full_like(scale, float(np.median(scale.numpy())))
    weights = probe.weights.double().requires_grad_()
    offset = probe.bias.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(x @ weights + offset, y, reduction="none")
    balanced = (losses[y == 1].mean() + losses[y == 0].mean()) / 2
    w = weights[:, 1] - weights[:, 0]
    (balanced + l2 / 2 * (scale * w).square().sum()).backward()
    # The gradient in the features as they were fitted.
    gradient = float((weights.grad / scale[:, None]).norm())
    assert gradient < 1e-4 * float((x / scale).norm(dim=1).mean())
    # At the optimum the penalty pulls exactly as hard as the losses, so a wrong strength would leave a gradient of this size.
    assert l2 * float((scale * w.detach()).norm()) > 20 * gradient
    if bias:
        assert float(offset.grad.abs().max()) < 1e-4
        assert float(probe.bias[0]) == -float(probe.bias[1]) != 0
    else:
        assert not probe.bias.any()
    torch.testing.assert_close(probe.weights[:, 0], -probe.weights[:, 1])
    torch.testing.assert_close(probe.difference_in_means.double(), x[y == 1].mean(0) - x[y == 0].mean(0), atol=1e-5, rtol=1e-4)


def test_the_trigger_is_separated_and_shuffled_labels_are_not(probe, planted) -> None:
    metrics = probe.metrics
    assert metrics["auc"] > 0.97
    assert metrics["auc_low"] <= metrics["auc"] <= metrics["auc_high"]
    assert metrics["balanced_accuracy"] > 0.9
    assert abs(metrics["shuffled_auc"] - 0.5) < 0.2
    assert metrics["embeddings_auc"] > 0.97
    assert metrics["stability"] > 0.9
    assert (metrics["train"], metrics["held_out"], metrics["share_toxic"]) == (128, 32, 0.5)
    assert probe.direction.shape == (planted.model.d_model,)
    assert set(probe.to_frame().columns) == {"metric", "value", "meaning"}
    assert (probe.to_frame()["meaning"] != "").all()


def test_the_direction_promotes_the_word_that_the_planted_neuron_writes_and_ranks_that_neuron_first(probe, planted) -> None:
    from interp.neurons.ranking import rank_values
    from interp.neurons.vocabulary import top_tokens

    assert top_tokens(planted.model, probe.direction, top=1).words == [[planted.word]]
    assert rank_values(planted.model, probe.direction, top=1).neurons == [(planted.layer, planted.index)]


def test_without_a_bias_the_direction_itself_has_to_set_the_threshold_at_the_mean_of_all_texts(planted) -> None:
    from interp import capture
    from interp.directions.probe import fit_probe

    texts, labels = corpus(word=planted.trigger.strip())
    mean = capture(planted.model, texts, ["resid_post.2"], positions="mean")["resid_post.2"].mean(dim=0)
    # A threshold of 0 lies between the classes only where the mean of all texts scores about 0.
    with_bias, without = (fit_probe(planted.model, texts, labels, bias=bias) for bias in (True, False))
    reach = [abs(float((2 * probe.direction) @ mean)) for probe in (with_bias, without)]
    assert abs(float(with_bias.bias[1] - with_bias.bias[0])) > 1
    assert with_bias.metrics["accuracy"] == without.metrics["accuracy"] == 1.0
    assert reach[1] < reach[0]


def test_scores_are_the_log_odds_of_the_softmax_over_the_mean_residual(probe, planted) -> None:
    from interp.directions.probe import probe_scores

    texts, model = ["a quick wintle", "the river sings under the narrow stone"], planted.model
    scores = probe_scores(probe, model, texts)
    for text, score in zip(texts, scores, strict=True):
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        held = []
        hook = model.hf.transformer.h[2].register_forward_hook(lambda m, a, output, held=held: held.append(output))
        with torch.no_grad():
            model.hf(ids)
        hook.remove()
        state = held[0][0] if isinstance(held[0], tuple) else held[0]
        chance = (state[0].mean(dim=0) @ probe.weights + probe.bias).softmax(dim=0)[1]
        assert float(score.sigmoid()) == pytest.approx(float(chance), abs=1e-5)
    assert float(scores[0]) > 0 > float(scores[1])


@pytest.mark.parametrize("standardise", [True, False])
def test_more_penalty_turns_the_probe_to_the_difference_in_means(gpt2, standardise: bool) -> None:
    from interp.directions.probe import fit_probe, sweep_l2

    strengths = [0.001, 0.1, 1e4]
    frame = sweep_l2(gpt2, *corpus(), strengths, top=5, standardise=standardise)
    assert frame["l2"].tolist() == [*strengths, float("inf")]
    assert frame["cosine_difference"].is_monotonic_increasing
    assert frame["cosine_difference"].iloc[-2:].to_numpy() == pytest.approx(1, abs=1e-3)
    assert frame["cosine_difference"].iloc[0] < 0.99
    alone = fit_probe(gpt2, *corpus(), l2=0.1, standardise=standardise)
    for column in ("accuracy", "balanced_accuracy", "auc", "auc_low", "stability", "cosine_difference", "capitals_correlation"):
        assert frame[column].iloc[1] == pytest.approx(alone.metrics[column], abs=1e-9)
    assert frame["auc"].iloc[-1] == pytest.approx(alone.metrics["difference_auc"])


def test_brought_back_to_raw_activations_the_standardised_fit_gives_the_same_log_odds(gpt2) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from interp import capture
    from interp.directions.probe import fit_probe, probe_scores
    from interp.directions.probe_data import split

    texts, labels = corpus()
    probe = fit_probe(gpt2, texts, labels, l2=0.1, seed=2)
    x = capture(gpt2, texts, ["resid_post.2"], positions="mean")["resid_post.2"].double().numpy()
    train, _ = split(np.array(labels), np.arange(len(texts)), 0.8, 2)
    scaler = StandardScaler().fit(x[train])
    referee = LogisticRegression(C=1 / (len(train) * 0.1), class_weight="balanced", tol=1e-8, max_iter=5000)
    referee.fit(scaler.transform(x[train]), np.array(labels)[train])
    expected = referee.decision_function(scaler.transform(x))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(probe_scores(probe, gpt2, texts).numpy(), expected, atol=2e-4)


def test_a_few_enormous_coordinates_do_not_drown_a_standardised_probe(gpt2, monkeypatch) -> None:
    from interp.directions import probe as module
    from interp.directions import probe_data

    rng, width = np.random.default_rng(0), gpt2.d_model
    texts, labels = corpus(400)
    features = rng.normal(size=(len(texts), width))
    features[:, 5] += 1.5 * np.array(labels)
    features[:, :3] *= 1000
    monkeypatch.setattr(probe_data, "features_of", lambda *given: torch.from_numpy(features).float())
    probe = module.fit_probe(gpt2, texts, labels)
    # The three coordinates tell nothing, and hold nearly all of the difference in means.
    assert float(torch.nn.functional.normalize(probe.difference_in_means, dim=0)[:3].norm()) > 0.99
    assert int(probe.direction.abs().argmax()) == 5
    deviations = torch.from_numpy(features[probe_data.split(np.array(labels), np.arange(400), 0.8, 0)[0]].std(axis=0)).float()
    torch.testing.assert_close(probe.direction, probe.weights[:, 1] * deviations / deviations.median())
    old = module.fit_probe(gpt2, texts, labels, standardise=False)
    torch.testing.assert_close(probe.unstandardised, old.direction)
    assert old.unstandardised is None
    assert torch.equal(old.direction, old.weights[:, 1])
    assert probe.metrics["unstandardised_auc"] == old.metrics["auc"]
    assert (probe.settings["standardise"], old.settings["standardise"]) == (True, False)


def test_shouting_and_length_show_as_confounds(gpt2) -> None:
    from interp.directions.probe import fit_probe

    texts, labels = corpus(word="river")
    shouted = [text.upper() if label else text for text, label in zip(texts, labels, strict=True)]
    metrics = fit_probe(gpt2, shouted, labels).metrics
    assert metrics["capitals_auc"] == 1.0
    assert metrics["capitals_correlation"] > 0.9
    assert abs(metrics["length_auc"] - 0.5) < 0.3
    more = " the river sings and the stone walks under the narrow river"
    longer = [text + more * label for text, label in zip(texts, labels, strict=True)]
    metrics = fit_probe(gpt2, longer, labels).metrics
    assert metrics["length_auc"] == 1.0
    assert (metrics["capitals_auc"], metrics["capitals_correlation"]) == (0.5, 0.0)


def test_where_only_the_order_of_words_tells_the_bag_of_embeddings_is_blind(gpt2) -> None:
    from interp.directions.probe import fit_probe

    rng = np.random.default_rng(0)
    texts, labels = [], []
    for _ in range(120):
        rest = " ".join(rng.choice(FILLERS, 2))
        texts += [f"snarg {rest} blorp", f"blorp {rest} snarg"]
        labels += [1, 0]
    # A single token differs between " snarg" and "snarg", so every word comes after a space.
    texts = [" " + text for text in texts]
    metrics = fit_probe(gpt2, texts, labels, l2=1e-3).metrics
    assert metrics["embeddings_auc"] < 0.6
    assert metrics["auc"] > 0.95


def test_a_saved_probe_is_read_back_and_knows_its_model(probe, gpt2, planted, tmp_path) -> None:
    from interp.directions.probe import load_probe, probe_scores, save_probe

    again = load_probe(save_probe(probe, tmp_path / "probe"))
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == ["probe.json", "probe.safetensors"]
    assert torch.equal(again.weights, probe.weights)
    assert torch.equal(again.bias, probe.bias)
    assert torch.equal(again.difference_in_means, probe.difference_in_means)
    assert torch.equal(again.unstandardised, probe.unstandardised)
    assert torch.equal(again.direction, probe.direction)
    assert (dict(again.metrics), dict(again.settings)) == (dict(probe.metrics), dict(probe.settings))
    assert again.matches(planted.model)
    assert not again.matches(gpt2)
    assert torch.equal(probe_scores(again, planted.model, ["a snarg"]), probe_scores(probe, planted.model, ["a snarg"]))
    assert probe_scores(again, gpt2, ["a snarg"]).shape == (1,)


def test_a_damaged_probe_is_refused(probe, tmp_path) -> None:
    from interp.directions.probe import load_probe, save_probe

    folder = save_probe(probe, tmp_path / "probe")
    record = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps(record | {"tensors": "0"}))
    with pytest.raises(UserError, match="do not belong together"):
        load_probe(folder)
    (folder / "probe.json").write_text(json.dumps({key: value for key, value in record.items() if key != "metrics"}))
    with pytest.raises(UserError, match="has no 'metrics'"):
        load_probe(folder)
    (folder / "probe.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="corrupt"):
        load_probe(folder)
    (folder / "probe.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        load_probe(folder)


def test_the_bundled_probe_is_read_from_its_folder_or_its_absence_is_said(probe, tmp_path, monkeypatch) -> None:
    from interp.directions import probe as module

    monkeypatch.setattr(module, "BUNDLED_PROBE", tmp_path / "probe")
    with pytest.raises(UserError, match="no probe ships"):
        module.bundled_probe()
    module.save_probe(probe, tmp_path / "probe")
    assert module.bundled_probe().digest == probe.digest


def test_texts_and_labels_that_cannot_be_fitted_are_refused(gpt2, probe) -> None:
    import dataclasses

    from interp.directions.probe import fit_probe, probe_scores, sweep_l2

    texts, labels = corpus(40)
    narrow = dataclasses.replace(probe, weights=torch.ones(3, 2), difference_in_means=torch.ones(3), scales=None, unstandardised=None)
    for call, message in [
        (lambda: fit_probe(gpt2, texts, [1] * 40), "0 of the 40 texts are labelled not toxic"),
        (lambda: fit_probe(gpt2, texts[:19], labels[:19]), "19 texts are too few"),
        (lambda: fit_probe(gpt2, texts, labels[:-1]), "40 texts and 39 labels"),
        (lambda: fit_probe(gpt2, ["", *texts[1:]], labels), "text 0 is empty"),
        (lambda: fit_probe(gpt2, texts, [2, *labels[1:]]), "label 2 is neither"),
        (lambda: fit_probe(gpt2, texts, labels, l2=0), "L2 strength is 0"),
        (lambda: fit_probe(gpt2, texts, labels, held_out=1.0), "held-out share of 1.0"),
        (lambda: fit_probe(gpt2, texts, labels, held_out=0.01), "held-out share of 0.01"),
        (lambda: sweep_l2(gpt2, texts, labels, []), "no strengths"),
        (lambda: probe_scores(narrow, gpt2, texts), "reads 3 numbers"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
