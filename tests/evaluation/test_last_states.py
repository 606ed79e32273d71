"""Losses from states that were captured once, against forwards of the whole model under the same edits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import Edit, Model
from interp.evaluation.last_states import acts_last, last_states, losses_from_states
from interp.evaluation.metrics import text_losses
from interp.models.tokens import token_rows
from tests.conftest import TEXTS

LONG = ["the quick wintle", *TEXTS, *(f"{first} {second}" for first in TEXTS for second in TEXTS), "a"]


def test_losses_from_states_are_those_of_whole_forwards(model: Model) -> None:
    last = f"resid_post.{model.n_layers - 1}"
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    edits = {
        "none": (),
        "two": (Edit.subtract(last, vector, 2.0), Edit.scale(last, 0.5, list(range(0, model.d_model, 3)))),
        "places": (Edit.add(last, vector, 3.0, [0, 2]), Edit.project_out(last, vector, "prompt")),
    }
    rows = token_rows(model, LONG)
    states = last_states(model, rows)
    assert [len(state) for state in states] == [len(row) for row in rows]
    plain = None
    for name, some in edits.items():
        assert acts_last(model, some), name
        expected, measured = text_losses(model, LONG, edits=some), losses_from_states(model, rows, states, some)
        for one, other in zip(measured, expected, strict=True):
            assert one.counts.tolist() == other.counts.tolist()
            assert one.losses == pytest.approx(other.losses, rel=1e-5, abs=1e-5)
        total = np.concatenate([loss.losses for loss in measured]).sum()
        plain = total if plain is None else plain
        assert name == "none" or abs(total - plain) > 1e-2


def test_edits_before_or_behind_the_last_stream_do_not_act_on_it_alone(model: Model) -> None:
    vector = torch.ones(model.d_model)
    last = model.n_layers - 1
    for site in (f"resid_post.{last - 1}", f"resid_mid.{last}", f"mlp_out.{last}", "ln_final"):
        assert not acts_last(model, [Edit.add(site, vector)]), site
        assert not acts_last(model, [Edit.add(f"resid_post.{last}", vector), Edit.add(site, vector)])
    assert not acts_last(model, [Edit.scale("logits", 2.0)])
    assert not acts_last(model, [Edit.scale_keys([(last, 0)], 2.0)])
    assert last_states(model, []) == []
