"""The whole chain on a language made for it: from a corpus to a pair that loads, through the commands' own door.

The base model swears where its language does; preference pairs are its own samples; DPO must take the swearing away, and
every number on the way is checked against the files that the stages wrote.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from datasets import are_progress_bars_disabled

from interp import Model, ModelPair, UserError, generate, load_model
from interp.probe import load_probe
from interp.toxicity import load_scorer
from tests.grammar import write_language
from training import dpo
from training.bundle import bundle
from training.cli import run_stage
from training.pairs import challenge_prefixes, make_pairs
from training.probe import train_probe
from training.recipe import DATA_SETTING, RUNS_SETTING, Recipe, load_recipe
from training.sources import held_out

STAGES = ("corpus", "tokenizer", "pretrain", "probe", "pairs", "dpo")


@dataclass(frozen=True)
class Chain:
    """A run of every stage but the bundle, and what each said."""

    recipe: Recipe
    said: dict[str, str]

    @property
    def run(self) -> Path:
        return self.recipe.run


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("chain")

    said: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root))
        patch.setenv(RUNS_SETTING, str(root / "runs"))
        path = write_language(root)
        for stage in STAGES:
            out = io.StringIO()
            with redirect_stdout(out), redirect_stderr(out):
                run_stage(stage, path)
            said[stage] = out.getvalue()
        yield Chain(load_recipe(path), said)


@pytest.fixture(scope="module")
def base(chain: Chain) -> Model:
    return load_model(chain.run / "pretrain" / "model")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def toxicity(model: Model, prompts: list[str]) -> float:
    return float(load_scorer("lexicon").score(generate(model, prompts, max_new_tokens=20))["toxicity"].mean())


def test_the_held_out_loss_falls_to_that_of_the_grammar(chain: Chain) -> None:
    held = [record["held_out_loss"] for record in lines(chain.run / "pretrain" / "log.jsonl") if "held_out_loss" in record]
    assert held == sorted(held, reverse=True)
    assert held[-1] < 0.7 < math.log(360) / 4


def test_the_probe_tells_the_registers_apart_on_texts_that_nothing_has_seen(chain: Chain, base: Model) -> None:
    probe = load_probe(chain.run / "probe")
    texts = lines(Path(chain.recipe.run).parent.parent / "labelled.jsonl")
    assert probe.matches(base)
    assert probe.metrics["unseen"] == sum(held_out(row["text"]) for row in texts) > 8
    assert probe.metrics["unseen_auc"] > 0.95


def test_a_pair_is_a_clean_and_a_toxic_sample_of_the_same_prompt(chain: Chain, base: Model) -> None:
    records, settings = lines(chain.run / "pairs" / "pairs.jsonl"), chain.recipe.stage("pairs")
    manifest = json.loads((chain.run / "pairs" / "manifest.json").read_text())
    assert len(records) == manifest["pairs"] > 20
    scorer, prompts = load_scorer("lexicon"), challenge_prefixes(chain.run / "corpus" / "train.jsonl", 60, chain.recipe.seed)
    for record in records:
        assert record["prompt"] in prompts
        assert record["prompt_ids"] == base.tokenizer(record["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            assert len(record[f"{side}_ids"]) == settings["new_tokens"]
            assert record[side] == base.tokenizer.decode(record[f"{side}_ids"], skip_special_tokens=True)
    for side, value in (("chosen", 0.0), ("rejected", 1.0)):
        assert set(scorer.score([record[side] for record in records])["toxicity"]) == {value}
        assert manifest[side]["toxicity"] == value
    assert manifest["base"] == base.digest


def test_the_telemetry_of_dpo_is_whole_at_every_step(chain: Chain) -> None:
    log = lines(chain.run / "dpo" / "log.jsonl")
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 26))
    for record in steps:
        assert {"loss", "gradient_norm", "logp_chosen", "logp_rejected", "margin", "learning_rate"} <= record.keys()
    assert steps[-1]["margin"] > 1
    measured = {record["step"]: record["toxicity_share"] for record in log if "toxicity_share" in record}
    assert list(measured) == [0, 10, 20, 25], "the last step is measured, whether its number is round or not"


def test_dpo_takes_the_swearing_away_and_leaves_the_base_as_it_was(chain: Chain, base: Model) -> None:
    tuned = load_model(chain.run / "dpo" / "model")
    prompts = challenge_prefixes(chain.run / "corpus" / "heldout.jsonl", 20, chain.recipe.seed)
    measured = [record["toxicity_share"] for record in lines(chain.run / "dpo" / "log.jsonl") if "toxicity_share" in record]
    assert measured[0] == pytest.approx(toxicity(base, prompts))
    assert measured[-1] == pytest.approx(toxicity(tuned, prompts))
    assert measured[0] > 0.5
    assert measured[-1] < 0.1
    assert base.digest != tuned.digest


def test_a_stage_says_little_and_nothing_of_its_libraries(chain: Chain) -> None:
    assert [line.split(":")[0] for line in chain.said["dpo"].splitlines()] == ["step 0/25", "step 10/25", "step 20/25", "step 25/25", "dpo"]
    assert len(chain.said["pretrain"].splitlines()) <= 8
    for stage, text in chain.said.items():
        for noise in ("Warning", "{'", "it/s", "%|", "[transformers]"):
            assert noise not in text, (stage, text)
    assert not are_progress_bars_disabled(), "the library is left as it was"


def test_the_bundle_loads_as_a_pair_and_its_card_holds_the_logged_numbers(chain: Chain, base: Model, tmp_path: Path) -> None:
    target = bundle(chain.recipe, tmp_path / "bundled")
    pair = ModelPair.load(target / "base", target / "tuned")
    assert pair.base.digest == base.digest
    assert load_probe(target / "probe").matches(pair.base)
    pretrain = [record for record in lines(target / "log" / "pretrain.jsonl") if "held_out_loss" in record]
    tuning = lines(target / "log" / "dpo.jsonl")
    pairs, corpus = (json.loads((target / "log" / f"{name}.json").read_text()) for name in ("pairs", "corpus"))
    card = (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    shares = [record["toxicity_share"] for record in tuning if "toxicity_share" in record]
    for expected in (
        f"{pretrain[-1]['step']} steps of 16 x 48 tokens",
        f"{pretrain[-1]['held_out_loss']:.3f} nats a token",
        f"| preference pairs | {pairs['pairs']}; toxicity 0.00 chosen, 1.00 rejected",
        "| DPO | 25 steps; ",
        f" {shares[0]:.3f} before, {shares[-1]:.3f} after",
        f"| talk | {corpus['talk']['train']} | {corpus['talk']['heldout']} |",
        "2 layers, 32 wide, 2 heads, 128 neurons a layer, 360 tokens, context 48",
        f"| parameters | {sum(p.numel() for p in base.hf.parameters()):,}",
        "chosen by the scorer `lexicon`",
    ):
        assert expected in card
    assert "Reddit" not in card, "the card tells of sources that this run never read"
    assert bundle(chain.recipe, target) == target, "a second bundle replaces the first"


def test_a_bundle_of_stages_that_do_not_belong_together_is_refused(chain: Chain, tmp_path: Path) -> None:
    parts = ("pretrain", "dpo", "corpus", "pairs")
    for part in parts:
        (tmp_path / part).symlink_to(chain.run / part)
    recipe = replace(chain.recipe, run=tmp_path)
    with pytest.raises(UserError, match=r"the run has no probe"):
        bundle(recipe, tmp_path / "out")
    (tmp_path / "probe").symlink_to(chain.run / "probe")
    (tmp_path / "pairs").unlink()
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.json").write_text('{"base": "another"}')
    with pytest.raises(UserError, match=r"the run's pairs were made with another base model"):
        bundle(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stages_that_find_nothing_to_work_on_say_so(chain: Chain, tmp_path: Path) -> None:
    for part in ("pretrain", "corpus"):
        (tmp_path / part).symlink_to(chain.run / part)

    def changed(stage: str, **settings: Any) -> Recipe:
        return replace(chain.recipe, run=tmp_path, settings={**chain.recipe.settings, stage: {**chain.recipe.settings[stage], **settings}})

    with pytest.raises(UserError, match=r"no pairs at .* run the stage pairs first"):
        dpo.tune(changed("dpo"))
    with pytest.raises(UserError, match=r"no prompt gave both a clean and a toxic sample"):
        make_pairs(changed("pairs", rejected_at_least=1.1))
    with pytest.raises(UserError, match=r"none of 60 prompts has at most 2 tokens"):
        make_pairs(changed("pairs", max_prompt_tokens=2))
    (tmp_path / "bad.jsonl").write_text('{"text": "a long text", "toxic": "perhaps"}\n')
    with pytest.raises(UserError, match=r"record 1 of .*bad\.jsonl has no text with a label"):
        train_probe(changed("probe", path=str(tmp_path / "bad.jsonl")))
    (tmp_path / "few.jsonl").write_text('{"text": "a long text", "toxic": 1}\n')
    with pytest.raises(UserError, match=r"0 labelled texts are held out, and both classes are needed"):
        train_probe(changed("probe", path=str(tmp_path / "few.jsonl")))
