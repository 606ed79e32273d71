"""`Captured`: activations by site, in memory or memory-mapped, and reading and writing them as a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.files import read_json, replacing
from interp.models.sites import KINDS, Site, parse_site


class NotCaptured(UserError, KeyError):
    """A site was not captured. Also a `KeyError`, so that `in` and `get` work as for any mapping."""

    __str__ = ValueError.__str__


@dataclass(frozen=True, eq=False)
class Captured(Mapping[str, Tensor]):
    """Activations by site: `batch d` (last, mean), or `batch pos d` with `mask` for the positions that are not padding, or those of a role.

    A site is read as `acts["resid_post.5"]`, `acts["resid_post", 5]` or `acts[Site("resid_post", 5)]`.
    """

    tensors: dict[str, Tensor]
    positions: str
    mask: Bool[Tensor, "batch pos"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: str | Site | tuple[str, int]) -> Tensor:
        name = ".".join(map(str, site)) if isinstance(site, tuple) else str(site)
        if name not in self.tensors:
            name = self._known(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def _known(self, text: str) -> str:
        """The name under which a site is stored; raises `NotCaptured` saying why there is none."""
        try:
            site = parse_site(text)
        except UserError as error:
            raise NotCaptured(error.problem, error.fix) from None
        if str(site) in self.tensors:
            return str(site)
        layers = self._layers(site.name)
        if layers:
            raise NotCaptured(
                f"site {site} was not captured, but other layers of this site were ({site.name}: layers {', '.join(map(str, layers))})",
                f"use one of these layers, or capture {site} too",
            )
        raise NotCaptured(f"site {str(site)!r} was not captured", f"use one of {', '.join(self.tensors)}")

    def _layers(self, name: str) -> list[int]:
        sites = [parse_site(text) for text in self.tensors]
        return sorted(site.layer for site in sites if site.name == name and site.layer is not None)

    def stack(self, site: str, layers: Sequence[int] | None = None) -> Float[Tensor, "layer batch ..."]:
        """The activations of one site at every layer, in the order of the layers (`resid_post`, without a layer).

        Args:
            layers: only these, in this order.

        Raises:
            UserError: a layer of the model, or one that was named, was not captured; or the site has no layers.
        """
        try:
            name = parse_site(f"{site}.0").name
        except UserError:
            if site in KINDS:
                raise NotCaptured(f"site {site!r} has no layers to stack", f"read it as it is: acts[{site!r}]") from None
            raise NotCaptured(f"{site!r} is not a site", f"use one of {', '.join(KINDS)}, without a layer") from None
        captured = self._layers(name)
        count = self.settings.get("n_layers", max(captured, default=-1) + 1)
        chosen = list(range(count)) if layers is None else list(layers)
        missing = [layer for layer in chosen if layer not in captured]
        if missing or not chosen:
            raise NotCaptured(
                f"{site} cannot be stacked: layers {', '.join(map(str, missing)) or 'of this site'} were not captured",
                f'capture "{site}.*", or name the layers that were: {captured}',
            )
        return torch.stack([self[name, layer] for layer in chosen])

    def save(self, folder: str | Path) -> Path:
        """Write one `.npy` per site and an index, atomically."""
        target = Path(folder)
        with replacing_capture(target) as temporary:
            for site, tensor in self.tensors.items():
                np.save(temporary / f"{site}.npy", tensor.float().numpy())
            write_index(temporary, self)
        return target


def load_captured(folder: str | Path) -> Captured:
    """The capture saved in a folder, with memory-mapped tensors; raises `UserError` where there is none."""
    target = Path(folder)
    if not (target / "index.json").is_file():
        raise UserError(f"{target} holds no capture", "give a folder that capture(spill=...) or Captured.save wrote")
    index = read_json(target / "index.json", "capture it again")
    # A folder may have a site under its earlier name (see `parse_site`).
    tensors = {str(parse_site(site)): torch.from_numpy(np.load(target / f"{site}.npy", mmap_mode="c")) for site in index["sites"]}
    mask = torch.from_numpy(np.load(target / "mask.npy")) if (target / "mask.npy").is_file() else None
    return Captured(tensors, index["positions"], mask, index["settings"])


@contextlib.contextmanager
def replacing_capture(target: Path) -> Iterator[Path]:
    """A new folder that becomes the target when the block ends; raises `UserError` for a target that is not a capture."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "index.json").is_file()):
        raise UserError(f"{target} exists and is not a capture", "give a new folder")
    with replacing(target) as temporary:
        temporary.mkdir()
        yield temporary


def write_index(folder: Path, captured: Captured) -> None:
    """Write the mask and the index of a capture into its folder."""
    if captured.mask is not None:
        np.save(folder / "mask.npy", captured.mask.numpy())
    index = {"sites": list(captured.tensors), "positions": captured.positions, "settings": captured.settings}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
