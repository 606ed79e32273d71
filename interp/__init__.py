"""Bypass, a workbench for what preference tuning changes inside a language model: the public names of the package.

Everything that the README, the notebook and docs/ use is imported from here. The app, the command line and the experiments
use the same functions and import them from their own modules (`interp.forward`, `interp.patching` and so on); a name that is
not listed here may change. A name is imported when it is first used, because importing torch takes seconds, which
`bypass --help` should not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.data.lexicon import mask
    from interp.data.texts import challenge_prompts, neutral_prompts, passages
    from interp.diffing.offsets import mean_offset_at_last, shifts
    from interp.diffing.weights import neuron_shift, weight_shift
    from interp.directions.probe import Probe, bundled_probe, fit_probe, load_probe, probe_for, save_probe
    from interp.edits.edit import Edit, load_edits, save_edits
    from interp.edits.hooked import hooked
    from interp.edits.transforms import editing
    from interp.errors import UserError
    from interp.evaluation.metrics import Evaluation, evaluate, perplexity
    from interp.evaluation.toxicity import Scorer, load_scorer
    from interp.experiments.registry import Finding, experiment
    from interp.experiments.toxicity.context import ToxicityContext
    from interp.forward.capture import capture
    from interp.forward.captured import Captured, load_captured
    from interp.forward.generate import Sampling, generate, stream
    from interp.lens.attribution import attribute, attribute_pair
    from interp.lens.attribution_results import Attribution
    from interp.lens.logit_lens import Lens, logit_lens
    from interp.models.chat import Chat, render_chat
    from interp.models.loading import load_model
    from interp.models.model import Model
    from interp.models.pair import ModelPair
    from interp.models.sites import Site
    from interp.models.tokens import token_rows
    from interp.neurons.activations import forced_neurons, watch_neurons
    from interp.neurons.example_results import Examples
    from interp.neurons.examples import max_activating
    from interp.neurons.firing import selective_first
    from interp.neurons.ranking import explain_neuron, rank_values, values_at
    from interp.neurons.vocabulary import build_index, search, top_tokens
    from interp.patching.gradient import agreement, attribution_patch, gradients
    from interp.patching.maps import PatchMap
    from interp.patching.metrics import ContinuationToxicity, LogitDifference, LogProbability, ProbeProjection
    from interp.patching.patch import patch
    from interp.patching.paths import path_patch
    from interp.patching.prompt_pairs import symmetric_pairs
    from interp.results import figures
    from interp.runs.telemetry import read_telemetry
    from interp.runs.trajectory import read_trajectories, runs_of
    from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_mean
    from interp.stats.nulls import matched_neurons, random_directions, random_neurons

__all__ = [  # noqa: RUF022  (grouped by purpose)
    # Models: one, or a pair before and after tuning.
    "Chat", "Model", "ModelPair", "Site", "load_model", "render_chat", "token_rows",
    # Run a model: capture activations and generate text.
    "Captured", "Sampling", "capture", "generate", "load_captured", "stream",
    # Change activations during a forward.
    "Edit", "editing", "hooked", "load_edits", "save_edits",
    # The logit lens and direct logit attribution.
    "Attribution", "Lens", "attribute", "attribute_pair", "logit_lens",
    # Activation patching and its metrics.
    "ContinuationToxicity", "LogProbability", "LogitDifference", "PatchMap", "ProbeProjection", "agreement", "attribution_patch",
    "gradients", "patch", "path_patch", "symmetric_pairs",
    # Neurons: their value vectors, what they promote, and when they fire.
    "Examples", "build_index", "explain_neuron", "forced_neurons", "max_activating", "rank_values", "search", "selective_first",
    "top_tokens", "values_at", "watch_neurons",
    # Directions.
    "Probe", "bundled_probe", "fit_probe", "load_probe", "probe_for", "save_probe",
    # Model diffing: the two sides of a pair.
    "mean_offset_at_last", "neuron_shift", "shifts", "weight_shift",
    # Evaluation: toxicity, perplexity and F1.
    "Evaluation", "Scorer", "evaluate", "load_scorer", "perplexity",
    # Intervals and nulls.
    "Interval", "bootstrap_difference", "bootstrap_mean", "matched_neurons", "random_directions", "random_neurons",
    # What training runs left behind.
    "read_telemetry", "read_trajectories", "runs_of",
    # Texts that ship; `mask` hides profanity.
    "challenge_prompts", "mask", "neutral_prompts", "passages",
    # Writing an experiment.
    "Finding", "ToxicityContext", "experiment", "figures",
    # The error for bad input.
    "UserError",
]  # fmt: skip

# The module of each name, below `interp`.
_HOMES = {
    "Chat": "models.chat",
    "render_chat": "models.chat",
    "Model": "models.model",
    "ModelPair": "models.pair",
    "Site": "models.sites",
    "load_model": "models.loading",
    "token_rows": "models.tokens",
    "Captured": "forward.captured",
    "Sampling": "forward.generate",
    "capture": "forward.capture",
    "generate": "forward.generate",
    "load_captured": "forward.captured",
    "stream": "forward.generate",
    "Edit": "edits.edit",
    "editing": "edits.transforms",
    "hooked": "edits.hooked",
    "load_edits": "edits.edit",
    "save_edits": "edits.edit",
    "Attribution": "lens.attribution_results",
    "Lens": "lens.logit_lens",
    "attribute": "lens.attribution",
    "attribute_pair": "lens.attribution",
    "logit_lens": "lens.logit_lens",
    "ContinuationToxicity": "patching.metrics",
    "LogProbability": "patching.metrics",
    "LogitDifference": "patching.metrics",
    "PatchMap": "patching.maps",
    "ProbeProjection": "patching.metrics",
    "agreement": "patching.gradient",
    "attribution_patch": "patching.gradient",
    "gradients": "patching.gradient",
    "patch": "patching.patch",
    "path_patch": "patching.paths",
    "symmetric_pairs": "patching.prompt_pairs",
    "Examples": "neurons.example_results",
    "build_index": "neurons.vocabulary",
    "explain_neuron": "neurons.ranking",
    "forced_neurons": "neurons.activations",
    "max_activating": "neurons.examples",
    "rank_values": "neurons.ranking",
    "search": "neurons.vocabulary",
    "selective_first": "neurons.firing",
    "top_tokens": "neurons.vocabulary",
    "values_at": "neurons.ranking",
    "watch_neurons": "neurons.activations",
    "Probe": "directions.probe",
    "bundled_probe": "directions.probe",
    "fit_probe": "directions.probe",
    "load_probe": "directions.probe",
    "probe_for": "directions.probe",
    "save_probe": "directions.probe",
    "mean_offset_at_last": "diffing.offsets",
    "neuron_shift": "diffing.weights",
    "shifts": "diffing.offsets",
    "weight_shift": "diffing.weights",
    "Evaluation": "evaluation.metrics",
    "Scorer": "evaluation.toxicity",
    "evaluate": "evaluation.metrics",
    "load_scorer": "evaluation.toxicity",
    "perplexity": "evaluation.metrics",
    "Interval": "stats.intervals",
    "bootstrap_difference": "stats.intervals",
    "bootstrap_mean": "stats.intervals",
    "matched_neurons": "stats.nulls",
    "random_directions": "stats.nulls",
    "random_neurons": "stats.nulls",
    "read_telemetry": "runs.telemetry",
    "read_trajectories": "runs.trajectory",
    "runs_of": "runs.trajectory",
    "challenge_prompts": "data.texts",
    "mask": "data.lexicon",
    "neutral_prompts": "data.texts",
    "passages": "data.texts",
    "Finding": "experiments.registry",
    "ToxicityContext": "experiments.toxicity.context",
    "experiment": "experiments.registry",
    "figures": "results.figures",
    "UserError": "errors",
}
# Names that are modules themselves.
_MODULES = {"figures"}


# Who has a model has its `to_transformer_lens()` and `to_nnsight()`, which the adapters enter when they are imported.
_CONVERTED = ("Model", "load_model", "ModelPair")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    module = import_module(f"interp.{_HOMES[name]}")
    if name in _CONVERTED:
        import_module("interp.adapters")
    globals()[name] = value = module if name in _MODULES else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
