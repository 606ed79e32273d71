"""The sections of a recipe, one frozen dataclass each: every setting with its meaning, unit, range and default.

`training.stages` names the section of each stage; docs/recipes.md is generated from them.
"""

# ruff: noqa: RUF009 -- `setting` only makes a dataclass field, as `dataclasses.field` does

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.measures import MEASURES
from training.settings import setting


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """A source of records (one of `path`, `dataset` and `grammar`) and the selection from it."""

    name: str | None = setting("what its documents are counted and measured under", default=None)
    path: str | None = setting("a file, a glob or a folder of text files, below `BYPASS_DATA` unless absolute", default=None)
    dataset: str | None = setting("a data set of the Hugging Face hub, or a folder below `BYPASS_DATA` that holds one", default=None)
    config: str | None = setting("configuration of the data set", default=None)
    split: str = setting("split of the data set", default="train")
    grammar: str | None = setting("the project's own language, written as it is read", default=None, one_of=("talk",))
    documents: int | None = setting("how many documents the grammar writes", default=None, least=1)
    seed: int = setting("seed of the grammar", default=0)
    whole: bool = setting("whether a text file is one document; otherwise each line is one", default=False)
    field: str = setting("the field of a record that holds the text", default="text")
    min_characters: int = setting("shorter texts are left out", default=40, unit="characters", least=0)
    megabytes: float | None = setting("how much is taken at most", default=None, unit="million characters", above=0)
    profane: bool | None = setting("only documents with (true) or without (false) a profane word", default=None)
    hostile_at_least: float | None = setting("least share of hostile words in a document", default=None, least=0, most=1)
    hostile_below: float | None = setting("the share of hostile words lies below this", default=None, least=0, most=1)
    repeat: int = setting("how often each document is read", default=1, least=1)


@dataclass(frozen=True, kw_only=True)
class LabelledSourceSettings(SourceSettings):
    """A source whose records are labelled, or stand for one label as a whole."""

    reader: str | None = setting(
        "how its records say that they are toxic", default=None, one_of=("binary", "lines", "spans", "tweets", "perspective", "graded")
    )
    toxic: bool | None = setting("the label of every record, for the reader `lines`", default=None)
    count: int | None = setting("how many pieces are cut from a neutral source", default=None, least=1)
    toxicity: float | None = setting("the target of every piece of a neutral source", default=None, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """A base model that was pretrained elsewhere, in place of the stages that make one."""

    model: str = setting("a folder (below `BYPASS_DATA` or not) or a hub id")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """The documents that the language model learns from."""

    sources: list[dict[str, Any]] = setting("sources, one table each", table=SourceSettings)
    max_characters: int = setting("how much of a document is kept", default=4000, unit="characters", least=1)


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """A byte-level BPE."""

    vocabulary: int = setting("size of the vocabulary, with the end-of-text token", unit="tokens", above=256)
    documents: int | None = setting("how many documents of the corpus it learns from; all where not set", default=None, least=1)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The settings that pretraining and the scorer share."""

    batch: int = setting("size of a batch", unit="windows (texts for the scorer)", least=1)
    learning_rate: float = setting("peak learning rate", least=0)
    final_learning_rate: float = setting("learning rate at the end", least=0)
    warmup_steps: int = setting("linear warm-up", unit="steps", least=0)
    decay: str = setting("how the learning rate falls after the warm-up", default="cosine", one_of=("cosine", "linear"))
    weight_decay: float = setting("of matrices; vectors do not decay", least=0)
    clip: float = setting("the 2-norm of the gradient is clipped to this", above=0)
    precision: str = setting(
        "what forwards compute in; `auto` takes bf16 where the hardware multiplies it", default="auto", one_of=("auto", "bf16", "fp32")
    )
    checkpoint_every: int = setting("how often a checkpoint is written", unit="steps", least=1)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(ScheduleSettings):
    """A GPT-2 from scratch on packed windows of the corpus. One of `epochs` and `steps` must be set."""

    layers: int = setting("number of layers", least=1)
    width: int = setting("width of the residual stream (d_model)", least=1)
    heads: int = setting("attention heads of a layer", least=1)
    context: int = setting("longest sequence, and the length of a window", unit="tokens", least=2)
    epochs: float | None = setting("how often the corpus is read", default=None, above=0)
    steps: int | None = setting("how many steps are taken, in place of `epochs`", default=None, least=1)
    optimizer: str = setting("of the matrices inside the blocks; all else is AdamW's", default="adamw", one_of=("adamw", "muon"))
    stored: str = setting("what the weights are rounded to at the end", default="fp32", one_of=("fp32", "bf16"))
    accumulate: int = setting("parts into which a batch is cut, whose gradients are added", default=1, least=1)
    compile: bool = setting("whether `torch.compile` is used", default=False)
    attention: str | None = setting("implementation of attention, by the name that transformers has for it", default=None)
    piecewise_loss: bool = setting("whether the loss is computed in pieces, which takes less memory", default=False)
    evaluate_every: int = setting("how often the model is measured", unit="steps", least=1)
    log_every: int = setting("how often a line is logged", default=25, unit="steps", least=1)
    evaluate_kilobytes: float = setting("how much of each source bits per byte are measured on", default=60, unit="kB", above=0)
    held_out: list[dict[str, Any]] = setting("further sources to measure on", default=(), table=SourceSettings)
    sample_prompts: list[str] = setting(
        "what samples go on from", default=("I think that you are", "In the morning, the", "The history of the")
    )


@dataclass(frozen=True, kw_only=True)
class ContinueSettings(PretrainSettings):
    """The same model on another mixture. What it does not set is as in [pretrain], but for `epochs`, `steps` and its texts."""

    sources: list[dict[str, Any]] | None = setting("sources; those of the part before where not set", default=None, table=SourceSettings)
    max_characters: int = setting("how much of a document is kept", default=4000, unit="characters", least=1)


@dataclass(frozen=True, kw_only=True)
class SharpenSettings(ContinueSettings):
    """The MLPs of a few layers learned anew at a price on activity. What it does not set is as in the part before."""

    fresh_mlps: list[int] = setting("layers whose MLPs begin anew")
    activation_price: float = setting("price of |activation| times length of the value vector", unit="nats", least=0)
    price_warmup_steps: int = setting("over how many steps the price rises from nothing", default=0, unit="steps", least=0)


@dataclass(frozen=True, kw_only=True)
class ScorerSettings(ScheduleSettings):
    """A six-class toxicity classifier."""

    vocabulary: int = setting("size of its vocabulary", unit="tokens", above=0)
    layers: int = setting("number of layers", least=1)
    width: int = setting("width of its states", least=1)
    heads: int = setting("attention heads of a layer", least=1)
    positions: int = setting("longest text", unit="tokens", least=1)
    dropout: float = setting("dropout of its states", least=0, most=1)
    epochs: float = setting("how often the texts are read", above=0)
    written: int = setting("how many plain sentences are written for it", default=0, least=0)
    sources: list[dict[str, Any]] = setting("labelled sources", table=LabelledSourceSettings)
    neutral: list[dict[str, Any]] = setting("unlabelled sources of clean prose", default=(), table=LabelledSourceSettings)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(SourceSettings):
    """The linear probe: one source of records with a text and `toxic`, and how it is fitted."""

    texts: int = setting("how many texts it is fitted on", least=2)
    l2: float = setting("strength of its L2 penalty", least=0)
    sweep: list[float] = setting("strengths that are compared in `l2.csv`", least=0)
    standardise: bool = setting("divide each coordinate of the activations by its standard deviation before the fit", default=True)
    held_out: float = setting(
        "share of these texts on which it is measured and not fitted; 0.1 is paper A's 90:10", default=0.2, above=0, most=0.5
    )
    skip_first: bool = setting("leave the first position, an attention sink in many models, out of each text's mean", default=False)


@dataclass(frozen=True, kw_only=True)
class PairsSettings:
    """Preference pairs; a generator may have a table of its own below this section."""

    generator: str = setting("how pairs are made: `best-worst`, `pplm`, `steering` or `file`", default="best-worst")
    scorer: str = setting("what judges a side: `bundled`, `lexicon` or a folder", default="bundled")
    prompts: int = setting("how many prompts", least=1)
    prompt_source: dict[str, Any] | None = setting(
        "a source of prompts, or of texts whose beginnings are prompts; provoking beginnings of the corpus where not set",
        default=None, table=SourceSettings,
    )  # fmt: skip
    min_prompt_words: int = setting("shorter texts of `prompt_source` are left out", default=8, unit="words", least=0)
    max_prompt_tokens: int = setting("longest prompt", unit="tokens", least=1)
    new_tokens: int = setting("length of a side", unit="tokens", least=1)
    samples: int | None = setting("samples of each prompt (`best-worst`)", default=None)
    temperature: float | None = setting("of the samples (`best-worst`); 0 is greedy", default=None, least=0)
    top_k: int | None = setting("how many tokens are sampled from (`best-worst`); 0 for all", default=None, least=0)
    chosen_at_most: float = setting("toxicity of a chosen side; must be set for `best-worst`", default=1.0, least=0, most=1)
    rejected_at_least: float = setting("toxicity of a rejected side; must be set for `best-worst`", default=0.0, least=0, most=1)
    pplm: dict[str, Any] | None = setting("settings of `pplm`", default=None)
    steering: dict[str, Any] | None = setting("settings of `steering`", default=None)
    file: dict[str, Any] | None = setting("settings of `file`", default=None)


@dataclass(frozen=True, kw_only=True)
class DpoSettings:
    """Preference tuning of the base model on the pairs, and what is measured meanwhile.

    The measure has settings of its own in the same section (`training.measures`).
    """

    method: str = setting("`dpo`, or `sft` on the chosen sides alone", default="dpo", one_of=("dpo", "sft"))
    loss: str | list[str] = setting("TRL's loss, `sigmoid`, `ipo` or `sft`, or a list of them that are added")
    loss_weights: list[float] | None = setting("one weight per loss; all 1 where not set", default=None)
    beta: float = setting("strength of the pull towards the reference", above=0)
    labels: str = setting(
        "which side is called chosen: as labelled, by a coin, or the other one", default="true", one_of=("true", "shuffled", "reversed")
    )
    optimizer: str = setting("torch's, without weight decay", one_of=("rmsprop", "adamw", "sgd"))
    learning_rate: float = setting("after the warm-up", least=0)
    warmup_steps: int = setting("linear warm-up", unit="steps", least=0)
    batch: int = setting("size of a batch", unit="pairs", least=1)
    clip: float = setting("the 2-norm of the gradient is clipped to this", above=0)
    seed: int | None = setting("order of the pairs and coins of `shuffled`; the recipe's where not set", default=None, least=0)
    max_steps: int = setting("the run ends here at the latest", unit="steps", least=1)
    equal_steps: bool = setting("take as many steps as the run of the extended recipe kept, and do not stop early", default=False)
    stop_at_ratio: float = setting("end where the measure's target is at most this share of what it was; negative for never", default=-1.0)
    validation_share: float = setting("share of the prompts whose pairs are held out", default=0.0, least=0)
    patience: int | None = setting(
        "end after so many measurements without a better validation loss, and keep the best", default=None, least=1
    )
    lora: dict[str, Any] | None = setting("`{ rank, alpha }` of an adapter; full training where not set", default=None)
    difference: bool = setting("keep the model as what it adds to the base", default=False)
    measure: str = setting("what is measured of the policy while it is tuned", default="toxicity", alternatives=MEASURES)
    evaluate_every: int = setting("how often the policy is measured", unit="steps", least=1)
    checkpoint_every: int | None = setting("how often a checkpoint is written; as `evaluate_every` where not set", default=None, least=1)


@dataclass(frozen=True, kw_only=True)
class BundleSettings:
    """The pair that ships."""

    note: str = setting("a sentence of the model card on how it was made", default="")
