"""Edits as they are typed: every short form is the edit that it says, and words stand for the neurons and directions they name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from interp import Edit, Model, UserError
from interp.data.texts import challenge_prompts, neutral_prompts
from interp.directions.probe import probe_for
from interp.models.pair import ModelPair
from interp.neurons.firing import selective_first
from interp.neurons.ranking import rank_values, values_at
from interp.steering.edit_text import parse_edit
from tests.conftest import D_MODEL

FORMS: dict[str, Callable[[Model], Edit]] = {
    "scale_keys:2.70,1.12:10": lambda m: Edit.scale_keys([(2, 70), (1, 12)], 10.0),
    "scale_keys:0.1:2:generated": lambda m: Edit.scale_keys([(0, 1)], 2.0, "generated"),
    "subtract:resid_post.1:value.0.3:20": lambda m: Edit.subtract("resid_post.1", values_at(m, [(0, 3)])[0], 20.0),
    "add:resid_post.1:value:0.3:-2.5:prompt": lambda m: Edit.add("resid_post.1", values_at(m, [(0, 3)])[0], -2.5, "prompt"),
    "add:resid_mid.2:{vector}:1:0,4": lambda m: Edit.add("resid_mid.2", [float(i) for i in range(D_MODEL)], 1.0, (0, 4)),
    "scale:mlp_post.1:3,17:0": lambda m: Edit.scale("mlp_post.1", 0.0, [3, 17]),
    "scale:attn_out.1:all:0.5:from_last": lambda m: Edit.scale("attn_out.1", 0.5, None, "from_last"),
    "set:mlp_post.0:5:1.5:3": lambda m: Edit.set("mlp_post.0", 1.5, [5], (3,)),
    "project_out:resid_post.2:value.1.1": lambda m: Edit.project_out("resid_post.2", values_at(m, [(1, 1)])[0]),
    "project_out:resid_post.2:value.1.1:generated": lambda m: Edit.project_out("resid_post.2", values_at(m, [(1, 1)])[0], "generated"),
}


@pytest.mark.parametrize("text", FORMS)
def test_the_short_form_of_an_edit_is_that_edit(text: str, gpt2: Model, tmp_path: Path) -> None:
    file = tmp_path / "vector:1.json"
    file.write_text(json.dumps(list(range(D_MODEL))), encoding="utf-8")
    assert parse_edit(text.format(vector=file), gpt2) == [FORMS[text](gpt2)]


def test_a_file_of_edits_is_read_in_order(gpt2: Model, tmp_path: Path) -> None:
    edits = [Edit.scale_keys([(0, 1)], 3.0), Edit.set("mlp_post.2", 0.0, [7])]
    (tmp_path / "edits.json").write_text(json.dumps([edit.to_json() for edit in edits]), encoding="utf-8")
    assert parse_edit(str(tmp_path / "edits.json"), gpt2) == edits


def test_top_names_the_value_vectors_nearest_to_the_probe_of_the_base(pair: ModelPair) -> None:
    base, tuned = pair.base, pair.tuned
    (edit,) = parse_edit("scale_keys:top:6:10", tuned, lambda: probe_for(base))
    assert list(edit.neurons or ()) == rank_values(tuned, probe_for(base).direction, top=6).neurons
    (chosen,) = parse_edit("scale_keys:selective:3:10", tuned, lambda: probe_for(base))
    near = rank_values(tuned, probe_for(base).direction, top=128).neurons
    assert list(chosen.neurons or ()) == selective_first(tuned, near, challenge_prompts()[1::2], neutral_prompts())[:3]
    with pytest.raises(UserError, match="write selective:N with N from 1 to 128"):
        parse_edit("scale_keys:selective:129:10", tuned, lambda: probe_for(base))
    (own,) = parse_edit("subtract:resid_post.2:difference:2", base)
    assert own == Edit.subtract("resid_post.2", probe_for(base).difference_in_means, 2.0)
