"""`Sides` (the models that names on the command line stand for), and their device; the app uses them too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import UserError
from interp.models.named import NAMED, tuned_folder

if TYPE_CHECKING:
    from interp.directions.probe import Probe
    from interp.edits.edit import Edit
    from interp.models.model import Model
    from interp.models.pair import ModelPair

DEVICE = "BYPASS_DEVICE"


@dataclass(frozen=True)
class Sides:
    """The models that `base` and `tuned` stand for, and the probe that `probe` stands for: those of the options, or those that ship.

    `device` is where they compute; None takes the device that `BYPASS_DEVICE` names, as the app does. `bos` is whether texts begin
    with the BOS token, None as the tokenizer does. `tell` is called with what has to be known of the models that are loaded.
    """

    pair: tuple[str, str] | None = None
    probe: Path | None = None
    device: str | None = None
    bos: bool | None = None
    tell: Callable[[str], None] = lambda text: None
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def named_pair(self) -> str | None:
        """The name of a named pair, which stands for both sides; None for two sources, or for the pair that ships."""
        return self.pair[0] if self.pair is not None and self.pair[0] == self.pair[1] and self.pair[0] in NAMED else None

    def source(self, name: str) -> str:
        """The folder, hub id or named model that a name on the command line stands for."""
        from interp.bundled import BUNDLED

        if name not in ("base", "tuned"):
            return name
        if self.pair is not None:
            named = self.named_pair
            return self.pair[name == "tuned"] if named is None or name == "base" else str(tuned_folder(named))
        if not (BUNDLED / name / "config.json").is_file():
            raise UserError("no pair ships with this checkout", "name one with --pair BASE TUNED, or name a folder or a hub id")
        return str(BUNDLED / name)

    def load(self, name: str) -> Model:
        """One loaded model; raises `UserError` as `load_model` does."""
        from interp.models.loading import load_model
        from interp.models.pair import notes_on

        hush()
        device = chosen_device(self.device)
        base = self.source("base") if name == "tuned" else None
        label = name if name in ("base", "tuned") else None
        model = load_model(self.source(name), base=base, device=device, name=label, bos=self.bos)
        self._say(notes_on(model))
        return model

    def both(self) -> ModelPair:
        """The pair, checked to be comparable."""
        from interp.models.pair import ModelPair

        hush()
        device = chosen_device(self.device)
        name = self.named_pair if self.pair else "bundled pair"
        pair = ModelPair.load(self.source("base"), self.source("tuned"), device=device, name=name, bos=self.bos)
        self._say(pair.notes())
        return pair

    def _say(self, sentences: Sequence[str]) -> None:
        """Tell what has not been told yet."""
        for sentence in sentences:
            if sentence not in self._told:
                self._told.add(sentence)
                self.tell(sentence)

    def named(self, name: str) -> dict[str, Model]:
        """Models by name: both sides for `both`, else one model under its own name."""
        if name == "both":
            return self.both().sides
        model = self.load(name)
        return {model.name: model}

    def edits(self, texts: Sequence[str] | None, name: str, model: Model) -> list[Edit]:
        """The edits of `--edit`, checked to fit the model; for a side of the pair, `probe` means the base's probe."""
        from interp.steering.edit_text import parse_edits

        return parse_edits(texts or (), model, lambda: self.probe_of(name, model))

    def probe_of(self, name: str, model: Model) -> Probe:
        """The probe of `--probe`, or else that of the model; for the tuned side that of its base.

        Raises `UserError` for a probe that was fitted on another model.
        """
        from interp.directions.probe import load_probe, probe_for

        base = self.load("base") if name == "tuned" else model
        if self.probe is None:
            return probe_for(base)
        probe = load_probe(self.probe)
        if not probe.matches(base):
            raise UserError(f"the probe in {self.probe} was fitted on another model than {base.name}", "name the probe of the base model")
        return probe


def chosen_device(name: str | None = None) -> str:
    """The device on which models compute: `name`, or the one that `BYPASS_DEVICE` names, or the processor.

    Raises `UserError` for a device that this machine or this torch does not have, and for Apple's `mps`: the analyses need
    float64, which it lacks.
    """
    import torch

    text = name if name is not None else os.environ.get(DEVICE, "")
    device = text.strip().lower() or "cpu"
    stated = f"{'--device' if name is not None else DEVICE} is {text!r}"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or (":" in device and not (index.isascii() and index.isdecimal())):
        raise UserError(f"{stated}, which is no device", "use cpu, cuda or cuda:1")
    if torch.version.cuda is None and torch.version.hip is None:
        raise UserError(f"{stated}, but the torch that is installed computes on the processor alone", "use cpu, or install torch with CUDA")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError(f"{stated}, but torch finds no GPU", "use cpu, or see with nvidia-smi whether the driver works")
    if index and int(index) >= count:
        raise UserError(f"{stated}, but the last of the {count} GPUs here is cuda:{count - 1}", f"use one of cuda:0 to cuda:{count - 1}")
    return device


def hush() -> None:
    """Silence transformers, which may have been imported before the environment variables for this were set."""
    if os.environ.get("BYPASS_DEBUG", "0") in ("", "0"):
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
