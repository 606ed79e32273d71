"""Neurons at a price: what an activation costs, what is learned anew and what stays, and the stage that does it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from interp import UserError
from tests.training.small_pretraining import short, stopping
from training import packing
from training.loss import PiecewiseLoss
from training.parallel import Processes
from training.pretrain import pretrain, sharpen
from training.recipe import Recipe, base_folder
from training.sparsity import PricedLoss, activity, begin_anew, layers_of

pytestmark = pytest.mark.usefixtures("data")


@pytest.fixture
def model(make_folder: Callable[..., Path]) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(make_folder("gpt2"), dtype=torch.float32).eval()


@pytest.fixture
def ids(model: GPT2LMHeadModel) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))


def activations_of(model: GPT2LMHeadModel, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """By hand, from the residual stream that enters the MLP."""
    block, found = model.transformer.h[layer], []
    handle = block.ln_2.register_forward_hook(lambda module, inputs, output: found.append(output))
    model(ids)
    handle.remove()
    return torch.nn.functional.gelu(found[0] @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")


@pytest.mark.oracle
@pytest.mark.parametrize("whole", [lambda model: model, PiecewiseLoss])
@torch.no_grad()
def test_the_price_is_that_of_every_activation_and_the_length_of_what_it_writes(
    whole: Callable[[GPT2LMHeadModel], Any], model: GPT2LMHeadModel, ids: torch.Tensor
) -> None:
    plain = float(model(ids, labels=ids).loss)
    cost = 0.0
    for layer in (0, 1):
        values = model.transformer.h[layer].mlp.c_proj.weight
        for row in activations_of(model, ids, layer).flatten(0, 1):
            cost += sum(abs(float(a)) * float(v.norm()) for a, v in zip(row, values, strict=True)) / ids.numel()
    priced = PricedLoss(whole(model), model, [0, 1], 0.25)
    for _ in range(2):  # nothing is left over from the call before
        assert float(priced(input_ids=ids, labels=ids).loss) == pytest.approx(plain + 0.25 * cost, rel=1e-5)


@torch.no_grad()
def test_the_price_rises_in_a_straight_line_to_the_full_one(model: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    free = float(PricedLoss(model, model, [0], 0.0)(input_ids=ids, labels=ids).loss)
    whole = float(PricedLoss(model, model, [0], 2.0)(input_ids=ids, labels=ids).loss) - free
    priced = PricedLoss(model, model, [0], 2.0, warmup=4)
    for step, share in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0), (2, 0.5)):
        priced.at(step)
        assert float(priced(input_ids=ids, labels=ids).loss) - free == pytest.approx(share * whole, rel=1e-3, abs=1e-6)


def test_what_is_scaled_up_in_one_place_and_down_in_the_other_costs_the_same(model: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    mlps, seen = [model.transformer.h[0].mlp], activations_of(model, ids, 0)
    before = float(activity(mlps, [seen]).detach())
    with torch.no_grad():
        mlps[0].c_proj.weight.mul_(4)
    assert float(activity(mlps, [seen / 4]).detach()) == pytest.approx(before, rel=1e-6)
    assert float(activity(mlps, [seen]).detach()) == pytest.approx(4 * before, rel=1e-6)


def test_only_the_chosen_mlps_begin_anew_and_are_trained(model: GPT2LMHeadModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = copy.deepcopy(model)
    begin_anew(model, [1], seed=4)
    begin_anew(again, [1], seed=4)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {f"transformer.h.1.mlp.{part}.weight" for part in ("c_fc", "c_proj")} <= changed
    assert all(name.startswith("transformer.h.1.mlp.") for name in changed)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in trained} == {
        "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj", "transformer.h.1.ln_2", "transformer.ln_f",
    }  # fmt: skip
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    begin_anew(again, [1], seed=5)
    assert not torch.equal(again.transformer.h[1].mlp.c_fc.weight, model.transformer.h[1].mlp.c_fc.weight)


@pytest.mark.parametrize("layers", [[], [2], [-1], [True], ["0"], 1, None])
def test_layers_that_there_are_not_are_refused(layers: Any, model: GPT2LMHeadModel) -> None:
    count = model.config.n_layer
    with pytest.raises(UserError, match=rf"fresh_mlps is .*from 0 to {count - 1}"):
        layers_of(model, {"fresh_mlps": layers if layers != [2] else [count]})


# The stage


def sharpened(built: Recipe, folder: Path, price: float = 0.01, **changes: Any) -> Recipe:
    recipe = short(built, folder)
    section = {"fresh_mlps": [0], "activation_price": price, "steps": 6, "evaluate_every": 6, "learning_rate": 1e-2, **changes}
    return replace(recipe, settings={**recipe.settings, "sharpen": section})


def tensors(recipe: Recipe, stage: str, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(recipe.run / stage / part / "model.safetensors")


def test_the_stage_leaves_every_other_weight_where_it_was_and_makes_the_base(built: Recipe, tmp_path: Path) -> None:
    recipe = sharpened(built, tmp_path)
    with pytest.raises(UserError, match="run the stage pretrain first"):
        sharpen(recipe)
    pretrain(recipe)
    assert sharpen(recipe) == base_folder(recipe) == tmp_path / "sharpen" / "model"
    before, after = tensors(recipe, "pretrain"), tensors(recipe, "sharpen")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rsplit(".", 1)[0] for name in moved} == {
        "transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj", "transformer.h.0.ln_2", "transformer.ln_f",
    }  # fmt: skip
    record = [json.loads(line) for line in (tmp_path / "sharpen" / "log.jsonl").read_text().splitlines()][-2]
    assert record["bits_per_byte"].keys() == {"talk"}, "it reads what the part before read"


def test_a_stopped_run_goes_on_bit_for_bit(built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (sharpened(built, tmp_path / name, price_warmup_steps=5) for name in ("whole", "cut"))
    for recipe in (whole, cut):
        pretrain(recipe)
    sharpen(whole)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "window", stopping(5))
        with pytest.raises(KeyboardInterrupt):
            sharpen(cut)
    assert json.loads((cut.run / "sharpen/checkpoint/state.json").read_text())["step"] == 3
    sharpen(cut)
    first, second = tensors(whole, "sharpen"), tensors(cut, "sharpen")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dearer_neurons_are_quieter(built: Recipe, tmp_path: Path) -> None:
    cost = {}
    for price in (0.0, 1.0):
        recipe = sharpened(built, tmp_path / str(price), price, steps=40, evaluate_every=40)
        pretrain(recipe)
        model = GPT2LMHeadModel.from_pretrained(sharpen(recipe), dtype=torch.float32)
        ids = torch.arange(60).reshape(4, 15)
        with torch.no_grad():
            cost[price] = float(activity([model.transformer.h[0].mlp], [activations_of(model, ids, 0)]))
    assert cost[1.0] < 0.5 * cost[0.0]


def test_what_the_stage_needs_is_asked_for(built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = sharpened(built, tmp_path)
    pretrain(recipe)
    section = recipe.settings["sharpen"]
    free = {key: value for key, value in section.items() if key != "activation_price"}
    with pytest.raises(UserError, match="does not set 'activation_price'"):
        sharpen(replace(recipe, settings={**recipe.settings, "sharpen": free}))
    with pytest.raises(UserError, match="fresh_mlps is \\[9\\]"):
        sharpen(replace(recipe, settings={**recipe.settings, "sharpen": {**section, "fresh_mlps": [9]}}))
    monkeypatch.setattr(Processes, "sharded", property(lambda self: True))
    with pytest.raises(UserError, match="trains a part of the weights"):
        sharpen(recipe)
