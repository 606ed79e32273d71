"""`DisplacementCallback`: logs likelihood displacement on fixed pairs while TRL's `DPOTrainer` trains.

What TRL logs of log π(chosen) is of the pairs of a batch, which are others at every step. Here the same pairs are read each time, so that a
change is the policy's (Definition 1 of Razin et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from interp.errors import UserError
from interp.preferences.influence import dot
from interp.preferences.pairs import TokenPair
from training.pair_batches import answer_log_probs

if TYPE_CHECKING:
    from trl import DPOTrainer

# Pairs that are read together.
BATCH = 8


class DisplacementCallback(TrainerCallback):
    """Logs Definition 1 and entanglement every so many steps, on the first pairs of the trainer's evaluation set, or of its training set.

    Each entry of the trainer's log has `displacement/chosen` and `displacement/rejected`, the mean change of the log-probability of a
    whole answer since training began, in nats; `displacement/fell`, the share of the pairs whose chosen answer has lost; and the mean and
    the share above 1 of `<g+, g-> / |g+|²` of a few of them, by the weights that are trained, as `displacement/entanglement` and
    `displacement/entangled`. Above 1 a step of gradient descent on that pair alone lowers its chosen answer. Below 0 `chosen` is
    likelihood displacement, and no error by itself.

    Args:
        trainer: TRL's `DPOTrainer`, to which this is then added by `trainer.add_callback`.
        pairs: how many pairs are read.
        every: steps between two entries; the start and the end are always logged.
        gradients: of how many of the pairs entanglement is measured; two backward passes each.

    Raises `UserError` for numbers that are too small, for data that are not tokenised as in TRL 1.16, and for FSDP and DeepSpeed.
    """

    def __init__(self, trainer: DPOTrainer, *, pairs: int = 32, every: int = 10, gradients: int = 4) -> None:
        if min(pairs, every) < 1 or gradients < 0:
            raise UserError(f"pairs={pairs}, every={every}, gradients={gradients}", "give at least 1, 1 and 0")
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError("the weights are divided over processes, and one process reads the pairs", "train without FSDP and DeepSpeed")
        self.trainer, self.every, self.gradients = trainer, every, gradients
        self.pairs = trained_pairs(trainer, pairs)
        self._start: np.ndarray | None = None
        self._last = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure the policy before the first step, or before the first one after a resumption."""
        self._start = self._read()
        self._log(state.global_step, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log every so many steps."""
        if state.global_step % self.every == 0:
            self._log(state.global_step, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the end, where it was not logged."""
        self._log(state.global_step, control)

    def _log(self, step: int, control: TrainerControl) -> None:
        if step == self._last or not self.trainer.is_world_process_zero() or self._start is None:
            return
        self._last = step
        change = self._read() - self._start
        entry = {
            "displacement/chosen": float(change[:, 0].mean()), "displacement/rejected": float(change[:, 1].mean()),
            "displacement/fell": float((change[:, 0] < 0).mean()),
        }  # fmt: skip
        if self.gradients:
            values = self._entanglement()
            entry |= {"displacement/entanglement": float(values.mean()), "displacement/entangled": float((values > 1).mean())}
        due = control.should_log
        # TRL's own `log` would put the means of its metrics so far into this entry and forget them.
        Trainer.log(self.trainer, entry)
        # Logging takes it for done that this step is logged.
        control.should_log = self.trainer.control.should_log = due

    def _policy(self) -> PreTrainedModel:
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return policy.get_base_model() if hasattr(policy, "get_base_model") else policy

    def _read(self) -> np.ndarray:
        """The log-probabilities of both answers of each pair under the policy, `pair 2`, without dropout."""
        policy = self._policy()
        with _evaluating(policy), torch.no_grad():
            parts = [answer_log_probs(policy, self.pairs[start : start + BATCH]) for start in range(0, len(self.pairs), BATCH)]
        return torch.cat(parts).cpu().numpy()

    def _entanglement(self) -> np.ndarray:
        policy = self._policy()
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        values = []
        with _evaluating(policy), torch.enable_grad():
            for pair in self.pairs[: self.gradients]:
                (both,) = answer_log_probs(policy, [pair])
                chosen, rejected = (
                    torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True, materialize_grads=True) for value in both
                )
                values.append(dot(chosen, rejected) / dot(chosen, chosen))
        return np.array(values)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A block in which a model is in evaluation mode; its modules are then as they were."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def trained_pairs(trainer: DPOTrainer, count: int) -> list[TokenPair]:
    """The first pairs of the trainer's evaluation set, or of its training set where it has none, cut as its collator cuts them.

    Pairs of which truncation leaves no answer are left out. Raises `UserError` for data of another form and where no pair is left.
    """
    data: Any = trainer.eval_dataset
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    data = trainer.train_dataset if data is None else data
    columns: Sequence[str] = getattr(data, "column_names", None) or ()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    if not set(names) <= set(columns):
        raise UserError(
            f"the trainer's data have the columns {', '.join(columns) or 'none'}", f"use TRL 1.16, which makes {', '.join(names)}"
        )
    longest, pairs = trainer.args.max_length, []
    if longest is not None and trainer.args.truncation_mode != "keep_start":
        raise UserError(f"truncation_mode is {trainer.args.truncation_mode!r}", "set keep_start, TRL's default, or max_length=None")
    for row in data:
        prompt, chosen, rejected = (tuple(map(int, row[name])) for name in names)
        room = None if longest is None else max(0, longest - len(prompt))
        if prompt and chosen[:room] and rejected[:room]:
            pairs.append(TokenPair(prompt, chosen[:room], rejected[:room]))
        if len(pairs) == count:
            break
    if not pairs:
        raise UserError("the trainer has no pair with a prompt and two answers", "raise max_length, or give it other data")
    return pairs
