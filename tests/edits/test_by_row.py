"""Rows under different edits in one batch continue as under each list of edits alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp import Edit, Model
from interp.edits.by_row import transforms_by_row
from interp.forward.generate import generate_tokens
from interp.forward.variants import generate_variants
from interp.models.frames import Frame
from tests.conftest import TEXTS


def variants_of(model: Model, rows: list[list[int]]) -> list[list[Edit]]:
    """Edits of every kind, of which some act at one site together, some on a row of their own, and one on nothing."""
    generator = torch.Generator().manual_seed(0)

    def vector(*shape: int) -> Tensor:
        return 4 * torch.randn(*shape, generator=generator)

    width = model.d_model
    return [
        [],
        [Edit.add("resid_post.1", vector(width)), Edit.scale("mlp_post.1", -6.0, [0, 3, 7])],
        [Edit.scale_keys([(0, 1), (2, 5)], 30.0)],
        [Edit.add("resid_post.1", vector(width), positions="last"), Edit.project_out("resid_mid.2", vector(width))],
        [Edit.patch("resid_post.0", vector(len(rows), 3, width), "prompt")],
        [Edit.set("mlp_post.2", 9.0, [1, 2], positions="generated"), Edit.add("resid_post.1", vector(width), positions=(0, 2))],
    ]


@pytest.mark.oracle
@pytest.mark.parametrize("batch_size", [256, 7, 1])
def test_continuations_are_those_of_each_list_of_edits_alone(any_model: Model, batch_size: int) -> None:
    rows = [list(row) for row in any_model.tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]]
    variants = variants_of(any_model, rows)
    together = generate_variants(any_model, rows, variants, max_new_tokens=6, batch_size=batch_size)
    alone = [generate_tokens(any_model, rows, max_new_tokens=6, edits=edits) for edits in variants]
    assert together == alone
    # Each list of edits says something else, or the test would not see rows under a neighbour's edits.
    assert len({str(continuations) for continuations in alone}) == len(variants)


def test_rows_that_are_not_known_are_refused() -> None:
    transforms = transforms_by_row([{"resid_post.0": (lambda x, frame: x,)}], 1)
    frame = Frame(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.long))
    with pytest.raises(ValueError, match="which rows"):
        transforms["resid_post.0"][0](torch.zeros(1, 1, 2), frame)
