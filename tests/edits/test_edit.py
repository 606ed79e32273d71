"""Edits as data: what is written is what is read, and what cannot be done is refused with the name of the fault."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import Edit, Model, UserError, capture, editing, generate
from interp.edits.edit import OPS, load_edits, save_edits
from interp.edits.transforms import transforms_of
from interp.models.hooks import Frame
from tests.conftest import D_MODEL, TEXTS

VECTOR = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
MANY = torch.randn(2, 3, D_MODEL, generator=torch.Generator().manual_seed(1))

EVERY: list[Edit] = [
    Edit.add("resid_mid.1", VECTOR, 1.7),
    Edit.add("resid_post.0", VECTOR, 1.7, [0, 3]),
    Edit.subtract("resid_post.2", VECTOR / 3, 0.1, "from_last"),
    Edit.scale("mlp_post.1", -1.5),
    Edit.scale("mlp_post.1", 2.5, [4, 0], "prompt"),
    Edit.scale_keys([(0, 5), (2, 31)], 10.0),
    Edit.scale_keys([(1, 0)], 0.1, "generated"),
    Edit.set("mlp_pre.2", 3.0, [1]),
    Edit.set("attn_out.0", 0.0),
    Edit.project_out("resid_pre.1", VECTOR),
    Edit.project_out("z.1", VECTOR, [2]),
    Edit.patch("ln_final", VECTOR),
    Edit.patch("mlp_out.1", MANY[0]),
    Edit.patch("resid_mid.0", MANY),
    Edit.patch("resid_mid.0", MANY, [1, 0, 2]),
]


def shown(edit: Edit) -> str:
    return f"{edit.op}-{edit.site}-{edit.positions}"


def test_every_op_is_in_the_list_of_this_file() -> None:
    assert {edit.op for edit in EVERY} == set(OPS)


@pytest.mark.parametrize("edit", EVERY, ids=shown)
def test_an_edit_read_back_from_json_is_equal_and_acts_equally(model: Model, edit: Edit, tmp_path: Path) -> None:
    save_edits([edit], tmp_path / "edits.json")
    (again,) = load_edits(tmp_path / "edits.json")
    assert [file.name for file in tmp_path.iterdir()] == ["edits.json"]
    assert again == edit == Edit.from_json(json.loads(json.dumps(edit.to_json())))
    assert hash(again) == hash(edit)
    texts = [TEXTS[0], TEXTS[2]]
    plain, first, second = (capture(model, texts, ["logits"], positions="all", edits=edits)["logits"] for edits in ([], [edit], [again]))
    assert torch.equal(first, second)
    if edit.positions != "generated":
        assert not torch.equal(first, plain)
    assert generate(model, texts, edits=[edit], max_new_tokens=5) == generate(model, texts, edits=[again], max_new_tokens=5)


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 2.0},
        {"positions": "prompt"},
        {"site": "resid_mid.2"},
        {"values": [1.0] * D_MODEL},
        {"op": "project_out", "strength": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_edits_that_differ_are_unequal(change: dict[str, Any]) -> None:
    record = EVERY[0].to_json()
    assert Edit.from_json({**record, **change}) != Edit.from_json(record)
    assert Edit.from_json(record) != record


def test_one_edit_alone_in_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(EVERY[0].to_json()))
    assert load_edits(tmp_path / "one.json") == [EVERY[0]]


def test_fields_left_out_have_their_defaults() -> None:
    edit = Edit.from_json({"op": "add", "site": "resid_post.1", "values": [1, 2]})
    assert edit == Edit.add("resid_post.1", [1.0, 2.0], 1.0, "all")


def test_a_strength_can_be_multiplied_where_there_is_one() -> None:
    assert EVERY[0].times(2.0) == Edit.add("resid_mid.1", VECTOR, 3.4)
    assert EVERY[5].times(0.0).strength == 0
    with pytest.raises(UserError, match="'patch' has no strength"):
        Edit.patch("ln_final", VECTOR).times(2.0)
    with pytest.raises(UserError, match="strength"):
        EVERY[5].times(1e308).times(1e308)


def test_an_edit_keeps_its_own_copy_of_the_vector() -> None:
    vector = torch.ones(4)
    edit = Edit.add("resid_mid.1", vector)
    vector.zero_()
    assert edit.values is not None
    assert edit.values.tolist() == [1.0] * 4


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    edit = Edit.scale_keys([(np.int64(1), torch.tensor(2))], np.float32(3.0))
    assert json.loads(json.dumps(edit.to_json())) == {
        "op": "scale_keys", "site": None, "values": None, "strength": 3.0, "neurons": [[1, 2]], "positions": "all"
    }  # fmt: skip


GOOD: dict[str, Any] = {"op": "add", "site": "resid_mid.1", "values": [1.0] * D_MODEL}
BAD: list[tuple[Any, str]] = [
    # the record
    ("add", "must be a JSON object, not str"),
    (None, "must be a JSON object, not NoneType"),
    ({}, "op is None"),
    ({**GOOD, "op": "delete"}, "op is 'delete'"),
    ({**GOOD, "op": ["add"]}, r"op is \['add'\]"),
    ({**GOOD, "factor": 2}, "unknown fields: factor"),
    ({**GOOD, "neurons": [1]}, "'add' has no use for neurons"),
    ({"op": "scale", "site": "mlp_post.1", "strength": 2.0, "values": [1.0]}, "'scale' has no use for values"),
    ({"op": "scale_keys", "site": "mlp_pre.1", "neurons": [[1, 2]]}, "'scale_keys' has no use for site"),
    ({"op": "patch", "site": "ln_final", "values": [1.0] * D_MODEL, "strength": 2.0}, "'patch' has no use for strength"),
    # the site
    ({**GOOD, "site": None}, "site is None"),
    ({**GOOD, "site": 3}, "site is 3"),
    ({**GOOD, "site": ""}, "'' is not a site"),
    ({**GOOD, "site": "residual.1"}, "'residual.1' is not a site"),
    ({**GOOD, "site": "resid_mid"}, "'resid_mid' needs a layer"),
    ({**GOOD, "site": "resid_mid.-1"}, "'resid_mid.-1' needs a layer"),
    ({**GOOD, "site": "resid_mid.1.5"}, "needs a layer"),
    ({**GOOD, "site": "logits.1"}, "'logits' has no layer"),
    ({**GOOD, "site": "resid_mid.3"}, "'resid_mid.3' is out of range: the model has 3 layers"),
    ({"op": "set", "site": "mlp_gate.1", "strength": 1.0}, "no site 'mlp_gate': it belongs to gated"),
    # the vector
    ({**GOOD, "values": None}, "'add' has no values"),
    ({**GOOD, "values": []}, "zero everywhere"),
    ({**GOOD, "values": [0.0] * D_MODEL}, "zero everywhere"),
    ({**GOOD, "values": [float("nan")] * D_MODEL}, "NaN or infinity"),
    ({**GOOD, "values": [float("inf")] * D_MODEL}, "NaN or infinity"),
    ({**GOOD, "values": [1e39] * D_MODEL}, "NaN or infinity"),
    ({**GOOD, "values": [10**400] * D_MODEL}, "not numbers"),
    ({**GOOD, "values": ["a"] * D_MODEL}, "not numbers"),
    ({**GOOD, "values": {"a": 1}}, "not numbers"),
    ({**GOOD, "values": [[1.0], [1.0, 2.0]]}, "not numbers of one shape"),
    ({**GOOD, "values": 1.0}, "have 0 axes"),
    ({**GOOD, "values": [[1.0] * D_MODEL]}, "have 2 axes"),
    ({**GOOD, "values": [1.0] * 31}, "holds 31 numbers, but that site is 32 wide"),
    ({**GOOD, "site": "mlp_post.1"}, "holds 32 numbers, but that site is 128 wide"),
    ({**GOOD, "site": "logits"}, "holds 32 numbers, but that site is 390 wide"),
    ({"op": "project_out", "site": "resid_mid.1", "values": [0.0] * D_MODEL}, "zero everywhere"),
    ({"op": "patch", "site": "resid_mid.1", "values": 1.0}, "patch of 0 axes"),
    ({"op": "patch", "site": "resid_mid.1", "values": [[[[1.0]]]]}, "patch of 4 axes"),
    ({"op": "patch", "site": "resid_mid.1", "values": [[1.0] * D_MODEL] * 2, "positions": [1]}, "holds 2 positions, but 1 are named"),
    # the strength
    ({**GOOD, "strength": True}, "strength is 'True'"),
    ({**GOOD, "strength": "2"}, "strength is '2'"),
    ({**GOOD, "strength": None}, "strength is 'None'"),
    ({**GOOD, "strength": float("nan")}, "strength is 'nan'"),
    ({**GOOD, "strength": float("-inf")}, "strength is '-inf'"),
    ({**GOOD, "strength": 10**400}, "strength is '1000"),
    ({"op": "scale", "site": "mlp_post.1", "strength": False}, "factor is 'False'"),
    ({"op": "set", "site": "mlp_post.1", "strength": [1]}, r"value is '\[1\]'"),
    # the neurons
    ({"op": "scale_keys", "neurons": []}, "no neurons"),
    ({"op": "scale_keys"}, "has neurons None"),
    ({"op": "scale_keys", "neurons": [5, 7]}, r"has neurons \[5, 7\]"),
    ({"op": "scale_keys", "neurons": [[1, 2, 3]]}, r"has neurons \[\(1, 2, 3\)\]"),
    ({"op": "scale_keys", "neurons": {"1": 2}}, "has neurons"),
    ({"op": "scale_keys", "neurons": [[0, -1]]}, "neuron '-1' is not a whole number"),
    ({"op": "scale_keys", "neurons": [[0.5, 1]]}, "layer '0.5' is not a whole number"),
    ({"op": "scale_keys", "neurons": [[True, 1]]}, "layer 'True' is not a whole number"),
    ({"op": "scale_keys", "neurons": [[3, 0]]}, "neuron 3.0 does not exist: the model has 3 layers of 128"),
    ({"op": "scale_keys", "neurons": [[0, 128]]}, "neuron 0.128 does not exist"),
    ({"op": "set", "site": "mlp_post.1", "neurons": []}, "empty list of neurons"),
    ({"op": "set", "site": "mlp_post.1", "neurons": 5}, "neurons 5 is not a list"),
    ({"op": "set", "site": "mlp_post.1", "neurons": "5"}, "neuron"),
    ({"op": "set", "site": "mlp_post.1", "neurons": [128]}, "names index 128, but that site is 128 wide"),
    ({"op": "scale", "site": "resid_mid.1", "neurons": [32]}, "names index 32"),
    # the positions
    ({**GOOD, "positions": "mean"}, "positions 'mean' is unknown"),
    ({**GOOD, "positions": []}, "empty list of positions"),
    ({**GOOD, "positions": None}, "positions None is unknown"),
    ({**GOOD, "positions": [-1]}, "position '-1' is not a whole number"),
    ({**GOOD, "positions": [1.5]}, "position '1.5'"),
    ({**GOOD, "positions": [10**30]}, "position '1000"),
    ({**GOOD, "positions": True}, "positions True is unknown"),
    ({**GOOD, "positions": {"all": 1}}, "is unknown"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("record", "fault"), BAD, ids=[f"{number}-{fault[:40]}" for number, (_, fault) in enumerate(BAD)])
def test_a_bad_edit_is_refused_by_the_name_of_its_fault(gpt2: Model, record: Any, fault: str) -> None:
    with pytest.raises(UserError, match=fault) as caught:  # noqa: PT012  (reading and fitting are one journey)
        edit = Edit.from_json(record)
        transforms_of([edit], gpt2)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_a_patch_whose_rows_are_not_the_batchs_is_refused(gpt2: Model) -> None:
    edits = [Edit.patch("resid_mid.1", MANY)]
    with editing(gpt2, edits), pytest.raises(UserError, match="has 2 rows"):
        gpt2.hf(torch.tensor([[1, 2, 3]] * 3))
    with pytest.raises(UserError, match="has 2 rows"):
        generate(gpt2, ["a", "the", "of"], edits=edits)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"3", "must be a JSON object"),
        (b'[{"op": "x"}]', "op is 'x'"),
    ],
)
def test_a_file_that_holds_no_edits_is_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=fault):
        load_edits(tmp_path / "bad.json")


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_edits(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read"):
        load_edits(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        'Edit.add("resid_post.5", [0.1, -2.0, 1e-20], 4.0)',
        'Edit.add("resid_post.5", [1.0], -1.0, positions="generated")',
        'Edit.scale("mlp_post.0", 2.0)',
        'Edit.scale("mlp_post.0", 2.0, [1, 2], positions=[0, 3])',
        "Edit.scale_keys([(5, 770)], 10.0)",
        'Edit.scale_keys([(5, 770), (1, 2)], 10.0, positions="from_last")',
        'Edit.set("mlp_gate.3", 0.0, [7])',
        'Edit.project_out("resid_mid.1", [1.0, 2.0], positions="prompt")',
        'Edit.patch("logits", [[1.5, 2.0], [3.0, 4.0]])',
    ],
)
def test_an_edit_is_shown_as_the_call_that_makes_it(text: str) -> None:
    edit = eval(text)
    assert repr(edit) == text
    assert eval(repr(edit)) == edit


def test_what_is_too_large_to_paste_is_shown_as_its_shape() -> None:
    assert repr(Edit.subtract("resid_post.5", torch.ones(512))) == 'Edit.add("resid_post.5", <512 numbers>, -1.0)'
    assert repr(Edit.patch("resid_post.5", torch.ones(2, 3, 512))) == 'Edit.patch("resid_post.5", <2 x 3 x 512 numbers>)'


def test_what_an_edit_does_at_a_site_carries_the_edit_for_engines_that_run_no_functions(gpt2: Model) -> None:
    edits = [Edit.scale_keys([(1, 3), (2, 7)], 8.0), Edit.add("resid_mid.1", torch.ones(gpt2.d_model), 2.0)]
    transforms = transforms_of(edits, gpt2)
    assert {site: [one.edit for one in some] for site, some in transforms.items()} == {
        "mlp_pre.1": [edits[0]], "mlp_pre.2": [edits[0]], "resid_mid.1": [edits[1]],
    }  # fmt: skip
    places = torch.arange(3).unsqueeze(0)
    frame = Frame(places, torch.ones_like(places, dtype=torch.bool), torch.tensor([3]))
    x = torch.randn(1, 3, gpt2.d_model)
    assert torch.equal(transforms["resid_mid.1"][0](x, frame), x + 2.0)
    with pytest.raises(FrozenInstanceError):
        transforms["resid_mid.1"][0].edit = edits[0]
