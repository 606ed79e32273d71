"""A model as an nnsight model, and our capture and edits inside one of its traces, here or on NDIF's servers.

Modules are visited in the order in which they run, as nnsight requires. The body of the trace uses nothing but tensors and torch:
the effect of an edit on a batch of known positions is computed before, so that the same body runs on a server where this project is
not installed. NDIF runs hub models only and may be slow or unreachable: all is checked before the request is sent, and the wait has
a limit.
"""

from __future__ import annotations

import copy
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.adapters.libraries import LOCK, library
from interp.adapters.names import in_order, tap_of
from interp.edits.transforms import EditTransform, selected
from interp.errors import UserError
from interp.forward.capture import Forward
from interp.forward.pattern import is_pattern
from interp.models.hooks import Frame, Transform, Work, active
from interp.models.model import Model
from interp.models.sites import Site
from interp.models.tokens import Tokens

Remote = bool | Literal["dry"]
CONNECT_SECONDS = 5.0
POLL_SECONDS = 1.0


def to_nnsight(model: Model) -> Any:
    """An nnsight `TransformersModel` on a copy of this model's weights.

    `interp.adapters.module_name` gives the names of our sites in it. It must not be used by several threads at once. Raises
    `UserError` where the library is missing or the weights are not all in memory.
    """
    return _wrapped(model, _plain_copy(model))


def _plain_copy(model: Model) -> PreTrainedModel:
    """A plain copy of the weights, made under the lock: while it is built, torch's initialisers are switched off for all threads."""
    with LOCK:
        return model.plain_copy()


def _wrapped(model: Model, hf: PreTrainedModel) -> Any:
    nnsight = library("nnsight")
    with LOCK:
        return nnsight.TransformersModel(hf, tokenizer=copy.deepcopy(model.tokenizer), task="text-generation")


def nnsight_forward(model: Model, *, remote: Remote = False, seconds: float | int = 600) -> Forward:
    """The forward of an nnsight model made from this one, for `capture`.

    With `remote` True it runs on NDIF; `dry` packs the request as for NDIF and runs it here.
    """
    hf = None if remote is True else _plain_copy(model)
    nnsight_model = _ndif_model(model) if hf is None else _wrapped(model, hf)

    def forward(model: Model, tokens: Tokens, names: Sequence[str], work: Work, *, last_only: bool) -> dict[str, Tensor]:
        work = active(model.hf).plus(work)
        if any(is_pattern(name) for name in names):
            if hf is None:
                raise UserError("NDIF's models do not return attention patterns", "leave remote out to run it here")
            # No other attention kernel returns its weights.
            hf.set_attn_implementation("eager")
        frame = Frame(tokens.positions, tokens.mask, tokens.lengths, work.rows, work.roles)
        steps = []
        for site in in_order(model, {*names, *work.transforms}):
            tap = tap_of(model, site)
            read_frame = frame.last(1) if last_only and site.name == "logits" else frame
            changes = [_change(transform, read_frame, model, site) for transform in work.transforms.get(str(site), ())]
            columns = model.view(site.name).columns
            part = None if columns is None else (columns.start, columns.stop)
            steps.append((str(site), tap.path, tap.side, tap.shared, tap.item, part, str(site) in names, changes))
        inputs = {**tokens.inputs(), "use_cache": False, "logits_to_keep": 1 if last_only else 0}
        with LOCK, torch.no_grad():
            if remote is True:
                return _trace_on_ndif(nnsight_model, inputs, steps, last_only, seconds)
            return _trace(nnsight_model, inputs, steps, last_only, {"remote": "local"} if remote else {})[0]

    return forward


def _change(transform: Transform, frame: Frame, model: Model, site: Site) -> tuple[str, Tensor, Tensor]:
    """The effect of an edit at one site on a batch whose positions are known, as a kind and two tensors.

    `affine`: factor and offset; `replace`: mask and new values; `project`: mask (0 or 1) and the unit direction. The numbers are
    computed with the edit's own function, so that its rows and positions are decided in one place.
    """
    if not isinstance(transform, EditTransform):
        raise UserError(f"a function of your own is active at {site}, and nnsight runs edits only", "use the engine 'hooks'")
    edit = transform.edit
    empty = torch.zeros(*frame.positions.shape, model.width(site.name), dtype=model.dtype, device=frame.positions.device)
    if edit.op in ("set", "patch"):
        new = transform(empty + torch.nan, frame)
        return "replace", ~new.isnan(), new.nan_to_num()
    if edit.op == "add":
        return "affine", torch.ones_like(empty[0, 0]), transform(empty, frame)
    if edit.op == "scale":
        return "affine", transform(empty + 1, frame), torch.zeros_like(empty[0, 0])
    where = selected(edit.positions, frame).unsqueeze(-1)
    if edit.op == "scale_keys":
        scaled = torch.zeros(model.d_mlp, dtype=torch.bool, device=where.device)
        scaled[[index for layer, index in edit.neurons if layer == site.layer]] = True  # type: ignore[misc,union-attr]
        return "affine", torch.where(where & scaled, edit.strength, 1.0).to(model.dtype), transform(empty, frame)
    unit = torch.nn.functional.normalize(edit.values.double(), dim=0, eps=0)  # type: ignore[union-attr]
    return "project", where.to(model.dtype), unit.to(where.device, model.dtype)


def _trace(
    nnsight_model: Any, inputs: dict[str, Any], steps: list[tuple], last_only: bool, where: dict[str, Any]
) -> tuple[dict[str, Tensor], Any]:
    """The activations that one trace over all steps captures (empty where they stay on a server), and the tracer."""
    nnsight = library("nnsight")
    modules = [nnsight_model.get(path) if path else nnsight_model for _, path, *_ in steps]
    activations: dict[str, Tensor] = {}
    with nnsight_model.trace(**inputs, **where) as tracer:
        activations = nnsight.save({})
        for module, (site, path, side, shared, item, part, captured, changes) in zip(modules, steps, strict=True):
            whole = module.input if side == "input" else module.output
            value = whole.logits if not path else whole[item] if isinstance(whole, tuple) else whole
            new = value if part is None else value[..., part[0] : part[1]]
            for kind, first, second in changes:
                if kind == "affine":
                    new = new * first + second
                elif kind == "replace":
                    new = torch.where(first, second, new)
                else:
                    new = new - first * (new @ second).unsqueeze(-1) * second
            if item:
                # A pattern: its positions are on the third axis.
                new = new.transpose(1, 2)
            if captured:
                activations[site] = (new[:, -1:] if last_only else new).clone()
            if changes:
                if part is not None:
                    new = torch.cat([value[..., : part[0]], new, value[..., part[1] :]], dim=-1)
                if shared or not path:
                    # In place, where a skip connection holds the same tensor.
                    value.copy_(new)
                elif side == "input":
                    module.input = new
                else:
                    module.output = (new, *whole[1:]) if isinstance(whole, tuple) else new
    return activations, tracer


def _trace_on_ndif(
    nnsight_model: Any, inputs: dict[str, Any], steps: list[tuple], last_only: bool, seconds: float | int
) -> dict[str, Tensor]:  # fmt: skip
    """The activations of the same trace on NDIF: sent, then polled until the answer is there or `seconds` are over."""
    end = time.monotonic() + seconds
    try:
        _, tracer = _trace(nnsight_model, inputs, steps, last_only, {"remote": True, "blocking": False})
        while (result := tracer.backend()) is None:
            if time.monotonic() > end:
                raise UserError(f"NDIF did not answer within {seconds:g} seconds", "try again later, give more seconds, or run it here")
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
    except UserError:
        raise
    except Exception as error:  # nnsight passes on what httpx, websocket and the server raise
        raise UserError(
            f"NDIF refused or lost the request ({_first_line(error)})", "check the API key, and nnsight.status() for what runs"
        ) from error
    return {site: value.to(inputs["input_ids"].device) for site, value in result["activations"].items()}


def _ndif_model(model: Model) -> Any:
    """The weightless nnsight model that names this hub model to NDIF; raises `UserError` where NDIF cannot run it."""
    source = None if model.checkpoint is None else model.checkpoint.source
    if model.checkpoint is None or not model.checkpoint.on_hub or model.checkpoint.adapter_base is not None:
        raise UserError(
            f"{model.name} is a private checkpoint ({source or 'made in memory'}), and NDIF runs models of the hub only",
            "leave remote out to run it here, or load a model by its hub id",
        )
    nnsight = library("nnsight")
    from nnsight.schema.config import CONFIG

    if not CONFIG.API.APIKEY and os.environ.get("NDIF_API_KEY"):
        CONFIG.API.APIKEY = os.environ["NDIF_API_KEY"]
    if not CONFIG.API.APIKEY:
        raise UserError("there is no API key for NDIF", "get one at https://login.ndif.us and set NDIF_API_KEY")
    _check_reachable(CONFIG.API.HOST)
    deployments = nnsight.status(raw=True).get("deployments")
    if not isinstance(deployments, dict):
        raise UserError(f"NDIF at {CONFIG.API.HOST} does not tell what it runs", "try again later, or leave remote out to run it here")
    running = sorted({str(entry.get("repo_id")) for entry in deployments.values() if entry.get("application_state") == "RUNNING"})
    if str(source).lower() not in {name.lower() for name in running}:
        there = f"use one of {', '.join(running)}" if running else "nothing is up now"
        raise UserError(f"NDIF does not run {source} now", f"leave remote out to run it here; {there}")
    try:
        with LOCK:
            return nnsight.TransformersModel(
                source, task="text-generation", tokenizer=copy.deepcopy(model.tokenizer),
                attn_implementation=model.hf.config._attn_implementation,
            )  # fmt: skip
    except (OSError, ValueError) as error:
        raise UserError(f"the hub does not give the configuration of {source} ({_first_line(error)})", "check the network") from error


def _check_reachable(host: str) -> None:
    address = urlsplit(host)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"NDIF at {host} cannot be reached ({error})", "check the network, or leave remote out to run it here") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
