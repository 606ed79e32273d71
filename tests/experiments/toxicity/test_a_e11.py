"""The rule of A-E11 by layer, and what parts of the weights do alone in the base model."""

from __future__ import annotations

import math

import pytest
import torch

from interp.diffing.antipodes import Antipodes
from interp.diffing.offset_sources import pooled
from interp.diffing.offsets import resampled
from interp.experiments.toxicity.a_e11_antipodal import FIRST, FURTHER
from interp.experiments.toxicity.a_e11_rule import PLAIN, RANDOM, SHUFFLED, chance_beyond, judge, judge_1, layers_of
from interp.experiments.toxicity.weight_swaps import share_of_fall, share_of_offset, swaps_of, weight_swaps
from interp.forward.capture import capture
from interp.models.pair import ModelPair
from interp.stats.intervals import Interval
from tests.experiments.toxicity.test_experiments_offset import changed, make_context, with_attention_bias

# Medians by layer on the pair that ships, where the review found the fault, and the steps that it saw there.
TUNED = [-0.19, -0.49, -0.52, -0.27, 0.06]
STEPS = {
    PLAIN: [[0.02, -0.36, -0.38, -0.11, 0.02], [0.03, -0.35, -0.37, -0.10, 0.02]],
    SHUFFLED: [[-0.02, -0.25, -0.25, -0.05, 0.01], [0.05, -0.27, -0.26, -0.04, 0.02], [0.02, -0.23, -0.25, -0.05, 0.0]],
    RANDOM: [[-0.9] * 5],
}


def sure(value: float, error: float = 0.01) -> Interval:
    return Interval(value, value - error, value + error, 280)


def readings(steps: dict[str, list[list[float]]]) -> list[tuple[str, Antipodes]]:
    return [
        (kind, Antipodes({layer: torch.tensor([value], dtype=torch.float64) for layer, value in enumerate(medians)}, 0.5, 0.5, 0.1))
        for kind, rows in steps.items()
        for medians in rows
    ]


def test_layers_that_the_last_one_hides_are_named() -> None:
    layers = layers_of([sure(median) for median in TUNED], readings(STEPS))
    assert [layer.lowest for layer in layers] == pytest.approx([-0.02, -0.36, -0.38, -0.11, 0.0])
    # Two plain steps give a wide bound; more of them tell layers 1 and 2, and no other.
    more = {**STEPS, PLAIN: [*STEPS[PLAIN], [0.01, -0.37, -0.39, -0.12, 0.01], [0.02, -0.36, -0.38, -0.10, 0.02]]}
    assert [layer.beyond for layer in layers_of([sure(median) for median in TUNED], readings(more))] == [False, True, True, False, False]
    # Version 1 looked at the last layer alone.
    assert judge_1(sure(TUNED[-1]), -0.0, 0.3, sure(0.02)) == "fails"


def test_a_bound_needs_two_steps_of_each_kind() -> None:
    one = {PLAIN: STEPS[PLAIN][:1], SHUFFLED: STEPS[SHUFFLED]}
    layers = layers_of([sure(-0.9)] * 5, readings(one))
    assert not any(layer.tested or layer.beyond for layer in layers)
    assert judge(layers, sure(0.9), sure(0.9)) == "inconclusive"
    assert math.isnan(chance_beyond(readings(one), 5))


def test_gradient_steps_seldom_pass_the_test_against_one_another() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [[-0.3 + 0.02 * float(torch.randn((), generator=generator)) for _ in range(5)] for _ in range(40)]
    assert chance_beyond(readings({PLAIN: noise[:20], SHUFFLED: noise[20:]}), 5) <= 0.05


@pytest.mark.parametrize(
    ("medians", "inactive", "mlp", "expected"),
    [
        ([-0.6] * 5, 0.7, 0.7, "holds"),
        ([-0.6] * 5, 0.02, 0.3, "fails"),  # they write nothing
        ([-0.6] * 5, 0.02, 0.7, "inconclusive"),  # not directly, but their weights give it
        ([0.1, -0.3, -0.3, 0.0, 0.1], 0.7, 0.7, "fails"),  # as any gradient step
        (TUNED, 0.7, 0.7, "inconclusive"),  # in two layers of five
        (TUNED, 0.02, 0.32, "fails"),
    ],
)
def test_the_rule_reads_every_layer(medians: list[float], inactive: float, mlp: float, expected: str) -> None:
    steps = {**STEPS, PLAIN: [*STEPS[PLAIN], [0.01, -0.37, -0.39, -0.12, 0.01], [0.02, -0.36, -0.38, -0.10, 0.02]]}
    assert judge(layers_of([sure(median) for median in medians], readings(steps)), sure(inactive, 0.05), sure(mlp, 0.05)) == expected


def test_the_first_steps_are_those_of_version_1_and_both_kinds_have_enough_for_a_bound() -> None:
    assert FIRST == [PLAIN, SHUFFLED, SHUFFLED, SHUFFLED, RANDOM]
    assert all([*FIRST, *FURTHER].count(kind) == 4 for kind in (PLAIN, SHUFFLED))


def test_parts_of_the_weights_are_all_of_them_and_each_gives_what_it_changed(pair: ModelPair) -> None:
    context = make_context(with_attention_bias(pair.base, 1, 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(3))))
    names = [name for name, _ in context.pair.base.hf.named_parameters()]
    groups = [part for part in swaps_of(context) if part.layer == -1]
    assert all(sum(part.has(name) for part in groups) == 1 for name in names)
    rows = context.prompt_rows()
    weights = torch.tensor([len(row) for row in rows]).double()
    counts = resampled(len(rows), 50, 0) * weights
    counts = counts / counts.sum(dim=1, keepdim=True)
    site = "resid_mid.2"
    states = [capture(model, rows, [site], positions="mean")[site] for model in context.pair.sides.values()]
    context.quick = False
    table = weight_swaps(context, 2, states[0], (states[1] - states[0]).double(), weights, counts).set_index("weights")
    share = table["share of the offset"]
    assert share["attention, all layers"] == pytest.approx(1.0, abs=1e-5)
    assert share["attention of layer 1"] == pytest.approx(1.0, abs=1e-5)
    assert share[["MLP, all layers", "norms, all layers", "embeddings, all layers", "attention of layer 0"]].abs().max() < 1e-5
    # The word that counts as toxic never comes, so tuning lowered nothing and there is no fall to share.
    assert table["share of the fall"].isna().all()


def test_shares_of_the_offset_and_of_the_fall_are_exact_for_planted_halves(pair: ModelPair) -> None:
    shift = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    weights = torch.arange(1, 31).double()
    counts = torch.ones(20, 30, dtype=torch.float64) / 30
    aside = torch.linalg.qr(torch.stack([pooled(shift, weights), torch.ones(8).double()], dim=1)).Q[:, 1]
    half = share_of_offset(0.5 * shift + aside, shift, weights, counts)
    assert half.value == pytest.approx(0.5)
    context = make_context(changed(pair.base, lambda hf: None))
    scores = {"base": torch.tensor([1.0, 1, 0, 1]).numpy(), "tuned": torch.tensor([0.0, 0, 0, 1]).numpy()}
    sides = {id(model): scores[name] for name, model in context.pair.sides.items()}
    fall = share_of_fall(lambda model: sides[id(model)], context, torch.tensor([0.0, 1, 0, 1]).numpy())
    assert fall.value == pytest.approx(0.5)
    assert math.isnan(share_of_fall(lambda model: scores["tuned"], context, scores["base"]).value)
