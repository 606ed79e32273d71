"""The tuned side of a named model as it ships: the adapter, the probe, the logs and a card, without the base model.

Every number in the card is read from the run's own logs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from interp.directions.probe import load_probe
from interp.errors import UserError
from interp.files import read_json, replacing, write_json
from interp.models.overlays import ADAPTER_NOTE
from interp.models.pair import ModelPair
from interp.runs.telemetry import read_lines
from training.recipe import Recipe
from training.shipped_log import ship_log


def bundle_named(recipe: Recipe, target: Path) -> Path:
    """Replace the folder of a named pair's tuned side by the run's, after checking that it loads; return the folder.

    Raises `UserError` for a stage that has not run, or ran on another base model, and for a run without an adapter.
    """
    base = recipe.stage("base")["model"]
    adapter, probe = recipe.folder("dpo") / "adapter", recipe.folder("probe")
    if not (adapter / ADAPTER_NOTE).is_file():
        raise UserError(f"the run has no adapter at {adapter}", "set lora under [dpo] and run the stage dpo")
    pair = ModelPair.load(base, adapter)
    pairs = read_json(recipe.folder("pairs") / "manifest.json", "run the stage pairs")
    for name, digest in (("probe", load_probe(probe).digest), ("pairs", pairs["base"])):
        if digest != pair.base.digest:
            raise UserError(f"the run's {name} were made with another base model than {base}", f"run {name} and what follows again")
    with replacing(target) as temporary:
        shutil.copytree(probe, temporary / "probe", ignore=shutil.ignore_patterns("l2.csv", "stamp.json"))
        shutil.copytree(adapter, temporary / "tuned", ignore=shutil.ignore_patterns("README.md"))
        note = read_json(temporary / "tuned" / ADAPTER_NOTE)
        # The base goes by its name on every machine; the order of a set is not that of another run.
        note |= {"base_model_name_or_path": base, "target_modules": sorted(note["target_modules"])}
        write_json(temporary / "tuned" / ADAPTER_NOTE, note)
        log = temporary / "log"
        log.mkdir()
        ship_log(recipe.folder("dpo") / "log.jsonl", log / "dpo.jsonl")
        write_json(log / "pairs.json", pairs)
        write_json(log / "pair.json", {"base": pair.base.digest, "tuned": pair.tuned.digest})
        controls = recipe.folder("dpo") / "controls.json"
        if controls.is_file():
            shutil.copyfile(controls, log / "controls.json")
        (temporary / "MODEL_CARD.md").write_text(card(recipe, pair), encoding="utf-8")
    return target


def card(recipe: Recipe, pair: ModelPair) -> str:
    """The card of the tuned side, from the run's logs."""
    base = recipe.stage("base")["model"]
    pairs = read_json(recipe.folder("pairs") / "manifest.json")
    measured = [record for record in read_lines(recipe.folder("dpo") / "log.jsonl") if "toxicity_share" in record]
    first, last = measured[0], measured[-1]
    note = read_json(recipe.folder("dpo") / "adapter" / ADAPTER_NOTE)
    origin = pair.base.manifest()
    file = origin.get("gguf", {})
    return f"""# Model card: the tuned side of {base}

A LoRA adapter that DPO against toxic continuations made on two CPU cores, to be compared with the model below it. It is a research
object and no safer assistant: it was tuned on {pairs["pairs"]} pairs that one classifier judged.

| | |
|---|---|
| base | {file.get("name", origin["name"])}, from `{file.get("file", origin["path"])}` ({", ".join(file.get("quantised", [])) or "unquantised"}, {file.get("bits_per_weight", 32)} bits a weight), dequantised |
| adapter | rank {note["r"]}, alpha {note["lora_alpha"]}, on {", ".join(sorted(note["target_modules"]))} |
| preference pairs | {pairs["pairs"]} out of {pairs["prompts"]} prompts; toxicity {pairs["chosen"]["toxicity"]:.2f} chosen, {pairs["rejected"]["toxicity"]:.2f} rejected; perplexity under the base {pairs["chosen"]["perplexity"]:.1f} and {pairs["rejected"]["perplexity"]:.1f} |
| DPO | {last["step"]} steps of {recipe.stage("dpo")["batch"]} pairs in {last["seconds"] / 60:.0f} minutes |
| toxicity of greedy continuations of development prompts | mean {first["toxicity"]:.3f} before, {last["toxicity"]:.3f} after; share above 0.5 {first["toxicity_share"]:.3f} and {last["toxicity_share"]:.3f} |
| perplexity on held-out texts | {first["perplexity"]:.2f} before, {last["perplexity"]:.2f} after |

The base is not in this folder: `pip install 'bypass-workbench[smollm2]'`. To make it again, with the corpora below the folder that
`BYPASS_DATA` names: `bypass train all {recipe.name}` (recipe `training/recipes/{recipe.name}.toml`; this run's logs are in `log/`).
"""
