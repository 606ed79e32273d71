"""Several lists of edits in one batch: each row has its own, so that rows under different edits share their products of matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from interp.models.frames import Frame
from interp.models.hooks import Transform


def transforms_by_row(
    variants: Sequence[Mapping[str, tuple[Transform, ...]]], count: int
) -> dict[str, tuple[Transform, ...]]:  # fmt: skip
    """Transforms for a list of texts that is repeated once for each variant, each time under that variant's transforms.

    They need the place of each row in the repeated list (`Frame.rows`), which generation gives.

    Args:
        variants: the transforms of each variant, by site.
        count: the number of texts in the list.
    """
    sites = dict.fromkeys(site for variant in variants for site in variant)
    return {site: (partial(_each, [variant.get(site, ()) for variant in variants], count),) for site in sites}


def _each(parts: Sequence[tuple[Transform, ...]], count: int, x: Tensor, frame: Frame) -> Tensor:
    """The site's tensor, the rows of each variant as its transforms leave them."""
    if frame.rows is None:
        raise ValueError("edits by row need to know which rows are passing")
    owners = [row // count for row in frame.rows]
    changed = x.clone()
    for number in dict.fromkeys(owners):
        if not parts[number]:
            continue
        places = [place for place, owner in enumerate(owners) if owner == number]
        part, inner = x[places], _rows_of(frame, frame.rows, places, count)
        for transform in parts[number]:
            part = transform(part, inner)
        changed[places] = part
    return changed


def _rows_of(frame: Frame, rows: Sequence[int], places: Sequence[int], count: int) -> Frame:
    """The frame of some of the rows, as places in the list that was repeated."""
    some = list(places)
    return Frame(
        frame.positions[some], frame.real[some], frame.prompt_lengths[some], tuple(rows[place] % count for place in some),
        None if frame.roles is None else frame.roles[some],
    )  # fmt: skip
