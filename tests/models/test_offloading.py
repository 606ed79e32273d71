"""Models larger than one device: layers offloaded to memory and to disk read, edit and generate as if they were not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import Edit, Model, UserError, capture, editing, generate, load_model
from interp.edits.transforms import transforms_of
from interp.models.hooks import Frame
from interp.models.tokens import pad, token_rows
from tests.conftest import TEXTS

pytest.importorskip("accelerate", reason="needs the extra `train`")
ALL = list(TEXTS)


def spread(kind: str, where: str) -> dict[str, str]:
    """Embeddings and the last layers on disk or wherever, the first layer in memory."""
    if kind == "gpt2":
        parts = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": where}
        return {**parts, "transformer.h.2": where, "transformer.ln_f": where, "lm_head": "cpu"}
    parts = {"model.embed_tokens": where, "model.layers.0": "cpu", "model.layers.1": where, "model.layers.2": "cpu"}
    return {**parts, "model.norm": where, "model.rotary_emb": "cpu", "lm_head": where}


@pytest.fixture
def both(model: Model, tmp_path: Path) -> tuple[Model, Model]:
    """A model loaded whole, and the same one with layers on disk."""
    assert model.checkpoint is not None
    parts = spread(model.name, "disk")
    return model, load_model(model.checkpoint.source, device_map=parts, offload_folder=tmp_path / "off", name=model.name)


def edits_of(model: Model) -> list[Edit]:
    v = torch.linspace(-1, 2, model.d_model)
    return [
        Edit.add("resid_mid.1", v, 0.5, "from_last"),
        Edit.scale_keys([(0, 3), (1, 7), (2, 40)], 6.0),
        Edit.scale("mlp_post.2", -2.0, [3, 9]),
        Edit.set("z.1", 0.0, [0, 1, 2], [0, 1]),
        Edit.project_out("attn_out.2", v),
        Edit.patch("resid_post.0", v, [0]),
        Edit.patch("resid_pre.2", torch.stack([v, -v]), [0, 1]),
    ]


def test_what_is_offloaded_reads_and_edits_the_same(both: tuple[Model, Model]) -> None:
    whole, parted = both
    assert any(parameter.is_meta for parameter in parted.hf.parameters()), "nothing is offloaded, so nothing is tested"
    assert parted.device == torch.device("cpu")
    for edits in ([], edits_of(whole)):
        for positions in ("last", "all"):
            got, expected = (capture(m, ALL, whole.sites(), positions=positions, edits=edits) for m in (parted, whole))
            for site in expected:
                assert torch.equal(got[site], expected[site]), site
        assert generate(parted, ALL, edits=edits, max_new_tokens=5) == generate(whole, ALL, edits=edits, max_new_tokens=5)
    assert any(parameter.is_meta for parameter in parted.hf.parameters())


def test_weights_by_meaning_and_the_hash_are_those_of_the_whole_model(both: tuple[Model, Model]) -> None:
    whole, parted = both
    assert parted.digest == whole.digest
    assert (parted.d_mlp, parted.d_vocab, parted.d_attention) == (whole.d_mlp, whole.d_vocab, whole.d_attention)
    for layer in range(whole.n_layers):
        for read in ("key_vectors", "key_biases", "value_vectors", "value_bias"):
            assert torch.equal(getattr(parted, read)(layer), getattr(whole, read)(layer)), (read, layer)
    assert torch.equal(parted.unembedding, whole.unembedding)
    assert torch.equal(parted.final_gain, whole.final_gain)


def test_a_capture_that_stops_early_leaves_an_offloaded_model_usable(both: tuple[Model, Model]) -> None:
    whole, parted = both
    before = [name for name, parameter in parted.hf.named_parameters() if parameter.is_meta]
    for site in ("resid_mid.1", "mlp_post.1", "z.1", "resid_pre.2"):
        assert torch.equal(capture(parted, ALL, [site])[site], capture(whole, ALL, [site])[site])
    assert [name for name, parameter in parted.hf.named_parameters() if parameter.is_meta] == before
    with editing(parted, edits_of(whole)[:1]):
        edited = capture(parted, ALL, ["logits"])["logits"]
    assert not torch.equal(edited, capture(parted, ALL, ["logits"])["logits"])


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}], ids=str)
def test_a_map_that_keeps_everything_in_memory_changes_nothing(gpt2: Model, gpt2_folder: Path, device_map: Any) -> None:
    other = load_model(gpt2_folder, device_map=device_map)
    if other.device.type == "cpu":
        edits = edits_of(gpt2)
        assert torch.equal(capture(other, ALL, ["logits"], edits=edits)["logits"], capture(gpt2, ALL, ["logits"], edits=edits)["logits"])
    assert other.digest == gpt2.digest


def test_an_edit_meets_its_site_on_the_sites_own_device(model: Model) -> None:
    """`meta` stands for a second device: torch refuses to mix it with the first one just as it refuses two GPUs."""
    tokens = pad(token_rows(model, ALL), 0, "left")
    frame = Frame(tokens.positions, tokens.mask, tokens.lengths)
    heads = Edit.project_out("z.0", torch.ones(model.d_attention))
    for edit in [*edits_of(model), Edit.set("logits", 1.0, [0]), Edit.scale("resid_mid.0", 2.0), heads]:
        for site, transforms in transforms_of([edit], model).items():
            width = model.width(site.split(".")[0])
            tail = (model.n_heads, width // model.n_heads) if site.startswith("z.") else (width,)
            x = torch.empty(*tokens.ids.shape, *tail, device="meta")
            with pytest.raises(RuntimeError, match="device"):
                x.flatten(2) @ torch.ones(width)
            assert (transforms[0](x, frame).device, transforms[0](x, frame).shape) == (x.device, x.shape)


def test_an_offloaded_model_is_not_copied_for_the_adapters(both: tuple[Model, Model]) -> None:
    with pytest.raises(UserError, match="are offloaded"):
        both[1].plain_copy()


def test_maps_that_cannot_work_are_refused(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, problem in (
        ({"device_map": "everywhere"}, "device_map is 'everywhere'"),
        ({"device_map": spread("gpt2", "disk")}, "no folder is given"),
        ({"device_map": "auto", "device": "cuda"}, "both device"),
        ({"device_map": {"": "nowhere"}}, "could not be loaded"),
    ):
        with pytest.raises(UserError, match=problem):
            load_model(gpt2_folder, **settings)
    found = importlib.util.find_spec
    monkeypatch.setattr("interp.models.offloading.find_spec", lambda name: None if name == "accelerate" else found(name))
    with pytest.raises(UserError, match=r"needs the library accelerate.*pip install"):
        load_model(gpt2_folder, device_map="auto")
    load_model(gpt2_folder)
