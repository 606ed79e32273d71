"""A model as a TransformerLens bridge, and our capture and edits through its hooks.

The bridge takes its model apart, so it gets a copy of the weights. They stay raw: compatibility mode, which folds the norms and
centres the value vectors, is never switched on. The bridge has one trap for edits: what a hook returns at `hook_resid_mid` reaches
the MLP but not the skip connection, so that site is edited in place.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from interp.adapters.libraries import LOCK, library
from interp.adapters.names import HOOKS, hook_name, in_order
from interp.errors import UserError
from interp.forward.capture import Forward
from interp.forward.pattern import by_query, is_pattern
from interp.models.hooks import Frame, Work, active
from interp.models.model import Model
from interp.models.tokens import Tokens, adds_bos


def to_transformer_lens(model: Model) -> Any:
    """A `TransformerBridge` on a copy of this model's weights, raw: no folding, no centring.

    Hook names of our sites are given by `interp.adapters.hook_name`. A text gets a BOS token where our model gives it one, and
    not always, as in bridges made otherwise. It must not be used by several threads at once.

    Raises `UserError` where the library is missing, does not know the architecture, or the weights are not all in memory.
    """
    transformer_lens = library("transformer_lens")
    with LOCK, warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        verbosity = logging.get_verbosity()
        hf = model.plain_copy()
        # The bridge knows a model by this entry of its configuration, which one that was built in memory lacks.
        hf.config.architectures = [type(hf).__name__]
        tokenizer = copy.deepcopy(model.tokenizer)
        # The bridge reads the tokenizer again from where it came from, which one that was built in memory does not have.
        if "name_or_path" not in tokenizer.init_kwargs:
            tokenizer.save_pretrained(folder)
            tokenizer.init_kwargs["name_or_path"] = folder
        try:
            bridge = transformer_lens.TransformerBridge.boot_transformers(
                model.name, hf_model=hf, tokenizer=tokenizer, device=str(model.device),
                dtype=model.dtype,
            )  # fmt: skip
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"TransformerLens cannot wrap {model.name} ({str(error)[:120]})", "use the engine hooks or nnsight") from error
        finally:
            logging.set_verbosity(verbosity)
    # The bridge begins every text with BOS, also for models that were trained without one.
    bridge.cfg.default_prepend_bos = adds_bos(model)
    return bridge.eval()


def transformer_lens_forward(model: Model) -> Forward:
    """The forward of a bridge made from this model, for `capture`."""
    bridge = to_transformer_lens(model)

    @torch.no_grad()
    def forward(model: Model, tokens: Tokens, names: Sequence[str], work: Work, *, last_only: bool) -> dict[str, Tensor]:
        work = active(model.hf).plus(work)
        frame = Frame(tokens.positions, tokens.mask, tokens.lengths, work.rows, work.roles)
        captured: dict[str, Tensor] = {}

        def at(site: str, value: Tensor) -> Tensor:
            for transform in work.transforms.get(site, ()):
                value = transform(value, frame.last(value.shape[1]))
            if site in names:
                read = by_query(value) if is_pattern(site) else value
                captured[site] = (read[:, -1:] if last_only else read).clone()
            return value

        sites = in_order(model, {*names, *work.transforms})
        with contextlib.ExitStack() as stack:
            hooks = []
            for site in sites:
                if HOOKS[site.name] is None:
                    # The gate after its nonlinearity has no hook point, but the module that computes it is still there.
                    gate = bridge.blocks[site.layer].mlp.original_component.act_fn
                    handle = gate.register_forward_hook(lambda module, args, out, name=str(site): at(name, out))
                    stack.callback(handle.remove)
                elif site.name != "logits":
                    hooks.append((hook_name(site), _hook(str(site), at, in_place=site.name == "resid_mid")))
            logits = bridge.run_with_hooks(
                tokens.ids, attention_mask=tokens.mask.long(), position_ids=tokens.positions, fwd_hooks=hooks, return_type="logits"
            )
        # Some models cap the logits after the unembedding, so the site is what the model returns.
        if any(site.name == "logits" for site in sites):
            at("logits", logits[:, -1:] if last_only else logits)
        return captured

    return forward


def _hook(site: str, at: Any, *, in_place: bool) -> Any:
    def hook(value: Tensor, hook: Any) -> Tensor:
        new = at(site, value)
        return value.copy_(new) if in_place and new is not value else new

    return hook
