"""`bypass doctor`: checks of what works on this machine, each failure with its fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from interp import workbench
from interp.commands import common
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.models.model import Model

EXTRAS = {
    "lens": ("transformer-lens", "nnsight"), "toxicity": ("detoxify",), "train": ("trl", "peft", "datasets", "accelerate"),
    "app": ("streamlit",), "dev": ("pytest", "ruff", "mypy", "beartype"),
}  # fmt: skip
CORE = (
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "numpy",
    "pandas",
    "einops",
    "jaxtyping",
    "plotly",
    "scikit-learn",
    "rich",
    "typer",
)


@dataclass(frozen=True)
class Check:
    """The result of one check; without a `core` one, nothing works."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    core: bool = False


def doctor(as_json: common.AsJson = False) -> None:
    """What works on this machine. The exit code is 1 only where the core is broken."""
    results = []
    with common.progress(None, "looking") as (bar, task):
        for check in checks():
            bar.update(task, description=check.name)
            results.append(check)
    broken = [check for check in results if check.core and not check.ok]
    if as_json:
        common.print_json({"ok": not broken, "checks": [asdict(check) for check in results]})
    else:
        common.print_table(
            ("", "what", "found", "fix"), [("ok" if c.ok else "broken" if c.core else "missing", c.name, c.found, c.fix) for c in results]
        )
        common.print_line("the core works" if not broken else f"the core is broken: {', '.join(check.name for check in broken)}")
    if broken:
        raise typer.Exit(1)


def checks() -> Iterator[Check]:
    """Every check in turn."""
    from importlib import metadata

    from interp.environment import machine, versions

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    yield Check("python", True, versions()["python"], core=True)
    for name in CORE:
        yield Check(
            name,
            version(name) is not None,
            version(name) or "not installed",
            "" if version(name) else "pip install bypass-workbench",
            core=True,
        )
    for extra, names in EXTRAS.items():
        missing = [name for name in names if version(name) is None]
        fix = f"pip install 'bypass-workbench[{extra}]'" if missing else ""
        yield Check(
            f"extra {extra}",
            not missing,
            f"without {', '.join(missing)}" if missing else ", ".join(f"{n} {version(n)}" for n in names),
            fix,
        )
    yield Check("accelerator", True, str(machine()["accelerator"] or f"none: {machine()['cores']} cores"))
    yield _tried("prompts and passages", "install bypass-workbench again", _texts, core=True)
    yield _tried("bundled scorer", "use --scorer lexicon", _scorer)
    yield _tried("bundled pair", "name models with --pair BASE TUNED", lambda: workbench.Sides().both().name)
    yield _tried("bundled probe", "none: a probe is fitted when one is needed", _probe)
    yield _tried("self check", "report it: what is captured is not what the model computes", self_check, core=True)
    data = os.environ.get("BYPASS_DATA")
    fix = (
        ""
        if data and os.path.isdir(data)
        else "set BYPASS_DATA to the folder of the corpora; bypass train needs it, and bypass report for the paper's own prompts"
    )
    yield Check("training data", not fix, data or "BYPASS_DATA is not set", fix)


def _tried(name: str, fix: str, look: Callable[[], str], core: bool = False) -> Check:
    """A check that passes unless `look` raises; every exception is reported as a failed check."""
    try:
        return Check(name, True, look(), core=core)
    except UserError as error:
        return Check(name, False, error.problem, error.fix or fix, core)
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}".splitlines()[0], fix, core)


def _texts() -> str:
    from interp.data.texts import challenge_prompts, passages

    return f"{len(challenge_prompts())} prompts, {len(passages())} passages"


def _scorer() -> str:
    from interp.evaluation.toxicity import load_scorer

    workbench.hush()
    scores = load_scorer("bundled").score(["what a lovely morning", "you are a stupid idiot"])["toxicity"]
    if not scores[0] < 0.5 < scores[1]:
        raise UserError(f"it scores a kind text {scores[0]:.2f} and an insult {scores[1]:.2f}", "restore interp/bundled/scorer")
    return f"a kind text {scores[0]:.2f}, an insult {scores[1]:.2f}"


def _probe() -> str:
    from interp.directions.probe import bundled_probe

    return f"AUC {bundled_probe().metrics['auc']:.3f}"


def self_check() -> str:
    """Check that capture equals a plain forward bit for bit, and generation with a KV cache that without.

    On the bundled base, or on a tiny random model where no pair ships.
    """
    import torch

    from interp import capture, generate
    from interp.models.tokens import pad, token_rows

    model = _subject()
    text = "The river runs under the old stone bridge"
    # The same mask and positions for both: without a mask torch uses another kernel, which rounds differently.
    inputs = pad(token_rows(model, [text]), 0).to(model.device).inputs()
    with torch.no_grad():
        plain = model.plain_copy()(**inputs, use_cache=False).logits.float().cpu()
    seen = capture(model, [text], ["logits"], positions="all")["logits"].float()
    gap = float((plain - seen).abs().max())
    if gap != 0:
        raise UserError(f"captured logits differ from a plain forward by {gap:.1e}", "report it, with the output of bypass doctor --json")
    with_cache, without = (generate(model, [text], max_new_tokens=8, cache=cache) for cache in (True, False))
    if with_cache != without:
        raise UserError("generation with a KV cache differs from generation without", "report it, with the output of bypass doctor --json")
    return f"capture = plain forward, KV cache on = off ({model.name})"


def _subject() -> Model:
    from interp.bundled import BUNDLED

    workbench.hush()
    if (BUNDLED / "base" / "config.json").is_file():
        return workbench.Sides().load("base")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from interp.models.model import Model
    from interp.models.modes import freeze

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*letters, "<end>"])}, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=len(tokenizer), initializer_range=0.2))
    return Model(freeze(hf), tokenizer, "a random model")
