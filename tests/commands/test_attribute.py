"""`bypass attribute` divides a logit up without remainder at every level, and refuses what is no single token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from interp import Model, ModelPair
from interp.cli import app
from interp.commands.attribute import LEVELS, terms
from interp.lens.attribution import attribute, attribute_pair

Invoke = Callable[..., Any]
PROMPT = "the quick wintle sings"


@pytest.fixture
def invoke(gpt2_folder: Path, tuned_folder: Path) -> Invoke:
    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["attribute", *words, "--pair", str(gpt2_folder), str(tuned_folder)])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and not code else result

    return run


def own_logit(model: Model, word: str, against: str | None = None) -> float:
    with torch.no_grad():
        logits = model.hf(torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])).logits[0, -1]
    return float(logits[model.token(word)] - (logits[model.token(against)] if against else 0))


@pytest.mark.parametrize("by", LEVELS)
@pytest.mark.parametrize("against", [None, "stone"])
def test_the_terms_of_every_level_sum_to_the_models_own_logit_and_differ_by_what_tuning_moved(
    invoke: Invoke, pair: ModelPair, by: str, against: str | None
) -> None:
    record = invoke("both", PROMPT, "--token", "river", *(("--against", against) if against else ()), "--by", by, "--json")
    wanted = {side: own_logit(model, "river", against) for side, model in pair.sides.items()}
    wanted["difference"] = wanted["tuned"] - wanted["base"]
    assert abs(wanted["difference"]) > 1e-2
    for name, value in wanted.items():
        assert record["logit"][name] == pytest.approx(value, abs=1e-5)
        assert sum(term[name] for term in record["terms"]) == pytest.approx(value, abs=1e-5)
    assert record["words"] == [" river", *([" stone"] if against else [])]


def test_each_units_number_is_that_of_the_function(invoke: Invoke, pair: ModelPair) -> None:
    found = attribute_pair(pair, PROMPT, pair.base.token("river"))
    layers, heads, neurons = 3, 4, pair.base.d_mlp
    for by, wanted in {
        "layer": found.difference.attention + found.difference.mlp, "mlp": found.difference.mlp,
        "head": found.difference.heads, "neuron": found.difference.neurons,
    }.items():  # fmt: skip
        rows = [row for row in invoke("both", PROMPT, "--token", "river", "--by", by, "--json")["terms"] if row["layer"] is not None]
        assert [row["difference"] for row in rows] == pytest.approx(wanted[0].flatten().tolist(), abs=1e-6)
        places = [(row["layer"], row["unit"]) for row in rows]
        units = {"head": heads, "neuron": neurons}.get(by)
        assert places == [(layer, unit) for layer in range(layers) for unit in (range(units) if units else [None])]


@pytest.mark.parametrize("by", LEVELS)
def test_the_terms_sum_where_there_are_no_biases_and_positions_are_rotary(llama: Model, by: str) -> None:
    found = attribute(llama, PROMPT, 5, 300)
    assert terms(found, by)["contribution"].sum() == pytest.approx(float(found.logit), abs=1e-5)


def test_a_person_sees_the_largest_first_and_one_row_for_the_others(invoke: Invoke, gpt2: Model) -> None:
    text = invoke("base", PROMPT, "--token", "river", "--by", "head", "--top", "3").stdout
    heads = attribute(gpt2, PROMPT, gpt2.token("river")).top(3, "head")
    names = [f"head {row['layer']:.0f}.{row['head']:.0f}" for _, row in heads.iterrows()]
    assert [line.split("  ")[0].strip() for line in text.splitlines() if line.strip().startswith("head")] == names
    assert "the other 9" in text
    assert "unembedding bias" not in text, "a term that the model does not have"
    assert text.rstrip().splitlines()[-1].split()[:2] == ["=", "logit"]
    assert "logit of ' river' after" in text


def test_a_hostile_word_is_shown_masked_and_without_control_over_the_terminal(invoke: Invoke) -> None:
    text = invoke("base", "the shit [red]sings\x1b[31m", "--token", "\x1b").stdout
    assert "shit" not in text
    assert "\x1b" not in text
    assert "[red]" in text
    assert "shit" in invoke("base", "the shit sings", "--token", "river", "--show-words").stdout
    assert "shit" not in invoke("base", PROMPT, "--token", "shit", code=2).stderr


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (("--token", "blorpblorp"), "'blorpblorp' is 2 tokens for base", "a commoner or shorter word"),
        (("--token", "river", "--against", "blorpblorp"), "is 2 tokens for base", "a commoner or shorter word"),
        (("--token", " "), "is empty", "give a word"),
        (("--token", "river", "--against", " river"), "name the same token", "two different words"),
        (("--token", "river", "--by", "block"), "no level 'block'", "layer, head, mlp, neuron"),
        (("--token", "river", "--top", "0"), "top 0", "at least 1"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_a_fix_and_exit_code_2(invoke: Invoke, words: tuple[str, ...], problem: str, fix: str) -> None:
    result = invoke("both", PROMPT, *words, code=2)
    assert problem in result.stderr
    assert fix in result.stderr.partition("Fix:")[2]
    assert len(result.stderr.splitlines()) == 1


def test_a_prompt_without_tokens_is_refused(invoke: Invoke) -> None:
    assert "Fix:" in invoke("base", "", "--token", "river", code=2).stderr
