"""Measures of a policy: one that the tests invent drives a run, has settings of its own in [dpo], and ends it by its own field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from interp import Model, UserError
from tests.training.small_dpo import lines
from training import dpo
from training.measures import MEASURES
from training.measures.measure import Target
from training.measures.settings import ToxicitySettings
from training.measures.stopping import StopRule
from training.recipe import RUNS_SETTING, Recipe, load_recipe
from training.sections import DpoSettings
from training.settings import Alternative, read_section, setting
from training.stages import STAGES, lineage, reads
from training.stamps import made_from

DPO: dict[str, Any] = {
    "loss": "sigmoid", "beta": 0.1, "optimizer": "rmsprop", "learning_rate": 1e-4, "batch": 4, "warmup_steps": 2, "max_steps": 4,
    "clip": 10.0, "evaluate_every": 1, "measure": "invented", "question": "who",
}  # fmt: skip
PLANTED = (8.0, 6.0, 3.0, 2.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class InventedSettings:
    """What the invented measure asks."""

    question: str = setting("what is asked")
    factor: float = setting("what the answer is multiplied by", default=0.5, above=0)


class Answers:
    """Planted values: `PLANTED`, one a measurement, as `perplexity`; `factor` times the number of the measurement by source."""

    def __init__(self, settings: InventedSettings) -> None:
        self.settings, self.count = settings, -1
        self.start = self.measure(None)

    def measure(self, policy: Model | None) -> dict[str, Any]:
        self.count += 1
        return {"perplexity": PLANTED[self.count], "bits_per_byte": {self.settings.question: self.settings.factor * self.count}}


class InventedMeasure:
    fields: tuple[str, ...] = ("perplexity", "bits_per_byte")
    summary: tuple[str, ...] = ("perplexity",)
    target: Target | None = Target("perplexity", "the invented number", "the invented number is 0")

    def prepare(self, policy: Model, recipe: Recipe, settings: InventedSettings) -> Answers:
        assert type(settings) is InventedSettings
        return Answers(settings)


MEASURE = InventedMeasure()


@pytest.fixture(autouse=True)
def _invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASURES, "invented", Alternative(module=__name__, settings=InventedSettings, reads=("probe",)))


def make_recipe(run: Path, gpt2: Model, gpt2_folder: Path, **changes: Any) -> Recipe:
    """A run with a base model and pairs, and nothing else: no corpus and no scorer."""
    for part in ("pretrain", "pairs"):
        (run / part).mkdir(parents=True)
    (run / "pretrain" / "model").symlink_to(gpt2_folder)
    texts = [{"prompt": f"number {n} is", "chosen": f" river {n}", "rejected": f" stone {n}"} for n in range(8)]
    pairs = [{f"{side}_ids": gpt2.tokenizer(text)["input_ids"] for side, text in pair.items()} for pair in texts]
    (run / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return Recipe(name="a", seed=5, settings={"pretrain": {}, "pairs": {}, "dpo": {**DPO, **changes}}, run=run)


def test_an_invented_measure_drives_a_run_and_ends_it_by_its_own_field(gpt2: Model, gpt2_folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "a", gpt2, gpt2_folder, stop_at_ratio=0.5, factor=0.25)
    dpo.tune(recipe)
    log = lines(recipe)
    measured = [record for record in log if "perplexity" in record]
    assert [(record["step"], record["perplexity"]) for record in measured] == [(0, 8.0), (1, 6.0), (2, 3.0)]
    assert [record["bits_per_byte"] for record in measured] == [{"who": 0.0}, {"who": 0.25}, {"who": 0.5}]
    assert not any("toxicity" in record or "kl" in record for record in log)
    assert log[-1]["reason"] == "the invented number is at most 0.5 of what it was"
    summary = json.loads((recipe.run / "dpo" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["before"], summary["after"]) == ({"perplexity": 8.0}, {"perplexity": 3.0})
    assert summary["made_from"]["stages"].keys() == {"pretrain/model", "pairs/pairs.jsonl"}


def rule(measure: InventedMeasure, before: Mapping[str, Any], **changes: Any) -> StopRule | None:
    settings = read_section(DpoSettings, {**DPO, "stop_at_ratio": 0.5, **changes}, "section [dpo]")
    return StopRule.of(settings, measure, before)


def with_target(target: Target | None) -> InventedMeasure:
    measure = InventedMeasure()
    measure.target = target
    return measure


def test_a_stop_rule_ends_a_run_at_its_ratio_of_the_first_measurement() -> None:
    stop = rule(MEASURE, {"perplexity": 8.0})
    assert stop is not None
    assert (stop.field, stop.most) == ("perplexity", 4.0)
    assert [stop.reached({"perplexity": value, "loss": 0.0}) for value in (4.01, 4.0, 3.9)] == [False, True, True]
    assert rule(MEASURE, {"perplexity": 8.0}, stop_at_ratio=-1) is None
    assert rule(MEASURE, {"perplexity": 8.0}, equal_steps=True) is None


def test_a_stop_rule_refuses_what_the_measure_does_not_give() -> None:
    other = with_target(Target("toxicity_share", "toxicity", "nothing is toxic"))
    for before in ({"perplexity": 8.0}, {"perplexity": 8.0, "toxicity_share": 0.5}):
        with pytest.raises(UserError, match=r"'invented' gives no 'toxicity_share'.*name one of perplexity, bits_per_byte"):
            rule(other, before)
    with pytest.raises(UserError, match="'invented' has nothing that stop_at_ratio could ask for"):
        rule(with_target(None), {"perplexity": 8.0})
    with pytest.raises(UserError, match="the invented number is 0, so stop_at_ratio has nothing to fall from"):
        rule(MEASURE, {"perplexity": 0.0})


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load(text, parent)`: the recipe of this section [dpo], which extends one with another."""
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))

    def load_text(text: str, parent: str = "") -> Recipe:
        (tmp_path / "parent.toml").write_text(f"[dpo]\n{parent}", encoding="utf-8")
        (tmp_path / "child.toml").write_text(f'extends = "parent"\n[dpo]\n{text}', encoding="utf-8")
        return load_recipe(tmp_path / "child.toml")

    return load_text


def test_the_settings_of_a_measure_are_those_of_its_dataclass_alone(load: Any) -> None:
    assert not {entry.name for entry in fields(ToxicitySettings)} & {entry.name for entry in fields(DpoSettings)}
    recipe = load('measure = "invented"\nquestion = "who"')
    assert recipe.alternative_as("dpo", "measure") == InventedSettings(question="who", factor=0.5)
    recipe = load("kl_prompts = 5\ndevelopment_prompts = 9")
    assert recipe.alternative_as("dpo", "measure") == ToxicitySettings(development_prompts=9, kl_prompts=5)


@pytest.mark.parametrize(
    ("text", "parent", "says"),
    [
        ('measure = "inventd"', "", r"no measure 'inventd'.*one of toxicity, invented"),
        ('question = "who"\nmeasure = "inventd"', "", r"no measure 'inventd'"),
        ('measure = "invented"\nkl_prompts = 3', "", r"\[dpo\] of recipe 'child' does not know 'kl_prompts'.*question, factor"),
        ("kl_prompts = 3", 'measure = "invented"', r"recipe 'child' does not know 'kl_prompts'"),
        ('question = "who"', "", r"recipe 'child' does not know 'question'"),
        ("factor = 0", 'measure = "invented"', r"factor is 0 in .*a number above 0"),
        ("question = 3", 'measure = "invented"', r"sets question to 3.*type str"),
        ("kl_prompts = 0", "", r"kl_prompts is 0 in .*from 1"),
    ],
)
def test_a_setting_that_the_measure_does_not_have_is_refused(load: Any, text: str, parent: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(text, parent)


def test_what_a_measure_needs_is_asked_for_and_what_another_one_left_is_not_read(load: Any) -> None:
    for text, name in (('measure = "invented"', "question"), ("kl_prompts = 3", "development_prompts")):
        with pytest.raises(UserError, match=rf"\[dpo\] of recipe 'child' does not set '{name}'.*under \[dpo\]"):
            load(text).alternative_as("dpo", "measure")
    recipe = load('measure = "invented"\nquestion = "who"', "kl_prompts = 3\ndevelopment_prompts = 9")
    assert recipe.alternative_as("dpo", "measure") == InventedSettings(question="who", factor=0.5)
    plain = {key: value for key, value in DPO.items() if key not in {"measure", "question"}}
    whole = replace(recipe, settings={"dpo": plain | recipe.settings["dpo"]})
    assert whole.settings_as(DpoSettings, "dpo").measure == "invented"


def test_what_a_measure_reads_is_in_the_stamp_and_reached_by_changes(gpt2: Model, gpt2_folder: Path, tmp_path: Path) -> None:
    assert "corpus" not in STAGES["dpo"].reads
    assert "scorer" not in STAGES["dpo"].reads
    base = ("base", "pretrain", "continue", "sharpen")
    assert set(reads("dpo")) == {*base, "corpus", "scorer", "pairs"}
    assert set(reads("dpo", {"dpo": {"measure": "invented"}})) == {*base, "probe", "pairs"}
    assert lineage("dpo", {"dpo": {"measure": "invented"}})[-3:] == ("probe", "pairs", "dpo")

    recipe = make_recipe(tmp_path / "a", gpt2, gpt2_folder)
    sections = {**recipe.settings, "corpus": {}, "scorer": {}, "probe": {}}
    invented = made_from(replace(recipe, settings=sections), "dpo")
    assert invented["stages"].keys() == {"pretrain/model", "pairs/pairs.jsonl", "probe/probe.json", "probe/probe.safetensors"}
    plain = {key: value for key, value in DPO.items() if key not in {"measure", "question", "evaluate_every"}} | {"scorer": "lexicon"}
    toxic = made_from(replace(recipe, settings={**sections, "dpo": plain | {"evaluate_every": 1}}), "dpo")
    made = {"seed": 5, "settings": plain, "files": {}, "stages": toxic["stages"]}
    assert toxic == made, "the stamps of existing runs hold every setting of the section, as before"
    expected = {"pretrain/model", "corpus/train.jsonl", "corpus/heldout.jsonl", "scorer/model", "pairs/pairs.jsonl"}
    assert toxic["stages"].keys() == expected
