"""The rule of A-E8 does not hold where tuning moved the toxic neurons' keys or values in particular."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from interp.experiments.registry import EXPERIMENTS
from interp.experiments.toxicity.a_e8_weights import judge, judge_1
from interp.models.model import Model
from interp.models.pair import ModelPair
from tests.experiments.planted import PlantedPair, planted_context, planted_pair


@pytest.mark.parametrize(
    ("cosines", "times", "p_values", "expected"),
    [
        ([0.9999, 0.9999, 0.9999], math.nan, [0.5, 0.6, 0.4, 0.3], "holds"),
        ([0.9999, 0.9999, 0.9999], 1.9, [0.5, 0.6, 0.4, 0.3], "holds"),
        ([0.9999, 0.9999, 0.9999], 2.1, [0.5, 0.6, 0.4, 0.3], "inconclusive"),
        ([0.9999, 0.9999, 0.9999], 1.0, [0.005, 0.6, 0.005, 0.3], "inconclusive"),
        ([0.98, 0.9999, 0.9999], 1.0, [0.5, 0.6, 0.4, 0.3], "fails"),
        ([0.9999, 0.9999, 0.9], 1.0, [0.5, 0.6, 0.4, 0.3], "fails"),
    ],
)
def test_weights_are_judged_by_cosine_size_and_what_was_singled_out(
    cosines: list[float], times: float, p_values: list[float], expected: str
) -> None:
    assert judge(cosines, times, p_values) == expected


def test_the_first_version_did_not_ask_for_keys() -> None:
    assert judge_1(0.9999, 52.5, 0.0014, pd.DataFrame()) == "holds"


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.mark.oracle
@pytest.mark.parametrize("part", ["key", "value"])
def test_parts_that_moved_more_than_others_are_named_and_do_not_hold(planted: PlantedPair, part: str) -> None:
    """All neurons move a little, and one part of those nearest to the probe ten times as far: still by less than one percent."""
    base = planted.pair.base
    first = planted_context(planted, count=4, quick=True)
    hf = base.plain_copy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in range(base.n_layers):
            mlp = hf.transformer.h[layer].mlp
            toxic = [index for at, index in first.ranking.neurons if at == layer]
            for name, weight in (("key", mlp.c_fc.weight.T), ("value", mlp.c_proj.weight)):
                noise = torch.randn(weight.shape, generator=generator)
                size = torch.full((len(weight), 1), 1e-3)
                size[toxic] *= 8 if name == part else 1
                weight += size * noise / noise.norm(dim=1, keepdim=True) * weight.norm(dim=1, keepdim=True)
    pair = ModelPair(base, Model(hf, base.tokenizer, "tuned"), part)
    found = EXPERIMENTS["A-E8"].run(planted_context(planted, pair, count=4, quick=True))
    beside = found.tables["toxic neurons beside random directions"].set_index(["part", "neurons"])
    count = len(first.ranking)
    assert found.verdict == "inconclusive"
    assert beside.loc[(part, count), "p"] < 0.05
    assert beside.loc[(part, count), "mean percentile"] > beside.loc[(part, count), "null high"]
    assert f"More than those near random directions moved the {part}s" in found.summary
    assert found.earlier[1] == ("inconclusive" if found.statistic["percentile of toxic values"] >= 75 else "holds")
