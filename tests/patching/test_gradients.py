"""Gradients at sites against torch.autograd on a plain Hugging Face model and against finite differences in double."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import LogitDifference, Model, ProbeProjection, UserError, capture, gradients, hooked, load_model
from interp.patching.metrics import ContinuationToxicity
from tests.conftest import TEXTS

pytestmark = pytest.mark.oracle
TEXT = TEXTS[0]
DIFFERENCE = LogitDifference(5, 300)


def ids_of(model: Model, text: str = TEXT) -> Tensor:
    return torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])


def plain_gradients(model: Model, text: str) -> dict[str, Tensor]:
    """Of the difference of logits, by hooks of the test's own on a copy without ours."""
    hf, seen = model.plain_copy(), {}
    gpt2 = model.family == "gelu"

    def leave(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    def enter(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0])

    for layer, block in enumerate(hf.transformer.h if gpt2 else hf.model.layers):
        block.register_forward_hook(leave(f"resid_post.{layer}"))
        (block.attn.c_proj if gpt2 else block.self_attn.o_proj).register_forward_pre_hook(enter(f"z.{layer}"))
        (block.mlp.c_proj if gpt2 else block.mlp.down_proj).register_forward_pre_hook(enter(f"mlp_post.{layer}"))
        block.mlp.register_forward_hook(leave(f"mlp_out.{layer}"))
    logits = hf.requires_grad_(True)(ids_of(model, text)).logits[0, -1]
    names = list(seen)
    return dict(zip(names, torch.autograd.grad(logits[5] - logits[300], [seen[name] for name in names]), strict=True))


def test_they_are_those_of_autograd_on_the_plain_model(any_model: Model) -> None:
    expected = plain_gradients(any_model, TEXT)
    acts = gradients(any_model, TEXT, ["resid_post.*", "head_out.1", "mlp_post.*", "mlp_out.0"], DIFFERENCE)
    assert len(acts) == 2 * any_model.n_layers + 2
    for name, value in acts.items():
        torch.testing.assert_close(value.flatten(2), expected[name], atol=1e-5, rtol=1e-4)
        assert float(value.abs().max()) > 1e-4


def test_a_function_of_the_logits_and_the_metric_that_it_is_give_the_same(gpt2: Model) -> None:
    own = gradients(gpt2, [TEXT], ["resid_mid.1"], lambda logits: logits[:, 5] - logits[:, 300])
    assert torch.equal(own["resid_mid.1"], gradients(gpt2, [TEXT], ["resid_mid.1"], DIFFERENCE)["resid_mid.1"])


def test_they_are_finite_differences_in_double(gpt2: Model) -> None:
    model = load_model(gpt2.plain_copy().double(), tokenizer=gpt2.tokenizer)
    site, epsilon = "resid_mid.1", 1e-6
    metric = lambda logits: logits.logsumexp(dim=1) ** 2  # noqa: E731
    gradient = gradients(model, TEXT, [site], metric)[site]
    assert gradient.dtype == torch.float64
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        step = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            with hooked(model, {site: lambda x, change=sign * epsilon * step: x + change}), torch.no_grad():
                sides.append(float(metric(model.hf(ids_of(model)).logits[:, -1])))
        assert (sides[0] - sides[1]) / (2 * epsilon) == pytest.approx(float((gradient * step).sum()), rel=1e-6)


def test_texts_of_different_lengths_come_back_padded_each_as_by_itself(gpt2: Model) -> None:
    texts = list(TEXTS[:3])
    together = gradients(gpt2, texts, ["resid_post.1"], DIFFERENCE)
    last = gradients(gpt2, texts, ["resid_post.1"], DIFFERENCE, positions="last")["resid_post.1"]
    assert together.mask is not None
    for row, text in enumerate(texts):
        alone = gradients(gpt2, text, ["resid_post.1"], DIFFERENCE)["resid_post.1"][0]
        assert int(together.mask[row].sum()) == len(alone)
        assert torch.equal(together["resid_post.1"][row, : len(alone)], alone)
        assert not together["resid_post.1"][row, len(alone) :].any()
        assert torch.equal(last[row], alone[-1])


def test_those_at_a_pattern_are_finite_differences_and_shaped_as_captured(gpt2: Model) -> None:
    model, site, epsilon = load_model(gpt2.plain_copy().double(), tokenizer=gpt2.tokenizer), "pattern.1", 1e-6
    gradient = gradients(model, TEXT, [site], DIFFERENCE)[site]
    step = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = []
    for sign in (1, -1):
        with hooked(model, {site: lambda x, change=sign * epsilon * step: x + change}), torch.no_grad():
            logits = model.hf(ids_of(model)).logits[0, -1]
            sides.append(float(logits[5] - logits[300]))
    assert (sides[0] - sides[1]) / (2 * epsilon) == pytest.approx(float((gradient * step).sum()), rel=1e-5)
    texts = list(TEXTS)
    assert len({ids_of(model, text).shape for text in texts}) > 1
    together, last = gradients(model, texts, [site], DIFFERENCE), gradients(model, texts, [site], DIFFERENCE, positions="last")
    for positions, values in (("all", together), ("last", last)):
        assert values[site].shape == capture(model, texts, [site], positions=positions)[site].shape
    for row, text in enumerate(texts):
        alone = gradients(model, text, [site], DIFFERENCE)[site][0]
        count = alone.shape[-1]
        assert torch.equal(together[site][row, :, :count, :count], alone)
        assert torch.equal(last[site][row, :, :count], alone[:, -1])
        assert together[site][row].count_nonzero() == alone.count_nonzero()
        assert last[site][row].count_nonzero() == alone[:, -1].count_nonzero() > 0


def test_a_site_above_what_the_metric_reads_has_a_gradient_of_zero(gpt2: Model) -> None:
    projection = ProbeProjection(torch.ones(gpt2.d_model), "resid_mid.1", "last")
    acts = gradients(gpt2, TEXT, ["resid_mid.1", "resid_post.2"], projection)
    assert not acts["resid_post.2"].any()
    expected = torch.zeros_like(acts["resid_mid.1"])
    expected[0, -1] = torch.ones(gpt2.d_model) / gpt2.d_model**0.5
    torch.testing.assert_close(acts["resid_mid.1"], expected)


def test_the_model_is_left_as_it_was(gpt2: Model) -> None:
    before = copy.deepcopy([parameter.requires_grad for parameter in gpt2.hf.parameters()])
    gradients(gpt2, TEXT, ["resid_post.0"], DIFFERENCE)
    assert [parameter.requires_grad for parameter in gpt2.hf.parameters()] == before
    assert all(parameter.grad is None for parameter in gpt2.hf.parameters())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sites", "metric", "settings", "problem"),
    [
        ([], DIFFERENCE, {}, "without prompts or without sites"),
        (["logits"], DIFFERENCE, {}, "logits cannot be differentiated at"),
        (["resid_post.0"], LogitDifference(5, 10**6), {}, "does not exist"),
        (["resid_post.0"], ContinuationToxicity(None), {}, "has no gradient"),  # type: ignore[arg-type]
        (["resid_post.0"], lambda logits: logits.detach()[:, 0], {}, "has no gradient"),
        (["resid_post.0"], lambda logits: logits, {}, r"returned a tensor of shape \[1, \d+\]"),
        (["resid_post.0"], "logits", {}, "is not a metric"),
        (["resid_post.0"], DIFFERENCE, {"positions": "first"}, "is unknown"),
    ],
)
def test_what_has_no_gradient_is_refused(gpt2: Model, sites: list[str], metric: Any, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        gradients(gpt2, TEXT, sites, metric, **settings)
