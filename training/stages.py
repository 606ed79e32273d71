"""The table of the training chain's stages, one row for each.

The effects of a changed setting, the runs that are skipped, the stages that can run in several processes and the choices of the
command line are all derived from this table, so that a new stage is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError
from training import sections
from training.settings import alternatives


@dataclass(frozen=True)
class Stage:
    """One stage of the chain.

    Attributes:
        reads: the stages whose output it reads; an alternative in its section, such as a measure, may name more (`reads`).
        settings: the dataclass of its section of a recipe.
        makes: its outputs, files or folders below the stage's folder, by which later stages know it. Empty for a stage that
            leaves nothing in the run.
        module: its module below `training`; empty for a row that only stands for an input made elsewhere.
        function: the function in that module, of a recipe.
        parallel: whether several processes can share it.
        resumed: whether it goes on from a checkpoint, which only `again` may throw away.
        trains_base: whether its model becomes the base model; each such stage goes on from the one before.
        watched: settings that say how a run is watched and how fast it goes, not what it makes.
    """

    name: str
    settings: type
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    module: str = ""
    function: str = ""
    parallel: bool = False
    resumed: bool = False
    trains_base: bool = False
    watched: frozenset[str] = frozenset()


WATCHED = frozenset({"evaluate_every", "checkpoint_every", "log_every", "held_out", "evaluate_kilobytes", "sample_prompts"})

BASE = ("base", "pretrain", "continue", "sharpen")  # the stages that can make the base model

# In the order in which they run: each reads only what stands before it.
ROWS = (
    Stage("base", sections.BaseSettings),  # no stage: a model that was pretrained elsewhere, in place of those that make one
    Stage("corpus", sections.CorpusSettings, makes=("train.jsonl", "heldout.jsonl"), module="corpus", function="build_corpus"),
    Stage(
        "tokenizer", sections.TokenizerSettings, reads=("corpus",), makes=("tokenizer.json",),
        module="tokenizer", function="train_tokenizer",
    ),
    Stage(
        "pretrain", sections.PretrainSettings, reads=("corpus", "tokenizer"), makes=("model",),
        module="pretrain", function="pretrain", parallel=True, resumed=True, trains_base=True, watched=WATCHED,
    ),
    Stage(
        "continue", sections.ContinueSettings, reads=("tokenizer", "pretrain"), makes=("model",),
        module="pretrain", function="continue_pretraining", parallel=True, resumed=True, trains_base=True, watched=WATCHED,
    ),
    Stage(
        "sharpen", sections.SharpenSettings, reads=("tokenizer", "pretrain", "continue"), makes=("model",),
        module="pretrain", function="sharpen", parallel=True, resumed=True, trains_base=True, watched=WATCHED,
    ),
    Stage(
        "scorer", sections.ScorerSettings, makes=("model",),
        module="scorer", function="train_scorer", resumed=True, watched=frozenset({"checkpoint_every"}),
    ),
    Stage(
        "probe", sections.ProbeSettings, reads=BASE, makes=("probe.json", "probe.safetensors"),
        module="probe", function="train_probe",
    ),
    Stage(
        "pairs", sections.PairsSettings, reads=(*BASE, "corpus", "scorer", "probe"), makes=("pairs.jsonl",),
        module="pairs", function="make_pairs",
    ),
    Stage(
        "dpo", sections.DpoSettings, reads=(*BASE, "pairs"), makes=("model",),
        module="dpo", function="tune", parallel=True, resumed=True, watched=frozenset({"evaluate_every", "checkpoint_every"}),
    ),
    Stage(
        "bundle", sections.BundleSettings, reads=(*BASE, "corpus", "scorer", "probe", "pairs", "dpo"),
        module="bundle", function="bundle",
    ),
)  # fmt: skip
STAGES: dict[str, Stage] = {row.name: row for row in ROWS}


def stage_named(name: str) -> Stage:
    """The row of a stage; raises `UserError` for an unknown name."""
    if name not in STAGES:
        raise UserError(f"there is no stage {name!r}", f"use one of {', '.join(STAGES)}")
    return STAGES[name]


def runnable() -> tuple[str, ...]:
    """The names of the stages that a command can run, in order."""
    return tuple(name for name, row in STAGES.items() if row.module)


def base_training() -> tuple[str, ...]:
    """The names of the stages that train the base model, each going on from the one before."""
    return tuple(name for name, row in STAGES.items() if row.trains_base)


def reads(stage: str, settings: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The stages whose output a stage reads with these settings of a recipe by section, in order; with defaults where there are none.

    Raises `UserError` for an unknown stage.
    """
    row = stage_named(stage)
    section = (settings or {}).get(stage, {})
    selected = alternatives(row.settings, section if isinstance(section, Mapping) else {})
    names = {*row.reads, *(name for alternative in selected.values() for name in alternative.reads)}
    return tuple(name for name in STAGES if name in names)


def lineage(stage: str, settings: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """A stage and every stage that it reads from, directly or not, in order; settings and errors as in `reads`."""
    reached = {stage_named(stage).name}
    for name in reversed(STAGES):
        if name in reached:
            reached.update(reads(name, settings))
    return tuple(name for name in STAGES if name in reached)
