"""Two prompts, a metric, and the straightforward way to a patching map: one edit and one whole forward per cell."""

from __future__ import annotations

import pytest
import torch

from interp import Edit, Model, capture, editing
from interp.models.sites import KINDS
from interp.patching.metrics import LogitDifference
from interp.patching.patch import patch

CLEAN, CORRUPTED = "the quick wintle sings", "the bitter snarg walks"
LOGITS = LogitDifference(5, 300)


def logits_of(model: Model, text: str, edits: list[Edit]) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad(), editing(model, edits):
        return model.hf(ids).logits[0, -1]


def one_by_one(target: Model, text: str, source: Model, other: str, site: str, result) -> torch.Tensor:
    """The straightforward way: an edit and a whole forward per cell."""
    found = []
    names = [f"{site}.{layer}" for layer in range(target.n_layers)]
    theirs_at, ours_at = capture(source, [other], names, positions="all"), capture(target, [text], names, positions="all")
    for cell in result.cells:
        name = f"{site}.{cell.layer}"
        theirs = theirs_at[name][0]
        new, where = ours_at[name][0].clone(), slice(None) if cell.position is None else cell.position
        if cell.unit is None:
            new[where] = theirs[where]
        else:
            new[where, cell.unit] = theirs[where, cell.unit]
        logits = logits_of(target, text, [Edit.patch(name, new.flatten(1))])
        found.append(logits[LOGITS.first] - logits[LOGITS.second])
    return torch.stack(found)


def check_cells(model: Model, site: str, positions: str) -> None:
    units = [1] if KINDS[site].unit else None
    found = patch(
        model, CLEAN, CORRUPTED, metric=LOGITS, site=site, positions=positions, units=units, layers=[0, 2] if positions == "each" else [1]
    )
    assert found.directions == ("denoising", "noising")
    for at, (target, source) in enumerate([(CORRUPTED, CLEAN), (CLEAN, CORRUPTED)]):
        expected = one_by_one(model, target, model, source, site, found)
        torch.testing.assert_close(found.values[at, 0], expected, atol=2e-6, rtol=1e-5)
        plain = logits_of(model, target, [])
        assert float(found.target[at, 0]) == pytest.approx(float(plain[5] - plain[300]), abs=2e-6)
