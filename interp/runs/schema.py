"""The schema of training logs: the fields that a line may have, and the measures that are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

LOG = "log.jsonl"


# Every field that a line may have: a number, unless its meaning says otherwise.
FIELDS: dict[str, str] = {
    "step": "optimiser steps done when the line was written; 0 is the model before the first",
    "seconds": "time spent training so far, over all sittings",
    "tokens": "tokens read so far",
    "tokens_per_second": "tokens of the step's batch (of pairs, the prompt counted with each side) by seconds of forward, backward and update",
    "loss": "training loss of the step, as optimised (nats per token for language modelling and SFT)",
    "learning_rate": "learning rate of the step",
    "entropy": "mean entropy in nats of the next-token distribution over the batch's completions",
    "held_out_loss": "mean nats per token on held-out windows of the corpus",
    "validation_loss": "the training loss on held-out examples",
    "validation_accuracy": "on held-out examples: share classified rightly, or of pairs with a positive margin",
    "logp_chosen": "mean log-probability in nats of the chosen completions, summed over tokens",
    "logp_rejected": "the same of the rejected completions",
    "margin": "mean of beta * ((logp_chosen - reference) - (logp_rejected - reference)), TRL's reward margin",
    "accuracy": "share of the batch's pairs with a positive margin",
    "kl": "list by position of the continuation: KL(model || reference) in nats on fixed prompts and fixed continuations of them",
    "top_gaining": "list of [token, gain]: the next tokens at fixed prompts whose mean probability rose most above the reference",
    "gradient_norm": "object by parameter group (all, embedding, attention, mlp, norm, ...): 2-norm of the gradient before clipping",
    "update_norm": "object by parameter group: 2-norm of (weights now - weights at step 0)",
    "bits_per_byte": "object by source: loss in bits per UTF-8 byte of held-out texts",
    "toxicity": "mean toxicity score of greedy continuations of fixed prompts",
    "toxicity_share": "share of those continuations that score above 0.5",
    "perplexity": "perplexity of the model on fixed held-out texts of all sources",
    "samples": "list of [prompt, continuation]: raw words; mask them before they are shown",
    "event": "text: started, resumed, checkpoint, stopped or finished",
    "reason": "text: why, where the event has a reason",
}


OBJECTS = frozenset({"gradient_norm", "update_norm", "bits_per_byte"})


TEXTS = frozenset({"event", "reason"})


# Former names, which are still read: those of TRL, and those of the first pretraining loop.
FORMER = {
    "num_tokens": "tokens", "grad_norm": "gradient_norm", "logps/chosen": "logp_chosen", "logps/rejected": "logp_rejected",
    "rewards/margins": "margin", "rewards/accuracies": "accuracy", "development_toxicity": "toxicity_share",
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A quantity that can be drawn over steps: its fields with their labels, its unit and its caption."""

    title: str
    fields: dict[str, str]
    unit: str
    caption: str
    log: bool = False


MEASURES: dict[str, Measure] = {
    "loss": Measure(
        "Loss", {"loss": "training", "held_out_loss": "held-out", "validation_loss": "validation"}, "loss",
        "A held-out loss that rises while the training loss falls is over-fitting.",
    ),
    "logp": Measure(
        "Log-probability of the two sides", {"logp_chosen": "chosen", "logp_rejected": "rejected"}, "nats",
        "Where both fall, the margin grows by pushing the rejected side down faster: likelihood displacement.",
    ),
    "margin": Measure("Reward margin", {"margin": "margin"}, "beta * nats", "How far apart training has driven the two sides."),
    "accuracy": Measure(
        "Pairs ranked as labelled", {"accuracy": "training", "validation_accuracy": "validation"}, "share",
        "One half is chance, at the start of DPO every pair is a tie.",
    ),
    "kl": Measure("KL to the reference by position", {"kl": "kl"}, "nats", "How far the model has moved, token by token."),
    "top_gaining": Measure(
        "Tokens that gained most", {"top_gaining": "gain"}, "gain in probability",
        "Next tokens at fixed prompts, against the reference, at the last measurement.",
    ),
    "gradient_norm": Measure(
        "Gradient by parameter group", {"gradient_norm": "gradient"}, "2-norm", "Before clipping; a jump is a sign of divergence.", log=True
    ),
    "update_norm": Measure(
        "Distance from the start by parameter group", {"update_norm": "update"}, "2-norm", "Where training has moved weights.",
        log=True,
    ),
    "bits_per_byte": Measure(
        "Bits per byte on held-out texts", {"bits_per_byte": "bits per byte"}, "bits per byte",
        "What training costs on each source of the pretraining corpus.",
    ),
    "toxicity": Measure(
        "Toxicity of continuations of fixed prompts", {"toxicity": "mean score", "toxicity_share": "share above one half"}, "toxicity",
        "Greedy continuations of the same prompts throughout.",
    ),
    "perplexity": Measure("Perplexity on held-out texts", {"perplexity": "perplexity"}, "perplexity", "The price of training in fluency."),
    "learning_rate": Measure("Learning rate", {"learning_rate": "learning rate"}, "learning rate", "The schedule as it was run."),
}  # fmt: skip
