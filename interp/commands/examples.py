"""`EXAMPLES`: what one types, by command, shown at the end of its help; a test reads every option in them."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "report": (
        "bypass report --out report", "bypass report --pair BASE TUNED --quick", "bypass report --only A-E9 --only A-E12",
        "bypass report --paper B",
    ),
    "evaluate": ("bypass evaluate tuned --prompts prompts.txt", "bypass evaluate FOLDER --csv scores.csv --json"),
    "generate": (
        'bypass generate both "You are such a" --edit scale_keys:selective:7:10',
        'bypass generate tuned "You are such a" --edit subtract:resid_post.5:probe:20 --edit edits.json',
        'bypass generate base "What is a river?" --pair smollm2 --chat',
    ),
    "sweep": ("bypass sweep tuned --edit scale_keys:selective:7:1 --strengths 1,2,5,10 --csv sweep.csv",),
    "vectors": ("bypass vectors --like probe", "bypass vectors --neuron 5.196", "bypass vectors --neuron 5.196 --examples texts.txt"),
    "lens": ('bypass lens "You are such a"', 'bypass lens "You are such a" --token idiot --model tuned'),
    "attribute": (
        'bypass attribute both "You are such a" --token idiot --against friend',
        'bypass attribute tuned "You are such a" --token idiot --by head',
    ),
    "patch": (
        'bypass patch "You are such a" --from base --into tuned',
        'bypass patch "She is" --corrupted "He is" --tokens her his --site attn_out',
    ),
    "score": ("bypass score texts.txt", "bypass score comments.csv --scorer lexicon --csv scored.csv"),
    "convert": ("bypass convert model.gguf --out model", "bypass convert policy.pt --like gpt2-medium --out policy"),
    "doctor": ("bypass doctor",),
    "undo": (
        "bypass undo --texts toxic.txt --quick", "bypass undo --pair BASE TUNED --texts texts.txt --plan",
        "bypass undo --pair BASE TUNED --texts texts.txt --lora 8 --budget 30 --out undo",
    ),
    "train": ("bypass train all grammar", "bypass train dpo smollm2", "bypass train settings dpo"),
    "app": ("bypass app", "bypass app --pair BASE TUNED --port 8600", "bypass app --demo --host 0.0.0.0"),
    "audit": (
        "bypass pairs audit pairs.jsonl --model MODEL",
        "bypass pairs audit pairs.jsonl --model MODEL --level gradient --keep 0.5 --out audit",
    ),
    "watch": ("bypass pairs watch RUN", "bypass pairs watch checkpoint-500/trainer_state.json --json"),
}  # fmt: skip


def epilog(command: str) -> str:
    """The end of a command's help: its examples, one a line."""
    return "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[command])])
