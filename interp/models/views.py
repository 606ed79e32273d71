"""The view of a site: the columns and heads that it takes of the tensor that passes its module."""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from interp.models.architectures import Architecture
from interp.models.sites import KINDS


@dataclass(frozen=True)
class View:
    """The columns of the tensor that passes a module which make up a site (None for all), and the number of heads they are split into."""

    heads: int | None = None
    columns: slice | None = None

    def read(self, whole: Tensor) -> Tensor:
        """The site's tensor, read from the tensor that passes the module."""
        part = whole if self.columns is None else whole[..., self.columns]
        return part if self.heads is None else rearrange(part, "batch pos (head d_head) -> batch pos head d_head", head=self.heads)

    def write(self, whole: Tensor, part: Tensor) -> Tensor:
        """The tensor that passes the module, with the site's tensor replaced by `part`."""
        flat = part if self.heads is None else rearrange(part, "batch pos head d_head -> batch pos (head d_head)")
        if self.columns is None:
            return flat
        changed = whole.clone()
        changed[..., self.columns] = flat
        return changed


def view_of(site: str, architecture: Architecture, n_heads: int, n_kv_heads: int, d_head: int) -> View:
    """The view of a site, by its name without layer, in a model with these heads."""
    heads = {"head": n_heads, "kv_head": n_kv_heads, "pattern": n_heads}.get(KINDS[site].axis)
    if site not in architecture.taps or not architecture.taps[site].fused:
        return View(heads)
    start = {"q": 0, "k": n_heads, "v": n_heads + n_kv_heads}[site] * d_head
    return View(heads, slice(start, start + (heads or 0) * d_head))
