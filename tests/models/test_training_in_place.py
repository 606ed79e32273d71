"""A model whose weights change while it is wrapped: its digest follows, and wrapping leaves the caller's model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from interp import capture, generate
from interp.errors import UserError
from interp.evaluation.metrics import perplexity
from interp.forward.resume import trace
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.offloading import weights_digest
from interp.stats.divergence import kl_to

TEXT = "the quick wintle sings under a river"


@pytest.fixture
def hf(gpt2: Model) -> PreTrainedModel:
    return copy.deepcopy(gpt2.plain_copy())


def step(hf: PreTrainedModel, gpt2: Model) -> None:
    """One step of gradient descent on a text."""
    ids = gpt2.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.SGD(hf.parameters(), lr=0.1)
    hf(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def test_the_digest_of_a_model_trained_in_place_is_that_of_its_weights_now(hf: PreTrainedModel, gpt2: Model) -> None:
    policy = Model(hf, gpt2.tokenizer, "policy")
    assert policy.digest == gpt2.digest
    step(hf, gpt2)
    trained = policy.digest
    assert trained == weights_digest(hf) != gpt2.digest
    freeze(hf)
    assert policy.digest == trained
    with torch.no_grad():
        next(hf.parameters()).mul_(2)
    assert policy.digest == weights_digest(hf) != trained
    assert gpt2.manifest()["digest"] == gpt2.digest


def test_the_digest_of_frozen_weights_is_computed_once(hf: PreTrainedModel, gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model, computed = Model(freeze(hf), gpt2.tokenizer, "model"), []
    monkeypatch.setattr("interp.models.model.weights_digest", lambda hf: computed.append(1) or "digest")
    assert {model.digest, model.digest, model.digest} == {"digest"}
    assert len(computed) == 1
    hf.requires_grad_(True)
    assert {model.digest, model.digest} == {"digest"}
    assert len(computed) == 3, "while the weights ask for gradients nothing is kept"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_wrapped_model_keeps_its_mode_and_its_gradients(hf: PreTrainedModel, gpt2: Model, training: bool, gradients: bool) -> None:
    hf.train(training).requires_grad_(gradients)
    Model(hf, gpt2.tokenizer, "wrapped")
    assert hf.training is training
    assert {parameter.requires_grad for parameter in hf.parameters()} == {gradients}


def test_weights_by_meaning_ask_for_no_gradient_and_share_the_models_memory(hf: PreTrainedModel, gpt2: Model) -> None:
    model = Model(hf.requires_grad_(True), gpt2.tokenizer, "policy")
    for weight in (model.value_vectors(0), model.key_vectors(1), model.value_bias(0), model.unembedding, model.final_gain):
        assert not weight.requires_grad
    assert model.unembedding.data_ptr() == hf.get_output_embeddings().weight.data_ptr()


READINGS: dict[str, Callable[[Model, Model], object]] = {
    "capture": lambda model, other: capture(model, [TEXT], sites=["resid_post.0"])["resid_post.0"],
    "generate": lambda model, other: generate(model, [TEXT], max_new_tokens=2),
    "perplexity": lambda model, other: perplexity(model, [TEXT]).losses,
    "kl_to": lambda model, other: kl_to(other, model, [TEXT]),
    "trace": lambda model, other: trace(model, [1, 2, 3]).stream,
}


@pytest.fixture(params=sorted(READINGS))
def reading(request: pytest.FixtureRequest) -> Callable[[Model, Model], object]:
    return READINGS[request.param]


def test_what_is_read_of_a_model_that_is_trained_asks_for_no_gradient(
    reading: Callable[[Model, Model], object], hf: PreTrainedModel, gpt2: Model
) -> None:
    hf.requires_grad_(True)
    value = reading(Model(hf, gpt2.tokenizer, "policy"), gpt2)
    assert not (isinstance(value, torch.Tensor) and value.requires_grad)
    assert str(value) == str(reading(gpt2, gpt2))
    assert all(parameter.grad is None for parameter in hf.parameters())


def test_reading_a_model_whose_dropout_is_active_is_refused(
    reading: Callable[[Model, Model], object], hf: PreTrainedModel, gpt2: Model
) -> None:
    model = Model(hf, gpt2.tokenizer, "policy")
    for part in hf.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    hf.train()
    with pytest.raises(UserError, match=r"policy is in training mode with a dropout of 0\.5.*model\.hf\.eval\(\)"):
        reading(model, gpt2)
    hf.eval()
    assert reading(model, gpt2) is not None
    for part in hf.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    hf.train()
    assert str(reading(model, gpt2)) == str(reading(gpt2, gpt2)), "training mode alone changes nothing"
